//! Test harness: runs an event loop in a thread on a free port, and provides a raw TCP client for it.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use serverd::tls::{Certificate, Tls};
use serverd::{App, Chaos, EventLoop, Handle, Select, Timeouts, WithTls};
use serverd::{Counters, HandoffListener, LoopLimits, Readiness, SystemListener};

/// Maximum time a test waits for anything, much longer than any wait in a passing test, on a busy machine too.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);

/// Maximum pause between two attempts of [`retry`].
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(16);

/// A readiness backend whose listeners are system sockets.
pub(crate) trait Backend:
    Readiness<Listener: From<TcpListener> + From<HandoffListener> + From<SystemListener>> + 'static
{
    /// Set if clients connect with TLS.
    const IS_SECURE: bool = false;

    /// Adds a listener of the kind that clients expect.
    fn listen<A: App>(event_loop: &mut EventLoop<Self, A>, listener: TcpListener) -> io::Result<()> {
        event_loop.listen(listener)
    }
}

impl Backend for Select {}
#[cfg(target_os = "linux")]
impl Backend for serverd::Epoll {}
#[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
impl Backend for serverd::Kqueue {}
impl<B: Backend> Backend for Chaos<B> {}

impl<B: Backend> Backend for WithTls<B> {
    const IS_SECURE: bool = true;

    fn listen<A: App>(event_loop: &mut EventLoop<Self, A>, listener: TcpListener) -> io::Result<()> {
        event_loop.listen_tls(listener, &SECURITY.1)
    }
}

/// The backend of tests over TLS: the preferred one, with faults injected between TLS and the socket.
#[cfg(target_os = "linux")]
pub(crate) type SecureBackend = WithTls<Chaos<serverd::Epoll>>;
#[cfg(all(unix, not(target_os = "linux")))]
pub(crate) type SecureBackend = WithTls<Chaos<serverd::Kqueue>>;
#[cfg(windows)]
pub(crate) type SecureBackend = WithTls<Chaos<Select>>;

/// The certificate of all servers of tests over TLS, and their configuration.
static SECURITY: LazyLock<(Certificate, Tls)> = LazyLock::new(|| {
    let certificate = Certificate::self_signed(["localhost"]).expect("a name");
    let tls = Tls::new(vec![certificate.clone()]).expect("a certificate").alpn_protocols(&["http/1.1"]);
    (certificate, tls)
});

/// Returns a client configuration that trusts a certificate.
pub(crate) fn trusting(certificate: &Certificate, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().to_vec().into()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
    builder.with_root_certificates(roots).with_no_client_auth()
}

