//! Persistent connections: sequential and pipelined requests, connection close, and the number of system calls.

use std::time::Duration;

use serverd::{HttpServer, Request, Response};

use crate::harness::{Backend, Server, on_every_backend, serve};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Starts a server that responds with the request path.
fn path_server<B: Backend>() -> Server {
    serve::<B, _>(|| HttpServer::new(|request: &Request<'_>| Response::text(request.path().to_owned())))
}

on_every_backend! {
    over_tls_too:

    fn sequential_requests_are_served_on_one_connection<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        for number in 0..20 {
            client.send(format!("GET /{number} HTTP/1.1\r\nHost: x\r\n\r\n"));
            let response = client.response();
            assert_eq!((response.status, response.text()), (200, format!("/{number}")));
            assert_eq!(response.header("connection"), None);
        }
    }

    fn a_connection_closes_after_the_maximum_number_of_requests<B>() {
        let server = serve::<B, _>(|| {
            HttpServer::new(|request: &Request<'_>| Response::text(request.path().to_owned())).requests_max(3)
        });
        let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
        for requests in [GET.repeat(5), post.repeat(5)] {
            let mut client = server.connect();
            client.send(&requests);
            for number in 1..=3 {
                let response = client.response();
                assert_eq!(response.header("connection"), (number == 3).then_some("close"), "{number}");
            }
            client.finish().expect_close();
        }
    }

    fn the_idle_timeout_is_announced_if_the_connection_persists<B>() {
        let server = serve::<B, _>(|| HttpServer::new(|_| "hello").keep_alive_header(Duration::from_millis(75_900)));
        let mut client = server.connect();
        for request in [GET, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", GET] {
            let response = client.send(request).response();
            assert_eq!(response.header("keep-alive"), Some("timeout=75"));
            assert_eq!(response.header("connection"), Some("keep-alive"));
            assert_eq!(response.text(), "hello");
        }
        let response = client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").response();
        assert_eq!((response.header("keep-alive"), response.header("connection")), (None, Some("close")));
        client.expect_close();
    }

    fn pipelined_responses_are_sent_in_order<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        for number in 0..500 {
            client.send(format!("GET /{number} HTTP/1.1\r\nHost: x\r\n\r\n"));
        }
        for number in 0..500 {
            assert_eq!(client.response().text(), format!("/{number}"));
        }
    }

    fn a_request_sent_byte_by_byte_is_served<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        for byte in format!("{GET}HEAD / HTTP/1.1\nHost: x\n\n").bytes() {
            client.send([byte]);
        }
        assert_eq!(client.response().text(), "/");
        let head = client.response_to("HEAD");
        assert_eq!(head.header("content-length"), Some("1"));
    }

    fn a_half_closed_client_gets_every_response_and_a_clean_close<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        client.send(GET.repeat(3)).finish();
        for _ in 0..3 {
            assert_eq!(client.response().status, 200);
        }
        client.expect_close();
    }

    fn connection_close_ends_the_connection_and_is_announced<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        // Sent in one write: data that arrives after a request with `Connection: close` may be answered with a reset.
        client.send(["GET /1 HTTP/1.1\r\nHost: x\r\nConnection: x, CLOSE\r\n\r\n", GET].concat());
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("connection")), ("/1", Some("close")));
        client.expect_close();
    }

    fn http_1_0_needs_keep_alive_to_persist<B>() {
        let server = path_server::<B>();
        let mut client = server.connect();
        client.send("GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.response().header("connection"), Some("keep-alive"));
        client.send("GET /2 HTTP/1.0\r\n\r\n");
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("connection")), ("/2", Some("close")));
        client.expect_close();
    }

    fn many_connections_are_served_concurrently<B>() {
        let server = path_server::<B>();
        let mut clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
        for round in 0..3 {
            for (number, client) in clients.iter_mut().enumerate() {
                client.send(format!("GET /{round}/{number} HTTP/1.1\r\nHost: x\r\n\r\n"));
            }
            for (number, client) in clients.iter_mut().enumerate() {
                assert_eq!(client.response().text(), format!("/{round}/{number}"));
            }
        }
    }
}

/// Checks that a request costs one wait, one read and one write, and that only the first changes a registration. Not
/// run with fault injection, which splits reads and writes.
fn check_sequential_requests<B: Backend>() {
    let server = path_server::<B>();
    let mut client = server.connect();
    for _ in 0..1000 {
        client.send(GET);
        client.response();
    }
    drop(client);
    let counters = server.drain();
    assert!((1000..1010).contains(&counters.reads), "{counters:?}");
    assert_eq!(counters.writes, 1000, "{counters:?}");
    assert!((1000..1020).contains(&counters.waits), "{counters:?}");
    assert_eq!(counters.registrations, 1, "{counters:?}");
}

