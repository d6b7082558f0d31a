//! The admin listener: health, metrics and the version, on a thread and a loop of its own, so that they are available
//! while a worker is stuck.
//!
//! A second thread wakes the workers twice a second. A loop that does not turn in spite of that for 5 s is stuck:
//! its application blocks or does not return.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http::StatusCode;

use super::admin_metrics;
use super::admin_status::Status;
use super::config::{AdminAddress, Config};
use super::start_error::StartError;
use super::worker_loop::AnyHandler;
use crate::httpserver::{Handler, Hosts, HttpServer, Pool, Request, Responder, Response, is_local_or_address};
#[cfg(unix)]
use crate::r#loop::UnixSocket;
use crate::r#loop::{EventLoop, Handle, LoopLimits, Select, SystemListener, Timeouts};

/// Interval at which the workers are woken and checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Maximum open connections.
const CONNECTIONS_MAX: usize = 16;

/// Maximum time for each phase of a connection.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time that a request waits for the check of readiness.
const READY_WAIT: Duration = Duration::from_secs(2);

/// Responds to the requests of the admin listener.
struct AdminHandler {
    status: Arc<Status>,
    /// A thread for the check of readiness, if there is one: it may block, for example on a network file system that does
    /// not respond.
    checks: Option<Pool>,
    /// The names in Host that are allowed; `None` for a Unix socket.
    hosts: Option<Hosts>,
}

impl AdminHandler {
    fn new(status: &Arc<Status>, hosts: Option<Hosts>) -> io::Result<Self> {
        let checks = if status.has_check() { Some(Pool::new(1, CONNECTIONS_MAX)?) } else { None };
        Ok(AdminHandler { status: Arc::clone(status), checks, hosts })
    }

    /// Returns whether the request is for this server, and not for a name that a web page lets resolve to it (DNS
    /// rebinding).
    fn allows(&self, request: &Request<'_>) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        request.host().is_some_and(|authority| is_local_or_address(authority) || hosts.cover(authority))
    }

    fn livez(&self) -> Response {
        match self.status.stuck_worker() {
            None => Response::text("ok\n"),
            Some((worker, time)) => {
                let text = format!("worker {worker}: the loop has not turned for {} s\n", time.as_secs());
                Response::error(StatusCode::SERVICE_UNAVAILABLE, text)
            }
        }
    }

    fn readyz(&self, is_verbose: bool) -> Response {
        let Some(pool) = &self.checks else { return Self::readiness(&self.status, is_verbose) };
        let text = format!("[-] content: no result of the check within {} s\n", READY_WAIT.as_secs());
        let late = Response::error(StatusCode::SERVICE_UNAVAILABLE, text);
        let (response, responder) = Response::later_within(READY_WAIT, late);
        let status = Arc::clone(&self.status);
        let check = move |responder: Responder| responder.respond(Self::readiness(&status, is_verbose));
        pool.run_with(responder, check).map_or_else(Response::from, |()| response)
    }

    fn readiness(status: &Status, is_verbose: bool) -> Response {
        let conditions = status.conditions();
        let is_ready = conditions.iter().all(|(_, outcome)| outcome.is_ok());
        let describe = |(name, outcome): &(&str, Result<(), String>)| match outcome {
            Ok(()) => format!("[+] {name}: ok\n"),
            Err(problem) => format!("[-] {name}: {problem}\n"),
        };
        let details: String =
            conditions.iter().filter(|(_, outcome)| is_verbose || outcome.is_err()).map(describe).collect();
        if is_ready {
            return Response::text(if is_verbose { details + "ok\n" } else { "ok\n".to_owned() });
        }
        Response::error(StatusCode::SERVICE_UNAVAILABLE, details)
    }
}

impl Handler for AdminHandler {
    fn call(&mut self, request: &Request<'_>) -> Response {
        if !self.allows(request) {
            let text = "the host is not an IP address, localhost, or a name of --allow-host\n";
            return Response::error(StatusCode::MISDIRECTED_REQUEST, text);
        }
        if !matches!(request.method(), "GET" | "HEAD") {
            return Response::from(StatusCode::METHOD_NOT_ALLOWED).header("Allow", "GET, HEAD");
        }
        let response = match request.path() {
            "/livez" => self.livez(),
            "/readyz" => self.readyz(request.query_pairs().any(|(name, _)| name == "verbose")),
            "/metrics" => Response::text(admin_metrics::render(&self.status))
                .header("Content-Type", "text/plain; version=0.0.4; charset=utf-8"),
            "/version" => Response::text(concat!("serverd ", env!("CARGO_PKG_VERSION"), "\n")),
            _ => Response::from(StatusCode::NOT_FOUND),
        };
        // A deferred response gets the headers of its placeholder.
        response.header("Cache-Control", "no-store")
    }
}

