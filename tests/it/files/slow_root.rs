//! Look-ups in a slow file system, and listings, which other threads make.
//!
//! The disk is simulated: it says how long a look-up has taken, so no test depends on the speed of the machine.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serverd::apps::files::Options;
use serverd::{BodyMode, Files, Handler, HttpServer, Request, RequestHead, Response, Router};

use super::{Tree, get, get_until, request};
use crate::harness::{Backend, Client, RawResponse, Server, connect_from, on_every_backend, serve, wait_for};

/// A disk that can be made slow, or stopped for the threads of pools.
#[derive(Default)]
struct Disk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_slow: bool,
    /// Threads of a pool wait, if their number is below this one.
    stopped_threads: usize,
    /// The next look-up on a pool panics.
    panics: bool,
    /// Look-ups and listings so far, on the loop and on pools.
    on_loop: usize,
    on_pools: usize,
}

impl Disk {
    /// Returns the time that a look-up takes.
    fn call(&self) -> Duration {
        let thread = std::thread::current();
        let number = thread.name().and_then(|name| name.strip_prefix("pool-")?.parse::<usize>().ok());
        let mut state = self.state.lock().expect("no panic");
        *(if number.is_some() { &mut state.on_pools } else { &mut state.on_loop }) += 1;
        let duration = if state.is_slow { Duration::from_millis(2) } else { Duration::from_millis(1) };
        let is_stopped = |state: &mut State| number.is_some_and(|number| number < state.stopped_threads);
        let mut state = self.changed.wait_while(state, is_stopped).expect("no panic");
        let panics = number.is_some() && std::mem::take(&mut state.panics);
        drop(state);
        assert!(!panics, "intentional: during a look-up");
        duration
    }

    fn set_slow(&self, is_slow: bool) {
        self.state.lock().expect("no panic").is_slow = is_slow;
    }

    fn stop(&self, threads: usize) {
        self.state.lock().expect("no panic").stopped_threads = threads;
    }

    fn go_on(&self) {
        self.stop(0);
        self.changed.notify_all();
    }

    fn panic_next(&self) {
        self.state.lock().expect("no panic").panics = true;
    }

    fn on_loop(&self) -> usize {
        self.state.lock().expect("no panic").on_loop
    }

    fn on_pools(&self) -> usize {
        self.state.lock().expect("no panic").on_pools
    }
}

/// Counts the calls of a file server, including those for requests that are resumed.
struct Counting {
    files: Files,
    calls: Arc<AtomicUsize>,
}

impl Handler for Counting {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        self.files.head(head)
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let response = self.files.call(request);
        self.calls.fetch_add(1, Ordering::SeqCst);
        response
    }
}

/// Creates a file server on a simulated disk.
fn files_on_disk(tree: &Tree, options: Options) -> (Files, Arc<Disk>) {
    let disk = Arc::new(Disk::default());
    let files = Files::with_options(tree.path(), options).expect("open directory");
    let hook = Arc::clone(&disk);
    files.before_look_up(move || hook.call());
    (files, disk)
}

/// Serves the tree at `/files`, and `pong` at `/ping`.
fn serve_disk<B: Backend>(tree: &Tree, options: Options) -> (Server, Arc<Disk>) {
    let (files, disk) = files_on_disk(tree, options);
    let router = move || HttpServer::with(Router::new().get("/ping", |_| "pong").mount("/files", files));
    (serve::<B, _>(router), disk)
}

/// Serves the tree after two slow look-ups.
fn serve_slow<B: Backend>(tree: &Tree, options: Options) -> (Server, Arc<Disk>) {
    let (server, disk) = serve_disk::<B>(tree, options);
    make_slow(&server, &disk, "/files/slow/none");
    (server, disk)
}

/// Makes a disk slow, and requests a path that does not exist until the pool makes the look-ups.
fn make_slow(server: &Server, disk: &Disk, path: &str) {
    disk.set_slow(true);
    let mut client = server.connect();
    for _ in 0..2 {
        get(&mut client, path);
    }
    assert_eq!((disk.on_loop(), disk.on_pools()), (2, 0));
}

fn send(client: &mut Client, path: &str) {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
}

/// Returns the response if some of it has arrived.
fn response_if_any(client: &mut Client) -> Option<RawResponse> {
    client.socket.set_nonblocking(true).expect("open socket");
    let has_arrived = client.socket.peek(&mut [0]).is_ok();
    client.socket.set_nonblocking(false).expect("open socket");
    has_arrived.then(|| client.response())
}

