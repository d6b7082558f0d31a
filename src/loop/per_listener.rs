//! Several applications on one loop: each gets the connections of its listeners.
//!
//! [`PerListener`] is itself an application. Its types are enums of those of its parts, and every call is a match on
//! the state of the connection, so that nothing is boxed. A loop with a single application does not use it.

use std::sync::Arc;

use super::app::{Accepted, App, CloseInfo, Flow, Phase, Remote, Wire};
use super::poller::{LoopWaker, Post};
use super::table::ConnId;

/// Two applications on one loop, each of which gets the connections of its own listeners: for example HTTP on one port
/// and another protocol on the next, in one thread and without a lock between them.
///
/// The second can be a `PerListener` too, for any number of applications. Timeouts and limits are those of the loop.
///
/// # Examples
/// ```
/// use serverd::{DefaultLoop, Echo, HttpServer, LoopLimits, PerListener, Timeouts};
/// use std::net::TcpListener;
///
/// // The first listener of the loop is that of HTTP, the second that of the echo server.
/// let app = PerListener::new(HttpServer::new(|_| "hello\n"), 1, Echo);
/// let mut server = DefaultLoop::with_limits(Timeouts::default(), LoopLimits::default(), app)?;
/// server.listen(TcpListener::bind("127.0.0.1:0")?)?;
/// server.listen(TcpListener::bind("127.0.0.1:0")?)?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// With [`Config::start_on`](crate::Config::start_on), the listeners have the order in which they are passed. Each can
/// be plain while others use TLS ([`BoundListener::plain`](crate::BoundListener::plain)):
/// ```
/// use serverd::{BoundListener, Config, Echo, HttpServer, PerListener};
/// use std::net::TcpListener;
///
/// let listeners: [BoundListener; 2] =
///     [TcpListener::bind("127.0.0.1:0")?.into(), BoundListener::from(TcpListener::bind("127.0.0.1:0")?).plain()];
/// let server = Config::default()
///     .start_on(listeners, |_worker| PerListener::new(HttpServer::new(|_| "hello\n"), 1, Echo))?;
/// # drop(server);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PerListener<A: App, B: App> {
    first: Part<A>,
    second: Part<B>,
    /// Number of listeners of `first`.
    listeners: usize,
    /// Connections that were not accepted by a listener are those of `second`.
    added_to_second: bool,
}

/// The state of a connection of a [`PerListener`], or a message to one: that of the application to which it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// A state or message of the first application.
    First(A),
    /// A state or message of the second application.
    Second(B),
}

/// One of the applications.
struct Part<A: App> {
    app: A,
    /// Reused buffer for the messages that the application sends during a call.
    messages: Vec<(ConnId, A::Message)>,
    /// Keeps the remote of the application alive for messages that are sent later.
    remote: Option<Remote<A::Message>>,
}

impl<A: App, B: App> PerListener<A, B> {
    /// Combines two applications. The first `listeners` listeners that are added to the loop belong to `first`, all
    /// others to `second`, which sees them counted from 0. Connections that no listener has accepted, such as added
    /// streams, belong to `first`, and so do outgoing ones; see [`PerListener::added_to_second`].
    pub fn new(first: A, listeners: usize, second: B) -> Self {
        PerListener { first: Part::new(first), second: Part::new(second), listeners, added_to_second: false }
    }

    /// Assigns connections that no listener has accepted to the second application: added streams, and outgoing
    /// connections, such as those of a [`Client`](crate::Client) in the second application.
    #[must_use]
    pub fn added_to_second(self) -> Self {
        PerListener { added_to_second: true, ..self }
    }

    fn is_of_second(&self, listener: Option<usize>) -> bool {
        listener.map_or(self.added_to_second, |listener| listener >= self.listeners)
    }
}

impl<A: App> Part<A> {
    fn new(app: A) -> Self {
        Part { app, messages: Vec::new(), remote: None }
    }

    fn start<M: Send + 'static>(&mut self, outer: &Remote<M>, wrap: fn(A::Message) -> M) {
        let remote = Remote { mailbox: Arc::new(Wrapped { outer: outer.clone(), wrap }) };
        self.remote = Some(remote.clone());
        self.app.start(remote);
    }

    /// Calls the application with a wire for its own messages.
    #[inline]
    fn call<M, R>(
        &mut self,
        wire: &mut Wire<'_, M>,
        wrap: fn(A::Message) -> M,
        method: impl FnOnce(&mut A, &mut Wire<'_, A::Message>) -> R,
    ) -> R {
        let outcome = wire.with_messages(&mut self.messages, |inner| method(&mut self.app, inner));
        self.pass_on(wire.messages, wrap);
        outcome
    }

    #[inline]
    fn end_of_turn<M>(&mut self, messages: &mut Vec<(ConnId, M)>, wrap: fn(A::Message) -> M) {
        self.app.end_of_turn(&mut self.messages);
        self.pass_on(messages, wrap);
    }

    /// Passes the messages of the application on to the loop.
    #[inline]
    fn pass_on<M>(&mut self, messages: &mut Vec<(ConnId, M)>, wrap: fn(A::Message) -> M) {
        if !self.messages.is_empty() {
            messages.extend(self.messages.drain(..).map(|(id, message)| (id, wrap(message))));
        }
    }
}