/// The threads of an admin listener. Dropping this ends them.
pub(super) struct Admin {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
    watchdog: Option<JoinHandle<()>>,
    is_ending: Arc<AtomicBool>,
}

impl Admin {
    /// Starts the listener.
    pub(super) fn start(address: &AdminAddress, config: &Config, status: &Arc<Status>) -> Result<Self, StartError> {
        let shown = match address {
            AdminAddress::Tcp(address) => address.clone(),
            AdminAddress::Unix(path) => path.display().to_string(),
        };
        let cannot = |error: io::Error| StartError::new(format!("--admin: cannot listen on {shown}: {error}"));
        let (listener, hosts) = match address {
            AdminAddress::Tcp(address) => {
                (bind(address).map_err(cannot)?, Some(Hosts::new(&config.http.allowed_hosts)))
            }
            AdminAddress::Unix(path) => (bind_unix(path).map_err(cannot)?, None),
        };
        let started = AdminHandler::new(status, hosts).and_then(|handler| Self::serve(listener, handler));
        started.map_err(|error| StartError::from_io("cannot start the admin listener", error))
    }

    /// Starts the threads.
    fn serve(listener: SystemListener, handler: AdminHandler) -> io::Result<Self> {
        let (send, receive) = mpsc::channel();
        let status = Arc::clone(&handler.status);
        let serve = move || {
            let outcome = build_loop(listener, handler).and_then(|mut event_loop| {
                // Fails only if the start was aborted.
                let _ = send.send(Ok(event_loop.handle()));
                event_loop.run()
            });
            if let Err(error) = outcome {
                log::error!("the admin listener has failed: {error}");
                let _ = send.send(Err(error));
            }
        };
        let thread = thread::Builder::new().name("admin".into()).spawn(serve)?;
        let handle = receive.recv().unwrap_or_else(|_| Err(io::Error::other("the thread has ended")))?;
        let is_ending = Arc::new(AtomicBool::new(false));
        let mut admin = Admin { handle, thread: Some(thread), watchdog: None, is_ending };
        let is_ending = Arc::clone(&admin.is_ending);
        let watch = move || {
            let mut turns = vec![u64::MAX; status.loops.len()];
            while !is_ending.load(Ordering::Relaxed) {
                status.watch(&mut turns);
                thread::park_timeout(CHECK_INTERVAL);
            }
        };
        admin.watchdog = Some(thread::Builder::new().name("watchdog".into()).spawn(watch)?);
        Ok(admin)
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.handle.stop();
        self.is_ending.store(true, Ordering::Relaxed);
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.thread().unpark();
            // Fails only if the thread has panicked.
            let _ = watchdog.join();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Creates the loop, which has a type that the built-in applications use too.
fn build_loop(
    listener: SystemListener,
    handler: AdminHandler,
) -> io::Result<EventLoop<Select, HttpServer<AnyHandler>>> {
    let mut timeouts = Timeouts::default();
    timeouts.cap(TIMEOUT);
    let limits = LoopLimits { connections_max: CONNECTIONS_MAX, ..LoopLimits::default() };
    let mut event_loop = EventLoop::with_limits(timeouts, limits, HttpServer::with(AnyHandler::new(handler)))?;
    event_loop.listen(listener)?;
    Ok(event_loop)
}

/// Binds a TCP listener, and warns if other machines can reach it.
fn bind(address: &str) -> io::Result<SystemListener> {
    let addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    let listener = TcpListener::bind(&addresses[..])?;
    let bound = listener.local_addr()?;
    if bound.ip().is_loopback() {
        log::info!("admin listener on {bound}");
    } else {
        log::warn!("--admin: {bound} can be reached from other machines; use 127.0.0.1 or a Unix socket");
    }
    Ok(listener.into())
}

/// Binds a Unix socket that only this user can connect to.
#[cfg(unix)]
fn bind_unix(path: &std::path::Path) -> io::Result<SystemListener> {
    UnixSocket::bind(path, 0o600).map(SystemListener::from)
}

#[cfg(not(unix))]
fn bind_unix(_: &std::path::Path) -> io::Result<SystemListener> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no Unix sockets; use ADDR:PORT"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::r#loop::{ConnectionLimit, Flow, Phase, Wire, lock};
    use crate::server::config::ReadyCheck;
    use crate::server::threads::Control;
    use crate::server::worker_loop::Security;

    fn status_of(config: &Config, workers: usize, control: &Arc<Control>) -> Arc<Status> {
        Status::new(config, ("select", &Security::default()), &ConnectionLimit::new(7), (workers, control))
    }

    fn status_with(workers: usize, control: &Arc<Control>) -> Arc<Status> {
        status_of(&Config::default(), workers, control)
    }

    fn status(workers: usize) -> Arc<Status> {
        status_with(workers, &Arc::default())
    }

    /// Starts an admin listener, and returns a function that makes a request.
    fn start(status: &Arc<Status>) -> (Admin, impl Fn(&str, &str) -> String + use<>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let handler = AdminHandler::new(status, Some(Hosts::new([".example.com"]))).unwrap();
        let admin = Admin::serve(listener.into(), handler).unwrap();
        let request = move |target: &str, host: &str| {
            let mut socket = TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).unwrap();
            let mut response = String::new();
            socket.read_to_string(&mut response).unwrap();
            response
        };
        (admin, request)
    }

