//! The hello world of TCP: `cargo run --example hello_tcp`, then `nc 127.0.0.1 8888`.

use serverd::{Flow, Poller, SelectLoop, Wire};

fn main() -> std::io::Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:8888")?;
    let greet = |wire: &mut Wire<_>| {
        wire.output().extend(b"hello\n");
        Flow::Close
    };
    SelectLoop::new(listener, None, greet)?.run()
}