/// Checks that idle connections cost no system calls while another one is busy.
fn check_idle_connections<B: Backend>() {
    let server = path_server::<B>();
    let idle: Vec<_> = (0..200).map(|_| server.connect()).collect();
    let mut client = server.connect();
    for _ in 0..1000 {
        client.send(GET);
        client.response();
    }
    drop((client, idle));
    let counters = server.drain();
    // Each idle connection is accepted, perhaps read from once without data, registered, and closed.
    assert!((1000..1010 + 2 * 200).contains(&counters.reads), "{counters:?}");
    assert_eq!((counters.writes, counters.registrations), (1000, 201), "{counters:?}");
    assert!((1000..1020 + 2 * 200).contains(&counters.waits), "{counters:?}");
}

/// Checks the number of system calls for connections with one request each.
fn check_one_shot_connections<B: Backend>() {
    let server = path_server::<B>();
    for _ in 0..300 {
        let mut client = server.connect();
        client.send("GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        assert_eq!(client.response().status, 200);
        client.expect_close();
    }
    let counters = server.drain();
    assert_eq!((counters.writes, counters.closes), (300, 300), "{counters:?}");
    // Per connection, at most one accept finds the queue empty, and at most one read finds no data.
    assert!(counters.accepts <= 610, "{counters:?}");
    assert!(counters.reads <= 600, "{counters:?}");
    assert!(counters.registrations <= 300, "{counters:?}");
    assert!(counters.waits <= 620, "{counters:?}");
}

/// Checks that a batch of pipelined requests costs one read and one write.
fn check_pipelined_batches<B: Backend>() {
    let server = path_server::<B>();
    let mut client = server.connect();
    for _ in 0..100 {
        client.send(GET.repeat(16));
        for _ in 0..16 {
            client.response();
        }
    }
    drop(client);
    let counters = server.drain();
    assert!(counters.writes <= 110, "{counters:?}");
    assert!(counters.reads <= 120, "{counters:?}");
}

fn check_system_calls<B: Backend>() {
    check_sequential_requests::<B>();
    check_pipelined_batches::<B>();
    check_idle_connections::<B>();
    check_one_shot_connections::<B>();
}

#[test]
fn a_request_costs_one_read_and_one_write_on_select() {
    check_system_calls::<serverd::Select>();
}

#[test]
#[cfg(target_os = "linux")]
fn a_request_costs_one_read_and_one_write_on_epoll() {
    check_system_calls::<serverd::Epoll>();
}

#[test]
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
fn a_request_costs_one_read_and_one_write_on_kqueue() {
    check_system_calls::<serverd::Kqueue>();
}

#[test]
fn the_binary_has_options_for_keep_alive_hosts_and_memory() {
    let get = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    for backend in crate::process::backends() {
        let options = [
            "--port",
            "0",
            "--idle-timeout",
            "7s",
            "--keep-alive-header",
            "--max-requests",
            "2",
            "--max-buffered",
            "1MiB",
        ];
        let hosts = ["--allow-host", "localhost", "--allow-host", ".example.com", "--backend", backend];
        let server = crate::process::Running::start(&[&options[..], &hosts].concat());
        let mut client = server.connect();
        let response = client.send(get("localhost:8080")).response();
        assert_eq!((response.status, response.header("keep-alive")), (200, Some("timeout=7")));
        let response = client.send(get("evil.test")).response();
        assert_eq!((response.status, response.header("connection")), (421, Some("close")));
        client.expect_close();
        // Set these options with environment variables as well.
        let mut command = crate::process::serverd(&["--port", "0", "--backend", backend]);
        command.env("SERVERD_ALLOW_HOST", "localhost,.example.com").env("SERVERD_MAX_REQUESTS", "1");
        let server = crate::process::Running::spawn(command.env("SERVERD_KEEP_ALIVE_HEADER", "true"));
        for (host, status) in [("a.example.com", 200), ("localhost", 200), ("example.org", 421)] {
            let mut client = server.connect();
            let response = client.send(get(host)).response();
            assert_eq!((response.status, response.header("connection")), (status, Some("close")), "{host}");
            client.expect_close();
        }
    }
    let output = crate::process::serverd(&["--max-buffered", "1KiB"]).output().expect("the binary runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("must be at least 1MiB"));
}
