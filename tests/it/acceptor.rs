//! Least-connections load balancing: one thread accepts for several loops and hands each connection to the least
//! loaded one.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use serverd::apps::Whoami;
use serverd::{Acceptor, AcceptorHandle, ConnectionLimit, EventLoop, Handle, HttpServer, LoopLimits, Timeouts};

use crate::harness::{Backend, Client, WAIT_MAX, accepted, on_every_backend, wait_for};
use crate::process::{Running, backends};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Several loops and the acceptor thread; stopped on drop.
struct Server {
    address: SocketAddr,
    shares: Vec<ConnectionLimit>,
    handles: Vec<Handle>,
    acceptor: AcceptorHandle,
    threads: Vec<JoinHandle<()>>,
}

/// Incomplete requests must not time out on a busy machine.
fn timeouts() -> Timeouts {
    Timeouts::default().head(WAIT_MAX)
}

fn start<B: Backend>(loops: usize, limit: &ConnectionLimit) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mut acceptor = Acceptor::new(listener, &LoopLimits::default()).expect("an acceptor");
    let (send, started) = mpsc::channel();
    let (mut shares, mut threads) = (Vec::new(), Vec::new());
    for number in 0..loops {
        let share = limit.share();
        let worker_listener = acceptor.add_worker(&share).expect("a socket pair");
        let (own, send) = (share.clone(), send.clone());
        threads.push(std::thread::spawn(move || {
            let app = HttpServer::with(Whoami::new(number, 0));
            let mut event_loop =
                EventLoop::<B, _>::with_limits(timeouts(), LoopLimits::default(), app).expect("a loop");
            event_loop.share_connection_limit(&own);
            event_loop.listen(worker_listener).expect("registration succeeds");
            send.send(event_loop.handle()).expect("the test is waiting");
            event_loop.run().expect("the loop does not fail");
        }));
        shares.push(share);
    }
    let handles = (0..loops).map(|_| started.recv_timeout(WAIT_MAX).expect("a loop")).collect();
    let handle = acceptor.handle();
    threads.push(std::thread::spawn(move || acceptor.run().expect("the acceptor does not fail")));
    Server { address, shares, handles, acceptor: handle, threads }
}

/// Starts a loop with its own listener and a share of `limit`.
fn start_alone<B: Backend>(limit: &ConnectionLimit) -> Alone {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let share = limit.share();
    let (own, (send, started)) = (share.clone(), mpsc::channel());
    let thread = std::thread::spawn(move || {
        let app = HttpServer::with(Whoami::new(0, 0));
        let mut event_loop = EventLoop::<B, _>::with_limits(timeouts(), LoopLimits::default(), app).expect("a loop");
        event_loop.share_connection_limit(&own);
        event_loop.listen(listener).expect("registration succeeds");
        send.send(event_loop.handle()).expect("the test is waiting");
        event_loop.run().expect("the loop does not fail");
    });
    Alone { address, share, handle: started.recv_timeout(WAIT_MAX).expect("a loop"), thread: Some(thread) }
}

/// A loop with its own listener; stopped on drop.
struct Alone {
    address: SocketAddr,
    share: ConnectionLimit,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Alone {
    fn open(&self) -> usize {
        self.share.open_here()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.handle.stop();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the loop panicked");
    }
}

impl Server {
    /// Returns the open connections of each loop.
    fn open(&self) -> Vec<usize> {
        self.shares.iter().map(ConnectionLimit::open_here).collect()
    }

    /// Opens a connection and completes one request on it.
    fn client(&self) -> Client {
        let mut client = Client::new(self.address);
        request_worker(&mut client);
        client
    }

    fn drain(&mut self) {
        self.acceptor.stop();
        self.threads.pop().expect("the acceptor thread").join().expect("no panic");
        self.handles.iter().for_each(Handle::drain);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.acceptor.stop();
        self.handles.iter().for_each(Handle::stop);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok(), "a loop panicked");
        }
    }
}

/// Sends a request and returns the number of the worker that responds.
fn request_worker(client: &mut Client) -> usize {
    client.send(GET);
    let text = client.response().text();
    let worker = text.lines().find_map(|line| line.strip_prefix("worker: ")).expect("a worker");
    worker.parse().expect("a number")
}

