//! Starts a loop in a thread on a free port, and talks to it over a plain socket.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use serverd::r#loop::{Counters, Handed, Limits, Readiness};
use serverd::{App, EventLoop, Handle, Poller, Timeouts};

/// What a test waits for at most; nothing in a passing test takes near as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A backend that listens on the system's sockets.
pub(crate) trait Backend: Readiness<Listener: From<TcpListener> + From<Handed>> + 'static {}
impl<B: Readiness<Listener: From<TcpListener> + From<Handed>> + 'static> Backend for B {}

/// Expands each function to a test for every backend, and for each of them under chaos.
macro_rules! on_every_backend {
    ($(fn $name:ident<$backend:ident>() $body:block)*) => {
        mod promise {
            #[allow(unused_imports)]
            use super::*;
            $(pub(super) fn $name<$backend: crate::harness::Backend>() $body)*
        }
        mod select {
            $(#[test] fn $name() { super::promise::$name::<serverd::r#loop::Select>() })*
        }
        mod chaos_select {
            $(#[test] fn $name() { super::promise::$name::<serverd::r#loop::Chaos<serverd::r#loop::Select>>() })*
        }
        #[cfg(target_os = "linux")]
        mod epoll {
            $(#[test] fn $name() { super::promise::$name::<serverd::r#loop::Epoll>() })*
        }
        #[cfg(target_os = "linux")]
        mod chaos_epoll {
            $(#[test] fn $name() { super::promise::$name::<serverd::r#loop::Chaos<serverd::r#loop::Epoll>>() })*
        }
        #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
        mod kqueue {
            $(#[test] fn $name() { super::promise::$name::<serverd::r#loop::Kqueue>() })*
        }
        #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
        mod chaos_kqueue {
            $(#[test] fn $name() { super::promise::$name::<serverd::r#loop::Chaos<serverd::r#loop::Kqueue>>() })*
        }
    };
}
pub(crate) use on_every_backend;

/// A loop that runs in a thread until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    thread: Option<JoinHandle<io::Result<Counters>>>,
}

/// A command that starts a program of ours: by what `SERVERD_TEST_RUNNER` names, where the system cannot start it itself,
/// as when it is for another processor.
pub(crate) fn program(path: impl AsRef<OsStr>) -> Command {
    match std::env::var_os("SERVERD_TEST_RUNNER") {
        Some(runner) => {
            let mut command = Command::new(runner);
            command.arg(path);
            command
        }
        None => Command::new(path),
    }
}

/// Whether this is Wine, which does something otherwise than Windows does; says that a test is skipped, and why. The
/// list of them is in docs/PLATFORMS.md.
pub(crate) fn skipped_under_wine(why: &str) -> bool {
    let wine = cfg!(windows) && std::env::var_os("RUNNING_UNDER_WINE").is_some();
    if wine {
        println!("skipped under Wine: {why}");
    }
    wine
}

/// Whether an emulator runs the tests, whose select call dies of descriptors beyond 1,023; says that a test is skipped.
pub(crate) fn skipped_in_an_emulator() -> bool {
    let emulated = std::env::var_os("SERVERD_TEST_RUNNER").is_some();
    if emulated {
        println!("skipped in an emulator: its select call takes no descriptor above 1,023");
    }
    emulated
}

/// Wine gives a read that follows a reset the end of the stream, where Windows gives WSAECONNRESET: nobody can tell a
/// client that is gone from one that has only said that nothing more will come.
pub(crate) const RESET_IS_AN_END: &str = "a reset reads as the end of the stream there";

/// Lets this process have as many descriptors as the system permits: some systems begin with 256, and all the tests
/// run in one process.
#[cfg(unix)]
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // macOS refuses what it calls its limit. Where neither can be had, the tests that need more fail and say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: Some(10_240), maximum }));
}

/// Windows has no such limit.
#[cfg(not(unix))]
pub(crate) fn raise_descriptor_limit() {}

/// Starts `app` with the usual limits.
pub(crate) fn serve<B: Backend, A: App>(app: impl FnOnce() -> A + Send + 'static) -> Server {
    serve_with::<B, A>(Timeouts::default(), Limits::default(), app)
}

/// Starts `app` with limits of its own. It is made in the thread it runs in, so it need not be `Send`.
pub(crate) fn serve_with<B: Backend, A: App>(
    timeouts: Timeouts,
    limits: Limits,
    app: impl FnOnce() -> A + Send + 'static,
) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    serve_on::<B, A>(listener, timeouts, limits, app)
}

/// The same, on a listener with options of its own.
pub(crate) fn serve_on<B: Backend, A: App>(
    listener: TcpListener,
    timeouts: Timeouts,
    limits: Limits,
    app: impl FnOnce() -> A + Send + 'static,
) -> Server {
    let address = listener.local_addr().expect("an address");
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut event_loop = EventLoop::<B, A>::with(timeouts, limits, app())?;
        event_loop.listen(listener)?;
        send.send(event_loop.handle()).expect("the test waits");
        event_loop.run()?;
        Ok(event_loop.counters().clone())
    });
    let handle = receive.recv_timeout(PATIENCE).expect("a loop");
    Server { address, handle, thread: Some(thread) }
}

impl Server {
    /// A new connection.
    pub(crate) fn connect(&self) -> Client {
        Client::new(self.address)
    }

    /// Drains the loop, waits for its end and returns what it counted.
    pub(crate) fn drain(mut self) -> Counters {
        self.handle.drain();
        self.join()
    }

    fn join(&mut self) -> Counters {
        let thread = self.thread.take().expect("joined once");
        thread.join().expect("the loop does not panic").expect("the loop does not fail")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.stop();
        if !std::thread::panicking() && self.thread.is_some() {
            self.join();
        }
    }
}

/// A raw client.
pub(crate) struct Client {
    pub(crate) socket: TcpStream,
    seen: Vec<u8>,
}

/// A response as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// The field lines behind a body in chunks.
    pub(crate) trailers: String,
}

