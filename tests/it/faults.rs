//! Whatever call of the system fails, once or from then on, costs at most the connection it was made for.
//!
//! The same clients come again and again while the first, the second, the third ... call of a kind fails, until a
//! run passes in which none did.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;
use serverd::r#loop::{Counters, Limits};
use serverd::{EventLoop, Handle, HttpServer, Poller, Request, Response, StatusCode, Timeouts};

use crate::faulty::{Call, Faulty, FaultyListener, Plan};
use crate::harness::{Backend, PATIENCE, on_every_backend};

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const LARGE_BYTES: usize = 256 << 10;
const FILE_BYTES: u64 = 600_000;

/// A loop over a backend with a plan.
struct Server {
    address: SocketAddr,
    plan: Arc<Plan>,
    handle: Handle,
    thread: JoinHandle<io::Result<Counters>>,
}

/// `None` where the fault struck before the loop ran.
fn start<B: Backend>(plan: &Arc<Plan>) -> Option<Server> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    // So that large answers do not fit between the two ends.
    socket2::SockRef::from(&listener).set_send_buffer_size(8 * 1024).expect("a live socket");
    let address = listener.local_addr().expect("an address");
    let (send, receive) = mpsc::channel();
    let own = Arc::clone(plan);
    let thread = std::thread::spawn(move || {
        let large = bytes::Bytes::from(vec![b'x'; LARGE_BYTES]);
        let file = Arc::new(std::fs::File::open("/dev/zero").expect("every system has it"));
        let app = HttpServer::new(move |request: &Request<'_>| match request.path() {
            "/file" => Response::file(Arc::clone(&file), 0..FILE_BYTES),
            "/large" => Response::new(StatusCode::OK).body(large.clone()),
            _ => Response::text(request.body().len().to_string()),
        });
        let limits = Limits { output_bytes_max: 64 * 1024, ..Limits::default() };
        let mut event_loop = EventLoop::over(Faulty::over(B::new()?, &own), Timeouts::default(), limits, app);
        event_loop.listen(FaultyListener::over(listener.into(), &own))?;
        send.send(event_loop.handle()).expect("the test waits");
        event_loop.run()?;
        assert_eq!(event_loop.connections(), 0);
        Ok(event_loop.counters().clone())
    });
    if let Ok(handle) = receive.recv_timeout(PATIENCE) {
        return Some(Server { address, plan: Arc::clone(plan), handle, thread });
    }
    let outcome = thread.join().expect("no panic");
    assert!(outcome.is_err() && plan.has_fired(), "{outcome:?}");
    None
}

impl Server {
    fn connect(&self) -> io::Result<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_recv_buffer_size(8 * 1024)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(&self.address.into())?;
        Ok(socket.into())
    }

    /// Requests one by one.
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

    fn refused(&self) -> io::Result<()> {
        let mut client = self.connect()?;
        client.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        let mut all = Vec::new();
        client.shutdown(std::net::Shutdown::Write)?;
        client.read_to_end(&mut all)?;
        if all.starts_with(b"HTTP/1.1 400 ") { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Everybody comes once, while somebody holds a connection; how many went away without what they came for.
    fn visit(&self) -> Vec<io::Error> {
        let held = self.connect().and_then(|mut held| {
            held.write_all(GET.as_bytes())?;
            expect(&mut held, "0", 1).map(|()| held)
        });
        let mut outcomes = vec![self.keep_alive(), self.pipelined(), self.upload(), self.refused()];
        outcomes.push(self.download("/large", LARGE_BYTES as u64));
        outcomes.push(self.download("/file", FILE_BYTES));
        outcomes.push(held.and_then(|mut held| {
            held.write_all(GET.as_bytes())?;
            expect(&mut held, "0", 1)
        }));
        outcomes.into_iter().filter_map(Result::err).collect()
    }

    fn stop(self) -> Counters {
        self.handle.stop();
        let counters = self.thread.join().expect("no panic").expect("the loop goes on");
        assert_eq!(self.plan.streams(), 0, "a stream was not closed");
        counters
    }
}

/// Reads so many answers with this body.
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
            got => seen.extend_from_slice(&buffer[..got]),
        }
    }
}

/// Every call of a kind in turn fails once. `lost_max` clients may go without.
fn once<B: Backend>(call: Call, errors: &[Errno], lost_max: usize) {
    for error in errors {
        for number in numbers::<B>() {
            let plan = Plan::new(call, error.raw_os_error(), number, false);
            let Some(server) = start::<B>(&plan) else { continue };
            let lost = server.visit();
            assert!(lost.len() <= lost_max, "{call:?} {number} fails with {error}: {lost:?}");
            plan.heal();
            assert!(server.visit().is_empty(), "after {call:?} {number} failed with {error}");
            server.stop();
            if !plan.has_fired() {
                assert!(number > 1, "{call:?} is never called");
                break;
            }
        }
    }
}

