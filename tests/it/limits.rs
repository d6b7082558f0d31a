//! Resource limits, and fairness between clients.

use std::io::Write;
use std::time::{Duration, Instant};

use serverd::{HttpServer, LoopLimits, Request, Response, Timeouts};

use crate::harness::{on_every_backend, serve, serve_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn hello() -> HttpServer<impl FnMut(&Request<'_>) -> Response> {
    HttpServer::new(|_: &Request<'_>| Response::text("hello"))
}

on_every_backend! {
    fn at_the_limit_open_connections_are_served_and_new_ones_wait<B>() {
        let limits = LoopLimits::default().connections_max(2);
        let server = serve_with::<B, _>(Timeouts::default(), limits, hello);
        let mut open: Vec<_> = (0..2).map(|_| server.connect()).collect();
        for client in &mut open {
            client.send(GET);
            client.response();
        }
        let mut waiting = server.connect();
        waiting.send(GET);
        waiting.socket.set_read_timeout(Some(Duration::from_millis(100))).expect("open socket");
        assert!(waiting.socket.peek(&mut [0]).is_err(), "accepted beyond the limit");
        for client in &mut open {
            client.send(GET);
            client.response();
        }
        open.pop();
        waiting.socket.set_read_timeout(Some(crate::harness::WAIT_MAX)).expect("open socket");
        assert_eq!(waiting.response().status, 200);
    }

    fn a_client_that_pipelines_without_reading_is_throttled<B>() {
        let server = serve::<B, _>(|| HttpServer::new(|_: &Request<'_>| Response::text(vec![b'x'; 10_000])));
        let mut greedy = server.connect();
        greedy.socket.set_write_timeout(Some(Duration::from_millis(300))).expect("open socket");
        // Long requests, so that fewer responses remain to be read at the end.
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(4000));
        let batch = request.repeat(16);
        let mut sent = 0;
        // The server stops reading (back-pressure), so writing blocks long before all responses are buffered.
        while sent < 1 << 26 {
            match greedy.socket.write(batch.as_bytes()) {
                Ok(count) if count == batch.len() => sent += count,
                // Blocked, possibly within a request.
                Ok(count) => {
                    sent += count;
                    break;
                }
                Err(_) => break,
            }
        }
        assert!(sent < 1 << 26, "the server read {sent} bytes of requests while no response was read");
        let mut modest = server.connect();
        modest.send(GET);
        assert_eq!(modest.response().body.len(), 10_000);
        // All requests sent so far get a response once the client reads.
        for _ in 0..sent / request.len() {
            assert_eq!(greedy.response().body.len(), 10_000);
        }
    }

    fn a_modest_client_is_served_while_another_pipelines_at_full_speed<B>() {
        let server = serve::<B, _>(hello);
        let greedy = server.connect();
        let mut reader = greedy.socket.try_clone().expect("open socket");
        let mut writer = greedy.socket.try_clone().expect("open socket");
        let writing = std::thread::spawn(move || {
            let batch = GET.repeat(1000);
            while writer.write_all(batch.as_bytes()).is_ok() {}
        });
        let reading = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while std::io::Read::read(&mut reader, &mut buffer).is_ok_and(|count| count > 0) {}
        });
        let mut modest = server.connect();
        let start = Instant::now();
        for _ in 0..50 {
            modest.send(GET);
            assert_eq!(modest.response().text(), "hello");
        }
        // Not a performance test: without fairness this never finishes.
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        greedy.socket.shutdown(std::net::Shutdown::Both).expect("open socket");
        writing.join().expect("no panic");
        reading.join().expect("no panic");
    }

    fn a_declared_length_allocates_no_memory<B>() {
        let limits = serverd::http1::Limits::default().body_bytes_max(u64::MAX);
        let server = serve::<B, _>(move || hello().limits(limits));
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nx");
        client.send("");
        let mut other = server.connect();
        other.send(GET);
        assert_eq!(other.response().text(), "hello");
    }

    fn a_connection_with_too_much_unconsumed_input_is_closed<B>() {
        let limits = LoopLimits::default().input_bytes_max(100_000);
        let server = serve_with::<B, _>(Timeouts::default(), limits, || {
            |_: &mut serverd::Wire<'_, ()>| serverd::Flow::Read(serverd::Phase::Unlimited)
        });
        let mut client = server.connect();
        let mut sent = 0;
        while client.socket.write_all(&[b'x'; 10_000]).is_ok() {
            sent += 10_000;
            assert!(sent < 1 << 28, "the connection is not closed");
        }
    }
}
