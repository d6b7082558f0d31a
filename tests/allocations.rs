//! Once a loop is warm, a request allocates nothing: not in the loop, not in the parser, not in the server.
//! A test binary of its own, since it counts through the allocator of the whole process.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use serverd::r#loop::{Limits, Readiness};
use serverd::{EventLoop, HttpServer, Poller, Response, Timeouts};

const WARM: u64 = 100;
const ALL: u64 = 10_100;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const BROWSER: &str = "GET /a?b=c HTTP/1.1\r\nHost: a.test:8080\r\nConnection: keep-alive\r\nsec-ch-ua: \"X\";v=\"1\"\r\n\
                       User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: text/html,*/*;q=0.8\r\n\
                       Accept-Encoding: gzip, br\r\nX-Tab:\ta\r\nCookie: session=0123456789abcdef\r\n\r\n";
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
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let answered = Rc::new(Cell::new(0));
    let count = Rc::clone(&answered);
    let app = HttpServer::new(move |_| {
        count.set(count.get() + 1);
        Response::text("hello!")
    });
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

fn check<B: Readiness<Listener: From<TcpListener>>>() {
    for (request, depth) in [(GET, 1), (GET, 10), (BROWSER, 1), (POST, 1), (POST, 10)] {
        assert_eq!(allocations::<B>(request, depth), 0, "{} with {depth} of {request:?}", B::NAME);
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
