//! One large response body shared by all connections, so a thousand slow clients need no more memory than one client.

use bytes::Bytes;
use serverd::{HttpServer, Request, Response, SelectLoop, StatusCode};

fn main() -> std::io::Result<()> {
    let body = Bytes::from(vec![b'x'; 64 << 20]);
    let handler = move |_: &Request<'_>| Response::new(StatusCode::OK).body(body.clone());
    let listener = std::net::TcpListener::bind(std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:8888"))?;
    println!("listening on http://{}", listener.local_addr()?);
    let server = HttpServer::new(handler);
    #[cfg(target_os = "linux")]
    if std::env::args().nth(2).as_deref() == Some("epoll") {
        return serverd::EpollLoop::new(listener, None, server)?.run();
    }
    SelectLoop::new(listener, None, server)?.run()
}
