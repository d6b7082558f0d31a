//! The interface of all event loops, the handle that controls a loop from other threads, and the mailbox through which
//! messages, closures and commands reach the loop.
//!
//! Sending a message holds a lock for one push; the loop takes all messages at once. The waker is called once per batch
//! rather than once per message, and a turn without messages costs one relaxed load.

use std::cell::RefCell;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use super::connect::ConnectStep;
use super::schedule::{Task, Timer};
use super::std_ext::{drop_each, lock, millis};
use super::table::ConnId;

/// The interface common to all event loops, independent of backend and application. Only
/// [`EventLoop`](super::EventLoop) implements it; its own methods of these names need no import.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Poller, Response, SelectLoop};
/// use std::net::TcpListener;
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let mut server: Box<dyn Poller> =
///     Box::new(SelectLoop::new(listener, None, HttpServer::new(|_| Response::text("hello\n")))?);
/// let handle = server.handle();
/// std::thread::spawn(move || handle.drain());
/// server.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait Poller: sealed::Sealed {
    /// Runs one turn: waits for events or the next deadline, then handles what is due. Returns [`Turn::Over`] at once if
    /// the loop has ended.
    ///
    /// # Errors
    /// Returns an error if polling the backend fails repeatedly. A connection error closes only that connection.
    fn turn(&mut self) -> io::Result<Turn>;

    /// Runs turns until the loop is drained or stopped. Returns at once if the loop has ended.
    ///
    /// # Errors
    /// Returns an error if polling the backend fails repeatedly.
    fn run(&mut self) -> io::Result<()>;

    /// Returns a handle that controls the loop from any thread.
    fn handle(&self) -> Handle;
}

/// Delay before a failed poll is retried.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Maximum consecutive failures that are retried.
const RETRIES_MAX: u32 = 10;

/// Retries failed polls, for example for lack of memory.
#[derive(Debug, Default)]
pub(super) struct PollRetry {
    /// Consecutive failed polls.
    errors: u32,
}

impl PollRetry {
    /// Checks the outcome of a poll. After a failure, waits before the next poll, or returns the error after too many
    /// consecutive failures.
    #[inline]
    pub(super) fn check(&mut self, outcome: io::Result<()>) -> io::Result<()> {
        match outcome {
            Ok(()) => {
                self.errors = 0;
                Ok(())
            }
            Err(error) => self.on_error(error),
        }
    }

    #[cold]
    fn on_error(&mut self, error: io::Error) -> io::Result<()> {
        self.errors += 1;
        if self.errors > RETRIES_MAX {
            return Err(error);
        }
        log::warn!("cannot poll for events: {error}; retrying");
        std::thread::sleep(RETRY_DELAY);
        Ok(())
    }
}

/// Keeps other crates from implementing [`Poller`], so that it can get more methods.
pub(super) mod sealed {
    pub trait Sealed {}
}

/// The result of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The loop is still running.
    Again,
    /// The loop was stopped, or its graceful shutdown is complete. All connections and listeners are closed.
    Over,
}

/// Controls a loop from any thread, including its own.
///
/// A loop that ends drops the closures that it has not called. A closure passed to a loop that has ended is dropped at
/// once, on the thread that passes it.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Poller, Response, SelectLoop};
/// use std::{net::TcpListener, time::Duration};
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let mut server = SelectLoop::new(listener, None, HttpServer::new(|_| Response::text("hello\n")))?;
/// let handle = server.handle();
/// handle.defer(|| println!("in the first turn"));
/// let tick = handle.call_every(Duration::from_millis(2), || println!("again"));
/// let stop = server.handle();
/// handle.call_later(Duration::from_millis(10), move || {
///     tick.cancel();
///     stop.drain();
/// });
/// server.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Handle {
    pub(super) waker: Arc<LoopWaker>,
}

