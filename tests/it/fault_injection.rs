//! Fault injection: a system call that fails, once or persistently, affects at most the connection it was made for.
//!
//! A fixed set of clients runs repeatedly: in the first run the first call of a kind fails, in the second run the
//! second call, and so on, until a run makes fewer calls.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;
use serverd::{Counters, EventLoop, Handle, HttpServer, LoopLimits, Request, Response, StatusCode, Timeouts};

use crate::fault_backend::{Call, Faulty, FaultyListener, Plan};
use crate::harness::{Backend, WAIT_MAX, on_every_backend, wait_for};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const LARGE_BYTES: usize = 256 << 10;
const FILE_BYTES: u64 = 600_000;

/// Size of the buffers of each socket, which the kernel doubles: much less than a large response, which thus takes many
/// writes.
const SOCKET_BUFFER_BYTES: usize = 16 * 1024;

/// The kind of the client that is idle while the others run.
const IDLE: &str = "idle";

/// A loop over a backend with injected faults.
struct Server {
    address: SocketAddr,
    plan: Arc<Plan>,
    handle: Handle,
    thread: JoinHandle<io::Result<Counters>>,
}

/// Starts a server; `None` if the fault occurred before the loop was running.
fn start<B: Backend>(plan: &Arc<Plan>) -> Option<Server> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    // Keeps large responses from fitting into the socket buffers.
    socket2::SockRef::from(&listener).set_send_buffer_size(SOCKET_BUFFER_BYTES).expect("the socket is open");
    let address = listener.local_addr().expect("an address");
    let (send, receive) = mpsc::channel();
    let own = Arc::clone(plan);
    let thread = std::thread::spawn(move || {
        let large = bytes::Bytes::from(vec![b'x'; LARGE_BYTES]);
        let file = Arc::new(std::fs::File::open("/dev/zero").expect("/dev/zero exists"));
        let app = HttpServer::new(move |request: &Request<'_>| match request.path() {
            "/file" => Response::file(Arc::clone(&file), 0..FILE_BYTES),
            "/large" => Response::new(StatusCode::OK).body(large.clone()),
            _ => Response::text(request.body().len().to_string()),
        });
        let limits = LoopLimits::default().output_bytes_max(64 * 1024);
        let mut event_loop = EventLoop::with_backend(Faulty::wrap(B::new()?, &own), Timeouts::default(), limits, app);
        event_loop.listen(FaultyListener::wrap(listener.into(), &own))?;
        send.send(event_loop.handle()).expect("the test is waiting");
        event_loop.run()?;
        assert_eq!(event_loop.connections(), 0);
        Ok(event_loop.counters().clone())
    });
    if let Ok(handle) = receive.recv_timeout(WAIT_MAX) {
        return Some(Server { address, plan: Arc::clone(plan), handle, thread });
    }
    let outcome = thread.join().expect("no panic");
    assert!(outcome.is_err() && plan.has_fired(), "{outcome:?}");
    None
}

