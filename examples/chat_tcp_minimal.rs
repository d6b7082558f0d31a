//! A minimal TCP chat: sends each line to all other clients. Shows how to implement `App` and send messages
//! between connections.
//!
//!     cargo run --example chat_tcp_minimal
//!     nc 127.0.0.1 8888        # in two terminals
//!
//! See `serverd chat` for a complete chat server with names, rooms and limits.

use std::net::TcpListener;

use bytes::Bytes;
use serverd::{Accepted, App, CloseInfo, ConnId, Flow, Phase, Poller, Remote, SelectLoop, Wire};

/// Maximum line length. A client that sends a longer line is disconnected.
const LINE_BYTES_MAX: usize = 1000;

/// Maximum unsent output. A client that is too slow and exceeds it is disconnected.
const QUEUE_BYTES_MAX: usize = 64 * 1024;

#[derive(Default)]
struct Chat {
    members: Vec<ConnId>,
}

impl App for Chat {
    type State = ();
    /// A line, shared between its recipients.
    type Message = Bytes;

    fn start(&mut self, _: Remote<Bytes>) {}

    fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, Bytes>) -> ((), Flow) {
        wire.output().extend(format!("welcome, {} others are online\n", self.members.len()).as_bytes());
        self.members.push(wire.id());
        ((), Flow::Read(Phase::Unlimited))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, Bytes>) -> Flow {
        let own = wire.id();
        while let Some(end) = wire.input().iter().position(|&byte| byte == b'\n') {
            let line = Bytes::copy_from_slice(&wire.input()[..=end]);
            wire.consume(end + 1);
            for &member in self.members.iter().filter(|&&member| member != own) {
                wire.send(member, line.clone());
            }
        }
        if wire.input().len() > LINE_BYTES_MAX { Flow::Close } else { Flow::Read(Phase::Unlimited) }
    }

    fn message(&mut self, _state: &mut (), line: Bytes, wire: &mut Wire<'_, Bytes>) -> Flow {
        wire.output().push(&line);
        if wire.output().len() > QUEUE_BYTES_MAX { Flow::Abort } else { Flow::Read(Phase::Unlimited) }
    }

    fn output_drained(&mut self, _state: &mut (), _: &mut Wire<'_, Bytes>) -> Flow {
        Flow::Read(Phase::Unlimited)
    }

    fn timer(&mut self, _state: &mut (), _: Phase, _: &mut Wire<'_, Bytes>) -> Flow {
        Flow::Close
    }

    fn drain(&mut self, _state: &mut (), wire: &mut Wire<'_, Bytes>) -> Flow {
        wire.output().extend(b"the server is shutting down\n");
        Flow::Close
    }

    fn closed(&mut self, id: ConnId, _state: (), _: CloseInfo) {
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
