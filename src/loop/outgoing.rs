//! Opens outgoing connections from a running loop.
//!
//! [`Handle::connect`] passes the addresses to the loop; a host name is first resolved on another thread. The loop
//! connects to the addresses in order, and gives each an equal share of the time that is left.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::connect::{Connect, ConnectStep, Context};
use super::poller::Handle;
use super::resolver::{ADDRESSES_MAX, Lookup, look_up};
use super::std_ext::lock;
use super::target::Target;

impl Handle {
    /// Opens a connection from the loop to `target`, within the time `limit`, which includes the resolution of a host
    /// name. The application serves it like an accepted connection: [`App::open`](super::App::open) is called before
    /// the connect, without a listener, and gets `context` from
    /// [`Accepted::take_context`](super::Accepted::take_context).
    ///
    /// If the connect fails, [`App::closed`](super::App::closed) is called with
    /// [`CloseReason::Error`](super::CloseReason::Error), whose kind is `TimedOut` if the time has passed. Names are
    /// resolved on other threads, up to 8 at once; up to 1,024 more can be queued. A loop that ends drops the contexts
    /// of connections that it has not opened yet. Connecting takes at most [`Timeouts::write`](super::Timeouts::write)
    /// per address. The connection counts towards the connection limit, but is opened even if the limit is reached.
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

    /// Resolves a name, and then connects. The thread that resolves it and the time limit compete for the context.
    fn resolve(&self, host: String, port: u16, limit: Duration, context: Context) {
        let since = Instant::now();
        let context = Arc::new(Mutex::new(Some(context)));
        let (expired, waker) = (Arc::clone(&context), Arc::downgrade(&self.waker));
        let timer = self.call_later(limit, move || {
            let context = lock(&expired).take();
            if let (Some(context), Some(waker)) = (context, waker.upgrade()) {
                waker.connect(ConnectStep::Fail(context, io::ErrorKind::TimedOut.into()));
            }
        });
        let (found, waker) = (Arc::clone(&context), Arc::downgrade(&self.waker));
        let done = move |outcome: io::Result<VecDeque<SocketAddr>>| {
            timer.cancel();
            let context = lock(&found).take();
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