impl Answer {
    /// The value of a field, if it is there.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (own, value) = line.split_once(':')?;
            own.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect_timeout(&address, PATIENCE).expect("a connection"))
    }

    /// A client on a socket that is connected already.
    pub(crate) fn over(socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        socket.set_write_timeout(Some(PATIENCE)).expect("a live socket");
        socket.set_nodelay(true).expect("a live socket");
        Client { socket, seen: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.socket.write_all(bytes.as_ref()).expect("the server reads");
        self
    }

    /// Goes away with a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).expect("a live socket");
    }

    /// Closes the sending half.
    pub(crate) fn finish(&mut self) -> &mut Self {
        self.socket.shutdown(Shutdown::Write).expect("a live socket");
        self
    }

    /// Reads until `enough` of what is seen says how much of it is wanted.
    fn read_until(&mut self, enough: impl Fn(&[u8]) -> Option<usize>) -> Vec<u8> {
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some(count) = enough(&self.seen) {
                return self.seen.drain(..count).collect();
            }
            let count = self.socket.read(&mut buffer).expect("an answer in time");
            assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&self.seen));
            self.seen.extend_from_slice(&buffer[..count]);
        }
    }

    /// Reads exactly so many bytes.
    pub(crate) fn read(&mut self, count: usize) -> Vec<u8> {
        self.read_until(|seen| (seen.len() >= count).then_some(count))
    }

    /// Reads a line, and returns it without its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = self.read_until(|seen| memchr::memchr(b'\n', seen).map(|at| at + 1));
        line.pop();
        String::from_utf8(line).expect("UTF-8")
    }

    /// The same, where it comes within so long.
    pub(crate) fn line_within(&mut self, wait: Duration) -> Option<String> {
        if !self.seen.contains(&b'\n') {
            let mut buffer = [0; 4096];
            self.socket.set_read_timeout(Some(wait)).expect("a live socket");
            let outcome = self.socket.read(&mut buffer);
            self.socket.set_read_timeout(Some(PATIENCE)).expect("a live socket");
            self.seen.extend_from_slice(&buffer[..outcome.ok()?]);
        }
        Some(self.line())
    }

    /// Reads a response that is delimited by Content-Length or by chunks, or has no body.
    pub(crate) fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    /// Reads the response to a request of this method.
    pub(crate) fn answer_to(&mut self, method: &str) -> Answer {
        let head = self.read_until(|seen| seen.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4));
        let head = String::from_utf8(head).expect("a head in ASCII");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        let mut answer = Answer { status, head, body: Vec::new(), trailers: String::new() };
        let bodiless = method == "HEAD" || status < 200 || status == 204 || status == 304;
        if !bodiless && answer.field("transfer-encoding") == Some("chunked") {
            answer.body = self.chunks();
            answer.trailers = self.trailers();
        } else if !bodiless {
            let length = answer.field("content-length").expect("a length").parse().expect("a number");
            answer.body = self.read(length);
        }
        answer
    }

    /// Reads the chunks of a body, up to the last one.
    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(self.line().trim_end(), 16).expect("a chunk size");
            if size == 0 {
                return body;
            }
            body.extend(self.read(size));
            assert_eq!(self.read(2), b"\r\n");
        }
    }

    fn trailers(&mut self) -> String {
        let mut lines = String::new();
        loop {
            let line = self.line();
            if line == "\r" {
                return lines;
            }
            lines += &line;
            lines.push('\n');
        }
    }

    /// Reads to the end of the stream, which must come, and not by a reset.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.seen);
        self.socket.read_to_end(&mut rest).expect("a clean end");
        rest
    }

    /// Asserts that the server closes without another byte.
    pub(crate) fn expect_close(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "unexpected: {:?}", String::from_utf8_lossy(&rest));
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number less than `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % bound
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(count);
        bytes
    }
}
