//! Deferred responses are sent once, in request order, and only to the right connection.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use serverd::{HttpServer, LoopLimits, Pool, PoolFull, Request, Responder, Response, StatusCode, Timeouts};

use crate::harness::{
    Backend, RESET_READS_AS_EOF, Server, WAIT_MAX, on_every_backend, serve, serve_with, skipped_in_emulator,
    skipped_under_wine, wait_for,
};

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// Starts a server that responds to `/now` immediately and defers all other responses, whose responders it passes to
/// the test.
fn server<B: Backend>() -> (Server, mpsc::Receiver<(String, Responder)>) {
    let (send, responders) = mpsc::channel();
    let server = serve::<B, _>(move || {
        HttpServer::new(move |request: &Request<'_>| {
            if request.path() == "/now" {
                return Response::text("now");
            }
            let (response, responder) = Response::later();
            send.send((request.path().to_owned(), responder)).expect("the test is receiving");
            response
        })
    });
    (server, responders)
}

fn next(responders: &mpsc::Receiver<(String, Responder)>) -> (String, Responder) {
    responders.recv_timeout(WAIT_MAX).expect("a request arrives")
}

on_every_backend! {
    over_tls_too:

    fn pipelined_requests_wait_for_a_deferred_response<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send(get("/deferred") + &get("/now") + &get("/deferred2"));
        let (path, responder) = next(&responders);
        assert_eq!(path, "/deferred");
        assert!(responders.try_recv().is_err(), "the pipelined request was already handled");
        responder.respond("first");
        assert_eq!(client.response().text(), "first");
        assert_eq!(client.response().text(), "now");
        let (path, responder) = next(&responders);
        responder.respond_with(move || path);
        assert_eq!(client.response().text(), "/deferred2");
    }

    fn a_response_that_takes_too_long_is_replaced_by_the_fallback<B>() {
        let (send, responders) = mpsc::channel();
        let server = serve::<B, _>(move || {
            HttpServer::new(move |request: &Request<'_>| {
                let limit = if request.path() == "/short" { Duration::from_millis(5) } else { WAIT_MAX };
                let (response, responder) = Response::later_within(limit, StatusCode::NO_CONTENT);
                let (closed_send, closed) = mpsc::channel();
                responder.on_closed(move || closed_send.send(()).expect("the test is receiving"));
                send.send((request.path().to_owned(), responder, closed)).expect("the test is receiving");
                response.header("X-Own", "1")
            })
        });
        let mut client = server.connect();
        client.send(get("/short") + &get("/long"));
        let (_, late, closed) = responders.recv_timeout(WAIT_MAX).expect("a request arrives");
        let response = client.response();
        assert_eq!((response.status, response.header("x-own")), (204, Some("1")));
        closed.recv_timeout(WAIT_MAX).expect("reported");
        assert!(late.is_closed());
        let (path, in_time, closed) = responders.recv_timeout(WAIT_MAX).expect("a request arrives");
        assert_eq!(path, "/long");
        late.respond("too late");
        assert!(!in_time.is_closed());
        in_time.respond("in time");
        assert_eq!(client.response().text(), "in time");
        assert!(closed.recv_timeout(WAIT_MAX).is_err(), "dropped without a report");
    }

    fn a_handler_schedules_closures_on_its_loop<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::new(|request: &Request<'_>| {
                let (response, responder) = Response::later();
                let thread = std::thread::current().id();
                request.handle().call_later(Duration::from_millis(2), move || {
                    let is_same = std::thread::current().id() == thread;
                    responder.respond(format!("{is_same} {}", serverd::Handle::current().is_some()));
                });
                response
            })
        });
        let mut client = server.connect();
        client.send(get("/"));
        assert_eq!(client.response().text(), "true true");
        assert!(serverd::Handle::current().is_none());
    }

    fn other_connections_are_served_while_a_response_is_pending<B>() {
        let (server, responders) = server::<B>();
        let mut waiting = server.connect();
        waiting.send(get("/deferred"));
        let (_, responder) = next(&responders);
        let mut other = server.connect();
        other.send(get("/now"));
        assert_eq!(other.response().text(), "now");
        responder.respond(StatusCode::NOT_FOUND);
        assert_eq!(waiting.response().status, 404);
    }

    fn a_responder_may_respond_before_the_handler_returns<B>() {
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
            assert_eq!(client.response().text(), "at once");
        }
    }

    fn a_dropped_responder_replies_500<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send(get("/deferred"));
        drop(next(&responders));
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (500, Some("close")));
        client.expect_close();
    }

    fn a_panicking_response_closure_gives_500<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send(get("/deferred"));
        next(&responders).1.respond_with(|| -> Response { panic!("requested by the test") });
        assert_eq!(client.response().status, 500);
    }

    fn a_closed_connection_is_reported_and_its_response_is_discarded<B>() {
        if skipped_under_wine(RESET_READS_AS_EOF) {
            return;
        }
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send(get("/deferred"));
        let (_, responder) = next(&responders);
        let (send, closed) = mpsc::channel();
        responder.on_closed(move || send.send(()).expect("the test is receiving"));
        assert!(!responder.is_closed());
        client.reset();
        closed.recv_timeout(WAIT_MAX).expect("on_closed is called");
        assert!(responder.is_closed());
        // A new connection reuses the slot; it must not get the stale response.
        let mut successor = server.connect();
        successor.send(get("/deferred"));
        let (_, current) = next(&responders);
        responder.respond("stale");
        current.respond("current");
        assert_eq!(successor.response().text(), "current");
        successor.send(get("/now"));
        assert_eq!(successor.response().text(), "now");
    }

    fn a_half_closed_client_still_gets_its_response<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send(get("/deferred") + &get("/now")).finish();
        let (_, responder) = next(&responders);
        responder.respond("late");
        assert_eq!(client.response().text(), "late");
        assert_eq!(client.response().text(), "now");
        client.expect_close();
    }

    fn a_drain_is_reported_and_waits_for_the_response<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send(get("/deferred"));
        let (_, responder) = next(&responders);
        let (send, draining) = mpsc::channel();
        responder.on_drain(move || send.send(()).expect("the test is receiving"));
        assert!(!responder.is_draining());
        server.handle.drain();
        draining.recv_timeout(WAIT_MAX).expect("on_drain is called");
        assert!(responder.is_draining());
        responder.respond("in time");
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("connection")), ("in time", Some("close")));
        client.expect_close();
        server.drain();
    }

    fn headers_added_to_the_placeholder_are_added_to_the_response<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::new(|_: &Request<'_>| {
                let (response, responder) = Response::later();
                std::thread::spawn(move || responder.respond(Response::text("body").header("X-Inner", "1")));
                response.header("X-Outer", "2").map(|response| response.with_status(StatusCode::ACCEPTED)).close()
            })
        });
        let mut client = server.connect();
        client.send(get("/"));
        let response = client.response();
        assert_eq!((response.status, response.header("x-inner"), response.header("x-outer")), (202, Some("1"), Some("2")));
        client.expect_close();
    }

    fn a_deferred_response_to_head_has_no_body<B>() {
        let (server, responders) = server::<B>();
        let mut client = server.connect();
        client.send("HEAD /deferred HTTP/1.1\r\nHost: x\r\n\r\n").send(get("/now"));
        next(&responders).1.respond("12345");
        let response = client.response_to("HEAD");
        assert_eq!(response.header("content-length"), Some("5"));
        assert_eq!(client.response().text(), "now");
    }

    #[plain_tcp]
    fn hundreds_of_mixed_responses_are_sent_in_order<B>() {
        // Each response is immediate, from another thread, or streamed, at random.
        for seed in 1..=3_u64 {
            let server = serve::<B, _>(move || {
                let pool = Pool::new(3, 10_000).expect("threads");
                let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                HttpServer::new(move |request: &Request<'_>| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let text = request.path().to_owned();
                    match random % 5 {
                        0 | 1 => Response::text(text),
                        2 => pool.offload(move || text, |text| text),
                        3 => Response::stream(vec![text[..1].to_owned(), text[1..].to_owned()]),
                        _ => {
                            let (response, sender) = Response::channel();
                            pool.run(move || {
                                sender.send_blocking(text[..1].to_owned()).expect("the client reads");
                                sender.send_blocking(text[1..].to_owned()).expect("the client reads");
                                sender.finish();
                            })
                            .expect("the pool has room");
                            response
                        }
                    }
                })
            });
            let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
            for client in &mut clients {
                let mut writer = client.socket.try_clone().expect("the socket is open");
                std::thread::spawn(move || {
                    let all: String = (0..300).map(|number| get(&format!("/{seed}/{number}"))).collect();
                    std::io::Write::write_all(&mut writer, all.as_bytes()).expect("the server keeps reading");
                });
            }
            for number in 0..300 {
                for client in &mut clients {
                    assert_eq!(client.response().text(), format!("/{seed}/{number}"));
                }
            }
        }
    }

    fn a_thousand_deferred_responses_can_be_pending<B>() {
        if skipped_in_emulator() {
            return;
        }
        crate::harness::raise_fd_limit();
        let (server, responders) = server::<B>();
        let mut clients = Vec::new();
        for number in 0..1000 {
            // Send at once: a connection that stays silent until all are open may time out.
            let mut client = server.connect();
            client.send(get(&format!("/{number}")) + &get("/now"));
            clients.push(client);
        }
        let mut waiting: Vec<_> = (0..1000).map(|_| next(&responders)).collect();
        // Respond in a different order, and from several threads.
        waiting.sort_by_key(|(path, _)| path.chars().rev().collect::<String>());
        std::thread::scope(|scope| {
            while !waiting.is_empty() {
                let part = waiting.split_off(waiting.len().saturating_sub(250));
                scope.spawn(move || part.into_iter().for_each(|(path, responder)| responder.respond(path)));
            }
        });
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.response().text(), format!("/{number}"));
            assert_eq!(client.response().text(), "now");
        }
    }

    fn a_full_pool_replies_503_and_keeps_working<B>() {
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().expect("not poisoned");
        let handler_gate = Arc::clone(&gate);
        let (send_start, started) = mpsc::channel();
        let (send_request, requested) = mpsc::channel();
        let server = serve::<B, _>(move || {
            let pool = Pool::new(1, 1).expect("a thread");
            HttpServer::new(move |request: &Request<'_>| {
                if request.path() == "/now" {
                    return Response::text("now");
                }
                send_request.send(()).expect("the test is receiving");
                let (gate, send_start) = (Arc::clone(&handler_gate), send_start.clone());
                let work = move || {
                    send_start.send(()).expect("the test is receiving");
                    drop(gate.lock().expect("not poisoned"));
                };
                pool.offload(work, |()| "done")
            })
        });
        let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
        clients[0].send(get("/slow"));
        started.recv_timeout(WAIT_MAX).expect("the job starts");
        for client in &mut clients[1..] {
            client.send(get("/slow"));
        }
        for _ in 0..8 {
            requested.recv_timeout(WAIT_MAX).expect("a request arrives");
        }
        let mut other = server.connect();
        other.send(get("/now"));
        assert_eq!(other.response().text(), "now");
        drop(held);
        let responses: Vec<_> = clients.iter_mut().map(crate::harness::Client::response).collect();
        let rejected: Vec<_> = responses.iter().filter(|response| response.status == 503).collect();
        // One job is running, one is queued.
        assert_eq!(rejected.len(), 6);
        assert!(rejected.iter().all(|response| response.header("retry-after") == Some("1")));
        assert!(responses.iter().all(|response| response.status == 503 || response.text() == "done"));
        other.send(get("/slow"));
        assert_eq!(other.response().text(), "done");
    }

    fn a_full_pool_gives_the_responder_back<B>() {
        let (send_start, started) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(released));
        let server = serve::<B, _>(move || {
            let pool = Pool::new(1, 0).expect("a thread");
            HttpServer::new(move |_: &Request<'_>| {
                let (response, responder) = Response::later();
                let (gate, send_start) = (Arc::clone(&gate), send_start.clone());
                let queued = pool.run_with(responder, move |responder: Responder| {
                    send_start.send(()).expect("the test is receiving");
                    gate.lock().expect("not poisoned").recv().expect_err("released");
                    responder.respond("done");
                });
                if let Err(PoolFull((responder, work))) = queued {
                    drop(work);
                    assert!(!responder.is_closed());
                    responder.respond(Response::from(PoolFull(())).header("X-Full", "yes"));
                }
                response
            })
        });
        let (mut first, mut second) = (server.connect(), server.connect());
        first.send(get("/"));
        started.recv_timeout(WAIT_MAX).expect("the job starts");
        second.send(get("/"));
        let response = second.response();
        let headers = ["x-full", "retry-after"].map(|name| response.header(name));
        assert_eq!((response.status, headers), (503, [Some("yes"), Some("1")]));
        drop(release);
        assert_eq!(first.response().text(), "done");
        wait_for("the queue is still full", || second.send(get("/")).response().status != 503);
    }

    fn a_panicking_job_replies_500_and_the_pool_keeps_working<B>() {
        let server = serve::<B, _>(|| {
            let pool = Pool::new(1, 10).expect("a thread");
            HttpServer::new(move |request: &Request<'_>| {
                let panics = request.path() == "/panic";
                pool.offload(move || assert!(!panics, "requested by the test"), |()| "done")
            })
        });
        for (path, status) in [("/panic", 500), ("/", 200), ("/panic", 500), ("/", 200)] {
            let mut client = server.connect();
            client.send(get(path));
            assert_eq!(client.response().status, status);
        }
    }

    #[plain_tcp]
    fn a_loop_that_ends_closes_pending_responders<B>() {
        let limits = LoopLimits::default().drain(Duration::from_millis(50));
        let closed = Arc::new(AtomicUsize::new(0));
        let (closed_count, responders) = (Arc::clone(&closed), Arc::new(Mutex::new(Vec::new())));
        let pending = Arc::clone(&responders);
        let called = Arc::new(AtomicBool::new(false));
        let handler_called = Arc::clone(&called);
        let server = serve_with::<B, _>(Timeouts::default(), limits, move || {
            HttpServer::new(move |_: &Request<'_>| {
                let (response, responder) = Response::later();
                let closed_count = Arc::clone(&closed_count);
                responder.on_closed(move || {
                    closed_count.fetch_add(1, Ordering::SeqCst);
                });
                pending.lock().expect("not poisoned").push(responder);
                handler_called.store(true, Ordering::SeqCst);
                response
            })
        });
        let mut client = server.connect();
        client.send(get("/"));
        wait_for("the handler is not called", || called.load(Ordering::SeqCst));
        server.drain();
        assert_eq!(closed.load(Ordering::SeqCst), 1);
        assert!(responders.lock().expect("not poisoned").iter().all(Responder::is_closed));
        client.expect_close();
    }
}
