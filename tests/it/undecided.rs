//! Answers that cannot be told yet: the handler is asked again when something was found out elsewhere.

use std::sync::Mutex;
use std::sync::mpsc;

use serverd::{HttpServer, Intake, Request, RequestHead, Responder, Response, StatusCode, layers};

use crate::harness::{Backend, PATIENCE, RESET_IS_AN_END, Server, on_every_backend, serve, skipped_under_wine};

#[derive(Clone, PartialEq)]
struct Verdict(&'static str);

/// Answers what it was asked with, if the guard lets it through; bodies under /stream are taken as they come.
struct Inner;

impl serverd::Handler for Inner {
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        if head.path() != "/stream" {
            return Intake::Default;
        }
        Intake::fold(1 << 20, 0, |sum, piece| *sum += piece.len(), |sum| format!("taken {sum}\n"))
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let verdict = request.extension::<Verdict>().map_or("none", |verdict| verdict.0);
        Response::text(format!("{} {} {verdict} {}\n", request.method(), request.target(), request.body().len()))
    }
}

/// A server behind a guard that asks the test what to do.
fn guarded<B: Backend>() -> (Server, mpsc::Receiver<Responder>) {
    let (send, receive) = mpsc::channel();
    let send = Mutex::new(send);
    let server = serve::<B, _>(move || {
        HttpServer::with(layers::guard(Inner, move |head| match head.extension() {
            Some(Verdict("no")) => Some(StatusCode::FORBIDDEN.into()),
            Some(_) => None,
            None => {
                let (response, responder) = Response::undecided();
                send.lock().expect("a lock").send(responder).expect("the test waits");
                Some(response.field("X-Stand-In", "yes"))
            }
        }))
    });
    (server, receive)
}

on_every_backend! {
    fn the_handler_is_asked_again_with_what_was_found<B>() {
        let (server, questions) = guarded::<B>();
        let mut client = server.connect();
        client.send("GET /a?b HTTP/1.1\r\nHost: x\r\n\r\nGET /second HTTP/1.1\r\nHost: x\r\n\r\n");
        questions.recv_timeout(PATIENCE).expect("a question").ask_again(Verdict("yes"));
        let answer = client.answer();
        assert_eq!((answer.text().as_str(), answer.field("x-stand-in")), ("GET /a?b yes 0\n", None));
        questions.recv_timeout(PATIENCE).expect("a question").ask_again(Verdict("no"));
        assert_eq!(client.answer().status, 403);
    }

    fn the_answer_may_also_be_given_instead<B>() {
        let (server, questions) = guarded::<B>();
        let mut client = server.connect();
        client.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        questions.recv_timeout(PATIENCE).expect("a question").respond(StatusCode::UNAUTHORIZED);
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("x-stand-in")), (401, Some("yes")));
        client.send("HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n");
        drop(questions.recv_timeout(PATIENCE).expect("a question"));
        assert_eq!(client.answer_to("HEAD").status, 500);
    }

    fn a_body_is_read_only_when_the_head_was_let_through<B>() {
        let (server, questions) = guarded::<B>();
        let mut client = server.connect();
        for (path, text) in [("/collect", "POST /collect yes 5\n"), ("/stream", "taken 5\n")] {
            client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"));
            let question = questions.recv_timeout(PATIENCE).expect("a question");
            question.ask_again(Verdict("yes"));
            assert_eq!(client.answer_to("HEAD").status, 100, "nothing is asked for before");
            client.send("hello");
            assert_eq!(client.answer().text(), text);
        }
        for (path, text) in [("/collect", "POST /collect yes 5\n"), ("/stream", "taken 5\n")] {
            client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"));
            questions.recv_timeout(PATIENCE).expect("a question").ask_again(Verdict("yes"));
            let answer = client.answer_to("GET");
            assert_eq!(answer.text(), text);
        }
        client.send("POST /collect HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n");
        questions.recv_timeout(PATIENCE).expect("a question").ask_again(Verdict("no"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("connection")), (403, Some("close")));
    }

    fn a_handler_that_saw_the_body_is_asked_again_with_it<B>() {
        let (send, questions) = mpsc::channel();
        let send = Mutex::new(send);
        let server = serve::<B, _>(move || {
            HttpServer::new(move |request: &Request<'_>| {
                if let Some(Verdict(text)) = request.extension() {
                    return Response::text(format!("{text} {}\n", request.body().len()));
                }
                let (response, responder) = Response::undecided();
                send.lock().expect("a lock").send(responder).expect("the test waits");
                response
            })
        });
        let mut client = server.connect();
        for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
            client.send(format!("POST / HTTP/1.1\r\nHost: x\r\n{body}"));
            questions.recv_timeout(PATIENCE).expect("a question").ask_again(Verdict("kept"));
            assert_eq!(client.answer().text(), "kept 5\n");
        }
    }

    fn a_request_that_was_not_kept_is_answered_500<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::new(|_: &Request<'_>| {
                let (response, responder) = Response::later();
                responder.ask_again(Verdict("yes"));
                response
            })
        });
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.answer().status, 500);
    }

    fn who_leaves_meanwhile_is_not_waited_for<B>() {
        if skipped_under_wine(RESET_IS_AN_END) {
            return;
        }
        let (server, questions) = guarded::<B>();
        let mut client = server.connect();
        client.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        let question = questions.recv_timeout(PATIENCE).expect("a question");
        let (send, receive) = mpsc::channel();
        question.on_closed(move || send.send(()).expect("the test waits"));
        client.reset();
        receive.recv_timeout(PATIENCE).expect("the end is told");
        assert!(question.is_closed());
        question.ask_again(Verdict("yes"));
        let mut other = server.connect();
        other.send("GET /b HTTP/1.1\r\nHost: x\r\n\r\n");
        questions.recv_timeout(PATIENCE).expect("a question").ask_again(Verdict("yes"));
        assert_eq!(other.answer().status, 200);
    }
}
