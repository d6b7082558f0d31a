//! Sessions: connections that leave HTTP, by an upgrade or as a tunnel, and outgoing connections.
//!
//! The response head is the last of HTTP on the connection. All input after the request goes to the [`Session`],
//! including bytes that were received with the request. A request that does not permit the change is refused, and the
//! connection closes: the client may have sent data of the other protocol already, which must not be parsed as a
//! request (RFC 9931).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::exchange_handle::{ExchangeId, Wakeup};
use crate::r#loop::{CloseInfo, ConnId, Flow, Handle, Phase, Remote, Target, Wire};

/// A connection after HTTP: the protocol that a client upgraded to, or a tunnel; or an outgoing connection
/// ([`Handle::connect_session`]). Its methods correspond to those of [`App`](crate::App).
///
/// A session cannot close its sending side alone: [`Flow::Close`] and [`Flow::Linger`] end both directions. When the peer
/// ends its side, [`Session::receive`] is called with [`Wire::ended`]. The session can still send: it returns
/// [`Flow::Pause`] and writes in [`Session::message`], while [`Flow::Read`] closes the connection once its output is sent
/// (see also [`LoopLimits::answer_half_closed`](crate::LoopLimits::answer_half_closed)). A tunnel thus cannot pass on the
/// end of one direction while the other continues, as some protocols over TCP need.
///
/// # Examples
/// A protocol that echoes all bytes, for clients that send `Connection: upgrade` and `Upgrade: echo`:
/// ```
/// use serverd::{Flow, HttpServer, Phase, Response, Session, Wakeup, Wire};
///
/// struct Echo;
///
/// impl Session for Echo {
///     fn receive(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
///         wire.send_back(wire.input().len());
///         Flow::Read(Phase::Unlimited)
///     }
/// }
///
/// let server = HttpServer::new(|_| Response::upgrade("echo", Echo));
/// # drop(server);
/// ```
pub trait Session: Send {
    /// Called once, before all other methods. By default the waker is dropped.
    fn open(&mut self, waker: SessionWaker) {
        drop(waker);
    }

    /// Called once at the start of an upgrade or tunnel, with the bytes that were received after the request, if any;
    /// then when bytes or the end of input were received, or to continue after [`Flow::Yield`].
    fn receive(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow;

    /// Called after [`SessionWaker::wake`], once for several calls in short succession. Does nothing by default. There is
    /// no input in this call, even if some was left unconsumed: return [`Flow::Yield`] to be called with it.
    fn message(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        let _ = wire;
        Flow::Unchanged
    }

    /// Called when blocked output was sent completely or has dropped to the low watermark. Does nothing by default.
    fn output_drained(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        let _ = wire;
        Flow::Unchanged
    }

    /// Called when the timeout of a phase expires. By default the connection closes.
    fn timer(&mut self, phase: Phase, wire: &mut Wire<'_, Wakeup>) -> Flow {
        let _ = (phase, wire);
        Flow::Close
    }

    /// Called when a graceful shutdown begins. By default the connection closes once its output is sent.
    fn drain(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        let _ = wire;
        Flow::Close
    }

    /// Called after the connection was closed. Does nothing by default.
    fn closed(self: Box<Self>, info: CloseInfo) {
        drop(info);
    }
}

impl Handle {
    /// Opens a connection from the loop to `target`, within `limit`, and runs `session` on it. The application of the
    /// loop must be an [`HttpServer`](crate::HttpServer); any other closes the connection.
    ///
    /// [`Session::open`] is called first, and [`Session::message`] once the connection is established: after
    /// [`SessionWaker::wake`], which may be called in [`Session::open`]. If the connect fails, [`Session::closed`] is
    /// called with an error; see [`Handle::connect`]. If the loop ends first or has ended, the session is dropped without
    /// a call.
    ///
    /// # Examples
    /// ```
    /// use serverd::{CloseInfo, Flow, HttpServer, Phase, Request, Session, SessionWaker, Wakeup, Wire};
    /// use std::time::Duration;
    ///
    /// /// Sends a line to a statistics server.
    /// struct Count;
    ///
    /// impl Session for Count {
    ///     fn open(&mut self, waker: SessionWaker) {
    ///         waker.wake();
    ///     }
    ///
    ///     fn message(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
    ///         wire.output().extend(b"requests:1|c\n");
    ///         Flow::Close
    ///     }
    ///
    ///     fn receive(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
    ///         wire.consume(wire.input().len());
    ///         Flow::Read(Phase::Idle)
    ///     }
    ///
    ///     fn closed(self: Box<Self>, info: CloseInfo) {
    ///         println!("{:?}", info.reason);
    ///     }
    /// }
    ///
    /// let server = HttpServer::new(|request: &Request<'_>| {
    ///     request.handle().connect_session(("localhost", 8125), Duration::from_secs(5), Count);
    ///     "counted\n"
    /// });
    /// # drop(server);
    /// ```
    pub fn connect_session(&self, target: impl Into<Target>, limit: Duration, session: impl Session + 'static) {
        let session: Box<dyn Session> = Box::new(session);
        self.connect(target, limit, session);
    }
}

/// Wakes a [`Session`] from any thread: its [`Session::message`] is called. To pass data to the session, share it by
/// other means, such as a channel.
#[derive(Clone)]
pub struct SessionWaker {
    id: ExchangeId,
    /// A wake-up is pending.
    woken: Arc<AtomicBool>,
}

impl SessionWaker {
    /// Returns a handle of the loop of the session.
    pub fn handle(&self) -> Handle {
        self.id.remote.handle()
    }