/// Expands each function to one test per backend, and one per backend wrapped in `Chaos`. After `over_tls_too:`, also
/// to one over TLS, unless it is marked with `#[plain_tcp]`: tests that use the socket itself, or connections without a
/// handshake.
macro_rules! on_every_backend {
    (over_tls_too: $($(#[$mark:ident])? fn $name:ident<$backend:ident>() $body:block)*) => {
        crate::harness::on_every_backend! { $(fn $name<$backend>() $body)* }
        mod secure {
            $(crate::harness::test_over_tls! { $(#[$mark])? $name })*
        }
    };
    ($(fn $name:ident<$backend:ident>() $body:block)*) => {
        mod behaviour {
            #[allow(unused_imports)]
            use super::*;
            $(pub(super) fn $name<$backend: crate::harness::Backend>() $body)*
        }
        #[cfg(not(serverd_kqueue_by_epoll))]
        mod select {
            $(#[test] fn $name() { super::behaviour::$name::<serverd::Select>() })*
        }
        #[cfg(not(serverd_kqueue_by_epoll))]
        mod chaos_select {
            $(#[test] fn $name() { super::behaviour::$name::<serverd::Chaos<serverd::Select>>() })*
        }
        #[cfg(all(target_os = "linux", not(serverd_kqueue_by_epoll)))]
        mod epoll {
            $(#[test] fn $name() { super::behaviour::$name::<serverd::Epoll>() })*
        }
        #[cfg(all(target_os = "linux", not(serverd_kqueue_by_epoll)))]
        mod chaos_epoll {
            $(#[test] fn $name() { super::behaviour::$name::<serverd::Chaos<serverd::Epoll>>() })*
        }
        #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
        mod kqueue {
            $(#[test] fn $name() { super::behaviour::$name::<serverd::Kqueue>() })*
        }
        #[cfg(any(all(unix, not(target_os = "linux")), serverd_kqueue_by_epoll))]
        mod chaos_kqueue {
            $(#[test] fn $name() { super::behaviour::$name::<serverd::Chaos<serverd::Kqueue>>() })*
        }
    };
}
pub(crate) use on_every_backend;

macro_rules! test_over_tls {
    (#[plain_tcp] $name:ident) => {};
    ($name:ident) => {
        #[test]
        #[ignore = "over TLS; run by .ci/run --long"]
        fn $name() {
            super::behaviour::$name::<crate::harness::SecureBackend>();
        }
    };
}
pub(crate) use test_over_tls;

/// An event loop running in a thread. Dropping it stops the loop.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    /// Configurations of clients over TLS, used in turn; empty without TLS.
    clients: Vec<Arc<ClientConfig>>,
    connected: AtomicUsize,
    thread: Option<JoinHandle<io::Result<Counters>>>,
}

/// Returns a command that starts a program of this package. If `TEST_RUNNER` is set, it names the emulator to
/// run the program in, for tests of another architecture.
///
/// Variables of this environment that the binary reads are not passed on.
pub(crate) fn program(path: impl AsRef<OsStr>) -> Command {
    let mut command = match std::env::var_os("TEST_RUNNER") {
        Some(runner) => {
            let mut command = Command::new(runner);
            command.arg(path);
            command
        }
        None => Command::new(path),
    };
    let is_read = |name: &OsStr| name == "PORT" || name.to_string_lossy().starts_with("SERVERD_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_read(name)) {
        command.env_remove(name);
    }
    command
}

/// Returns whether the tests run under Wine, and if so prints that the test is skipped. `why` says how Wine differs
/// from Windows. docs/PLATFORMS.md lists the skipped tests.
pub(crate) fn skipped_under_wine(why: &str) -> bool {
    let wine = is_under_wine();
    if wine {
        println!("skipped under Wine: {why}");
    }
    wine
}

/// Returns whether the tests run on Windows, and if so prints why a test is skipped there.
pub(crate) fn skipped_on_windows(why: &str) -> bool {
    if cfg!(windows) {
        println!("skipped on Windows: {why}");
    }
    cfg!(windows)
}

/// Returns whether the tests run under Wine.
pub(crate) fn is_under_wine() -> bool {
    cfg!(windows) && std::env::var_os("RUNNING_UNDER_WINE").is_some()
}

/// Returns whether the tests run in an emulator, and if so prints that the test is skipped: `select` crashes there on
/// file descriptors above 1,023.
pub(crate) fn skipped_in_emulator() -> bool {
    let emulated = std::env::var_os("TEST_RUNNER").is_some();
    if emulated {
        println!("skipped in an emulator: its select does not support file descriptors above 1,023");
    }
    emulated
}

/// Reason to skip a test under Wine: reading after a reset returns end of stream instead of WSAECONNRESET, so a reset
/// cannot be distinguished from a half-close.
pub(crate) const RESET_READS_AS_EOF: &str = "a reset reads as the end of the stream";

/// Raises the file descriptor limit of this process to the maximum: the default is 256 on some systems, and all tests
/// run in one process.
#[cfg(unix)]
pub(crate) fn raise_fd_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // macOS rejects the maximum that it reports. If both calls fail, the tests that need more descriptors report it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: Some(10_240), maximum }));
}

/// Does nothing: Windows has no such limit.
#[cfg(not(unix))]
pub(crate) fn raise_fd_limit() {}

/// Starts a server for `app` with default timeouts and limits.
pub(crate) fn serve<B: Backend, A: App>(app: impl FnOnce() -> A + Send + 'static) -> Server {
    serve_with::<B, A>(Timeouts::default(), LoopLimits::default(), app)
}

/// Starts a server for `app` with the given timeouts and limits. The app is created in the thread of the loop, so it
/// need not be `Send`.
pub(crate) fn serve_with<B: Backend, A: App>(
    timeouts: Timeouts,
    limits: LoopLimits,
    app: impl FnOnce() -> A + Send + 'static,
) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    serve_on::<B, A>(listener, timeouts, limits, app)
}

/// Starts a server for `app` on an existing listener.
pub(crate) fn serve_on<B: Backend, A: App>(
    listener: TcpListener,
    timeouts: Timeouts,
    limits: LoopLimits,
    app: impl FnOnce() -> A + Send + 'static,
) -> Server {
    let mut server = serve_by(timeouts, limits, app, listener, |event_loop: &mut EventLoop<B, A>, listener| {
        B::listen(event_loop, listener)
    });
    if B::IS_SECURE {
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        server.clients = versions.map(|version| Arc::new(trusting(&SECURITY.0, &[version]))).into();
    }
    server
}

/// Starts a server for `app`, whose loop gets the listener from `listen`.
pub(crate) fn serve_by<B: Readiness, A: App>(
    timeouts: Timeouts,
    limits: LoopLimits,
    app: impl FnOnce() -> A + Send + 'static,
    listener: TcpListener,
    listen: impl FnOnce(&mut EventLoop<B, A>, TcpListener) -> io::Result<()> + Send + 'static,
) -> Server {
    let address = listener.local_addr().expect("an address");
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut event_loop = EventLoop::<B, A>::with_limits(timeouts, limits, app())?;
        listen(&mut event_loop, listener)?;
        send.send(event_loop.handle()).expect("the test is waiting");
        event_loop.run()?;
        Ok(event_loop.counters().clone())
    });
    let handle = receive.recv_timeout(WAIT_MAX).expect("the loop starts");
    Server { address, handle, clients: Vec::new(), connected: AtomicUsize::new(0), thread: Some(thread) }
}

impl Server {
    /// Connects to the server. Over TLS, the connections alternate between TLS 1.3 and 1.2, and from the third on they
    /// resume sessions. The handshake begins with the first read or write.
    pub(crate) fn connect(&self) -> Client {
        let mut client = Client::new(self.address);
        if !self.clients.is_empty() {
            let config = &self.clients[self.connected.fetch_add(1, Ordering::Relaxed) % self.clients.len()];
            let name = "localhost".try_into().expect("a name");
            client.session = Some(ClientConnection::new(Arc::clone(config), name).expect("a configuration"));
        }
        client
    }

    /// Shuts the loop down gracefully, waits until it has ended, and returns its counters.
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

/// Connects from the given address of this computer.
pub(crate) fn connect_from(source: &str, server: SocketAddr) -> io::Result<TcpStream> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None).expect("a socket");
    let source: SocketAddr = source.parse().expect("an address");
    socket.bind(&source.into()).expect("a local address");
    socket.set_read_timeout(Some(WAIT_MAX)).expect("a new socket");
    socket.connect(&server.into())?;
    Ok(TcpStream::from(socket))
}

/// Connects and sends something. Returns the client if the server sends something too, and `None` if it refuses the
/// connection with a reset.
pub(crate) fn accepted(server: SocketAddr, text: &str) -> Option<Client> {
    accepted_from("127.0.0.1:0", server, text)
}

/// Waits until a condition holds. `what` is the error if it never does.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    retry(|| if condition() { Ok(()) } else { Err(what) });
}

/// Repeats `attempt` until it succeeds, and returns its value. Panics with its last error if it never does.
///
/// Pauses between the attempts, so that they take no CPU time from what they wait for: other tests and servers run at
/// the same time, on a few cores.
pub(crate) fn retry<T, E: Display>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let (start, mut pause) = (Instant::now(), Duration::from_millis(1));
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(start.elapsed() < WAIT_MAX, "{error}"),
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(RETRY_PAUSE_MAX);
    }
}

/// Connects from the given address and sends something. Returns the client if the server sends something too, and
/// `None` if it refuses the connection with a reset.
pub(crate) fn accepted_from(source: &str, server: SocketAddr, text: &str) -> Option<Client> {
    let mut socket = match connect_from(source, server) {
        Ok(socket) => socket,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            return None;
        }
    };
    // The server may have reset the connection already.
    let sent = socket.write_all(text.as_bytes());
    match sent.and_then(|()| socket.peek(&mut [0])) {
        Ok(1..) => return Some(Client::from_socket(socket)),
        // See RESET_READS_AS_EOF.
        Ok(0) => assert!(is_under_wine(), "closed without a reset"),
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe),
            "{error}"
        ),
    }
    None
}

