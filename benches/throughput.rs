//! Benchmarks requests per second over loopback: each backend, 1 and 64 connections, with and without pipelining (depth
//! 16).
//!
//! The client runs on the same machine, so use the results to compare backends and changes, not servers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serverd::{EventLoop, Handle, HttpServer, Response, Timeouts};
use serverd::{LoopLimits, Readiness, Select};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";

/// A server on its own thread, stopped when dropped.
struct Server {
    address: SocketAddr,
    handle: Handle,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn serve<B: Readiness<Listener: From<TcpListener>> + 'static>() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let app = HttpServer::new(|_| Response::text("this is response from server"));
        let mut event_loop =
            EventLoop::<B, _>::with_limits(Timeouts::default(), LoopLimits::default(), app).expect("a loop");
        event_loop.listen(listener).expect("a listener");
        send.send(event_loop.handle()).expect("the benchmark is waiting");
        event_loop.run().expect("the loop runs");
    });
    Server { address, handle: receive.recv().expect("a loop"), thread: Some(thread) }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

/// Sends `batch` on each connection, then reads all responses.
fn round(clients: &mut [TcpStream], batch: &[u8], response_len: usize, buffer: &mut [u8]) {
    for client in clients.iter_mut() {
        client.write_all(batch).expect("the server reads");
    }
    for client in clients {
        client.read_exact(&mut buffer[..response_len]).expect("a response");
    }
}

fn measure<B: Readiness<Listener: From<TcpListener>> + 'static>(criterion: &mut Criterion) {
    let server = serve::<B>();
    let mut group = criterion.benchmark_group(B::NAME);
    for connections in [1_usize, 64] {
        for depth in [1_usize, 16] {
            let mut clients: Vec<TcpStream> = (0..connections)
                .map(|_| {
                    let client = TcpStream::connect(server.address).expect("a connection");
                    client.set_nodelay(true).expect("a live socket");
                    client.set_read_timeout(Some(Duration::from_secs(10))).expect("a live socket");
                    client
                })
                .collect();
            let batch = REQUEST.repeat(depth);
            let mut buffer = vec![0; 64 * 1024];
            clients[0].write_all(REQUEST).expect("the server reads");
            let response_len = clients[0].read(&mut buffer).expect("a response");
            let name = if depth == 1 { "keep-alive" } else { "pipelined" };
            group.throughput(Throughput::Elements((connections * depth) as u64));
            group.bench_function(BenchmarkId::new(name, connections), |bencher| {
                bencher.iter_custom(|rounds| {
                    let start = Instant::now();
                    for _ in 0..rounds {
                        round(&mut clients, &batch, response_len * depth, &mut buffer);
                    }
                    start.elapsed()
                });
            });
        }
    }
    group.finish();
}

fn throughput(criterion: &mut Criterion) {
    #[cfg(target_os = "linux")]
    measure::<serverd::Epoll>(criterion);
    #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
    measure::<serverd::Kqueue>(criterion);
    measure::<Select>(criterion);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4));
    targets = throughput
}
criterion_main!(benches);
