//! The hello world of HTTP: `cargo run --example hello_http`, then `curl http://127.0.0.1:8888/`.

use serverd::{HttpServer, Poller, Response, SelectLoop};

fn main() -> std::io::Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:8888")?;
    SelectLoop::new(listener, None, HttpServer::new(|_| Response::text("hello\n")))?.run()
}