/// Sends the messages of one application as those of the loop.
struct Wrapped<A, M> {
    outer: Remote<M>,
    wrap: fn(A) -> M,
}

impl<A, M: Send + 'static> Post<A> for Wrapped<A, M> {
    fn send(&self, to: ConnId, message: A) {
        self.outer.send(to, (self.wrap)(message));
    }

    fn waker(&self) -> &Arc<LoopWaker> {
        self.outer.mailbox.waker()
    }
}

impl<A: App, B: App> App for PerListener<A, B> {
    type State = Either<A::State, B::State>;
    type Message = Either<A::Message, B::Message>;

    fn start(&mut self, remote: Remote<Self::Message>) {
        self.first.start(&remote, Either::First);
        self.second.start(&remote, Either::Second);
    }

    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, Self::Message>) -> (Self::State, Flow) {
        if self.is_of_second(accepted.listener) {
            let listener = accepted.listener.map(|listener| listener - self.listeners);
            let accepted = Accepted { listener, ..*accepted };
            let (state, flow) = self.second.call(wire, Either::Second, |app, wire| app.open(&accepted, wire));
            return (Either::Second(state), flow);
        }
        let (state, flow) = self.first.call(wire, Either::First, |app, wire| app.open(accepted, wire));
        (Either::First(state), flow)
    }

    #[inline]
    fn receive(&mut self, state: &mut Self::State, wire: &mut Wire<'_, Self::Message>) -> Flow {
        match state {
            Either::First(state) => self.first.call(wire, Either::First, |app, wire| app.receive(state, wire)),
            Either::Second(state) => self.second.call(wire, Either::Second, |app, wire| app.receive(state, wire)),
        }
    }

    /// An application does not know the ids of the other one's connections; a message to one of them is dropped.
    fn message(&mut self, state: &mut Self::State, message: Self::Message, wire: &mut Wire<'_, Self::Message>) -> Flow {
        match (state, message) {
            (Either::First(state), Either::First(message)) => {
                self.first.call(wire, Either::First, |app, wire| app.message(state, message, wire))
            }
            (Either::Second(state), Either::Second(message)) => {
                self.second.call(wire, Either::Second, |app, wire| app.message(state, message, wire))
            }
            _ => Flow::Unchanged,
        }
    }

    fn output_drained(&mut self, state: &mut Self::State, wire: &mut Wire<'_, Self::Message>) -> Flow {
        match state {
            Either::First(state) => self.first.call(wire, Either::First, |app, wire| app.output_drained(state, wire)),
            Either::Second(state) => {
                self.second.call(wire, Either::Second, |app, wire| app.output_drained(state, wire))
            }
        }
    }

    fn timer(&mut self, state: &mut Self::State, phase: Phase, wire: &mut Wire<'_, Self::Message>) -> Flow {
        match state {
            Either::First(state) => self.first.call(wire, Either::First, |app, wire| app.timer(state, phase, wire)),
            Either::Second(state) => self.second.call(wire, Either::Second, |app, wire| app.timer(state, phase, wire)),
        }
    }

    fn drain(&mut self, state: &mut Self::State, wire: &mut Wire<'_, Self::Message>) -> Flow {
        match state {
            Either::First(state) => self.first.call(wire, Either::First, |app, wire| app.drain(state, wire)),
            Either::Second(state) => self.second.call(wire, Either::Second, |app, wire| app.drain(state, wire)),
        }
    }

    fn closed(&mut self, id: ConnId, state: Self::State, info: CloseInfo) {
        match state {
            Either::First(state) => self.first.app.closed(id, state, info),
            Either::Second(state) => self.second.app.closed(id, state, info),
        }
    }

    #[inline]
    fn end_of_turn(&mut self, messages: &mut Vec<(ConnId, Self::Message)>) {
        self.first.end_of_turn(messages, Either::First);
        self.second.end_of_turn(messages, Either::Second);
    }
}
