//! A minimal TCP chat: sends each line to all other clients.
//!
//!     cargo run --example chat_tcp_minimal
//!     nc 127.0.0.1 8888        # in two terminals
//!
//! See `serverd chat` for a complete chat server with names, rooms and limits.

use bytes::Bytes;
use serverd::{Accepted, App, CloseInfo, ConnId, Flow, Phase, SelectLoop, Wire};

#[derive(Default)]
struct Chat(Vec<ConnId>);

impl App for Chat {
    type State = ();
    type Message = Bytes; // a line, shared between its recipients

    fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, Bytes>) -> ((), Flow) {
        wire.output().extend(format!("welcome, {} others are online\n", self.0.len()).as_bytes());
        self.0.push(wire.id());
        ((), Flow::Read(Phase::Unlimited))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, Bytes>) -> Flow {
        while let Some(end) = wire.input().iter().position(|&byte| byte == b'\n') {
            let (own, line) = (wire.id(), Bytes::copy_from_slice(&wire.input()[..=end]));
            wire.consume(end + 1);
            self.0.iter().filter(|&&member| member != own).for_each(|&member| wire.send(member, line.clone()));
        }
        // Disconnects a client that sends a line of more than 1,000 bytes.
        if wire.input().len() > 1000 { Flow::Close } else { Flow::Read(Phase::Unlimited) }
    }

    fn message(&mut self, _state: &mut (), line: Bytes, wire: &mut Wire<'_, Bytes>) -> Flow {
        wire.output().push(&line);
        // Disconnects a client that is too slow.
        if wire.output().len() > 64 * 1024 { Flow::Abort } else { Flow::Unchanged }
    }

    fn closed(&mut self, id: ConnId, _state: (), _: CloseInfo) {
        self.0.retain(|&member| member != id);
    }
}

fn main() -> std::io::Result<()> {
    let listener = std::net::TcpListener::bind(std::env::args().nth(1).unwrap_or("127.0.0.1:8888".into()))?;
    println!("listening on tcp://{}", listener.local_addr()?);
    SelectLoop::new(listener, None, Chat::default())?.run()
}