/// Waits until `count` of the requests are refused, and removes those clients.
fn take_refused(clients: &mut Vec<Client>, count: usize) {
    let expected = clients.len() - count;
    wait_for("too few requests are refused", || {
        clients.retain_mut(|client| {
            let response = response_if_any(client);
            if let Some(response) = &response {
                assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
            }
            response.is_none()
        });
        assert!(clients.len() >= expected, "too many requests are refused");
        clients.len() == expected
    });
}

/// The parts of a response that do not depend on the time, or on the random boundary of several ranges.
fn summary(response: &RawResponse) -> (u16, Vec<String>, String) {
    let boundary = response.header("content-type").and_then(|value| value.split_once("boundary="));
    let without = |text: &str| boundary.map_or(text.to_owned(), |(_, boundary)| text.replace(boundary, "BOUNDARY"));
    let lines = response.head.lines().filter(|line| !line.starts_with("Date:"));
    (response.status, lines.map(without).collect(), without(&response.text()))
}

fn website() -> Tree {
    let tree = Tree::new(&[
        ("index.html", "<p>index</p>"),
        ("404.html", "<p>missing</p>"),
        ("about.html", "<p>about</p>"),
        ("app.js", "let app;"),
        ("app.js.br", "br"),
        ("app.js.gz", "gz"),
        ("sub/a.txt", "a"),
        ("sub/b.txt", "b"),
        ("empty/", ""),
    ]);
    tree.write("large.bin", vec![b'x'; 100_000]);
    tree
}

/// Requests for everything that a file server looks up.
const REQUESTS: &[(&str, &str, &str)] = &[
    ("GET", "/", ""),
    ("GET", "/index.html", ""),
    ("HEAD", "/about.html", ""),
    ("GET", "/about", ""),
    ("GET", "/about", ""),
    ("GET", "/%61bout", ""),
    ("GET", "/app.js", "Accept-Encoding: br, gzip\r\n"),
    ("GET", "/app.js", "Accept-Encoding: gzip\r\n"),
    ("GET", "/app.js", "Accept-Encoding: br, gzip\r\n"),
    ("GET", "/app.js", ""),
    ("GET", "/sub", ""),
    ("GET", "/sub?x=y", ""),
    ("GET", "/sub/", "Accept: application/json\r\n"),
    ("GET", "/sub/?sort=name&order=desc", "Accept: text/html\r\n"),
    ("GET", "/empty/", ""),
    ("GET", "/sub/a.txt", "Range: bytes=0-0\r\n"),
    ("GET", "/sub/a.txt", "If-None-Match: *\r\n"),
    ("GET", "/large.bin", ""),
    ("GET", "/large.bin", "Range: bytes=7-9, 50000-50005\r\n"),
    ("GET", "/none", ""),
    ("GET", "/none", "Accept: text/html\r\n"),
    ("GET", "/none.js", "Accept: text/html\r\nSec-Fetch-Dest: script\r\n"),
    ("GET", "/sub/none/", "Accept: text/html\r\n"),
    ("GET", "/sub/a.txt/", ""),
    ("GET", "/..%2fsecret", "Accept: text/html\r\n"),
    ("GET", "/.hidden", ""),
];

