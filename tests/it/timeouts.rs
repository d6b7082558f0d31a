//! Timeouts: every phase of a connection times out, and not too early.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serverd::{HttpServer, LoopLimits, Request, Response, Timeouts};

use crate::harness::{Backend, Client, Server, WAIT_MAX, on_every_backend, serve_with};

const SHORT: Duration = Duration::from_millis(200);
const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Starts a server with the given timeouts. Each test shortens one of them, so only that one can expire.
fn server<B: Backend>(timeouts: Timeouts) -> Server {
    let handler = |request: &Request<'_>| Response::text(format!("{}\n", request.body().len()));
    serve_with::<B, _>(timeouts, LoopLimits::default(), move || HttpServer::new(handler))
}

/// Uploads a body that takes longer than three intervals, above the minimum rate. Returns the longest pause between its
/// pieces if the server responds before it is complete.
fn upload_slowly(client: &mut Client) -> Result<(), Duration> {
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6000\r\n\r\n");
    client.socket.set_read_timeout(Some(Duration::from_millis(20))).expect("open socket");
    let start = Instant::now();
    let (mut sent_at, mut longest_pause) = (start, Duration::ZERO);
    for _ in 0..59 {
        client.send([b'x'; 100]);
        longest_pause = longest_pause.max(sent_at.elapsed());
        sent_at = Instant::now();
        if client.socket.peek(&mut [0]).is_ok() {
            return Err(longest_pause.max(sent_at.elapsed()));
        }
        if start.elapsed() > 3 * SHORT {
            break;
        }
    }
    assert!(start.elapsed() > 2 * SHORT);
    client.socket.set_read_timeout(Some(WAIT_MAX)).expect("open socket");
    client.send([b'x'; 6000]);
    let pause = longest_pause.max(sent_at.elapsed());
    if client.response().text() == "6000\n" { Ok(()) } else { Err(pause) }
}

on_every_backend! {
    over_tls_too:

    fn a_silent_connection_is_closed_without_a_response<B>() {
        let server = server::<B>(Timeouts::default().silent(SHORT));
        let start = Instant::now();
        server.connect().expect_close();
        assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
    }

    fn an_idle_connection_is_closed_without_a_response<B>() {
        let server = server::<B>(Timeouts::default().idle(SHORT));
        let mut client = server.connect();
        // The idle time starts when the response is sent, which may be well before the client receives it.
        let start = Instant::now();
        client.send(GET);
        client.response();
        client.expect_close();
        assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
    }

    #[plain_tcp]
    fn a_head_that_arrives_byte_by_byte_times_out<B>() {
        let server = server::<B>(Timeouts::default().head(SHORT));
        // The server reads its clock when it accepts the connection, possibly some time before it reads from it.
        let start = Instant::now();
        let mut client = server.connect();
        client.socket.set_read_timeout(Some(Duration::from_millis(20))).expect("open socket");
        client.send("GET / HTTP/1.1\r\nHost: x\r\nA: ");
        // Send byte by byte until the server gives up.
        while client.socket.peek(&mut [0]).is_err() {
            assert!(start.elapsed() < WAIT_MAX, "the head does not time out");
            client.send("a");
        }
        client.socket.set_read_timeout(Some(WAIT_MAX)).expect("open socket");
        assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (408, "request head not received in time\n"));
        client.finish().expect_close();
    }

    fn a_head_request_that_times_out_gets_no_content<B>() {
        let timeouts = Timeouts::default().head(SHORT).body(SHORT);
        let server = server::<B>(timeouts);
        for rest in ["A: ", "Content-Length: 9\r\n\r\n"] {
            let mut client = server.connect();
            client.send(format!("HEAD / HTTP/1.1\r\nHost: x\r\n{rest}"));
            assert_eq!(client.response_to("HEAD").status, 408);
            client.finish().expect_close();
        }
    }

    fn a_stalled_body_gets_408<B>() {
        let server = server::<B>(Timeouts::default().body(SHORT));
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhello");
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (408, "request body received too slowly\n"));
        client.finish().expect_close();
    }

    #[plain_tcp]
    fn a_body_above_the_minimum_rate_may_take_longer_than_the_interval<B>() {
        let server = server::<B>(Timeouts::default().body(SHORT));
        let start = Instant::now();
        while let Err(longest_pause) = upload_slowly(&mut server.connect()) {
            // The machine was too busy for a client of this rate.
            assert!(longest_pause > SHORT / 4, "response before the body was complete");
            assert!(start.elapsed() < WAIT_MAX, "this client is never fast enough");
        }
    }

    fn a_client_that_reads_nothing_is_reset<B>() {
        let timeouts = Timeouts::default().write(SHORT);
        let large = vec![b'x'; 32 << 20];
        let app = move || HttpServer::new(move |_: &Request<'_>| Response::text(large.clone()));
        let server = serve_with::<B, _>(timeouts, LoopLimits::default(), app);
        let mut client = server.connect();
        client.send(GET);
        client.read(1);
        // Read nothing for longer than twice the timeout, while another connection keeps the loop active.
        let mut other = server.connect();
        other.send("GET / HTTP/1.1\r\n");
        std::thread::sleep(5 * SHORT);
        let mut rest = Vec::new();
        let outcome = client.try_read_to_end(&mut rest);
        assert!(outcome.is_err() || rest.len() < 32 << 20, "the whole response was sent");
    }

    #[plain_tcp]
    fn a_slow_reader_that_makes_progress_gets_everything<B>() {
        // Long enough for a client that waits for CPU time, but shorter than the sum of its pauses.
        let limit = SHORT * 3;
        let timeouts = Timeouts::default().write(limit);
        let large = vec![b'x'; 16 << 20];
        let app = move || HttpServer::new(move |_: &Request<'_>| Response::text(large.clone()));
        let server = serve_with::<B, _>(timeouts, LoopLimits::default(), app);
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            // Many pauses, each shorter than the timeout.
            std::thread::sleep(limit / 12);
            match client.socket.read(&mut buffer).expect("no reset") {
                0 => break,
                count => total += count,
            }
        }
        assert!(total > 16 << 20, "{total}");
    }

    fn a_cap_applies_to_every_phase<B>() {
        let mut timeouts = Timeouts::default();
        timeouts.cap(SHORT);
        let server = server::<B>(timeouts);
        let mut silent = server.connect();
        let mut head = server.connect();
        head.send("GET");
        let mut body = server.connect();
        body.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n");
        let mut idle = server.connect();
        idle.send(GET);
        idle.response();
        silent.expect_close();
        idle.expect_close();
        assert_eq!(head.response().status, 408);
        assert_eq!(body.response().status, 408);
    }
}

#[test]
fn an_idle_server_does_not_wake_up() {
    let server = server::<serverd::Select>(Timeouts::default());
    let mut client = server.connect();
    client.send(GET);
    client.response();
    std::thread::sleep(Duration::from_millis(300));
    drop(client);
    let counters = server.drain();
    assert!(counters.waits < 10, "{counters:?}");
}

/// Writing to a connection that the peer has reset closes only that connection.
#[test]
fn a_reset_does_not_affect_other_connections() {
    let server = server::<serverd::Select>(Timeouts::default());
    for _ in 0..50 {
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhello");
        client.reset();
    }
    let mut client = server.connect();
    client.socket.write_all(GET.as_bytes()).expect("open socket");
    assert_eq!(client.response().status, 200);
}
