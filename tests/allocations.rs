//! Once a loop is warm, a request allocates nothing: not in the loop, not in the parser, not in the server.
//! A test binary of its own, since it counts through the allocator of the whole process.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use serverd::r#loop::{Limits, Readiness};
use serverd::{App, EventLoop, HttpServer, Poller, Response, Timeouts};

const WARM: u64 = 100;
const ALL: u64 = 10_100;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const BROWSER: &str = "GET /a?b=c HTTP/1.1\r\nHost: a.test:8080\r\nConnection: keep-alive\r\nsec-ch-ua: \"X\";v=\"1\"\r\n\
                       User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: text/html,*/*;q=0.8\r\n\
                       Accept-Encoding: gzip, br\r\nX-Tab:\ta\r\nCookie: session=0123456789abcdef\r\n\r\n";
#[cfg(feature = "files")]
const FILE_BY_BROWSER: &str = "GET /a.txt HTTP/1.1\r\nHost: a.test:8080\r\nConnection: keep-alive\r\n\
                               User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: text/html,*/*;q=0.8\r\n\
                               Accept-Encoding: gzip, br\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";

/// Sends `depth` requests at once and reads their answers, until `ALL` are answered.
fn ask(address: SocketAddr, request: &str, depth: u64) {
    let mut client = TcpStream::connect(address).expect("a listener");
    client.set_nodelay(true).expect("a live socket");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("a live socket");
    let batch = request.repeat(usize::try_from(depth).expect("small"));
    let (mut buffer, mut answered) = (vec![0; 64 * 1024], 0);
    while answered < ALL {
        client.write_all(batch.as_bytes()).expect("the server reads");
        let mut ends = 0;
        while ends < depth {
            let count = client.read(&mut buffer).expect("an answer in time");
            assert!(count > 0, "closed early");
            ends += buffer[..count].split(|&byte| byte == b'!').count() as u64 - 1;
        }
        answered += ends;
    }
}

/// How many allocations the thread of the loop makes between the first requests and the last.
fn allocations<B: Readiness<Listener: From<TcpListener>>>(request: &'static str, depth: u64) -> u64 {
    let answered = Rc::new(Cell::new(0));
    let count = Rc::clone(&answered);
    let app = HttpServer::new(move |_| {
        count.set(count.get() + 1);
        Response::text("hello!")
    });
    count_allocations::<B, _>(app, &answered, request, depth)
}

/// Counts them for any application, which says how many requests it has answered.
fn count_allocations<B: Readiness<Listener: From<TcpListener>>, A: App>(
    app: A,
    answered: &Cell<u64>,
    request: &'static str,
    depth: u64,
) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mut event_loop = EventLoop::<B, _>::with(Timeouts::default(), Limits::default(), app).expect("a loop");
    event_loop.listen(listener).expect("a listener");
    let client = std::thread::spawn(move || ask(address, request, depth));
    let mut turn_until = |wanted: u64| {
        while answered.get() < wanted {
            event_loop.turn().expect("turns");
        }
    };
    turn_until(WARM);
    let counted = allocation_counter::measure(|| turn_until(ALL));
    client.join().expect("all are answered");
    counted.count_total
}

/// The same for a file that was asked for before; what it says ends as the others do.
#[cfg(feature = "files")]
fn allocations_of_a_file<B: Readiness<Listener: From<TcpListener>>>(request: &'static str, depth: u64) -> u64 {
    use serverd::{Files, layers};
    let directory = tempfile::TempDir::new().expect("a directory");
    std::fs::write(directory.path().join("a.txt"), "hello!").expect("a file");
    std::fs::File::open(directory.path().join("a.txt"))
        .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
        .expect("own");
    let files = Files::new(directory.path()).expect("a directory");
    let answered = Rc::new(Cell::new(0));
    let count = Rc::clone(&answered);
    let app = HttpServer::with(layers::around(files, move |files, request| {
        count.set(count.get() + 1);
        serverd::Handler::call(files, request)
    }));
    count_allocations::<B, _>(app, &answered, request, depth)
}

fn check<B: Readiness<Listener: From<TcpListener>>>() {
    for (request, depth) in [(GET, 1), (GET, 10), (BROWSER, 1), (POST, 1), (POST, 10)] {
        assert_eq!(allocations::<B>(request, depth), 0, "{} with {depth} of {request:?}", B::NAME);
    }
    // Once a second the file is looked at again, which does allocate.
    #[cfg(feature = "files")]
    for (request, depth) in [("GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n", 10), (FILE_BY_BROWSER, 1)] {
        let count = allocations_of_a_file::<B>(request, depth);
        assert!(count < 2000, "{} with {depth} of {request:?}: {count}", B::NAME);
    }
}

#[test]
fn a_request_allocates_nothing_on_select() {
    check::<serverd::r#loop::Select>();
}

#[test]
#[cfg(target_os = "linux")]
fn a_request_allocates_nothing_on_epoll() {
    check::<serverd::r#loop::Epoll>();
}

#[test]
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
fn a_request_allocates_nothing_on_kqueue() {
    check::<serverd::r#loop::Kqueue>();
}