on_every_backend! {
    fn the_loop_serves_other_requests_while_the_disk_is_stopped<B>() {
        let tree = Tree::new(&[("0.txt", "0"), ("1.txt", "1"), ("2.txt", "2"), ("3.txt", "3"), ("4.txt", "4")]);
        let (server, disk) = serve_slow::<B>(&tree, Options::default());
        disk.stop(usize::MAX);
        let mut clients: Vec<Client> = (0..5).map(|_| server.connect()).collect();
        for (at, client) in clients.iter_mut().enumerate() {
            send(client, &format!("/files/{at}.txt"));
        }
        wait_for("not all look-ups have begun", || disk.on_pools() == 5);
        for _ in 0..20 {
            assert_eq!(get(&mut server.connect(), "/ping").text(), "pong");
        }
        assert!(clients.iter_mut().all(|client| response_if_any(client).is_none()));
        disk.go_on();
        for (at, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.response().text(), at.to_string());
        }
        assert_eq!((disk.on_loop(), disk.on_pools()), (2, 5));
    }

    fn responses_do_not_depend_on_the_speed_of_the_disk<B>() {
        let tree = website();
        for options in [
            Options::default(),
            Options::default().cache_bytes_max(0),
            Options::default().clean_urls(true),
            Options::default().spa("index.html".to_owned()),
            Options::default().listing(false).precompressed(false),
        ] {
            let (fast, fast_disk) = serve_disk::<B>(&tree, options.clone());
            let (slow, slow_disk) = serve_slow::<B>(&tree, options.clone());
            let (mut expected, mut client) = (fast.connect(), slow.connect());
            for (method, path, headers) in REQUESTS {
                let path = format!("/files{path}");
                let expected = summary(&request(&mut expected, method, &path, headers));
                let found = summary(&request(&mut client, method, &path, headers));
                assert_eq!(found, expected, "{method} {path} {headers}, {options:?}");
            }
            assert!(fast_disk.on_loop() > 2);
            assert_eq!(slow_disk.on_loop(), 2);
        }
    }

    fn look_ups_return_to_the_loop_when_the_disk_is_fast_again<B>() {
        let tree = Tree::new(&[("a.txt", "a")]);
        let (server, disk) = serve_slow::<B>(&tree, Options::default());
        let mut client = server.connect();
        assert_eq!(get(&mut client, "/files/a.txt").text(), "a");
        assert_eq!((disk.on_loop(), disk.on_pools()), (2, 1));
        disk.set_slow(false);
        wait_for("the pool is still in use", || {
            assert_eq!(get(&mut client, "/files/none").status, 404);
            disk.on_loop() > 2
        });
        // The next one is made on the loop as well.
        let on_pools = disk.on_pools();
        assert_eq!(get(&mut client, "/files/none").status, 404);
        assert_eq!((disk.on_loop(), disk.on_pools()), (4, on_pools));
    }

    fn cached_files_of_a_slow_disk_are_sent_without_a_look_up<B>() {
        let tree = Tree::new(&[("a.txt", "a")]);
        tree.write("large.bin", vec![b'x'; 100_000]);
        let (server, disk) = serve_slow::<B>(&tree, Options::default());
        let mut client = server.connect();
        let mut wait_until_cached = |path: &str, length: usize| {
            // Each second, the first request makes one.
            wait_for(path, || {
                let before = disk.on_pools();
                assert_eq!(get(&mut client, path).body.len(), length);
                disk.on_pools() == before
            });
        };
        wait_until_cached("/files/a.txt", 1);
        wait_until_cached("/files/large.bin", 100_000);
        // A small file that has become large is held open instead of in memory.
        tree.write("a.txt", vec![b'y'; 100_000]);
        get_until(&mut server.connect(), "/files/a.txt", |response| response.body.len() == 100_000);
        wait_until_cached("/files/a.txt", 100_000);
        assert_eq!(disk.on_loop(), 2);
    }

    fn many_requests_for_a_file_cost_one_look_up<B>() {
        let tree = Tree::new(&[("popular.txt", "popular")]);
        let (files, disk) = files_on_disk(&tree, Options::default());
        let calls = Arc::new(AtomicUsize::new(0));
        let counting = Counting { files, calls: Arc::clone(&calls) };
        let server = serve::<B, _>(move || HttpServer::with(counting));
        make_slow(&server, &disk, "/none");
        disk.stop(usize::MAX);
        let mut clients: Vec<Client> = (0..50).map(|_| server.connect()).collect();
        for client in &mut clients {
            send(client, "/popular.txt");
        }
        // More, if some wait for the check of the root and are resumed.
        wait_for("not all requests have arrived", || calls.load(Ordering::SeqCst) >= 2 + 50);
        wait_for("the look-up has not begun", || disk.on_pools() > 0);
        assert_eq!(disk.on_pools(), 1);
        disk.go_on();
        for client in &mut clients {
            assert_eq!(client.response().text(), "popular");
        }
    }

    fn a_request_whose_client_has_gone_leaves_nothing_behind<B>() {
        let tree = website();
        let (server, disk) = serve_slow::<B>(&tree, Options::default());
        disk.stop(usize::MAX);
        let mut clients: Vec<Client> = (0..60).map(|_| server.connect()).collect();
        for (at, client) in clients.iter_mut().enumerate() {
            // Some wait for the look-up of another, some for a thread.
            send(client, &format!("/files/{}", if at % 3 == 0 { "index.html".to_owned() } else { at.to_string() }));
        }
        wait_for("the threads are not busy", || disk.on_pools() == 16);
        for (at, client) in clients.into_iter().enumerate() {
            if at % 2 == 0 { client.reset() } else { drop(client) }
        }
        disk.go_on();
        disk.set_slow(false);
        assert_eq!(get(&mut server.connect(), "/files/index.html").text(), "<p>index</p>");
        server.drain();
        // A request that was kept would keep the file server, and thus the disk.
        wait_for("something is left", || Arc::strong_count(&disk) == 1);
    }

    fn a_panic_during_a_look_up_affects_one_request<B>() {
        let tree = Tree::new(&[("a.txt", "a")]);
        let (server, disk) = serve_slow::<B>(&tree, Options::default());
        disk.stop(usize::MAX);
        disk.panic_next();
        let mut clients: Vec<Client> = (0..20).map(|_| server.connect()).collect();
        for client in &mut clients {
            send(client, "/files/a.txt");
        }
        wait_for("no look-up has begun", || disk.on_pools() > 0);
        disk.go_on();
        let responses: Vec<RawResponse> = clients.iter_mut().map(Client::response).collect();
        assert_eq!(responses.iter().filter(|response| response.status == 500).count(), 1);
        assert_eq!(responses.iter().filter(|response| response.text() == "a").count(), 19);
    }

    fn a_graceful_shutdown_waits_for_look_ups<B>() {
        let tree = Tree::new(&[("a.txt", "a")]);
        let (server, disk) = serve_slow::<B>(&tree, Options::default());
        disk.stop(usize::MAX);
        let (mut idle, mut client) = (server.connect(), server.connect());
        assert_eq!(get(&mut idle, "/ping").text(), "pong");
        send(&mut client, "/files/a.txt");
        wait_for("the look-up has not begun", || disk.on_pools() == 1);
        server.handle.drain();
        idle.expect_close();
        disk.go_on();
        assert_eq!(client.response().text(), "a");
        server.drain();
        wait_for("something is left", || Arc::strong_count(&disk) == 1);
    }

    fn a_shutdown_does_not_wait_for_a_disk_that_hangs<B>() {
        let tree = Tree::new(&[("a.txt", "a")]);
        let (server, disk) = serve_slow::<B>(&tree, Options::default());
        disk.stop(usize::MAX);
        let mut client = server.connect();
        send(&mut client, "/files/a.txt");
        wait_for("the look-up has not begun", || disk.on_pools() == 1);
        server.handle.drain_within(Duration::from_millis(50));
        server.drain();
        disk.go_on();
        wait_for("something is left", || Arc::strong_count(&disk) == 1);
    }

    fn listings_of_one_client_do_not_lock_out_another<B>() {
        let tree = Tree::new(&[("a.txt", "a")]);
        let (server, disk) = serve_disk::<B>(&tree, Options::default());
        // There are two threads for listings, and 64 wait.
        disk.stop(2);
        let mut clients: Vec<Client> = (0..80).map(|_| server.connect()).collect();
        for client in &mut clients {
            send(client, "/files/");
        }
        take_refused(&mut clients, 14);
        // Only Linux has more than one loopback address. A listing for another one displaces one of the others.
        if cfg!(target_os = "linux") {
            let mut other = Client::from_socket(connect_from("127.0.0.2:0", server.address).expect("a connection"));
            send(&mut other, "/files/");
            take_refused(&mut clients, 1);
            disk.go_on();
            assert_eq!(other.response().status, 200);
        }
        disk.go_on();
        assert!(clients.iter_mut().all(|client| client.response().status == 200));
    }
}

/// The queue is bounded; the client that fills it gets 503, and others are served.
#[cfg(target_os = "linux")]
#[test]
fn look_ups_beyond_the_queue_get_503() {
    crate::harness::raise_fd_limit();
    let tree = Tree::new(&[("a.txt", "a")]);
    let (server, disk) = serve_slow::<serverd::Epoll>(&tree, Options::default());
    disk.stop(usize::MAX);
    let mut clients: Vec<Client> = (0..16 + 1024 + 5).map(|_| server.connect()).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        send(client, &format!("/files/{at}"));
    }
    take_refused(&mut clients, 5);
    let mut other = Client::from_socket(connect_from("127.0.0.2:0", server.address).expect("a connection"));
    send(&mut other, "/files/a.txt");
    take_refused(&mut clients, 1);
    disk.go_on();
    assert_eq!(other.response().text(), "a");
    assert!(clients.iter_mut().all(|client| client.response().status == 404));
}
