//! A server inside of another program: it reports the progress of a computation while that runs, and ends with it.
//!
//!     cargo run --example embed
//!     curl http://127.0.0.1:8888/          # the number of lines read so far
//!
//! The computation counts the lines of standard input; press Ctrl-D to end it.

use std::io::BufRead;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serverd::{Config, HttpServer, Response, Router, ServerHandle, StartError};

/// Starts the server on a listener of the program, for example one that systemd has passed to it.
fn start(listener: TcpListener, lines: &Arc<AtomicU64>) -> Result<ServerHandle, StartError> {
    let lines = Arc::clone(lines);
    Config::default().workers(2).start_on([listener], move |worker| {
        let lines = Arc::clone(&lines);
        HttpServer::with(
            Router::new()
                .get("/", move |_| Response::text(format!("{} lines\n", lines.load(Ordering::Relaxed))))
                .get("/worker", move |_| Response::text(format!("worker {worker}\n"))),
        )
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let lines = Arc::new(AtomicU64::new(0));
    let server = start(TcpListener::bind(address)?, &lines)?;
    println!("listening on http://{}", server.local_addr());
    server.loops()[0].call_every(Duration::from_secs(10), || eprintln!("still counting"));
    for line in std::io::stdin().lock().lines() {
        line?;
        lines.fetch_add(1, Ordering::Relaxed);
    }
    // Finishes the requests in flight.
    server.drain_within(Duration::from_secs(5));
    server.wait()?;
    println!("{} lines in all", lines.load(Ordering::Relaxed));
    Ok(())
}
