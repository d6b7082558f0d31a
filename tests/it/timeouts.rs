//! Every phase of a connection ends in time, and none before its time.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serverd::r#loop::Limits;
use serverd::{HttpServer, Request, Response, Timeouts};

use crate::harness::{Backend, PATIENCE, Server, on_every_backend, serve_with};

const SHORT: Duration = Duration::from_millis(200);
const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// One short limit among long ones, so that only this one can be what ended a connection.
fn server<B: Backend>(timeouts: Timeouts) -> Server {
    let answer = |request: &Request<'_>| Response::text(format!("{}\n", request.body().len()));
    serve_with::<B, _>(timeouts, Limits::default(), move || HttpServer::new(answer))
}

on_every_backend! {
    fn a_silent_connection_is_closed_without_an_answer<B>() {
        let server = server::<B>(Timeouts { silent: Some(SHORT), ..Timeouts::default() });
        let start = Instant::now();
        server.connect().expect_close();
        assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
    }

    fn an_idle_connection_is_closed_without_an_answer<B>() {
        let server = server::<B>(Timeouts { idle: Some(SHORT), ..Timeouts::default() });
        let mut client = server.connect();
        // Idle is counted from the answer, which may have been on its way for long when it is seen here.
        let start = Instant::now();
        client.send(GET);
        client.answer();
        client.expect_close();
        assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
    }

    fn a_head_ends_in_time_however_it_drips<B>() {
        let server = server::<B>(Timeouts { head: Some(SHORT), ..Timeouts::default() });
        // The server reads its clock when it hears of the connection, and may read from it some time after.
        let start = Instant::now();
        let mut client = server.connect();
        client.socket.set_read_timeout(Some(Duration::from_millis(20))).expect("alive");
        client.send("GET / HTTP/1.1\r\nHost: x\r\nA: ");
        // Octet by octet until the server has had enough.
        while client.socket.peek(&mut [0]).is_err() {
            assert!(start.elapsed() < PATIENCE, "a dripping head holds the connection");
            client.send("a");
        }
        client.socket.set_read_timeout(Some(PATIENCE)).expect("alive");
        assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (408, "the head did not come in time\n"));
        client.finish().expect_close();
    }

    fn a_head_request_that_runs_out_of_time_gets_no_content<B>() {
        let timeouts = Timeouts { head: Some(SHORT), body: Some(SHORT), ..Timeouts::default() };
        let server = server::<B>(timeouts);
        for request in ["HEAD / HTTP/1.1\r\nHost: x\r\nA: ", "HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"] {
            let mut client = server.connect();
            client.send(request);
            assert_eq!(client.answer_to("HEAD").status, 408);
            client.finish().expect_close();
        }
    }

    fn a_body_that_stalls_is_408<B>() {
        let server = server::<B>(Timeouts { body: Some(SHORT), ..Timeouts::default() });
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhello");
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (408, "the body came too slowly\n"));
        client.finish().expect_close();
    }

    fn a_body_that_keeps_its_pace_may_take_longer_than_a_period<B>() {
        let server = server::<B>(Timeouts { body: Some(SHORT), ..Timeouts::default() });
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6000\r\n\r\n");
        let start = Instant::now();
        client.socket.set_read_timeout(Some(Duration::from_millis(20))).expect("alive");
        for _ in 0..60 {
            client.send([b'x'; 100]);
            // The pause of a slow but honest client; an answer now would be a mistake.
            assert!(client.socket.peek(&mut [0]).is_err(), "answered before the body was whole");
            if start.elapsed() > 3 * SHORT {
                break;
            }
        }
        assert!(start.elapsed() > 2 * SHORT);
        client.socket.set_read_timeout(Some(PATIENCE)).expect("alive");
        client.send([b'x'; 6000]);
        assert_eq!(client.answer().text(), "6000\n");
    }

    fn a_reader_that_takes_nothing_is_reset<B>() {
        let timeouts = Timeouts { write: Some(SHORT), ..Timeouts::default() };
        let large = vec![b'x'; 32 << 20];
        let app = move || HttpServer::new(move |_: &Request<'_>| Response::text(large.clone()));
        let server = serve_with::<B, _>(timeouts, Limits::default(), app);
        let mut client = server.connect();
        client.send(GET);
        client.read(1);
        // Reading nothing for longer than the limit: another connection's whole life tells that it has passed.
        let mut other = server.connect();
        other.send("GET / HTTP/1.1\r\n");
        std::thread::sleep(3 * SHORT);
        let mut rest = Vec::new();
        let outcome = client.socket.read_to_end(&mut rest);
        assert!(outcome.is_err() || rest.len() < 32 << 20, "everything came");
    }

    fn a_slow_reader_that_makes_progress_gets_everything<B>() {
        // Long enough for a client that has to wait for a processor, and shorter than all the pauses together.
        let limit = SHORT * 3;
        let timeouts = Timeouts { write: Some(limit), ..Timeouts::default() };
        let large = vec![b'x'; 16 << 20];
        let app = move || HttpServer::new(move |_: &Request<'_>| Response::text(large.clone()));
        let server = serve_with::<B, _>(timeouts, Limits::default(), app);
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            // A pause shorter than the limit, many times over.
            std::thread::sleep(limit / 12);
            match client.socket.read(&mut buffer).expect("no reset") {
                0 => break,
                count => total += count,
            }
        }
        assert!(total > 16 << 20, "{total}");
    }

    fn a_cap_holds_for_every_phase<B>() {
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
        idle.answer();
        silent.expect_close();
        idle.expect_close();
        assert_eq!(head.answer().status, 408);
        assert_eq!(body.answer().status, 408);
    }
}

#[test]
fn an_idle_server_wakes_for_nothing() {
    let server = server::<serverd::r#loop::Select>(Timeouts::default());
    let mut client = server.connect();
    client.send(GET);
    client.answer();
    std::thread::sleep(Duration::from_millis(300));
    drop(client);
    let counters = server.drain();
    assert!(counters.waits < 10, "{counters:?}");
}

/// Writing to a connection that the peer has reset ends that connection, and nothing else.
#[test]
fn a_reset_disturbs_nobody() {
    let server = server::<serverd::r#loop::Select>(Timeouts::default());
    for _ in 0..50 {
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhello");
        client.reset();
    }
    let mut client = server.connect();
    client.socket.write_all(GET.as_bytes()).expect("alive");
    assert_eq!(client.answer().status, 200);
}