    #[test]
    fn only_requests_for_this_machine_are_answered() {
        let (_admin, get) = start(&status(1));
        for (host, code) in [
            ("127.0.0.1:9090", 200),
            ("[::1]:9090", 200),
            ("LocalHost", 200),
            ("a.Example.com", 200),
            ("example.com", 200),
            ("badexample.com", 421),
            ("evil.test", 421),
        ] {
            let response = get("/livez", host);
            assert!(response.starts_with(&format!("HTTP/1.1 {code} ")), "{host}: {response}");
        }
        assert!(get("/", "localhost").starts_with("HTTP/1.1 404 "));
        assert!(get("/version", "localhost").ends_with(concat!("serverd ", env!("CARGO_PKG_VERSION"), "\n")));
    }

    #[test]
    fn a_server_is_ready_between_its_start_and_its_shutdown() {
        let control = Arc::default();
        let status = status_with(1, &control);
        let (_admin, get) = start(&status);
        let ready = |target| get(target, "localhost");
        assert!(ready("/readyz").starts_with("HTTP/1.1 503 "));
        status.start(&[]);
        assert!(ready("/readyz").ends_with("\r\n\r\nok\n"));
        assert!(ready("/readyz?verbose").contains("[+] started: ok\n[+] serving: ok\n"));
        control.drain(None);
        let response = ready("/readyz");
        assert!(
            response.starts_with("HTTP/1.1 503 ") && response.ends_with("[-] serving: shutting down\n"),
            "{response}"
        );
        assert!(get("/livez", "localhost").starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn a_check_of_readiness_that_blocks_delays_no_other_request() {
        let (release, held) = mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let check = ReadyCheck::new(move || {
            // Returns when the test has ended, too.
            let _ = lock(&held).recv();
            Ok(())
        });
        let config = Config { ready_check: Some(check), ..Config::default() };
        let status = status_of(&config, 1, &Arc::default());
        status.start(&[]);
        let (_admin, get) = start(&status);
        let get = &get;
        thread::scope(|scope| {
            let ready = scope.spawn(move || get("/readyz", "localhost"));
            assert!(get("/livez", "localhost").starts_with("HTTP/1.1 200 "));
            assert!(!ready.is_finished());
            let response = ready.join().unwrap();
            assert!(response.starts_with("HTTP/1.1 503 ") && response.contains("no result of the check"), "{response}");
            assert_eq!(response.matches("Cache-Control: no-store\r\n").count(), 1, "{response}");
        });
        release.send(()).unwrap();
        release.send(()).unwrap();
        let response = get("/readyz", "localhost");
        assert!(response.ends_with("\r\n\r\nok\n"), "{response}");
        assert_eq!(response.matches("Cache-Control: no-store\r\n").count(), 1, "{response}");
    }

    /// An application that does not return makes its worker unhealthy, while metrics are still available.
    #[test]
    fn a_loop_that_is_held_up_is_not_alive() {
        let status = status(1);
        let metrics = Arc::clone(&status.loops[0]);
        let ((release, held), (send, receive)) = (mpsc::channel::<()>(), mpsc::channel());
        let worker = thread::spawn(move || {
            let app = move |wire: &mut Wire<'_, ()>| {
                if wire.input().is_empty() {
                    return Flow::Read(Phase::Unlimited);
                }
                // Returns when the test has ended, too.
                let _ = held.recv();
                Flow::Close
            };
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let mut event_loop = EventLoop::<Select, _>::new(listener, None, app).unwrap();
            event_loop.record_metrics(&metrics);
            send.send((address, event_loop.handle())).unwrap();
            event_loop.run().unwrap();
        });
        let (address, handle) = receive.recv().unwrap();
        status.start(std::slice::from_ref(&handle));
        let (_admin, get) = start(&status);
        let wait_for = |code: &str| {
            let start = std::time::Instant::now();
            loop {
                let response = get("/livez", "localhost");
                if response.starts_with(&format!("HTTP/1.1 {code} ")) {
                    return response;
                }
                assert!(start.elapsed() < Duration::from_secs(60), "{response}");
                thread::sleep(Duration::from_millis(20));
            }
        };
        wait_for("200");
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"x").unwrap();
        assert!(wait_for("503").contains("worker 0: the loop has not turned for "));
        let text = get("/metrics", "localhost");
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("\nserverd_connections_max 7\n"), "{text}");
        release.send(()).unwrap();
        wait_for("200");
        handle.stop();
        worker.join().unwrap();
    }
}
