//! Many requests on one connection: in turn, in one segment, and how the connection ends.

use serverd::{HttpServer, Request, Response};

use crate::harness::{Backend, Server, on_every_backend, serve};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Answers with the path.
fn path_server<B: Backend>() -> Server {
    serve::<B, _>(|| HttpServer::new(|request: &Request<'_>| Response::text(request.path().to_owned())))
}

on_every_backend! {
    fn requests_in_turn_are_answered_on_one_connection<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        for number in 0..20 {
            client.send(format!("GET /{number} HTTP/1.1\r\nHost: x\r\n\r\n"));
            let answer = client.answer();
            assert_eq!((answer.status, answer.text()), (200, format!("/{number}")));
            assert_eq!(answer.field("connection"), None);
        }
    }

    fn pipelined_requests_are_answered_in_order<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        for number in 0..500 {
            client.send(format!("GET /{number} HTTP/1.1\r\nHost: x\r\n\r\n"));
        }
        for number in 0..500 {
            assert_eq!(client.answer().text(), format!("/{number}"));
        }
    }

    fn a_request_in_single_octets_is_answered<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        for octet in format!("{GET}HEAD / HTTP/1.1\nHost: x\n\n").bytes() {
            client.send([octet]);
        }
        assert_eq!(client.answer().text(), "/");
        let head = client.answer_to("HEAD");
        assert_eq!(head.field("content-length"), Some("1"));
    }

    fn a_client_that_half_closes_gets_every_answer_and_a_clean_end<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        client.send(GET.repeat(3)).finish();
        for _ in 0..3 {
            assert_eq!(client.answer().status, 200);
        }
        client.expect_close();
    }

    fn close_is_obeyed_and_said<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        // At once: what a client sends behind the close that it asked for may be answered by a reset.
        client.send(["GET /1 HTTP/1.1\r\nHost: x\r\nConnection: x, CLOSE\r\n\r\n", GET].concat());
        let answer = client.answer();
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("/1", Some("close")));
        client.expect_close();
    }

    fn http_1_0_persists_only_when_asked_to<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        client.send("GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.answer().field("connection"), Some("keep-alive"));
        client.send("GET /2 HTTP/1.0\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("/2", Some("close")));
        client.expect_close();
    }

    fn many_connections_are_served_side_by_side<B>() {
        let server = path_server::<B>();
        let mut clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
        for round in 0..3 {
            for (number, client) in clients.iter_mut().enumerate() {
                client.send(format!("GET /{round}/{number} HTTP/1.1\r\nHost: x\r\n\r\n"));
            }
            for (number, client) in clients.iter_mut().enumerate() {
                assert_eq!(client.answer().text(), format!("/{round}/{number}"));
            }
        }
    }
}

/// One wait, one read and one write per request, and nothing registered after the first: on the system's own
/// backends, where reads and writes are not cut.
fn system_calls<B: Backend>() {
    let server = path_server::<B>();
    let mut client = server.connect();
    for _ in 0..1000 {
        client.send(GET);
        client.answer();
    }
    drop(client);
    let counters = server.drain();
    assert!((1000..1010).contains(&counters.reads), "{counters:?}");
    assert_eq!(counters.writes, 1000, "{counters:?}");
    assert!((1000..1020).contains(&counters.waits), "{counters:?}");
    assert_eq!(counters.registrations, 1, "{counters:?}");
}

/// The same beside connections that do nothing: they cost no call.
fn beside_idle<B: Backend>() {
    let server = path_server::<B>();
    let idle: Vec<_> = (0..200).map(|_| server.connect()).collect();
    let mut client = server.connect();
    for _ in 0..1000 {
        client.send(GET);
        client.answer();
    }
    drop((client, idle));
    let counters = server.drain();
    // Each idle one is accepted, perhaps read from in vain, registered, and seen to close.
    assert!((1000..1010 + 2 * 200).contains(&counters.reads), "{counters:?}");
    assert_eq!((counters.writes, counters.registrations), (1000, 201), "{counters:?}");
    assert!((1000..1020 + 2 * 200).contains(&counters.waits), "{counters:?}");
}

/// Counts what a loop calls for connections of one request each, and checks it.
fn one_shots<B: Backend>() {
    let server = path_server::<B>();
    for _ in 0..300 {
        let mut client = server.connect();
        client.send("GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        assert_eq!(client.answer().status, 200);
        client.expect_close();
    }
    let counters = server.drain();
    assert_eq!((counters.writes, counters.closes), (300, 300), "{counters:?}");
    // At most one that finds nobody for each that finds somebody, and so with the reads.
    assert!(counters.accepts <= 610, "{counters:?}");
    assert!(counters.reads <= 600, "{counters:?}");
    assert!(counters.registrations <= 300, "{counters:?}");
    assert!(counters.waits <= 620, "{counters:?}");
}

/// A batch is one read and one write.
fn batches<B: Backend>() {
    let server = path_server::<B>();
    let mut client = server.connect();
    for _ in 0..100 {
        client.send(GET.repeat(16));
        for _ in 0..16 {
            client.answer();
        }
    }
    drop(client);
    let counters = server.drain();
    assert!(counters.writes <= 110, "{counters:?}");
    assert!(counters.reads <= 120, "{counters:?}");
}

fn costs<B: Backend>() {
    system_calls::<B>();
    batches::<B>();
    beside_idle::<B>();
    one_shots::<B>();
}

#[test]
fn a_request_costs_one_read_and_one_write_on_select() {
    costs::<serverd::r#loop::Select>();
}

#[test]
#[cfg(target_os = "linux")]
fn a_request_costs_one_read_and_one_write_on_epoll() {
    costs::<serverd::r#loop::Epoll>();
}

#[test]
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
fn a_request_costs_one_read_and_one_write_on_kqueue() {
    costs::<serverd::r#loop::Kqueue>();
}
