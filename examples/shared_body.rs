//! One large body for everybody: it is shared, so a thousand slow readers cost no more memory than one.

use bytes::Bytes;
use serverd::{HttpServer, Poller, Request, Response, SelectLoop, StatusCode};

fn main() -> std::io::Result<()> {
    let body = Bytes::from(vec![b'x'; 64 << 20]);
    let answer = move |_: &Request<'_>| Response::new(StatusCode::OK).body(body.clone());
    let listener = std::net::TcpListener::bind(std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:8888"))?;
    println!("listening on http://{}", listener.local_addr()?);
    let server = HttpServer::new(answer);
    #[cfg(target_os = "linux")]
    if std::env::args().nth(2).as_deref() == Some("epoll") {
        return serverd::EpollLoop::new(listener, None, server)?.run();
    }
    SelectLoop::new(listener, None, server)?.run()
}
