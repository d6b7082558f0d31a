//! A minimal HTTP server: `cargo run --example hello_http`, then `curl http://127.0.0.1:8888/`.

use serverd::{HttpServer, SelectLoop};

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = std::net::TcpListener::bind(address)?;
    println!("listening on http://{}", listener.local_addr()?);
    SelectLoop::new(listener, None, HttpServer::new(|_| "hello\n"))?.run()
}
