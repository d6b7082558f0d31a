//! One thread accepts for several loops, and each connection goes to the one with the fewest.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use serverd::apps::Whoami;
use serverd::r#loop::{Acceptor, Capacity, Limits, Stop};
use serverd::{EventLoop, Handle, HttpServer, Poller, Timeouts};

use crate::harness::{Backend, Client, PATIENCE, on_every_backend};
use crate::process::{Running, backends};

/// Several loops and the thread that accepts for them, until they are dropped.
struct Crew {
    address: SocketAddr,
    shares: Vec<Capacity>,
    handles: Vec<Handle>,
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

fn crew<B: Backend>(loops: usize, connections_max: usize) -> Crew {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mut acceptor = Acceptor::new(listener, 1024).expect("a poller");
    let capacity = Capacity::new(connections_max);
    let (send, started) = mpsc::channel();
    let (mut shares, mut threads) = (Vec::new(), Vec::new());
    for number in 0..loops {
        let share = capacity.share();
        let handed = acceptor.member(&share).expect("a pair of sockets");
        let (own, send) = (share.clone(), send.clone());
        threads.push(std::thread::spawn(move || {
            let app = HttpServer::with(Whoami::new(number, 0));
            let mut event_loop = EventLoop::<B, _>::with(Timeouts::default(), Limits::default(), app).expect("a loop");
            event_loop.share_capacity(&own);
            event_loop.listen(handed).expect("watched");
            send.send(event_loop.handle()).expect("the test waits");
            event_loop.run().expect("it does not fail");
        }));
        shares.push(share);
    }
    let handles = (0..loops).map(|_| started.recv_timeout(PATIENCE).expect("a loop")).collect();
    let stop = acceptor.stop();
    threads.push(std::thread::spawn(move || acceptor.run().expect("it does not fail")));
    Crew { address, shares, handles, stop, threads }
}

impl Crew {
    fn held(&self) -> Vec<usize> {
        self.shares.iter().map(Capacity::held_here).collect()
    }

    /// A new connection that was served once.
    fn client(&self) -> Client {
        let mut client = Client::new(self.address);
        ask(&mut client);
        client
    }

    fn drain(&mut self) {
        self.stop.stop();
        self.threads.pop().expect("the acceptor").join().expect("it does not panic");
        self.handles.iter().for_each(Handle::drain);
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop.stop();
        self.handles.iter().for_each(Handle::stop);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok(), "a loop panicked");
        }
    }
}

/// Asks, and returns the number of the worker that answers.
fn ask(client: &mut Client) -> usize {
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let text = client.answer().text();
    let worker = text.lines().find_map(|line| line.strip_prefix("worker: ")).expect("a worker");
    worker.parse().expect("a number")
}

on_every_backend! {
    fn each_connection_goes_to_the_loop_with_the_fewest<B>() {
        let crew = crew::<B>(3, 1000);
        let mut clients: Vec<Client> = (0..12).map(|_| crew.client()).collect();
        assert_eq!(crew.held(), [4, 4, 4]);
        // One loop loses its connections: it gets the next ones.
        let mut lonely = Vec::new();
        for mut client in std::mem::take(&mut clients) {
            if ask(&mut client) == 1 { lonely.push(client) } else { clients.push(client) }
        }
        drop(lonely);
        let start = Instant::now();
        while crew.shares[1].held_here() > 0 {
            assert!(start.elapsed() < PATIENCE, "{:?}", crew.held());
            std::thread::yield_now();
        }
        for _ in 0..4 {
            let mut client = Client::new(crew.address);
            assert_eq!(ask(&mut client), 1);
            clients.push(client);
        }
        assert_eq!(crew.held(), [4, 4, 4]);
    }

    fn who_waits_when_a_drain_begins_is_served<B>() {
        let mut crew = crew::<B>(2, 1000);
        let mut old: Vec<Client> = (0..4).map(|_| crew.client()).collect();
        let mut newcomers: Vec<Client> = (0..40).map(|_| Client::new(crew.address)).collect();
        for client in &mut newcomers {
            client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        }
        crew.drain();
        for client in &mut newcomers {
            assert_eq!(client.answer().status, 200);
            client.expect_close();
        }
        for client in &mut old {
            client.expect_close();
        }
        let start = Instant::now();
        while crew.threads.iter().any(|thread| !thread.is_finished()) {
            assert!(start.elapsed() < PATIENCE, "a loop does not end");
            std::thread::yield_now();
        }
    }

    fn the_bound_on_connections_holds_for_all_loops_together<B>() {
        let crew = crew::<B>(2, 4);
        let mut clients: Vec<Client> = (0..4).map(|_| crew.client()).collect();
        let mut fifth = Client::new(crew.address);
        fifth.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        for client in &mut clients {
            ask(client);
        }
        assert_eq!(crew.held(), [2, 2]);
        drop(clients.pop());
        assert_eq!(fifth.answer().status, 200);
    }
}

#[test]
fn workers_share_a_port_by_one_thread_that_accepts() {
    for backend in backends() {
        let options = ["whoami", "-p", "0", "-b", backend, "--workers", "4", "--spread", "fewest"];
        let server = Running::start(&options);
        assert!(server.line.ends_with(&format!(" ({backend}, 4 workers)\n")), "{}", server.line);
        let mut clients: Vec<Client> = (0..8).map(|_| server.connect()).collect();
        let mut workers: Vec<usize> = clients.iter_mut().map(ask).collect();
        workers.sort_unstable();
        assert_eq!(workers, [0, 0, 1, 1, 2, 2, 3, 3]);
        if crate::harness::skipped_under_wine(crate::process::NO_CTRL_BREAK) {
            return;
        }
        server.signal("TERM");
        for client in &mut clients {
            client.expect_close();
        }
        assert_eq!(server.wait(), (Some(0), String::new()));
    }
}

#[test]
fn a_spread_that_the_kernel_does_not_do_is_refused_in_one_sentence() {
    if cfg!(target_os = "linux") {
        return println!("skipped: this kernel does it");
    }
    let (code, text) = crate::process::run(&["--spread", "kernel", "--workers", "2", "-p", "0"]);
    assert_eq!((code, text.lines().count()), (Some(1), 1), "{text}");
    assert!(text.contains("--spread fewest"), "{text}");
}
