//! A minimal TCP server: `cargo run --example hello_tcp`, then `nc 127.0.0.1 8888`.

use serverd::{Flow, SelectLoop, Wire};

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = std::net::TcpListener::bind(address)?;
    println!("listening on tcp://{}", listener.local_addr()?);
    let greet = |wire: &mut Wire<_>| {
        wire.output().extend(b"hello\n");
        Flow::Close
    };
    SelectLoop::new(listener, None, greet)?.run()
}
