//! What can grow has a limit, and one client's appetite is not another's loss.

use std::io::Write;
use std::time::{Duration, Instant};

use serverd::r#loop::Limits;
use serverd::{HttpServer, Request, Response, Timeouts};

use crate::harness::{on_every_backend, serve, serve_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn hello() -> HttpServer<impl FnMut(&Request<'_>) -> Response> {
    HttpServer::new(|_: &Request<'_>| Response::text("hello"))
}

on_every_backend! {
    fn at_the_cap_who_is_inside_is_served_and_who_waits_comes_in_later<B>() {
        let limits = Limits { connections_max: 2, ..Limits::default() };
        let server = serve_with::<B, _>(Timeouts::default(), limits, hello);
        let mut inside: Vec<_> = (0..2).map(|_| server.connect()).collect();
        for client in &mut inside {
            client.send(GET);
            client.answer();
        }
        let mut waiting = server.connect();
        waiting.send(GET);
        waiting.socket.set_read_timeout(Some(Duration::from_millis(100))).expect("alive");
        assert!(waiting.socket.peek(&mut [0]).is_err(), "let in over the cap");
        for client in &mut inside {
            client.send(GET);
            client.answer();
        }
        inside.pop();
        waiting.socket.set_read_timeout(Some(crate::harness::PATIENCE)).expect("alive");
        assert_eq!(waiting.answer().status, 200);
    }

    fn a_client_that_pipelines_without_reading_is_stopped_not_stored<B>() {
        let server = serve::<B, _>(|| HttpServer::new(|_: &Request<'_>| Response::text(vec![b'x'; 10_000])));
        let mut greedy = server.connect();
        greedy.socket.set_write_timeout(Some(Duration::from_millis(300))).expect("alive");
        // Long requests, so that few answers are owed in the end.
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(4000));
        let batch = request.repeat(16);
        let mut sent = 0;
        // The server stops reading, so writing blocks long before the answers to all of it would fit in memory.
        while sent < 1 << 26 {
            match greedy.socket.write(batch.as_bytes()) {
                Ok(count) if count == batch.len() => sent += count,
                // Blocked: in the midst of a request, or before it.
                Ok(count) => {
                    sent += count;
                    break;
                }
                Err(_) => break,
            }
        }
        assert!(sent < 1 << 26, "the server took {sent} bytes of requests while nobody read the answers");
        let mut polite = server.connect();
        polite.send(GET);
        assert_eq!(polite.answer().body.len(), 10_000);
        // And what was taken is answered once the client reads.
        for _ in 0..sent / request.len() {
            assert_eq!(greedy.answer().body.len(), 10_000);
        }
    }

    fn a_polite_client_is_served_beside_one_that_pipelines_at_full_speed<B>() {
        let server = serve::<B, _>(hello);
        let greedy = server.connect();
        let mut reader = greedy.socket.try_clone().expect("alive");
        let mut writer = greedy.socket.try_clone().expect("alive");
        let writing = std::thread::spawn(move || {
            let batch = GET.repeat(1000);
            while writer.write_all(batch.as_bytes()).is_ok() {}
        });
        let reading = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while std::io::Read::read(&mut reader, &mut buffer).is_ok_and(|count| count > 0) {}
        });
        let mut polite = server.connect();
        let start = Instant::now();
        for _ in 0..50 {
            polite.send(GET);
            assert_eq!(polite.answer().text(), "hello");
        }
        // Not a measure of speed: without turns for everybody this never ends.
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        greedy.socket.shutdown(std::net::Shutdown::Both).expect("alive");
        writing.join().expect("no panic");
        reading.join().expect("no panic");
    }

    fn an_announced_length_takes_no_memory<B>() {
        let limits = serverd::http1::Limits { body_bytes_max: u64::MAX, ..serverd::http1::Limits::default() };
        let server = serve::<B, _>(move || hello().limits(limits));
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nx");
        client.send("");
        let mut other = server.connect();
        other.send(GET);
        assert_eq!(other.answer().text(), "hello");
    }

    fn an_application_that_does_not_consume_is_given_up_at_the_limit<B>() {
        let limits = Limits { input_bytes_max: 100_000, ..Limits::default() };
        let server = serve_with::<B, _>(Timeouts::default(), limits, || {
            |_: &mut serverd::Wire<'_, ()>| serverd::Flow::Read(serverd::Phase::Open)
        });
        let mut client = server.connect();
        let mut sent = 0;
        while client.socket.write_all(&[b'x'; 10_000]).is_ok() {
            sent += 10_000;
            assert!(sent < 1 << 28, "everything is taken");
        }
    }
}