/// From some call on, all fail, until the system heals: then everybody is served again.
fn lasting<B: Backend>(call: Call, errors: &[Errno]) {
    for error in errors {
        for number in [2, 3, 5, 9, 17] {
            let plan = Plan::new(call, error.raw_os_error(), number, true);
            let Some(server) = start::<B>(&plan) else { continue };
            let before = server.connect().expect("a connection");
            for _ in 0..3 {
                let mut client = server.connect().expect("the kernel lets in");
                client.set_read_timeout(Some(Duration::from_millis(5))).expect("alive");
                let _ = client.write_all(GET.repeat(9).as_bytes());
                let _ = client.read(&mut [0; 4096]);
            }
            drop(before);
            plan.heal();
            assert!(server.visit().is_empty(), "after {call:?} from {number} on failed with {error}");
            server.stop();
        }
    }
}

/// Each number; under chaos, whose calls move a few bytes each, fewer and fewer of them.
fn numbers<B: Backend>() -> impl Iterator<Item = usize> {
    let chaos = B::NAME == "chaos";
    std::iter::successors(Some(1), move |number| Some(number + if chaos { 1 + number / 2 } else { 1 }))
}

on_every_backend! {
    fn a_failing_accept_costs_nobody<B>() {
        let passing = [Errno::CONNABORTED, Errno::PROTO, Errno::PERM, Errno::INTR, Errno::CONNRESET];
        once::<B>(Call::Accept, &passing, 0);
        once::<B>(Call::Accept, &[Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::INVAL], 0);
    }

    fn accepting_that_fails_for_a_while_goes_on_afterwards<B>() {
        lasting::<B>(Call::Accept, &[Errno::CONNABORTED, Errno::MFILE, Errno::NOMEM, Errno::INVAL]);
    }

    fn a_drain_ends_also_when_nobody_can_be_accepted_any_more<B>() {
        for (number, lasting) in [(2, true), (3, true), (2, false)] {
            let plan = Plan::new(Call::Accept, Errno::NOBUFS.raw_os_error(), number, lasting);
            let server = start::<B>(&plan).expect("nothing fails before");
            let _ = server.keep_alive();
            let start = std::time::Instant::now();
            server.handle.drain();
            server.thread.join().expect("no panic").expect("the loop ends in peace");
            assert!(start.elapsed() < PATIENCE, "the drain waits for who cannot come");
        }
    }

    fn a_failing_read_costs_its_connection<B>() {
        once::<B>(Call::Read, &[Errno::CONNRESET, Errno::NOMEM], 1);
        lasting::<B>(Call::Read, &[Errno::CONNRESET, Errno::TIMEDOUT]);
    }

    fn a_failing_write_costs_its_connection<B>() {
        once::<B>(Call::Write, &[Errno::PIPE, Errno::NOBUFS], 1);
        lasting::<B>(Call::Write, &[Errno::PIPE, Errno::CONNRESET]);
    }

    fn a_file_that_cannot_be_sent_costs_its_connection<B>() {
        once::<B>(Call::SendFile, &[Errno::IO, Errno::CONNRESET], 1);
        lasting::<B>(Call::SendFile, &[Errno::IO]);
    }

    fn a_file_that_is_not_in_memory_costs_nobody<B>() {
        once::<B>(Call::Cold, &[Errno::AGAIN], 0);
        // It never is: each block is brought, and sent without being asked about again.
        let plan = Plan::new(Call::Cold, Errno::AGAIN.raw_os_error(), 1, true);
        let server = start::<B>(&plan).expect("nothing fails before");
        assert_eq!(server.visit().len(), 0);
        assert!(plan.has_fired());
        server.stop();
    }

    fn a_failing_shutdown_costs_its_connection<B>() {
        once::<B>(Call::Shutdown, &[Errno::NOTCONN], 1);
        lasting::<B>(Call::Shutdown, &[Errno::NOTCONN]);
    }

    fn a_failing_registration_costs_its_connection<B>() {
        once::<B>(Call::Add, &[Errno::NOSPC, Errno::NOMEM], 1);
        lasting::<B>(Call::Add, &[Errno::NOSPC]);
        once::<B>(Call::SetInterest, &[Errno::NOMEM], 1);
        lasting::<B>(Call::SetInterest, &[Errno::NOMEM]);
    }

    fn a_failing_wait_costs_nobody<B>() {
        once::<B>(Call::Wait, &[Errno::NOMEM, Errno::INVAL], 0);
    }

    fn a_wait_that_fails_for_good_ends_the_loop_with_its_error<B>() {
        for number in [1, 2, 7] {
            let plan = Plan::new(Call::Wait, Errno::BADF.raw_os_error(), number, true);
            let server = start::<B>(&plan).expect("making the loop waits for nothing");
            while !server.thread.is_finished() {
                // Something to wake for, as otherwise the seventh wait never comes.
                server.handle.wake();
                std::thread::yield_now();
            }
            let error = server.thread.join().expect("no panic").expect_err("an end");
            assert_eq!(error.raw_os_error(), Some(Errno::BADF.raw_os_error()));
        }
    }
}