    /// Wakes the session, unless a wake-up is pending. Has no effect if its connection is closed.
    pub fn wake(&self) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            self.id.remote.send(self.id.connection, Wakeup::new());
        }
    }
}

/// The session of a connection.
pub(super) struct ActiveSession {
    session: Box<dyn Session>,
    woken: Arc<AtomicBool>,
}

impl ActiveSession {
    /// Starts a session. `id` is `None` for a server without a loop.
    pub(super) fn open(mut session: Box<dyn Session>, id: Option<ExchangeId>) -> Self {
        let woken = Arc::<AtomicBool>::default();
        let detached = || ExchangeId { remote: Remote::detached(), connection: ConnId::detached(0) };
        session.open(SessionWaker { id: id.unwrap_or_else(detached), woken: Arc::clone(&woken) });
        ActiveSession { session, woken }
    }

    pub(super) fn session(&mut self) -> &mut dyn Session {
        &mut *self.session
    }

    pub(super) fn message(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        // Before the call: a later wake-up is for data that it may not see. A message without a wake-up was sent for
        // the deferred response that started the session.
        if !self.woken.swap(false, Ordering::SeqCst) {
            return Flow::Unchanged;
        }
        self.session.message(wire)
    }

    pub(super) fn closed(self, info: CloseInfo) {
        self.session.closed(info);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#loop::Output;

    /// Sends its waker, and writes a byte for each message.
    struct Counting(std::sync::mpsc::Sender<SessionWaker>);

    impl Session for Counting {
        fn open(&mut self, waker: SessionWaker) {
            self.0.send(waker).expect("the test is receiving");
        }

        fn receive(&mut self, _: &mut Wire<'_, Wakeup>) -> Flow {
            Flow::Unchanged
        }

        fn message(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
            wire.output().extend(b"x");
            Flow::Unchanged
        }
    }

    #[test]
    fn only_wake_ups_of_the_session_reach_it() {
        let (send, wakers) = std::sync::mpsc::channel();
        let mut active = ActiveSession::open(Box::new(Counting(send)), None);
        let waker = wakers.recv().expect("opened");
        let (mut output, mut messages) = (Output::new(), Vec::new());
        let mut wire = Wire::from_bytes(b"", false, &mut output, &mut messages);
        // For the deferred response that started the session.
        active.message(&mut wire);
        assert_eq!(wire.output().to_vec(), b"");
        waker.wake();
        waker.wake();
        active.message(&mut wire);
        active.message(&mut wire);
        assert_eq!(wire.output().to_vec(), b"x");
    }
}
