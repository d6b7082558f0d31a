//! Answers given later keep their order, reach nobody else, and are never two.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use serverd::r#loop::Limits;
use serverd::{HttpServer, Pool, Request, Responder, Response, StatusCode, Timeouts};

use crate::harness::{
    Backend, PATIENCE, RESET_IS_AN_END, Server, on_every_backend, serve, serve_with, skipped_in_an_emulator,
    skipped_under_wine,
};

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// Gives every responder to the test; `/now` is answered at once.
fn server<B: Backend>() -> (Server, mpsc::Receiver<(String, Responder)>) {
    let (send, responders) = mpsc::channel();
    let server = serve::<B, _>(move || {
        HttpServer::new(move |request: &Request<'_>| {
            if request.path() == "/now" {
                return Response::text("now");
            }
            let (response, responder) = Response::later();
            send.send((request.path().to_owned(), responder)).expect("the test waits");
            response
        })
    });
    (server, responders)
}

fn next(responders: &mpsc::Receiver<(String, Responder)>) -> (String, Responder) {
    responders.recv_timeout(PATIENCE).expect("a request came")
}

on_every_backend! {
    fn requests_behind_a_late_answer_wait_for_it<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send(get("/later") + &get("/now") + &get("/later2"));
        let (path, responder) = next(&responders);
        assert_eq!(path, "/later");
        assert!(responders.try_recv().is_err(), "the request behind was handled already");
        responder.respond("first");
        assert_eq!(client.answer().text(), "first");
        assert_eq!(client.answer().text(), "now");
        let (path, responder) = next(&responders);
        responder.respond_with(move || path);
        assert_eq!(client.answer().text(), "/later2");
    }

    fn others_are_served_meanwhile<B>() {
        let (server, responders) = server::<B>();
        let mut waiting = server.connect();
        waiting.send(get("/later"));
        let (_, responder) = next(&responders);
        let mut other = server.connect();
        other.send(get("/now"));
        assert_eq!(other.answer().text(), "now");
        responder.respond(StatusCode::NOT_FOUND);
        assert_eq!(waiting.answer().status, 404);
    }

    fn an_answer_may_be_there_before_the_handler_returns<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::new(|_: &Request<'_>| {
                let (response, responder) = Response::later();
                responder.respond("at once");
                response
            })
        });
        let mut client = server.connect();
        client.send(get("/").repeat(100));
        for _ in 0..100 {
            assert_eq!(client.answer().text(), "at once");
        }
    }

    fn a_responder_that_is_dropped_answers_500<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send(get("/later"));
        drop(next(&responders));
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("connection")), (500, Some("close")));
        client.expect_close();
    }

    fn a_late_answer_that_panics_is_500<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send(get("/later"));
        next(&responders).1.respond_with(|| -> Response { panic!("as asked") });
        assert_eq!(client.answer().status, 500);
    }

    fn a_client_that_is_gone_is_visible_and_its_answer_reaches_nobody<B>() {
        if skipped_under_wine(RESET_IS_AN_END) {
            return;
        }
        let (server, responders) = server::<B>();
        let mut gone = server.connect();
        gone.send(get("/later"));
        let (_, responder) = next(&responders);
        let (send, heard) = mpsc::channel();
        responder.on_closed(move || send.send(()).expect("the test waits"));
        assert!(!responder.is_closed());
        gone.reset();
        heard.recv_timeout(PATIENCE).expect("the end is told");
        assert!(responder.is_closed());
        // The slot of the connection has a new tenant, which must not get the answer.
        let mut heir = server.connect();
        heir.send(get("/later"));
        let (_, own) = next(&responders);
        responder.respond("not yours");
        own.respond("yours");
        assert_eq!(heir.answer().text(), "yours");
        heir.send(get("/now"));
        assert_eq!(heir.answer().text(), "now");
    }

    fn a_client_that_closed_its_sending_half_still_gets_its_answer<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send(get("/later") + &get("/now")).finish();
        let (_, responder) = next(&responders);
        responder.respond("late");
        assert_eq!(client.answer().text(), "late");
        assert_eq!(client.answer().text(), "now");
        client.expect_close();
    }

    fn a_drain_is_visible_and_waits_for_the_answer<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send(get("/later"));
        let (_, responder) = next(&responders);
        let (send, heard) = mpsc::channel();
        responder.on_drain(move || send.send(()).expect("the test waits"));
        assert!(!responder.is_draining());
        server.handle.drain();
        heard.recv_timeout(PATIENCE).expect("the drain is told");
        assert!(responder.is_draining());
        responder.respond("in time");
        let answer = client.answer();
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("in time", Some("close")));
        client.expect_close();
        server.drain();
    }

    fn what_was_added_to_the_stand_in_is_added_to_the_answer<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::new(|_: &Request<'_>| {
                let (response, responder) = Response::later();
                std::thread::spawn(move || responder.respond(Response::text("body").field("X-Inner", "1")));
                response.field("X-Outer", "2").map(|answer| answer.with_status(StatusCode::ACCEPTED)).close()
            })
        });
        let mut client = server.connect();
        client.send(get("/"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("x-inner"), answer.field("x-outer")), (202, Some("1"), Some("2")));
        client.expect_close();
    }

    fn head_is_answered_late_without_a_body<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send("HEAD /later HTTP/1.1\r\nHost: x\r\n\r\n").send(get("/now"));
        next(&responders).1.respond("12345");
        let answer = client.answer_to("HEAD");
        assert_eq!(answer.field("content-length"), Some("5"));
        assert_eq!(client.answer().text(), "now");
    }

    fn hundreds_of_mixed_answers_keep_their_order<B>() {
        // The handler's dice decide what is answered now, by another thread, or piece by piece.
        for seed in 1..=3_u64 {
            let server = serve::<B, _>(move || {
                let pool = Pool::new(3, 10_000).expect("threads");
                let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                HttpServer::new(move |request: &Request<'_>| {
                    dice ^= dice << 13;
                    dice ^= dice >> 7;
                    dice ^= dice << 17;
                    let text = request.path().to_owned();
                    match dice % 5 {
                        0 | 1 => Response::text(text),
                        2 => pool.offload(move || text, |text| text),
                        3 => Response::stream(vec![text[..1].to_owned(), text[1..].to_owned()]),
                        _ => {
                            let (response, sender) = Response::channel();
                            pool.run(move || {
                                sender.send_blocking(text[..1].to_owned()).expect("somebody reads");
                                sender.send_blocking(text[1..].to_owned()).expect("somebody reads");
                                sender.finish();
                            })
                            .expect("room");
                            response
                        }
                    }
                })
            });
            let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
            for client in &mut clients {
                let mut writer = client.socket.try_clone().expect("alive");
                std::thread::spawn(move || {
                    let all: String = (0..300).map(|number| get(&format!("/{seed}/{number}"))).collect();
                    std::io::Write::write_all(&mut writer, all.as_bytes()).expect("the server reads");
                });
            }
            for number in 0..300 {
                for client in &mut clients {
                    assert_eq!(client.answer().text(), format!("/{seed}/{number}"));
                }
            }
        }
    }

    fn a_thousand_late_answers_wait_at_once<B>() {
        if skipped_in_an_emulator() {
            return;
        }
        crate::harness::raise_descriptor_limit();
        let (server, responders) = server::<B>();
        let mut clients = Vec::new();
        for number in 0..1000 {
            // Who is silent until all are there may be so for too long.
            let mut client = server.connect();
            client.send(get(&format!("/{number}")) + &get("/now"));
            clients.push(client);
        }
        let mut waiting: Vec<_> = (0..1000).map(|_| next(&responders)).collect();
        // In another order than they came, and by several threads.
        waiting.sort_by_key(|(path, _)| path.chars().rev().collect::<String>());
        std::thread::scope(|scope| {
            while !waiting.is_empty() {
                let part = waiting.split_off(waiting.len().saturating_sub(250));
                scope.spawn(move || part.into_iter().for_each(|(path, responder)| responder.respond(path)));
            }
        });
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.answer().text(), format!("/{number}"));
            assert_eq!(client.answer().text(), "now");
        }
    }

    fn a_full_pool_answers_503_and_goes_on<B>() {
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().expect("free");
        let inner = Arc::clone(&gate);
        let (send_start, started) = mpsc::channel();
        let (send_request, requested) = mpsc::channel();
        let server = serve::<B, _>(move || {
            let pool = Pool::new(1, 1).expect("a thread");
            HttpServer::new(move |request: &Request<'_>| {
                if request.path() == "/now" {
                    return Response::text("now");
                }
                send_request.send(()).expect("the test waits");
                let (gate, send_start) = (Arc::clone(&inner), send_start.clone());
                let work = move || {
                    send_start.send(()).expect("the test waits");
                    drop(gate.lock().expect("not poisoned"));
                };
                pool.offload(work, |()| "done")
            })
        });
        let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
        clients[0].send(get("/slow"));
        started.recv_timeout(PATIENCE).expect("the work began");
        for client in &mut clients[1..] {
            client.send(get("/slow"));
        }
        for _ in 0..8 {
            requested.recv_timeout(PATIENCE).expect("a request");
        }
        let mut prompt = server.connect();
        prompt.send(get("/now"));
        assert_eq!(prompt.answer().text(), "now");
        drop(closed);
        let answers: Vec<_> = clients.iter_mut().map(crate::harness::Client::answer).collect();
        let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
        // One is under way, one waits.
        assert_eq!(refused.len(), 6);
        assert!(refused.iter().all(|answer| answer.field("retry-after") == Some("1")));
        assert!(answers.iter().all(|answer| answer.status == 503 || answer.text() == "done"));
        prompt.send(get("/slow"));
        assert_eq!(prompt.answer().text(), "done");
    }

    fn work_that_panics_is_answered_500_and_the_pool_goes_on<B>() {
        let server = serve::<B, _>(|| {
            let pool = Pool::new(1, 10).expect("a thread");
            HttpServer::new(move |request: &Request<'_>| {
                let panics = request.path() == "/panic";
                pool.offload(move || assert!(!panics, "as asked"), |()| "done")
            })
        });
        for (path, status) in [("/panic", 500), ("/", 200), ("/panic", 500), ("/", 200)] {
            let mut client = server.connect();
            client.send(get(path));
            assert_eq!(client.answer().status, status);
        }
    }

    fn a_loop_that_ends_tells_those_who_wait<B>() {
        let limits = Limits { drain: Duration::from_millis(50), ..Limits::default() };
        let closed = Arc::new(AtomicUsize::new(0));
        let (inner, keep) = (Arc::clone(&closed), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&keep);
        let began = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&began);
        let server = serve_with::<B, _>(Timeouts::default(), limits, move || {
            HttpServer::new(move |_: &Request<'_>| {
                let (response, responder) = Response::later();
                let inner = Arc::clone(&inner);
                responder.on_closed(move || {
                    inner.fetch_add(1, Ordering::SeqCst);
                });
                kept.lock().expect("sound").push(responder);
                mark.store(true, Ordering::SeqCst);
                response
            })
        });
        let mut client = server.connect();
        client.send(get("/"));
        while !began.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        server.drain();
        assert_eq!(closed.load(Ordering::SeqCst), 1);
        assert!(keep.lock().expect("sound").iter().all(Responder::is_closed));
        client.expect_close();
    }
}