impl Handle {
    /// Returns a handle of the loop that is running on this thread, in the methods of an application or a handler and
    /// in closures that the loop calls; `None` elsewhere.
    ///
    /// # Examples
    /// ```
    /// use serverd::{Handle, HttpServer, SelectLoop};
    /// use std::{net::TcpListener, time::Duration};
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let mut server = SelectLoop::new(listener, None, HttpServer::new(|_| "hello\n"))?;
    /// server.handle().defer(|| {
    ///     let handle = Handle::current().expect("called by the loop");
    ///     handle.call_later(Duration::from_millis(2), || Handle::current().expect("called by the loop").drain());
    /// });
    /// server.run()?;
    /// assert!(Handle::current().is_none());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn current() -> Option<Self> {
        CURRENT.with_borrow(|waker| waker.as_ref().map(|waker| Handle { waker: Arc::clone(waker) }))
    }

    /// Creates a handle that belongs to no loop, for testing an application. It drops all closures, as that of a loop
    /// that has ended does.
    pub fn detached() -> Self {
        Handle { waker: LoopWaker::detached() }
    }

    /// Identifies the loop among those that exist.
    pub(crate) fn loop_id(&self) -> usize {
        Arc::as_ptr(&self.waker).addr()
    }

    /// Starts a graceful shutdown: stops new connections, accepts those already in the queue, closes the listeners,
    /// finishes in-flight requests, and ends the loop. [`LoopLimits::drain`](super::LoopLimits::drain) limits how long
    /// this may take.
    ///
    /// On Linux a filter on the listening sockets drops SYN segments, and the listeners are closed 2 ms later, or
    /// 100 ms later if a connection from a public address is open, so that handshakes in progress complete first. On
    /// other platforms, and for a client with a longer round-trip time, a connection established between the last
    /// accept and the close is reset by the kernel.
    ///
    /// Idle connections are closed after a second, since a request may be in transit.
    pub fn drain(&self) {
        self.waker.drain();
    }

    /// Starts a graceful shutdown as [`Handle::drain`] does, except that it takes at most `limit`, instead of
    /// [`LoopLimits::drain`](super::LoopLimits::drain), and closes idle connections at once; a request in transit is
    /// lost. For programs that control the clients too, such as test suites. If a graceful shutdown is in progress, it
    /// is shortened.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Poller, Response, SelectLoop};
    /// use std::{net::TcpListener, time::Duration};
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let mut server = SelectLoop::new(listener, None, HttpServer::new(|_| Response::text("hello\n")))?;
    /// server.handle().drain_within(Duration::from_secs(1));
    /// server.run()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn drain_within(&self, limit: Duration) {
        self.waker.drain_within(limit);
    }

    /// Ends the loop at once; open connections are closed.
    pub fn stop(&self) {
        self.waker.stop();
    }

    /// Wakes the loop, which then runs at least one turn.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Calls a closure on the loop's thread in its next turn. Deferred closures are called in order. A closure that
    /// blocks stalls every connection of the loop.
    pub fn defer(&self, call: impl FnOnce() + Send + 'static) {
        self.call(self.once(Duration::ZERO, call));
    }

    /// Calls a closure on the loop's thread after `delay`, never earlier.
    pub fn call_later(&self, delay: Duration, call: impl FnOnce() + Send + 'static) -> Timer {
        self.call(self.once(delay, call))
    }

    fn once(&self, delay: Duration, call: impl FnOnce() + Send + 'static) -> Task {
        Task::once(delay, Box::new(call), &self.waker.cancelled_count)
    }

    /// Calls a closure on the loop's thread repeatedly, `period` (at least one millisecond) after the previous call. If
    /// the loop is busy for longer than a period, the missed calls are skipped.
    pub fn call_every(&self, period: Duration, call: impl FnMut() + Send + 'static) -> Timer {
        self.call(Task::every(period, Box::new(call), &self.waker.cancelled_count))
    }

    fn call(&self, task: Task) -> Timer {
        let timer = task.timer();
        self.waker.add_task(task);
        timer
    }
}

thread_local! {
    /// The loop that is running on this thread.
    static CURRENT: RefCell<Option<Arc<LoopWaker>>> = const { RefCell::new(None) };
}

/// Marks a loop as running on this thread until it is dropped. One loop may run within a call of another.
pub(super) struct Running {
    outer: Option<Arc<LoopWaker>>,
}

impl Running {
    pub(super) fn enter(waker: &Arc<LoopWaker>) -> Self {
        Running { outer: CURRENT.replace(Some(Arc::clone(waker))) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CURRENT.set(self.outer.take());
    }
}

const RUN: u8 = 0;
const DRAIN: u8 = 1;
const STOP: u8 = 2;

const ROOM_WANTED: u8 = 1;
const ROOM_MADE: u8 = 2;

/// The run state requested by other threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Run,
    Drain,
    Stop,
}