/// A client over TCP or TLS.
pub(crate) struct Client {
    /// The socket; not for reading and writing in tests that also run over TLS.
    pub(crate) socket: TcpStream,
    /// `None` without TLS.
    session: Option<ClientConnection>,
    received: Vec<u8>,
}

/// A response as received.
#[derive(Debug)]
pub(crate) struct RawResponse {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// The trailer lines after a chunked body.
    pub(crate) trailers: String,
}

impl RawResponse {
    /// Returns the value of a header, if present.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self::from_socket(TcpStream::connect_timeout(&address, WAIT_MAX).expect("a connection"))
    }

    /// Creates a client from a connected socket.
    pub(crate) fn from_socket(socket: TcpStream) -> Self {
        socket.set_nodelay(true).expect("the socket is open");
        Self::with_timeouts(socket)
    }

    /// Creates a client over a Unix socket.
    #[cfg(unix)]
    pub(crate) fn over_unix(path: &std::path::Path) -> Self {
        let socket = std::os::unix::net::UnixStream::connect(path).expect("a connection");
        Self::with_timeouts(std::os::fd::OwnedFd::from(socket).into())
    }

    fn with_timeouts(socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(WAIT_MAX)).expect("the socket is open");
        socket.set_write_timeout(Some(WAIT_MAX)).expect("the socket is open");
        Client { socket, session: None, received: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.try_send(bytes.as_ref()).expect("the server reads");
        self
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(session) = &mut self.session else { return self.socket.write_all(bytes) };
        let mut stream = rustls::Stream::new(session, &mut self.socket);
        stream.write_all(bytes).and_then(|()| stream.flush())
    }

    /// Appends all bytes up to the end of the stream, which over TLS must be an orderly one.
    pub(crate) fn try_read_to_end(&mut self, rest: &mut Vec<u8>) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        rest.append(&mut self.received);
        loop {
            match self.receive(&mut buffer)? {
                0 => return Ok(()),
                count => rest.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Reads some bytes; 0 at the end of the stream, which over TLS must be an orderly one. A read with a timeout is
    /// interrupted when the process is stopped and continued, and is then repeated.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let outcome = match &mut self.session {
                Some(session) => rustls::Stream::new(session, &mut self.socket).read(buffer),
                None => self.socket.read(buffer),
            };
            if !outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
                return outcome;
            }
        }
    }

    /// Begins an upload of `len` bytes. Returns once the server expects its body, with `100 Continue`.
    pub(crate) fn begin_upload(&mut self, len: usize) -> &mut Self {
        self.send(format!("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len}\r\n\r\n"));
        assert_eq!(self.response().status, 100);
        self
    }

    /// Closes the connection with a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).expect("the socket is open");
    }

    /// Half-closes the connection: sends nothing more, but can still read.
    pub(crate) fn finish(&mut self) -> &mut Self {
        if let Some(session) = &mut self.session {
            let mut stream = rustls::Stream::new(session, &mut self.socket);
            stream.flush().expect("the server reads");
            stream.conn.send_close_notify();
            stream.flush().expect("the server reads");
        }
        self.socket.shutdown(Shutdown::Write).expect("the socket is open");
        self
    }

    /// Reads until `complete`, called with the bytes received so far, returns the number of bytes to take.
    fn read_until(&mut self, complete: impl Fn(&[u8]) -> Option<usize>) -> Vec<u8> {
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some(count) = complete(&self.received) {
                // A copy, because some tests keep many lines, and the buffer is much larger than a line.
                let taken = self.received[..count].to_vec();
                self.received.drain(..count);
                return taken;
            }
            let count = self.receive(&mut buffer).expect("a response arrives in time");
            assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&self.received));
            self.received.extend_from_slice(&buffer[..count]);
        }
    }

    /// Reads exactly `count` bytes.
    pub(crate) fn read(&mut self, count: usize) -> Vec<u8> {
        self.read_until(|bytes| (bytes.len() >= count).then_some(count))
    }

    /// Reads a line and returns it without the LF.
    pub(crate) fn line(&mut self) -> String {
        let mut line = self.read_until(|bytes| memchr::memchr(b'\n', bytes).map(|at| at + 1));
        line.pop();
        String::from_utf8(line).expect("UTF-8")
    }

    /// Reads a line if one arrives within `wait`.
    pub(crate) fn line_within(&mut self, wait: Duration) -> Option<String> {
        if !self.received.contains(&b'\n') {
            let mut buffer = [0; 4096];
            self.socket.set_read_timeout(Some(wait)).expect("the socket is open");
            let outcome = self.receive(&mut buffer);
            self.socket.set_read_timeout(Some(WAIT_MAX)).expect("the socket is open");
            self.received.extend_from_slice(&buffer[..outcome.ok()?]);
        }
        Some(self.line())
    }

    /// Reads a response to GET. It must have a Content-Length, be chunked, or have no body.
    pub(crate) fn response(&mut self) -> RawResponse {
        self.response_to("GET")
    }

    /// Reads the response to a request with this method.
    pub(crate) fn response_to(&mut self, method: &str) -> RawResponse {
        let head = self.read_until(|bytes| memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4));
        let head = String::from_utf8(head).expect("an ASCII head");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let mut response = RawResponse { status, head, body: Vec::new(), trailers: String::new() };
        let has_no_body = method == "HEAD" || status < 200 || status == 204 || status == 304;
        if !has_no_body && response.header("transfer-encoding") == Some("chunked") {
            response.body = self.chunks();
            response.trailers = self.trailers();
        } else if !has_no_body {
            let length = response.header("content-length").expect("a length").parse().expect("a number");
            response.body = self.read(length);
        }
        response
    }

    /// Reads a chunked body up to and including the last chunk.
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

    /// Reads to the end of the stream, then half-closes the connection, so that the server need not linger. Panics on a
    /// reset.
    pub(crate) fn read_to_end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.try_read_to_end(&mut rest).expect("end of stream without an error");
        // Fails if the server has closed the connection completely.
        let _ = self.socket.shutdown(Shutdown::Write);
        rest
    }

    /// Asserts that the server closes the connection without sending more.
    pub(crate) fn expect_close(&mut self) {
        let rest = self.read_to_end();
        assert!(rest.is_empty(), "unexpected: {:?}", String::from_utf8_lossy(&rest));
    }
}

/// A deterministic pseudo-random number generator (xorshift64*).
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

    /// Returns a number less than `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % bound
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        // Not byte by byte, which takes long without optimisation.
        for piece in bytes.chunks_mut(8) {
            piece.copy_from_slice(&self.next().to_le_bytes()[..piece.len()]);
        }
        bytes
    }
}
