//! A panic in the application affects only the connection that is being handled.

use std::net::TcpListener;

use serverd::{
    Accepted, App, CloseInfo, ConnId, EventLoop, Flow, HttpServer, LoopLimits, Phase, Remote, Request, Response,
    Timeouts, Turn, Wire,
};

use crate::harness::{WAIT_MAX, on_every_backend, serve};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// An echo application that panics in the method selected by the first byte of the input.
struct Panicking {
    opened: u32,
    turns: u32,
}

impl App for Panicking {
    type State = u8;
    type Message = ();

    fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, ()>) -> (u8, Flow) {
        self.opened += 1;
        wire.output().extend(b"hi");
        assert!(self.opened != 3, "intentional: the third connection");
        (0, Flow::Read(Phase::Unlimited))
    }

    fn receive(&mut self, state: &mut u8, wire: &mut Wire<'_, ()>) -> Flow {
        let input = wire.input();
        wire.consume(input.len());
        *state = input.first().copied().unwrap_or(*state);
        wire.output().extend(input);
        if *state == b'l' {
            wire.send(wire.id(), ());
        }
        assert!(*state != b'r', "intentional: on input");
        if *state == b'c' { Flow::Close } else { Flow::Read(Phase::Unlimited) }
    }

    fn message(&mut self, _: &mut u8, (): (), _: &mut Wire<'_, ()>) -> Flow {
        panic!("intentional: on a message")
    }

    fn drain(&mut self, state: &mut u8, _: &mut Wire<'_, ()>) -> Flow {
        assert!(*state != b'd', "intentional: when the loop drains");
        Flow::Close
    }

    fn closed(&mut self, _: ConnId, state: u8, _: CloseInfo) {
        assert!(state != b'c', "intentional: when the connection is closed");
    }

    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, ())>) {
        self.turns += 1;
        assert!(self.turns != 5, "intentional: at the end of the fifth turn");
    }
}

/// Panics when it is started.
struct Unstartable;

impl App for Unstartable {
    type State = ();
    type Message = ();

    fn start(&mut self, _: Remote<()>) {
        panic!("intentional: no database")
    }

    fn open(&mut self, _: &Accepted<'_>, _: &mut Wire<'_, ()>) -> ((), Flow) {
        ((), Flow::Close)
    }

    fn receive(&mut self, (): &mut (), _: &mut Wire<'_, ()>) -> Flow {
        Flow::Close
    }
}

/// Panics when it is dropped.
struct Fatal;

impl Drop for Fatal {
    fn drop(&mut self) {
        panic!("intentional: in a destructor")
    }
}

on_every_backend! {
    fn a_panic_at_the_start_ends_the_loop_with_an_error<B>() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (timeouts, limits) = (Timeouts::default(), LoopLimits::default());
        let mut event_loop = EventLoop::<B, _>::with_limits(timeouts, limits, Unstartable).expect("a loop");
        B::listen(&mut event_loop, listener).expect("listens");
        let error = event_loop.run().expect_err("the application panics");
        let message = "the application panicked in its start callback: intentional: no database";
        assert_eq!(error.to_string(), message);
        assert_eq!(event_loop.turn().expect("no second start"), Turn::Over);
    }

    fn a_panic_in_the_destructor_of_a_context_or_closure_affects_no_client<B>() {
        let server = serve::<B, _>(|| HttpServer::new(|_| "hello"));
        let mut client = server.connect();
        // The application does not take the context.
        server.handle.connect(server.address, WAIT_MAX, Fatal);
        let fatal = Fatal;
        server.handle.call_every(WAIT_MAX, move || { let _ = &fatal; }).cancel();
        let fatal = Fatal;
        server.handle.call_later(WAIT_MAX, move || drop(fatal));
        for _ in 0..2 {
            client.send(GET);
            assert_eq!(client.response().text(), "hello");
        }
        // Drops the closures that were not called.
        server.drain();
    }

    fn a_panic_in_any_method_closes_only_that_connection<B>() {
        let server = serve::<B, _>(|| Panicking { opened: 0, turns: 0 });
        let mut other = server.connect();
        other.send("p");
        assert_eq!(other.read(3), b"hip");
        for (turn, input) in ["x", "y", "r", "l", "c", "r", "l", "c"].into_iter().enumerate() {
            let mut client = server.connect();
            // Output from before the panic may or may not arrive; the connection is closed, possibly with a reset.
            let _ = std::io::Write::write_all(&mut client.socket, input.as_bytes());
            if turn > 1 {
                let mut rest = Vec::new();
                let _ = std::io::Read::read_to_end(&mut client.socket, &mut rest);
            }
            other.send("p");
            assert_eq!(other.read(1), b"p", "{input}");
        }
        let mut last = server.connect();
        last.send("d");
        assert_eq!(last.read(3), b"hid");
        let counters = server.drain();
        // One on the third connection, two on input, two on messages, two on close, one on drain, one in end_of_turn.
        assert_eq!(counters.panics, 9, "{counters:?}");
    }

    fn a_thousand_handler_panics_give_500_responses_without_affecting_another_client<B>() {
        let handler = |request: &Request<'_>| {
            if request.path() == "/" { Response::text("hello") } else { panic!("intentional") }
        };
        let server = serve::<B, _>(move || HttpServer::new(handler));
        let mut other = server.connect();
        for turn in 0..1000 {
            let mut client = server.connect();
            client.send("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n");
            let response = client.response();
            assert_eq!((response.status, response.header("connection")), (500, Some("close")));
            if turn % 100 == 0 {
                client.finish().expect_close();
            }
            other.send(GET);
            assert_eq!(other.response().text(), "hello");
        }
        assert_eq!(server.drain().panics, 1000);
    }
}
