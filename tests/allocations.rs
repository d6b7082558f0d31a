//! Once warmed up, the loop, the parser and the HTTP server allocate nothing per request. This is a separate test
//! binary because it counts allocations with a process-wide allocator.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serverd::{App, EventLoop, HttpServer, LoopLimits, Readiness, Response, Timeouts};

/// Requests served before counting starts.
const WARM_UP: u64 = 100;
/// Requests served in total.
const TOTAL: u64 = 10_100;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const BROWSER: &str = "GET /a?b=c HTTP/1.1\r\nHost: a.test:8080\r\nConnection: keep-alive\r\nsec-ch-ua: \"X\";v=\"1\"\r\n\
                       User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: text/html,*/*;q=0.8\r\n\
                       Accept-Encoding: gzip, br\r\nX-Tab:\ta\r\nCookie: session=0123456789abcdef\r\n\r\n";
const BROWSER_FILE: &str = "GET /a.txt HTTP/1.1\r\nHost: a.test:8080\r\nConnection: keep-alive\r\n\
                            User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: text/html,*/*;q=0.8\r\n\
                            Accept-Encoding: gzip, br\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";

/// Sets a flag when it is dropped.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Sends pipelined batches of `depth` requests and reads the responses, until it has `TOTAL` of them; then sets `done`
/// and closes the connection, also when it fails. Each response ends with `!` and contains no other.
fn run_client(address: SocketAddr, request: &str, depth: u64, done: Arc<AtomicBool>) {
    let mut client = TcpStream::connect(address).expect("a listener");
    // Dropped before the connection, whose end wakes the loop.
    let _done = SetOnDrop(done);
    client.set_nodelay(true).expect("the socket is open");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("the socket is open");
    let batch = request.repeat(usize::try_from(depth).expect("small"));
    let (mut buffer, mut responses) = (vec![0; 64 * 1024], 0);
    while responses < TOTAL {
        client.write_all(batch.as_bytes()).expect("the server reads");
        let mut ends = 0;
        while ends < depth {
            let count = client.read(&mut buffer).expect("a response in time");
            assert!(count > 0, "closed early");
            ends += buffer[..count].split(|&byte| byte == b'!').count() as u64 - 1;
        }
        responses += ends;
    }
}

/// Returns the number of allocations by the loop's thread after the warm-up.
fn allocations<B: Readiness<Listener: From<TcpListener>>>(request: &'static str, depth: u64) -> u64 {
    let responses = Rc::new(Cell::new(0));
    let count = Rc::clone(&responses);
    let app = HttpServer::new(move |_| {
        count.set(count.get() + 1);
        Response::text("hello!")
    });
    count_allocations::<B, _>(app, &responses, request, depth)
}

/// Returns the number of allocations with any application, which counts the calls of its handler in `calls`. A request
/// that waits for a thread pool calls it again, so the end of the run is what the client has received.
fn count_allocations<B: Readiness<Listener: From<TcpListener>>, A: App>(
    app: A,
    calls: &Cell<u64>,
    request: &'static str,
    depth: u64,
) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mut event_loop =
        EventLoop::<B, _>::with_limits(Timeouts::default(), LoopLimits::default(), app).expect("a loop");
    event_loop.listen(listener).expect("a listener");
    let done = Arc::new(AtomicBool::new(false));
    let client_done = Arc::clone(&done);
    let client = std::thread::spawn(move || run_client(address, request, depth, client_done));
    let mut turn_until = |condition: &dyn Fn() -> bool| {
        while !condition() {
            event_loop.turn().expect("the loop does not fail");
        }
    };
    turn_until(&|| calls.get() >= WARM_UP);
    let counted = allocation_counter::measure(|| turn_until(&|| done.load(Ordering::Acquire)));
    client.join().expect("no panic");
    counted.count_total
}

/// Returns the number of allocations when serving a file that is already cached.
fn allocations_of_a_file<B: Readiness<Listener: From<TcpListener>>>(request: &'static str, depth: u64) -> u64 {
    use serverd::{Files, layers};
    let directory = tempfile::TempDir::new().expect("a directory");
    std::fs::write(directory.path().join("a.txt"), "hello!").expect("a file");
    std::fs::File::open(directory.path().join("a.txt"))
        .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
        .expect("the test owns the file");
    let files = Files::new(directory.path()).expect("a directory");
    let responses = Rc::new(Cell::new(0));
    let count = Rc::clone(&responses);
    let app = HttpServer::with(layers::around(files, move |files, request| {
        count.set(count.get() + 1);
        serverd::Handler::call(files, request)
    }));
    count_allocations::<B, _>(app, &responses, request, depth)
}

fn check<B: Readiness<Listener: From<TcpListener>>>() {
    for (request, depth) in [(GET, 1), (GET, 10), (BROWSER, 1), (POST, 1), (POST, 10)] {
        assert_eq!(allocations::<B>(request, depth), 0, "{} with {depth} of {request:?}", B::NAME);
    }
    // The cached file is revalidated once a second, which does allocate.
    for (request, depth) in [("GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n", 10), (BROWSER_FILE, 1)] {
        let count = allocations_of_a_file::<B>(request, depth);
        assert!(count < 2000, "{} with {depth} of {request:?}: {count}", B::NAME);
    }
}

#[test]
fn a_request_allocates_nothing_on_select() {
    check::<serverd::Select>();
}

#[test]
#[cfg(target_os = "linux")]
fn a_request_allocates_nothing_on_epoll() {
    check::<serverd::Epoll>();
}

#[test]
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
fn a_request_allocates_nothing_on_kqueue() {
    check::<serverd::Kqueue>();
}