/// A report to the loop that is not a message.
pub(super) enum Notice {
    /// The file read-ahead for this connection has finished.
    ReadaheadDone(ConnId),
    Connect(ConnectStep),
}

/// What other threads have sent to a loop, until it takes it or ends.
struct Inbox<T> {
    /// `None` once the loop has ended.
    items: Mutex<Option<Vec<T>>>,
}

impl<T> Inbox<T> {
    fn new() -> Self {
        Inbox { items: Mutex::new(Some(Vec::new())) }
    }

    /// Adds an item. If the loop has ended, drops it outside the lock: it may contain anything, such as a handle of
    /// the loop. Returns whether the item was added.
    fn push(&self, item: T) -> bool {
        let mut items = lock(&self.items);
        if let Some(items) = &mut *items {
            items.push(item);
            return true;
        }
        drop(items);
        drop(item);
        false
    }

    /// Takes the items added since the last call.
    fn take(&self) -> Vec<T> {
        lock(&self.items).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Moves all items to `into`.
    fn append_to(&self, into: &mut Vec<T>) {
        if let Some(items) = &mut *lock(&self.items) {
            into.append(items);
        }
    }

    /// Drops all items, and those that are added later.
    fn close(&self) {
        let items = lock(&self.items).take();
        drop_each(items.unwrap_or_default());
    }
}

/// The part of a mailbox that does not depend on the message type: wakes the loop and passes commands and closures.
pub(super) struct LoopWaker {
    command: AtomicU8,
    /// The shortest limit of [`Handle::drain_within`](super::Handle::drain_within) in milliseconds that the loop has
    /// not taken yet; `u64::MAX` for none.
    drain_limit_ms: AtomicU64,
    /// `ROOM_WANTED` and `ROOM_MADE` bits of [`LoopWaker::take_room`].
    room: AtomicU8,
    notified: AtomicBool,
    tasks: Inbox<Task>,
    /// Number of tasks that were cancelled and may not have been dropped.
    pub(super) cancelled_count: Arc<AtomicUsize>,
    notices: Inbox<Notice>,
    waker: Waker,
}

impl LoopWaker {
    pub(super) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(LoopWaker {
            command: AtomicU8::new(RUN),
            drain_limit_ms: AtomicU64::new(u64::MAX),
            room: AtomicU8::new(0),
            notified: AtomicBool::new(false),
            tasks: Inbox::new(),
            cancelled_count: Arc::default(),
            notices: Inbox::new(),
            waker,
        })
    }

    /// Creates the waker of a loop that does not exist, like one that has ended.
    pub(super) fn detached() -> Arc<Self> {
        let this = LoopWaker::new(Waker::noop().clone());
        this.end();
        this
    }

    /// Drops the closures and notices that the loop, which has ended, has not taken, and those that are added later.
    fn end(&self) {
        self.tasks.close();
        self.notices.close();
    }

    /// Wakes the loop, unless a wake-up is already pending.
    fn notify(&self) {
        if !self.notified.swap(true, Ordering::SeqCst) {
            self.waker.wake_by_ref();
        }
    }

    /// Returns whether a wake-up is pending, and clears it.
    pub(super) fn take_notified(&self) -> bool {
        self.notified.load(Ordering::Relaxed) && self.notified.swap(false, Ordering::SeqCst)
    }

    pub(super) fn command(&self) -> Command {
        match self.command.load(Ordering::SeqCst) {
            RUN => Command::Run,
            DRAIN => Command::Drain,
            _ => Command::Stop,
        }
    }

    /// Sends a command. Commands only escalate: a drain after a stop has no effect.
    pub(super) fn send(&self, command: u8) {
        self.command.fetch_max(command, Ordering::SeqCst);
        self.notify();
    }

    pub(super) fn drain(&self) {
        self.send(DRAIN);
    }

    /// Starts a drain with a limit, or shortens one in progress.
    pub(super) fn drain_within(&self, limit: Duration) {
        let limit_ms = millis(limit).min(u64::MAX - 1);
        self.drain_limit_ms.fetch_min(limit_ms, Ordering::SeqCst);
        self.drain();
    }

