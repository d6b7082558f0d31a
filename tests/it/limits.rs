//! Resource limits, and fairness between clients.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serverd::{HttpServer, LoopLimits, Request, Response, Timeouts};

use crate::harness::{Client, WAIT_MAX, accepted_from, on_every_backend, retry, serve, serve_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn hello() -> HttpServer<impl serverd::Handler> {
    HttpServer::new(|_: &Request<'_>| Response::text("hello"))
}

/// Returns a client with the given address, or `None` if it is refused.
fn served_from(source: &str, server: SocketAddr) -> Option<Client> {
    let mut client = accepted_from(source, server, GET)?;
    assert_eq!(client.response().status, 200);
    Some(client)
}

on_every_backend! {
    fn limits_of_zero_act_as_one<B>() {
        let limits = LoopLimits::default().read_bytes_per_turn(0).write_bytes_per_turn(0).accepts_per_turn(0);
        let limits = limits.handshakes_per_turn(0).connections_max(0);
        let server = serve_with::<B, _>(Timeouts::default(), limits, hello);
        for _ in 0..2 {
            let mut client = server.connect();
            client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            assert_eq!(client.response().text(), "hello");
            client.expect_close();
        }
    }

    fn connections_above_the_limit_of_an_address_are_reset<B>() {
        let limits = LoopLimits::default().connections_per_address_max(2);
        let server = serve_with::<B, _>(Timeouts::default(), limits, hello);
        let mut open: Vec<_> = (0..2).map(|_| served_from("127.0.0.1:0", server.address).expect("served")).collect();
        for _ in 0..3 {
            assert!(served_from("127.0.0.1:0", server.address).is_none());
        }
        let others: &[&str] = if cfg!(target_os = "linux") { &["127.0.0.2:0", "127.1.2.3:0"] } else { &[] };
        let others: Vec<_> = others.iter().map(|other| served_from(other, server.address).expect("served")).collect();
        for client in &mut open {
            client.send(GET);
            assert_eq!(client.response().status, 200);
        }
        // A closed connection no longer counts, however often that happens.
        let mut refused = 3;
        for _ in 0..5 {
            open.pop();
            open.push(retry(|| {
                let client = served_from("127.0.0.1:0", server.address);
                refused += u64::from(client.is_none());
                client.ok_or("the closed connection still counts")
            }));
            assert!(served_from("127.0.0.1:0", server.address).is_none());
            refused += 1;
        }
        drop((open, others));
        assert_eq!(server.drain().refused, refused);
    }

    fn a_connection_whose_application_panics_no_longer_counts_for_its_address<B>() {
        let limits = LoopLimits::default().connections_per_address_max(1);
        let server = serve_with::<B, _>(Timeouts::default(), limits, || {
            let mut calls = 0;
            move |wire: &mut serverd::Wire<'_, ()>| {
                calls += 1;
                // The first connections fail when they are opened, and one when it receives input.
                assert!(calls > 3 && wire.input() != b"!");
                wire.consume(wire.input().len());
                wire.output().extend(b"x");
                serverd::Flow::Read(serverd::Phase::Unlimited)
            }
        });
        let mut opened = 0;
        let start = Instant::now();
        while opened < 2 {
            assert!(start.elapsed() < WAIT_MAX);
            let Ok(mut socket) = TcpStream::connect(server.address) else { continue };
            socket.set_read_timeout(Some(WAIT_MAX)).expect("the socket is open");
            let mut byte = [0];
            if socket.read(&mut byte).is_ok_and(|count| count == 1) {
                opened += 1;
                socket.write_all(b"!").expect("the server reads");
                while socket.read(&mut byte).is_ok_and(|count| count == 1) {}
            }
        }
        assert_eq!(server.drain().panics, 5);
    }

    fn at_the_limit_open_connections_are_served_and_new_ones_wait<B>() {
        let limits = LoopLimits::default().connections_max(2);
        let server = serve_with::<B, _>(Timeouts::default(), limits, hello);
        let mut open: Vec<_> = (0..2).map(|_| server.connect()).collect();
        for client in &mut open {
            client.send(GET);
            client.response();
            // An idle connection would be closed for a new one.
            client.send(GET.trim_end());
        }
        let mut waiting = server.connect();
        waiting.send(GET);
        assert_eq!(waiting.line_within(Duration::from_millis(100)), None, "accepted beyond the limit");
        for client in &mut open {
            client.send(format!("\r\n\r\n{}", GET.trim_end()));
            client.response();
        }
        open.pop();
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
            while reader.read(&mut buffer).is_ok_and(|count| count > 0) {}
        });
        let mut modest = server.connect();
        let start = Instant::now();
        for _ in 0..50 {
            modest.send(GET);
            assert_eq!(modest.response().text(), "hello");
        }
        // Not a performance test: without fairness this never finishes.
        assert!(start.elapsed() < WAIT_MAX, "{:?}", start.elapsed());
        greedy.socket.shutdown(Shutdown::Both).expect("open socket");
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