on_every_backend! {
    fn each_connection_goes_to_the_loop_with_the_fewest_connections<B>() {
        let server = start::<B>(3, &ConnectionLimit::new(1000));
        let mut clients: Vec<Client> = (0..12).map(|_| server.client()).collect();
        assert_eq!(server.open(), [4, 4, 4]);
        // Close all connections of one loop: it receives the next ones.
        let mut closing = Vec::new();
        for mut client in std::mem::take(&mut clients) {
            if request_worker(&mut client) == 1 { closing.push(client) } else { clients.push(client) }
        }
        drop(closing);
        wait_for("not all connections of the loop are closed", || server.shares[1].open_here() == 0);
        for _ in 0..4 {
            let mut client = Client::new(server.address);
            assert_eq!(request_worker(&mut client), 1);
            clients.push(client);
        }
        assert_eq!(server.open(), [4, 4, 4]);
    }

    fn connections_queued_when_a_drain_begins_are_served<B>() {
        let mut server = start::<B>(2, &ConnectionLimit::new(1000));
        let mut established: Vec<Client> = (0..4).map(|_| server.client()).collect();
        let mut queued: Vec<Client> = (0..40).map(|_| Client::new(server.address)).collect();
        for client in &mut queued {
            client.send(GET);
        }
        server.drain();
        for client in &mut queued {
            assert_eq!(client.response().status, 200);
            client.expect_close();
        }
        for client in &mut established {
            client.expect_close();
        }
        wait_for("a loop is still running", || server.threads.iter().all(JoinHandle::is_finished));
    }

    fn the_connection_limit_applies_to_all_loops_together<B>() {
        let server = start::<B>(2, &ConnectionLimit::new(4));
        let mut clients: Vec<Client> = (0..4).map(|_| server.client()).collect();
        // Idle connections would be closed for a new one.
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\n");
        }
        let mut fifth = Client::new(server.address);
        fifth.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(fifth.line_within(Duration::from_millis(150)), None, "accepted beyond the limit");
        assert_eq!(server.open(), [2, 2]);
        drop(clients.pop());
        assert_eq!(fifth.response().status, 200);
        for client in &mut clients {
            client.send("Host: x\r\n\r\n");
            assert_eq!(client.response().status, 200);
        }
    }

    // The acceptor has no connections: a loop closes one for it.
    fn at_the_limit_a_loop_closes_an_idle_connection<B>() {
        let server = start::<B>(2, &ConnectionLimit::new(4));
        let mut clients: Vec<Client> = (0..4).map(|_| server.client()).collect();
        let mut busy = clients.remove(1);
        busy.send("GET / HTTP/1.1\r\n");
        let new: Vec<Client> = (0..10).map(|_| server.client()).collect();
        for client in &mut clients {
            client.expect_close();
        }
        assert_eq!(server.open().iter().sum::<usize>(), 4);
        busy.send("Host: x\r\n\r\n");
        assert_eq!(busy.response().status, 200);
        drop(new);
    }

    fn the_only_loop_with_idle_connections_closes_one_for_the_acceptor<B>() {
        for idle_loop in 0..3 {
            let server = start::<B>(3, &ConnectionLimit::new(6));
            // The loops take turns.
            let clients: Vec<Client> = (0..6).map(|_| server.client()).collect();
            let (_idle, mut busy): (Vec<_>, Vec<_>) =
                clients.into_iter().enumerate().partition(|(number, _)| number % 3 == idle_loop);
            for (_, client) in &mut busy {
                client.send("GET / HTTP/1.1\r\n");
            }
            let mut new = Client::new(server.address);
            new.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(new.response().status, 200, "{idle_loop}");
            for (_, client) in &mut busy {
                client.send("Host: x\r\n\r\n");
                assert_eq!(client.response().status, 200, "{idle_loop}");
            }
        }
    }

    // A loop without idle connections asks the one with which it shares the limit.
    fn a_loop_closes_an_idle_connection_for_another_loop<B>() {
        let limit = ConnectionLimit::new(3);
        let (first, second) = (start_alone::<B>(&limit), start_alone::<B>(&limit));
        let mut idle: Vec<Client> = (0..3).map(|_| Client::new(first.address)).collect();
        for client in &mut idle {
            request_worker(client);
        }
        let mut new = Vec::new();
        for _ in 0..3 {
            let mut client = Client::new(second.address);
            client.send("GET / HTTP/1.1\r\n");
            new.push(client);
        }
        for client in &mut idle {
            client.expect_close();
        }
        for client in &mut new {
            client.send("Host: x\r\n\r\n");
            assert_eq!(client.response().status, 200);
        }
        assert_eq!((limit.open(), first.open(), second.open()), (3, 0, 3));
    }

    fn the_limit_of_an_address_applies_to_all_loops_together<B>() {
        let server = start::<B>(2, &ConnectionLimit::new(1000).per_address(4));
        let mut clients: Vec<Client> = (0..4).map(|_| server.client()).collect();
        for _ in 0..3 {
            assert!(accepted(server.address, GET).is_none());
        }
        assert_eq!(server.open(), [2, 2]);
        // Each of the loops notices that a connection has closed.
        for _ in 0..4 {
            drop(clients.remove(0));
            wait_for("the closed connection still counts", || server.open().iter().sum::<usize>() <= 3);
            clients.push(server.client());
            assert!(accepted(server.address, GET).is_none());
        }
    }
}

#[test]
fn workers_share_a_port_through_an_acceptor_thread() {
    for backend in backends() {
        let options = ["whoami", "-p", "0", "-b", backend, "--workers", "4", "--balance", "least-connections"];
        let server = Running::start(&options);
        assert!(server.line.ends_with(&format!(" ({backend}, 4 workers)\n")), "{}", server.line);
        let mut clients: Vec<Client> = (0..8).map(|_| server.connect()).collect();
        let mut workers: Vec<usize> = clients.iter_mut().map(request_worker).collect();
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
fn kernel_balancing_where_unsupported_is_a_one_line_error() {
    if cfg!(target_os = "linux") {
        return println!("skipped: supported by this kernel");
    }
    let (code, text) = crate::process::run(&["--balance", "kernel", "--workers", "2", "-p", "0"]);
    assert_eq!((code, text.lines().count()), (Some(1), 1), "{text}");
    assert!(text.contains("--balance least-connections"), "{text}");
}
