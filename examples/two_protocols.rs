//! HTTP and a protocol of its own in one thread: `cargo run --example two_protocols`, then `curl http://127.0.0.1:8888/` for
//! the number of lines that clients have sent to the second port, and `nc 127.0.0.1 PORT` to send some.
//!
//! Both applications share the count without a lock, since one loop calls them in turn.

use std::cell::Cell;
use std::net::TcpListener;
use std::rc::Rc;

use serverd::{DefaultLoop, Flow, HttpServer, LoopLimits, PerListener, Phase, Timeouts, Wire};

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listeners = [TcpListener::bind(address)?, TcpListener::bind("127.0.0.1:0")?];
    println!("listening on http://{}", listeners[0].local_addr()?);
    println!("counting lines on tcp://{}", listeners[1].local_addr()?);

    let count = Rc::new(Cell::new(0));
    let shown = Rc::clone(&count);
    let http = HttpServer::new(move |_| format!("{} lines\n", shown.get()));
    let lines = move |wire: &mut Wire<'_, ()>| {
        while let Some(end) = wire.input().iter().position(|&byte| byte == b'\n') {
            wire.consume(end + 1);
            count.set(count.get() + 1);
            wire.output().extend(format!("line {}\n", count.get()).as_bytes());
        }
        // The memory for a line without an end is limited.
        if wire.input().len() > 1024 { Flow::Refuse } else { Flow::Read(Phase::Idle) }
    };

    let app = PerListener::new(http, 1, lines);
    let mut server = DefaultLoop::with_limits(Timeouts::default(), LoopLimits::default(), app)?;
    for listener in listeners {
        server.listen(listener)?;
    }
    server.run()
}
