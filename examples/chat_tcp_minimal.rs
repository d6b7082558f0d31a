//! The smallest chat: what one types, the others read. An application over bytes, with letters between connections.
//!
//!     cargo run --example chat_tcp_minimal
//!     nc 127.0.0.1 8888        # in two terminals
//!
//! `serverd chat` is the one with names, rooms and limits.

use std::net::TcpListener;

use bytes::Bytes;
use serverd::{Accepted, App, ConnId, Ending, Flow, Phase, Poller, Remote, SelectLoop, Wire};

/// A line that is longer ends the connection.
const LINE_BYTES_MAX: usize = 1000;

/// Who takes less than comes, until so much waits, is dropped.
const QUEUE_BYTES_MAX: usize = 64 * 1024;

#[derive(Default)]
struct Chat {
    members: Vec<ConnId>,
}

impl App for Chat {
    type State = ();
    /// A line, shared by all who get it.
    type Letter = Bytes;

    fn start(&mut self, _: Remote<Bytes>) {}

    fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, Bytes>) -> ((), Flow) {
        wire.output().extend(format!("welcome, with {} others\n", self.members.len()).as_bytes());
        self.members.push(wire.id());
        ((), Flow::Read(Phase::Open))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, Bytes>) -> Flow {
        let own = wire.id();
        while let Some(end) = wire.input().iter().position(|&byte| byte == b'\n') {
            let line = Bytes::copy_from_slice(&wire.input()[..=end]);
            wire.consume(end + 1);
            for &member in self.members.iter().filter(|&&member| member != own) {
                wire.post(member, line.clone());
            }
        }
        if wire.input().len() > LINE_BYTES_MAX { Flow::Close } else { Flow::Read(Phase::Open) }
    }

    fn letter(&mut self, _state: &mut (), line: Bytes, wire: &mut Wire<'_, Bytes>) -> Flow {
        wire.output().push(&line);
        if wire.output().len() > QUEUE_BYTES_MAX { Flow::Abort } else { Flow::Read(Phase::Open) }
    }

    fn drained(&mut self, _state: &mut (), _: &mut Wire<'_, Bytes>) -> Flow {
        Flow::Read(Phase::Open)
    }

    fn timer(&mut self, _state: &mut (), _: Phase, _: &mut Wire<'_, Bytes>) -> Flow {
        Flow::Close
    }

    fn drain(&mut self, _state: &mut (), wire: &mut Wire<'_, Bytes>) -> Flow {
        wire.output().extend(b"the server goes down\n");
        Flow::Close
    }

    fn closed(&mut self, id: ConnId, _state: (), _: Ending) {
        self.members.retain(|&member| member != id);
    }

    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, Bytes)>) {}
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on tcp://{}", listener.local_addr()?);
    SelectLoop::new(listener, None, Chat::default())?.run()
}
