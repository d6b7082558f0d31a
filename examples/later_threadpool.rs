//! Slow work on a pool of threads, while the loop serves everybody else; a full queue is 503.
//!
//!     cargo run --release --example later_threadpool
//!     curl http://127.0.0.1:8888/primes/5000000

use std::net::TcpListener;

use serverd::{HttpServer, Poller, Pool, Response, Router, SelectLoop, StatusCode};

/// More would keep a thread for minutes.
const LIMIT_MAX: usize = 100_000_000;

/// How many primes are below `limit`: the sieve of Eratosthenes.
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
            match request.parameter("limit") {
                Ok(limit) if limit <= LIMIT_MAX => {
                    pool.offload(move || primes_below(limit), move |count| format!("{count} primes below {limit}\n"))
                }
                _ => Response::error(StatusCode::BAD_REQUEST, "give a number up to 100000000\n"),
            }
        });
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8888".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on http://{}", listener.local_addr()?);
    SelectLoop::new(listener, None, HttpServer::with(router))?.run()
}
