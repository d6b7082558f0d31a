//! Opens outgoing connections from a running loop: their destinations, and the resolution of host names.
//!
//! [`Handle::connect`] passes the addresses of a [`Target`] to the loop. A host name is first resolved in a thread pool,
//! because the resolver of the system blocks. The loop connects to the addresses in order, and gives each an equal share
//! of the time that is left.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::connect::{Connect, ConnectStep, Context};
use super::poller::Handle;
use super::std_ext::lock;
use super::work_queue::WorkQueue;

/// Maximum number of threads that resolve names. A lookup may take several seconds if a name server does not respond.
const THREADS_MAX: usize = 8;

/// Maximum number of addresses of a name that are used.
const ADDRESSES_MAX: usize = 8;

/// The destination of an outgoing connection.
///
/// # Examples
/// ```
/// use serverd::Target;
///
/// let target: Target = "[::1]:80".parse()?;
/// assert_eq!(target, Target::Address("[::1]:80".parse()?));
/// assert_eq!("example.com:443".parse(), Ok(Target::Name("example.com".into(), 443)));
/// assert!("example.com".parse::<Target>().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// An IP address and a port.
    Address(SocketAddr),
    /// Several addresses of one server, which are tried in this order, up to 8.
    Addresses(Vec<SocketAddr>),
    /// A host name and a port. The first 8 addresses of the name are tried in order.
    Name(String, u16),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Target::Address(address)
    }
}

impl From<(&str, u16)> for Target {
    /// Creates a target from an IP address or a host name.
    fn from((host, port): (&str, u16)) -> Self {
        match host.parse::<IpAddr>() {
            Ok(address) => Target::Address((address, port).into()),
            Err(_) => Target::Name(host.to_owned(), port),
        }
    }
}

/// The error of a [`Target`] that is not written as `host:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetError;

impl std::fmt::Display for TargetError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("expected host:port or [address]:port")
    }
}

impl std::error::Error for TargetError {}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if let Ok(address) = text.parse() {
            return Ok(Target::Address(address));
        }
        let (host, port) = text.rsplit_once(':').ok_or(TargetError)?;
        if host.is_empty() || host.contains(':') || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TargetError);
        }
        Ok(Target::Name(host.to_owned(), port.parse().map_err(|_| TargetError)?))
    }
}

