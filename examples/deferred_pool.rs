//! Slow work on a thread pool, while the loop continues to serve other requests. The response is 503 if the pool's
//! queue is full.
//!
//!     cargo run --release --example deferred_pool
//!     curl http://127.0.0.1:8888/primes/5000000

use std::net::TcpListener;

use serverd::{HttpServer, Pool, Response, Router, SelectLoop, StatusCode};

/// Maximum accepted limit: a larger one would occupy a pool thread for minutes.
const LIMIT_MAX: usize = 100_000_000;

/// Counts the primes below `limit` with the sieve of Eratosthenes.
fn primes_below(limit: usize) -> usize {
    let mut composite = vec![false; limit];
    let mut count = 0;
    for number in 2..limit {
        if !composite[number] {
            count += 1;
            for multiple in (number * number..limit).step_by(number) {
                composite[multiple] = true;
            }
        }
    }
    count
}

fn main() -> std::io::Result<()> {
    let pool = Pool::new(2, 16)?;
    let router =
        Router::new().get("/", |_| "try /primes/1000000\n").get("/primes/{limit}", move |request| {
            match request.param("limit") {
                Ok(limit) if limit <= LIMIT_MAX => {
                    pool.offload(move || primes_below(limit), move |count| format!("{count} primes below {limit}\n"))
                }
                _ => Response::error(StatusCode::BAD_REQUEST, "expected a number up to 100000000\n"),
            }
        });
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on http://{}", listener.local_addr()?);
    SelectLoop::new(listener, None, HttpServer::with(router))?.run()
}
