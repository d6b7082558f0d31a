//! Peers that are slow, or that disappear: timeouts follow the peer's progress, and a peer that is gone is noticed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serverd::http1::Limits;
use serverd::{HttpServer, LoopLimits, Request, Responder, Response, Sender, Timeouts};

use crate::harness::{
    Backend, Client, RESET_READS_AS_EOF, Server, WAIT_MAX, on_every_backend, serve_with, skipped_on_windows,
    skipped_under_wine,
};

const LARGE_BYTES: usize = 8 << 20;

/// More than the receive buffer of [`connect_slow`], and less than the kernel accepts for sending.
const EVENT_BYTES: usize = 400_000;

/// Connects with a small receive buffer, as on a slow network.
fn connect_slow(server: &Server) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(32 * 1024).expect("an open socket");
    socket.connect(&server.address.into()).expect("the server listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(WAIT_MAX)).expect("open socket");
    stream
}

fn large<B: Backend>(timeouts: Timeouts, bytes: usize) -> Server {
    let body = vec![b'x'; bytes];
    serve_with::<B, _>(timeouts, LoopLimits::default(), move || {
        HttpServer::new(move |_: &Request<'_>| Response::text(body.clone()))
    })
}

/// Starts a server that never responds to `/late` by itself, and reports its responders and closed requests.
fn late<B: Backend>(limits: LoopLimits) -> (Server, mpsc::Receiver<Responder>, mpsc::Receiver<()>) {
    let (send, responders) = mpsc::channel();
    let (send_closed, closed) = mpsc::channel();
    let timeouts = Timeouts::default().presence(Duration::from_millis(50));
    let server = serve_with::<B, _>(timeouts, limits, move || {
        HttpServer::new(move |request: &Request<'_>| {
            if request.path() != "/late" {
                return Response::text("now");
            }
            let (response, responder) = Response::later();
            let send_closed = send_closed.clone();
            responder.on_closed(move || send_closed.send(()).expect("the test is receiving"));
            send.send(responder).expect("the test is receiving");
            response
        })
    });
    (server, responders, closed)
}

/// Starts a server whose responses are streams, and reports them and those that were closed.
fn streaming<B: Backend>(timeouts: Timeouts) -> (Server, mpsc::Receiver<Sender>, mpsc::Receiver<()>) {
    let (send, streams) = mpsc::channel();
    let (send_closed, closed) = mpsc::channel();
    let timeouts = timeouts.presence(Duration::from_millis(50));
    let server = serve_with::<B, _>(timeouts, LoopLimits::default(), move || {
        HttpServer::new(move |_: &Request<'_>| {
            let (response, stream) = Response::channel_with_capacity(EVENT_BYTES);
            let send_closed = send_closed.clone();
            stream.on_closed(move || {
                // The test may have ended.
                let _ = send_closed.send(());
            });
            send.send(stream).expect("the test is receiving");
            response
        })
    });
    (server, streams, closed)
}

const GET_LATE: &str = "GET /late HTTP/1.1\r\nHost: x\r\n\r\n";