impl Handle {
    /// Opens a connection from the loop to `target`, within the time `limit`, which includes the resolution of a host
    /// name. The application serves it like an accepted connection: [`App::open`](super::App::open) is called before
    /// the connect, without a listener, and gets `context` from
    /// [`Accepted::take_context`](super::Accepted::take_context).
    ///
    /// If the connect fails, [`App::closed`](super::App::closed) is called with
    /// [`CloseReason::Error`](super::CloseReason::Error), whose kind is `TimedOut` if the time has passed. Names are
    /// resolved on other threads, up to 8 at once; up to 1,024 more can be queued. A loop that ends drops the contexts
    /// of connections that it has not opened yet, and a loop that has ended drops `context` at once. Connecting takes at
    /// most [`Timeouts::write`](super::Timeouts::write) per address. The connection counts towards the connection limit, but is opened even if the limit is reached.
    ///
    /// If the application does not take the context, and it is not `()`, the connection is closed at once: it was
    /// intended for another application.
    ///
    /// # Examples
    /// ```
    /// use serverd::{Accepted, App, CloseInfo, ConnId, Flow, Phase, SelectLoop, Wire};
    /// use std::{convert::Infallible, net::TcpListener, time::Duration};
    ///
    /// /// Greets the servers that it connects to, and echoes to its clients.
    /// struct Greeter;
    ///
    /// impl App for Greeter {
    ///     type State = Option<String>;
    ///     type Message = Infallible;
    ///
    ///     fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, Infallible>) -> (Option<String>, Flow) {
    ///         let greeting = accepted.take_context::<String>();
    ///         wire.output().extend(greeting.as_deref().unwrap_or_default().as_bytes());
    ///         (greeting, Flow::Read(Phase::Idle))
    ///     }
    ///
    ///     fn receive(&mut self, _: &mut Option<String>, wire: &mut Wire<'_, Infallible>) -> Flow {
    ///         wire.send_back(wire.input().len());
    ///         Flow::Close
    ///     }
    ///
    ///     fn closed(&mut self, _: ConnId, greeting: Option<String>, info: CloseInfo) {
    ///         println!("{greeting:?}: {:?}", info.reason);
    ///     }
    /// }
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let address = listener.local_addr()?;
    /// let mut greeter = SelectLoop::new(listener, None, Greeter)?;
    /// let handle = greeter.handle();
    /// handle.connect(("localhost", address.port()), Duration::from_secs(5), String::from("hello"));
    /// handle.call_later(Duration::from_millis(50), || serverd::Handle::current().expect("called by the loop").drain());
    /// greeter.run()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn connect(&self, target: impl Into<Target>, limit: Duration, context: impl Any + Send) {
        let context: Context = Box::new(context);
        let addresses = match target.into() {
            Target::Address(address) => [address].into(),
            Target::Addresses(addresses) => addresses.into_iter().take(ADDRESSES_MAX).collect(),
            Target::Name(host, port) => return self.resolve(host, port, limit, context),
        };
        self.waker.connect(ConnectStep::Open(Connect { addresses, limit, context }));
    }

    /// Resolves a name, and then connects. The thread that resolves it and the time limit compete for the context,
    /// which is kept in the closure of the time limit, so that a loop that ends drops it.
    fn resolve(&self, host: String, port: u16, limit: Duration, context: Context) {
        let since = Instant::now();
        let expired = Arc::new(Mutex::new(Some(context)));
        let (found, waker) = (Arc::downgrade(&expired), Arc::downgrade(&self.waker));
        let timer = self.call_later(limit, move || {
            let context = lock(&expired).take();
            if let (Some(context), Some(waker)) = (context, waker.upgrade()) {
                waker.connect(ConnectStep::Fail(context, io::ErrorKind::TimedOut.into()));
            }
        });
        if found.strong_count() == 0 {
            // The loop has ended.
            return;
        }
        let waker = Arc::downgrade(&self.waker);
        let done = move |outcome: io::Result<VecDeque<SocketAddr>>| {
            let context = found.upgrade().and_then(|found| lock(&found).take());
            timer.cancel();
            if let (Some(context), Some(waker)) = (context, waker.upgrade()) {
                let limit = limit.saturating_sub(since.elapsed());
                waker.connect(match outcome {
                    Ok(addresses) => ConnectStep::Open(Connect { addresses, limit, context }),
                    Err(error) => ConnectStep::Fail(context, error),
                });
            }
        };
        look_up(Lookup { host, port, done: Box::new(done) });
    }
}

/// A name to resolve.
struct Lookup {
    host: String,
    port: u16,
    done: Box<dyn FnOnce(io::Result<VecDeque<SocketAddr>>) + Send>,
}

impl Lookup {
    fn run(self) {
        let outcome = (self.host.as_str(), self.port).to_socket_addrs();
        (self.done)(outcome.map(|addresses| addresses.take(ADDRESSES_MAX).collect()));
    }
}

static LOOKUPS: WorkQueue<Lookup> = WorkQueue::new(THREADS_MAX);

/// Queues a lookup for the threads. If it cannot be queued, it fails at once.
fn look_up(lookup: Lookup) {
    if let Err(lookup) = LOOKUPS.push(lookup, ("resolver", run_resolver)) {
        (lookup.done)(Err(io::Error::other("too many names are being resolved")));
    }
}

/// The main function of a thread that resolves names.
fn run_resolver() {
    while let Some(lookup) = LOOKUPS.next() {
        lookup.run();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_written_as_host_and_port() {
        for text in ["", ":80", "host", "host:", "host:65536", "::1:80", "a b:80", "host:-1"] {
            assert_eq!(text.parse::<Target>(), Err(TargetError), "{text}");
        }
        assert_eq!("127.0.0.1:80".parse(), Ok(Target::from(("127.0.0.1", 80))));
        assert_eq!(Target::from(("::1", 80)), Target::Address("[::1]:80".parse().unwrap()));
    }

    #[test]
    fn a_lookup_beyond_the_limit_fails_at_once_and_all_others_end() {
        let (send, receive) = std::sync::mpsc::channel();
        let count = 3000;
        for _ in 0..count {
            let send = send.clone();
            let done = move |outcome: io::Result<VecDeque<SocketAddr>>| send.send(outcome.is_ok()).unwrap();
            look_up(Lookup { host: "127.0.0.1".into(), port: 1, done: Box::new(done) });
        }
        assert_eq!(receive.iter().take(count).count(), count);
        assert!(LOOKUPS.threads() <= THREADS_MAX);
    }
}