    /// Takes the shortest limit passed to [`LoopWaker::drain_within`] since the last call.
    pub(super) fn take_drain_limit(&self) -> Option<Duration> {
        let limit_ms = self.drain_limit_ms.swap(u64::MAX, Ordering::SeqCst);
        (limit_ms != u64::MAX).then(|| Duration::from_millis(limit_ms))
    }

    pub(super) fn stop(&self) {
        self.send(STOP);
    }

    /// Asks the loop to close an idle connection for another loop.
    pub(super) fn want_room(&self) {
        self.room.fetch_or(ROOM_WANTED, Ordering::SeqCst);
        self.notify();
    }

    /// Reports that another loop has closed a connection for this one.
    pub(super) fn room_made(&self) {
        self.room.fetch_or(ROOM_MADE, Ordering::SeqCst);
        self.notify();
    }

    /// Returns whether another loop wants an idle connection to be closed, and whether another loop has closed one for
    /// this loop; clears both.
    pub(super) fn take_room(&self) -> (bool, bool) {
        if self.room.load(Ordering::Relaxed) == 0 {
            return (false, false);
        }
        let bits = self.room.swap(0, Ordering::SeqCst);
        (bits & ROOM_WANTED != 0, bits & ROOM_MADE != 0)
    }

    pub(super) fn wake(&self) {
        self.notify();
    }

    /// Adds a closure for the loop to call.
    pub(super) fn add_task(&self, task: Task) {
        if self.tasks.push(task) {
            self.notify();
        }
    }

    /// Reports that the file read-ahead for a connection has finished.
    pub(super) fn readahead_done(&self, id: ConnId) {
        self.add_notice(Notice::ReadaheadDone(id));
    }

    /// Adds a step of an outgoing connection.
    pub(super) fn connect(&self, step: ConnectStep) {
        self.add_notice(Notice::Connect(step));
    }

    fn add_notice(&self, notice: Notice) {
        if self.notices.push(notice) {
            self.notify();
        }
    }

    /// Takes the notices added since the last call.
    pub(super) fn take_notices(&self) -> Vec<Notice> {
        self.notices.take()
    }

    /// Takes the closures added since the last call.
    pub(super) fn take_tasks(&self) -> Vec<Task> {
        self.tasks.take()
    }
}

/// Receives messages of type `M` for the connections of a loop, from any thread.
pub(super) trait Post<M>: Send + Sync {
    fn send(&self, to: ConnId, message: M);

    /// Returns the waker of the loop.
    fn waker(&self) -> &Arc<LoopWaker>;
}

impl<M: Send> Post<M> for Mailbox<M> {
    fn send(&self, to: ConnId, message: M) {
        if self.messages.push((to, message)) {
            self.waker.notify();
        }
    }

    fn waker(&self) -> &Arc<LoopWaker> {
        &self.waker
    }
}

/// The mailbox of a loop with messages of type `M`.
pub(super) struct Mailbox<M> {
    messages: Inbox<(ConnId, M)>,
    pub(super) waker: Arc<LoopWaker>,
}

impl<M> Mailbox<M> {
    pub(super) fn new(waker: Arc<LoopWaker>) -> Arc<Self> {
        Arc::new(Mailbox { messages: Inbox::new(), waker })
    }

    /// Creates the mailbox of a loop that does not exist, like one that has ended.
    pub(super) fn detached() -> Arc<Self> {
        let this = Mailbox::new(LoopWaker::detached());
        this.end();
        this
    }

    /// Moves all messages to `into`.
    pub(super) fn collect(&self, into: &mut Vec<(ConnId, M)>) {
        self.messages.append_to(into);
    }

    /// Drops everything that the loop, which has ended, has not taken, and all that is sent later.
    pub(super) fn end(&self) {
        self.messages.close();
        self.waker.end();
    }
}

/// The mailbox of a loop, as owned by the loop: it ends with it.
pub(super) struct OwnMailbox<M>(Arc<Mailbox<M>>);

impl<M> OwnMailbox<M> {
    pub(super) fn new(waker: Waker) -> Self {
        OwnMailbox(Mailbox::new(LoopWaker::new(waker)))
    }
}

impl<M> Deref for OwnMailbox<M> {
    type Target = Arc<Mailbox<M>>;

    fn deref(&self) -> &Arc<Mailbox<M>> {
        &self.0
    }
}

impl<M> Drop for OwnMailbox<M> {
    fn drop(&mut self) {
        self.0.end();
    }
}
