//! The real binary under load loses no request when it is told to end.
#![cfg(target_os = "linux")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::PATIENCE;
use crate::process::{Running, backends};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const KEEP_ALIVE: usize = 64;
const NEWCOMERS: usize = 8;

/// What the clients saw.
#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    lost: AtomicUsize,
    stop: AtomicBool,
}

/// Sends a request and reads its answer; says whether the answer is the last. `NotConnected` when the server closed
/// before it answered at all.
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
    let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// One request after the other until the server says that it was the last.
fn keep_alive(address: SocketAddr, tally: Arc<Tally>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let Ok(mut socket) = connect(address) else { return };
        loop {
            match exchange(&mut socket) {
                Ok(last) => {
                    tally.answered.fetch_add(1, Ordering::SeqCst);
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

/// A new connection for every request, until nobody listens any more.
fn newcomer(address: SocketAddr, tally: Arc<Tally>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while !tally.stop.load(Ordering::SeqCst) {
            // Refused: the request was not made, so it is not lost.
            let Ok(mut socket) = connect(address) else { return };
            match exchange(&mut socket) {
                Ok(_) => {
                    tally.answered.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => {
                    println!("newcomer: {error}");
                    tally.lost.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    })
}

fn drain_under_load(backend: &str, workers: &str) {
    let server = Running::start(&["--port", "0", "--backend", backend, "--workers", workers]);
    let address: SocketAddr = server.address().parse().expect("an address");
    let tally = Arc::new(Tally::default());
    let mut threads: Vec<_> = (0..KEEP_ALIVE).map(|_| keep_alive(address, Arc::clone(&tally))).collect();
    threads.extend((0..NEWCOMERS).map(|_| newcomer(address, Arc::clone(&tally))));
    let start = Instant::now();
    while tally.answered.load(Ordering::SeqCst) < 500 {
        assert!(start.elapsed() < PATIENCE, "no load comes about");
        std::thread::sleep(Duration::from_millis(1));
    }
    server.signal("TERM");
    let (code, _) = server.wait();
    tally.stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().expect("no panic");
    }
    let (answered, lost) = (tally.answered.load(Ordering::SeqCst), tally.lost.load(Ordering::SeqCst));
    println!("{backend}, {workers} workers: {answered} answered, {lost} lost");
    assert_eq!((code, lost), (Some(0), 0));
}

/// `SERVERD_DRAINS` says how often; 20 of each is what is promised.
#[test]
fn a_server_that_ends_under_load_loses_no_request() {
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
fn an_idle_server_is_gone_soon_also_with_idle_clients() {
    for backend in backends() {
        for workers in ["1", "4"] {
            let server = Running::start(&["--port", "0", "--backend", backend, "--workers", workers]);
            let address = server.address().parse().expect("an address");
            let mut idle: Vec<_> = (0..16).map(|_| connect(address).expect("a connection")).collect();
            for socket in &mut idle[..8] {
                exchange(socket).expect("an answer");
            }
            let start = Instant::now();
            server.signal("TERM");
            assert_eq!(server.wait().0, Some(0));
            // Two seconds are what is promised; the machine may be busy.
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        }
    }
}

#[test]
fn a_stuck_client_delays_the_end_as_long_as_the_flag_says() {
    for backend in backends() {
        let server = Running::start(&["--port", "0", "--backend", backend, "--drain-timeout", "1500ms"]);
        let mut stuck = connect(server.address().parse().expect("an address")).expect("a connection");
        stuck
            .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            .expect("sent");
        assert!(stuck.read(&mut [0; 100]).expect("100 Continue") > 0);
        let start = Instant::now();
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
        assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}
