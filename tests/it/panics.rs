//! A panic costs the connection it happened for, and nobody else.

use serverd::{Accepted, App, ConnId, Ending, Flow, HttpServer, Phase, Remote, Request, Response, Wire};

use crate::harness::{on_every_backend, serve};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Echoes, and panics in the method that the first byte of the input names.
struct Touchy {
    greetings: u32,
    turns: u32,
}

impl App for Touchy {
    type State = u8;
    type Letter = ();

    fn start(&mut self, _: Remote<()>) {}

    fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, ()>) -> (u8, Flow) {
        self.greetings += 1;
        wire.output().extend(b"hi");
        assert!(self.greetings != 3, "as asked: the third connection");
        (0, Flow::Read(Phase::Open))
    }

    fn receive(&mut self, state: &mut u8, wire: &mut Wire<'_, ()>) -> Flow {
        let input = wire.input();
        wire.consume(input.len());
        *state = input.first().copied().unwrap_or(*state);
        wire.output().extend(input);
        if *state == b'l' {
            wire.post(wire.id(), ());
        }
        assert!(*state != b'r', "as asked: on input");
        if *state == b'c' { Flow::Close } else { Flow::Read(Phase::Open) }
    }

    fn letter(&mut self, _: &mut u8, (): (), _: &mut Wire<'_, ()>) -> Flow {
        panic!("as asked: on a letter")
    }

    fn drained(&mut self, _: &mut u8, _: &mut Wire<'_, ()>) -> Flow {
        Flow::Read(Phase::Open)
    }

    fn timer(&mut self, _: &mut u8, _: Phase, _: &mut Wire<'_, ()>) -> Flow {
        Flow::Close
    }

    fn drain(&mut self, state: &mut u8, _: &mut Wire<'_, ()>) -> Flow {
        assert!(*state != b'd', "as asked: when the loop drains");
        Flow::Close
    }

    fn closed(&mut self, _: ConnId, state: u8, _: Ending) {
        assert!(state != b'c', "as asked: at the end");
    }

    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, ())>) {
        self.turns += 1;
        assert!(self.turns != 5, "as asked: at the end of the fifth turn");
    }
}

on_every_backend! {
    fn a_panic_in_any_method_ends_that_connection_only<B>() {
        let server = serve::<B, _>(|| Touchy { greetings: 0, turns: 0 });
        let mut polite = server.connect();
        polite.send("p");
        assert_eq!(polite.read(3), b"hip");
        for (turn, order) in ["x", "y", "r", "l", "c", "r", "l", "c"].into_iter().enumerate() {
            let mut client = server.connect();
            // Whatever came before the panic may have been sent or not; the end comes, as a reset or not.
            let _ = std::io::Write::write_all(&mut client.socket, order.as_bytes());
            if turn > 1 {
                let mut rest = Vec::new();
                let _ = std::io::Read::read_to_end(&mut client.socket, &mut rest);
            }
            polite.send("p");
            assert_eq!(polite.read(1), b"p", "{order}");
        }
        let mut last = server.connect();
        last.send("d");
        assert_eq!(last.read(3), b"hid");
        let counters = server.drain();
        // One at the third connection, two on input, two on letters, two at the end, one at the drain, one in a turn.
        assert_eq!(counters.panics, 9, "{counters:?}");
    }

    fn a_thousand_panics_of_a_handler_are_a_thousand_answers_of_500_beside_a_polite_client<B>() {
        let handler = |request: &Request<'_>| if request.path() == "/" { Response::text("hello") } else { panic!("as asked") };
        let server = serve::<B, _>(move || HttpServer::new(handler));
        let mut polite = server.connect();
        for turn in 0..1000 {
            let mut client = server.connect();
            client.send("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n");
            let answer = client.answer();
            assert_eq!((answer.status, answer.field("connection")), (500, Some("close")));
            if turn % 100 == 0 {
                client.finish().expect_close();
            }
            polite.send(GET);
            assert_eq!(polite.answer().text(), "hello");
        }
        assert_eq!(server.drain().panics, 1000);
    }
}