on_every_backend! {
    // The kernel reports a socket as writable only when much of its buffer is free, which a slow reader causes less
    // often than the timeout.
    fn a_steady_slow_download_is_not_reset<B>() {
        // Where the system does not report acknowledgements, a reader has four times the limit, which must not pass here.
        let (limit, times) = if cfg!(windows) { (2000, 2) } else { (600, 4) };
        let limit = Duration::from_millis(limit);
        let server = large::<B>(Timeouts::default().write(limit), LARGE_BYTES);
        let mut client = connect_slow(&server);
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("open socket");
        let (start, mut buffer) = (Instant::now(), [0; 4096]);
        while start.elapsed() < times * limit {
            let count = client.read(&mut buffer).expect("no reset");
            assert!(count > 0, "closed after {:?}", start.elapsed());
            std::thread::sleep(Duration::from_millis(15));
        }
        // The connection still works at full speed.
        client.read_exact(&mut vec![0; 1 << 20]).expect("no reset");
    }

    fn late_bytes_do_not_destroy_a_large_last_response<B>() {
        // Accepted by the kernel as a whole, but received slowly, for longer than input is discarded.
        let size = 200_000;
        let server = large::<B>(Timeouts::default().linger_total(Duration::from_millis(50)), size);
        let mut client = connect_slow(&server);
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("open socket");
        let (mut total, mut buffer) = (0, [0; 8192]);
        loop {
            let count = client.read(&mut buffer).expect("no reset");
            if count == 0 {
                break;
            }
            total += count;
            std::thread::sleep(Duration::from_millis(10));
            if total > 20_000 && total < size / 2 {
                client.write_all(b"\r\n").expect("open socket");
            }
        }
        assert!(total > size, "{total} bytes");
    }

    fn a_reset_after_a_half_close_is_noticed_while_a_response_is_pending<B>() {
        if skipped_under_wine(RESET_READS_AS_EOF) {
            return;
        }
        let (server, responders, closed) = late::<B>(LoopLimits::default());
        let mut client = server.connect();
        client.send(GET_LATE).finish();
        let responder = responders.recv_timeout(WAIT_MAX).expect("a request");
        // Let the server see the end of input first, at least in most runs.
        std::thread::sleep(Duration::from_millis(20));
        assert!(closed.try_recv().is_err(), "a half-close is no reset");
        client.reset();
        closed.recv_timeout(WAIT_MAX).expect("the reset is noticed");
        assert!(responder.is_closed());
    }

    fn a_reset_behind_pipelined_requests_is_noticed_while_a_response_is_pending<B>() {
        if skipped_under_wine(RESET_READS_AS_EOF) {
            return;
        }
        let (server, responders, closed) = late::<B>(LoopLimits::default());
        let mut client = server.connect();
        client.send(GET_LATE.to_owned() + &"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1500));
        let responder = responders.recv_timeout(WAIT_MAX).expect("a request");
        client.reset();
        closed.recv_timeout(WAIT_MAX).expect("the reset is noticed");
        assert!(responder.is_closed());
    }

    fn a_half_closed_client_gets_its_response<B>() {
        let (server, responders, closed) = late::<B>(LoopLimits::default());
        let mut client = server.connect();
        client.send(GET_LATE).finish();
        let responder = responders.recv_timeout(WAIT_MAX).expect("a request");
        // Longer than a few checks of the peer's presence.
        assert!(closed.recv_timeout(Duration::from_millis(200)).is_err());
        responder.respond("late");
        assert_eq!(client.response().text(), "late");
        client.expect_close();
    }

    fn a_client_that_reads_nothing_of_an_event_is_disconnected<B>() {
        if skipped_on_windows("the system does not report acknowledgements") {
            return;
        }
        let timeouts = Timeouts::default().write(Duration::from_millis(300));
        let (server, streams, closed) = streaming::<B>(timeouts);
        let mut client = connect_slow(&server);
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("open socket");
        let stream = streams.recv_timeout(WAIT_MAX).expect("a request");
        // Accepted by the kernel as a whole, so that the server has nothing left to write.
        stream.send(vec![b'x'; EVENT_BYTES]).expect("an open stream");
        closed.recv_timeout(WAIT_MAX).expect("the client is known to be gone");
        assert!(stream.is_closed());
    }

    fn a_client_that_reads_an_event_slowly_is_not_disconnected<B>() {
        let limit = Duration::from_millis(1500);
        let (server, streams, closed) = streaming::<B>(Timeouts::default().write(limit));
        let mut client = connect_slow(&server);
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("open socket");
        let stream = streams.recv_timeout(WAIT_MAX).expect("a request");
        stream.send(vec![b'x'; EVENT_BYTES]).expect("an open stream");
        // For longer than the timeout.
        for _ in 0..EVENT_BYTES / 4096 {
            client.read_exact(&mut [0; 4096]).expect("no reset");
            std::thread::sleep(Duration::from_millis(30));
        }
        assert!(closed.try_recv().is_err() && !stream.is_closed());
    }

    fn the_end_of_input_can_mean_that_the_client_is_gone<B>() {
        let limits = LoopLimits::default().answer_half_closed(false);
        let (server, responders, closed) = late::<B>(limits);
        let mut client = server.connect();
        client.send(GET_LATE);
        let responder = responders.recv_timeout(WAIT_MAX).expect("a request");
        client.finish();
        closed.recv_timeout(WAIT_MAX).expect("the half-close counts as a disconnect");
        assert!(responder.is_closed());
        client.expect_close();
    }

    fn a_client_on_a_slow_link_reads_the_response_to_its_refused_upload<B>() {
        let timeouts = Timeouts::default().linger(Duration::from_millis(400));
        let mut client = refused_upload::<B>(timeouts);
        let start = Instant::now();
        // Many bytes, each well before the timeout, for several times the timeout.
        while start.elapsed() < Duration::from_millis(1600) {
            client.1.send([b'x'; 1000]);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(client.1.response().status, 413);
    }

    fn discarding_a_refused_upload_has_a_time_limit<B>() {
        let (_server, mut client) = refused_upload::<B>(Timeouts::default().linger_total(Duration::from_millis(300)));
        let start = Instant::now();
        while client.socket.write_all(&[b'x'; 1000]).is_ok() {
            assert!(start.elapsed() < WAIT_MAX, "the connection is not closed");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());
    }

    fn an_upload_may_pause_for_the_time_it_is_ahead<B>() {
        let max = Duration::from_secs(3);
        let timeouts = Timeouts::default().body(max).body_rate(1000);
        let server = serve_with::<B, _>(timeouts, LoopLimits::default(), || {
            HttpServer::new(|request: &Request<'_>| Response::text(request.body().len().to_string()))
        });
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n");
        for _ in 0..2 {
            client.send([b'x'; 10_000]);
            std::thread::sleep(max / 2);
        }
        assert_eq!(client.response().text(), "20000");
        // 1,000 bytes take a second at the minimum rate, and the balance is 3 s at the start.
        let mut client = server.connect();
        let start = Instant::now();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n").send([b'x'; 1000]);
        assert_eq!(client.response().status, 408);
        assert!(start.elapsed() >= max, "{:?}", start.elapsed());
    }
}

/// Starts a server and an upload that it refuses, in progress.
fn refused_upload<B: Backend>(timeouts: Timeouts) -> (Server, Client) {
    let http = Limits::default().body_bytes_max(10);
    let server = serve_with::<B, _>(timeouts, LoopLimits::default(), move || {
        HttpServer::new(|_: &Request<'_>| Response::text("accepted")).limits(http)
    });
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n");
    (server, client)
}
