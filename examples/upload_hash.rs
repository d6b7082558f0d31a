//! Hashes uploads of any size as they arrive, without storing them.
//!
//!     cargo run --release --example upload_hash
//!     head -c 1G /dev/zero | curl -T - http://127.0.0.1:8888/

use std::fmt::Write as _;
use std::net::TcpListener;

use serverd::{BodyMode, Handler, HttpServer, Request, RequestHead, Response, SelectLoop, StatusCode};
use sha2::{Digest, Sha256};

/// Maximum upload size; larger uploads are rejected with 413.
const BODY_BYTES_MAX: u64 = 1 << 40;

struct Hash;

impl Handler for Hash {
    fn head(&mut self, _: &RequestHead<'_>) -> BodyMode {
        BodyMode::fold(
            BODY_BYTES_MAX,
            Sha256::new(),
            |hash, piece| hash.update(piece),
            |hash| hexadecimal(&hash.finalize()),
        )
    }

    fn call(&mut self, _: &Request<'_>) -> Response {
        Response::error(StatusCode::BAD_REQUEST, "no body; try: curl -T FILE http://...\n")
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text + "\n"
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on http://{}", listener.local_addr()?);
    SelectLoop::new(listener, None, HttpServer::with(Hash))?.run()
}