impl Server {
    fn connect(&self) -> io::Result<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
        socket.set_read_timeout(Some(WAIT_MAX))?;
        socket.connect(&self.address.into())?;
        Ok(socket.into())
    }

    /// Sends three requests, one at a time.
    fn keep_alive(&self) -> io::Result<()> {
        let mut client = self.connect()?;
        for _ in 0..3 {
            client.write_all(GET.as_bytes())?;
            expect(&mut client, "0", 1)?;
        }
        Ok(())
    }

    fn pipelined(&self) -> io::Result<()> {
        let mut client = self.connect()?;
        client.write_all(GET.repeat(20).as_bytes())?;
        expect(&mut client, "0", 20)
    }

    fn upload(&self) -> io::Result<()> {
        let mut client = self.connect()?;
        client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")?;
        client.write_all(&vec![b'x'; 100_000])?;
        expect(&mut client, "100000", 1)
    }

    fn download(&self, path: &str, bytes: u64) -> io::Result<()> {
        let mut client = self.connect()?;
        client.write_all(GET.as_bytes())?;
        expect(&mut client, "0", 1)?;
        client.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut all = Vec::new();
        client.read_to_end(&mut all)?;
        if all.len() as u64 > bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn malformed(&self) -> io::Result<()> {
        let mut client = self.connect()?;
        client.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        let mut all = Vec::new();
        client.shutdown(std::net::Shutdown::Write)?;
        client.read_to_end(&mut all)?;
        if all.starts_with(b"HTTP/1.1 400 ") { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Runs each kind of client once, while another connection stays open; returns the kinds of those that failed, with
    /// their errors.
    fn run_clients(&self) -> Vec<(&'static str, io::Error)> {
        let idle = self.connect().and_then(|mut idle| {
            idle.write_all(GET.as_bytes())?;
            expect(&mut idle, "0", 1).map(|()| idle)
        });
        let mut outcomes = vec![
            ("keep-alive", self.keep_alive()),
            ("pipelined", self.pipelined()),
            ("upload", self.upload()),
            ("malformed", self.malformed()),
            ("large", self.download("/large", LARGE_BYTES as u64)),
            ("file", self.download("/file", FILE_BYTES)),
        ];
        let idle = idle.and_then(|mut idle| {
            idle.write_all(GET.as_bytes())?;
            expect(&mut idle, "0", 1)
        });
        outcomes.push((IDLE, idle));
        outcomes.into_iter().filter_map(|(kind, outcome)| Some((kind, outcome.err()?))).collect()
    }

    fn stop(self) -> Counters {
        self.handle.stop();
        let counters = self.thread.join().expect("no panic").expect("the loop does not fail");
        assert_eq!(self.plan.open_streams(), 0, "a stream was not closed");
        counters
    }
}

/// Reads `count` responses with the given body.
fn expect(client: &mut TcpStream, body: &str, count: usize) -> io::Result<()> {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    let end = format!("\r\n\r\n{body}");
    loop {
        let text = String::from_utf8_lossy(&seen);
        if text.matches(&end).count() == count && text.ends_with(&end) {
            assert_eq!(text.matches("HTTP/1.1 200 OK").count(), count, "{text}");
            return Ok(());
        }
        match client.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => seen.extend_from_slice(&buffer[..read]),
        }
    }
}

/// Makes each call of a kind fail once, in turn. Up to `failed_max` clients may fail.
fn fail_once<B: Backend>(call: Call, errors: &[Errno], failed_max: usize) {
    fail_once_if::<B>(call, errors, |failed| failed.len() <= failed_max);
}

/// Makes each call of a kind fail once, in turn. `may_fail` is called with the clients that fail.
fn fail_once_if<B: Backend>(call: Call, errors: &[Errno], may_fail: impl Fn(&[(&str, io::Error)]) -> bool) {
    for error in errors {
        for number in numbers::<B>() {
            let plan = Plan::new(call, error.raw_os_error(), number, false);
            let Some(server) = start::<B>(&plan) else { continue };
            let failed = server.run_clients();
            assert!(may_fail(&failed), "{call:?} {number} fails with {error}: {failed:?}");
            plan.disable();
            assert!(server.run_clients().is_empty(), "after {call:?} {number} failed with {error}");
            server.stop();
            if !plan.has_fired() {
                assert!(number > 1, "{call:?} is never called");
                break;
            }
        }
    }
}

/// Makes all calls of a kind fail, from the n-th until the fault is disabled; afterwards all clients are served again.
fn fail_persistently<B: Backend>(call: Call, errors: &[Errno]) {
    for error in errors {
        for number in [2, 3, 5, 9, 17] {
            let plan = Plan::new(call, error.raw_os_error(), number, true);
            let Some(server) = start::<B>(&plan) else { continue };
            let before = server.connect().expect("a connection");
            for _ in 0..3 {
                let mut client = server.connect().expect("the kernel accepts");
                client.set_read_timeout(Some(Duration::from_millis(5))).expect("the socket is open");
                let _ = client.write_all(GET.repeat(9).as_bytes());
                let _ = client.read(&mut [0; 4096]);
            }
            drop(before);
            plan.disable();
            assert!(server.run_clients().is_empty(), "after {call:?} failed from {number} on with {error}");
            server.stop();
        }
    }
}

/// Returns the numbers of the calls that should fail, one per run: all, or increasingly sparse ones with chaos, which
/// makes many more calls.
fn numbers<B: Backend>() -> impl Iterator<Item = usize> {
    let chaos = B::NAME == "chaos";
    std::iter::successors(Some(1), move |number| Some(number + if chaos { 1 + number / 2 } else { 1 }))
}

on_every_backend! {
    fn a_failing_accept_affects_no_connection<B>() {
        let per_connection = [Errno::CONNABORTED, Errno::PROTO, Errno::PERM, Errno::INTR, Errno::CONNRESET];
        fail_once::<B>(Call::Accept, &per_connection, 0);
        fail_once::<B>(Call::Accept, &[Errno::NOBUFS, Errno::NOMEM, Errno::INVAL], 0);
    }

    fn running_out_of_file_descriptors_affects_only_an_idle_connection<B>() {
        let is_idle = |failed: &[(&str, _)]| failed.iter().all(|(kind, _)| *kind == IDLE);
        fail_once_if::<B>(Call::Accept, &[Errno::MFILE, Errno::NFILE], is_idle);
    }

    fn accepting_recovers_from_persistent_errors<B>() {
        fail_persistently::<B>(Call::Accept, &[Errno::CONNABORTED, Errno::MFILE, Errno::NOMEM, Errno::INVAL]);
    }

    fn a_drain_ends_even_if_accept_keeps_failing<B>() {
        for (number, persistent) in [(2, true), (3, true), (2, false)] {
            let plan = Plan::new(Call::Accept, Errno::NOBUFS.raw_os_error(), number, persistent);
            let server = start::<B>(&plan).expect("start-up does not fail");
            let _ = server.keep_alive();
            let start = std::time::Instant::now();
            server.handle.drain();
            server.thread.join().expect("no panic").expect("the loop ends without an error");
            assert!(start.elapsed() < WAIT_MAX, "the drain waits for connections that cannot be accepted");
        }
    }

    fn a_failing_read_closes_only_its_connection<B>() {
        fail_once::<B>(Call::Read, &[Errno::CONNRESET, Errno::NOMEM], 1);
        fail_persistently::<B>(Call::Read, &[Errno::CONNRESET, Errno::TIMEDOUT]);
    }

    fn a_failing_write_closes_only_its_connection<B>() {
        fail_once::<B>(Call::Write, &[Errno::PIPE, Errno::NOBUFS], 1);
        fail_persistently::<B>(Call::Write, &[Errno::PIPE, Errno::CONNRESET]);
    }

    fn a_file_that_cannot_be_sent_closes_only_its_connection<B>() {
        fail_once::<B>(Call::SendFile, &[Errno::IO, Errno::CONNRESET], 1);
        fail_persistently::<B>(Call::SendFile, &[Errno::IO]);
    }

    fn a_file_outside_the_page_cache_affects_no_connection<B>() {
        fail_once::<B>(Call::PageCacheMiss, &[Errno::AGAIN], 0);
        // The file never appears to be cached: each block is read ahead once, then sent without checking again.
        let plan = Plan::new(Call::PageCacheMiss, Errno::AGAIN.raw_os_error(), 1, true);
        let server = start::<B>(&plan).expect("start-up does not fail");
        assert_eq!(server.run_clients().len(), 0);
        assert!(plan.has_fired());
        server.stop();
    }

    fn a_failing_shutdown_closes_only_its_connection<B>() {
        fail_once::<B>(Call::Shutdown, &[Errno::NOTCONN], 1);
        fail_persistently::<B>(Call::Shutdown, &[Errno::NOTCONN]);
    }

    fn a_failing_registration_closes_only_its_connection<B>() {
        fail_once::<B>(Call::Add, &[Errno::NOSPC, Errno::NOMEM], 1);
        fail_persistently::<B>(Call::Add, &[Errno::NOSPC]);
        fail_once::<B>(Call::SetInterest, &[Errno::NOMEM], 1);
        fail_persistently::<B>(Call::SetInterest, &[Errno::NOMEM]);
    }

    fn a_failing_wait_affects_no_connection<B>() {
        fail_once::<B>(Call::Wait, &[Errno::NOMEM, Errno::INVAL], 0);
    }

    fn a_persistently_failing_wait_ends_the_loop_with_its_error<B>() {
        for number in [1, 2, 7] {
            let plan = Plan::new(Call::Wait, Errno::BADF.raw_os_error(), number, true);
            let server = start::<B>(&plan).expect("start-up does not fail");
            wait_for("the loop is still running", || {
                // Wakes the loop; otherwise the seventh wait would never happen.
                server.handle.wake();
                server.thread.is_finished()
            });
            let error = server.thread.join().expect("no panic").expect_err("the wait failed");
            assert_eq!(error.raw_os_error(), Some(Errno::BADF.raw_os_error()));
        }
    }
}
