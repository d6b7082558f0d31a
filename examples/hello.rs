//! An HTTP server in one line: `cargo run --example hello`, then `curl http://127.0.0.1:8888/`. Ctrl-C ends it.

fn main() -> Result<(), serverd::StartError> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    serverd::serve(address, |request| format!("hello, you asked for {}\n", request.path()))
}
