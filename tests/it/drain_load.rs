//! The real binary loses no request when it is shut down under load.
#![cfg(target_os = "linux")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::WAIT_MAX;
use crate::process::{Running, backends};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const KEEP_ALIVE: usize = 64;
const RECONNECTING: usize = 8;

/// Counts of the clients' results.
#[derive(Default)]
struct Tally {
    responses: AtomicUsize,
    lost: AtomicUsize,
    stop: AtomicBool,
}

/// Sends a request and reads the response. Returns whether the response says that it is the last.
fn exchange(socket: &mut TcpStream) -> io::Result<bool> {
    socket.write_all(GET)?;
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match socket.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => seen.extend_from_slice(&buffer[..count]),
        }
        let text = String::from_utf8_lossy(&seen);
        if text.ends_with("this is response from server") {
            return Ok(text.contains("Connection: close"));
        }
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, WAIT_MAX)?;
    socket.set_read_timeout(Some(WAIT_MAX))?;
    Ok(socket)
}

/// Sends requests on one connection until a response says that it is the last.
fn keep_alive(address: SocketAddr, tally: Arc<Tally>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let Ok(mut socket) = connect(address) else { return };
        loop {
            match exchange(&mut socket) {
                Ok(last) => {
                    tally.responses.fetch_add(1, Ordering::SeqCst);
                    if last {
                        return;
                    }
                }
                Err(error) => {
                    println!("keep-alive: {error}");
                    tally.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
        }
    })
}

/// Opens a new connection for every request, until the server no longer listens.
fn reconnect(address: SocketAddr, tally: Arc<Tally>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while !tally.stop.load(Ordering::SeqCst) {
            // Connection refused: no request was sent, so none is lost.
            let Ok(mut socket) = connect(address) else { return };
            match exchange(&mut socket) {
                Ok(_) => {
                    tally.responses.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => {
                    println!("reconnect: {error}");
                    tally.lost.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    })
}

fn drain_under_load(backend: &str, workers: &str) {
    let server = Running::start(&["--port", "0", "--backend", backend, "--workers", workers]);
    let address: SocketAddr = server.address().parse().expect("socket address");
    let tally = Arc::new(Tally::default());
    let mut threads: Vec<_> = (0..KEEP_ALIVE).map(|_| keep_alive(address, Arc::clone(&tally))).collect();
    threads.extend((0..RECONNECTING).map(|_| reconnect(address, Arc::clone(&tally))));
    let start = Instant::now();
    while tally.responses.load(Ordering::SeqCst) < 500 {
        assert!(start.elapsed() < WAIT_MAX, "the clients produce no load");
        std::thread::sleep(Duration::from_millis(1));
    }
    server.signal("TERM");
    let (code, _) = server.wait();
    tally.stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().expect("no panic");
    }
    let (responses, lost) = (tally.responses.load(Ordering::SeqCst), tally.lost.load(Ordering::SeqCst));
    println!("{backend}, {workers} workers: {responses} responses, {lost} lost");
    assert_eq!((code, lost), (Some(0), 0));
}

/// The `SERVERD_DRAINS` variable sets the number of repetitions; docs/LIMITS.md reports a run with 20.
#[test]
fn shutdown_under_load_loses_no_request() {
    let runs = std::env::var("SERVERD_DRAINS").ok().map_or(1, |text| text.parse().expect("a number"));
    for backend in backends() {
        for workers in ["1", "2", "4"] {
            for _ in 0..runs {
                drain_under_load(backend, workers);
            }
        }
    }
}

#[test]
fn an_idle_server_exits_promptly_even_with_idle_clients() {
    for backend in backends() {
        for workers in ["1", "4"] {
            let server = Running::start(&["--port", "0", "--backend", backend, "--workers", workers]);
            let address = server.address().parse().expect("socket address");
            let mut idle: Vec<_> = (0..16).map(|_| connect(address).expect("a connection")).collect();
            for socket in &mut idle[..8] {
                exchange(socket).expect("a response");
            }
            let start = Instant::now();
            server.signal("TERM");
            assert_eq!(server.wait().0, Some(0));
            // Normally within two seconds; allow for a busy machine. The timeout of a silent connection is 10 s.
            assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
        }
    }
}

#[test]
fn a_stuck_client_delays_shutdown_until_the_drain_timeout() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend, "--drain-timeout", "1500ms"]);
        let mut stuck = connect(server.address().parse().expect("socket address")).expect("a connection");
        stuck
            .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            .expect("sent");
        assert!(stuck.read(&mut [0; 100]).expect("100 Continue") > 0);
        let start = Instant::now();
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
        assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
        // The default timeout is 30 s.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}
