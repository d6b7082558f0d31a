//! A thread pool for blocking or slow work, so that it does not block the loop, and a queue in which clients take turns.
//! Response bodies produced on the pool get back-pressure from the client:
//!
//! ```text
//!   pool thread                                    loop
//!   produce pieces, push them ... queue full  -->  sends them
//!   (the thread is free for other jobs)       <--  queue half empty: schedules the next job
//! ```

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "compress")]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use http::StatusCode;

use super::body_sender::{SendError, Sender};
#[cfg(feature = "files")]
use super::deferred::Responder;
use super::response::Response;
use crate::r#loop::lock;

/// Retry-After of a 503, in seconds (RFC 9110 section 10.2.3).
const RETRY_AFTER: &str = "1";

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: FairQueue<Job>,
    /// Number of threads running a job.
    busy: usize,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Maximum number of running and queued jobs.
    jobs_max: usize,
    /// Bytes of memory reserved by [`Pool::reserve`].
    #[cfg(feature = "compress")]
    reserved: AtomicUsize,
}

/// A thread pool with a bounded queue, for work that would block a loop: file access, database queries, password
/// hashes.
///
/// Clones share one pool. When the last clone is dropped, the threads finish the queued work and exit.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Pool};
///
/// let pool = Pool::new(4, 64)?;
/// let server = HttpServer::new(move |_| {
///     pool.offload(|| std::fs::read_to_string("news.txt"), |result| match result {
///         Ok(text) => text,
///         Err(error) => format!("{error}\n"),
///     })
/// });
/// # drop(server);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
    /// Dropped with the last clone, which shuts the pool down.
    _owner: Arc<Owner>,
}

/// Shuts the pool down when dropped.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        lock(&self.0.queue).closed = true;
        self.0.changed.notify_all();
    }
}

impl Pool {
    /// Creates a pool of `threads` threads (at least one), with a queue for up to `queued_max` jobs that wait for a
    /// free thread.
    ///
    /// # Errors
    /// Returns an error if a thread cannot be started.
    pub fn new(threads: usize, queued_max: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        let jobs_max = threads.saturating_add(queued_max);
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            jobs_max,
            #[cfg(feature = "compress")]
            reserved: AtomicUsize::new(0),
        });
        let owner = Arc::new(Owner(Arc::clone(&shared)));
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("pool-{number}")).spawn(move || work(&shared))?;
        }
        Ok(Pool { shared, _owner: owner })
    }

    /// Runs `work` on a pool thread and returns a deferred response, which `then` creates from the result on the loop's
    /// thread. If the queue is full, the response is a 503 with Retry-After; if either closure panics, a 500.
    pub fn offload<T, R>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        then: impl FnOnce(T) -> R + Send + 'static,
    ) -> Response
    where
        T: Send + 'static,
        R: Into<Response>,
    {
        let (response, responder) = Response::later();
        // Skips the work if the client has disconnected. A panic drops the responder, which replies 500.
        let job = move || {
            if !responder.is_closed() {
                let result = work();
                responder.respond_with(move || then(result));
            }
        };
        match self.run(job) {
            Ok(()) => response,
            Err(full) => {
                // Drop the response first, so that the responder in the job finds the exchange closed.
                drop(response);
                full.into()
            }
        }
    }

    /// Queues `work` to run on a pool thread. Use [`Pool::run_with`] for work that contains a
    /// [`Responder`](super::Responder) or another value that is needed when the queue is full.
    ///
    /// # Errors
    /// Returns an error with `work` if the queue is full.
    pub fn run<F: FnOnce() + Send + 'static>(&self, work: F) -> Result<(), PoolFull<F>> {
        self.push(work, |work| Box::new(work)).map_err(PoolFull)
    }

    /// Queues `work` to run on a pool thread, with a value that the caller gets back if the queue is full: a
    /// [`Responder`](super::Responder) or [`Resume`](super::Resume) can then respond with 503.
    ///
    /// # Errors
    /// Returns an error with `value` and `work` if the queue is full.
    ///
    /// # Examples
    /// Each upload occupies a thread until it is complete; further ones get a 503:
    /// ```
    /// use serverd::{BodyMode, BodyReader, Handler, Pool, PoolFull, Request, RequestHead, Responder, Response, StatusCode};
    /// use std::io;
    ///
    /// struct Import(Pool);
    ///
    /// impl Handler for Import {
    ///     fn head(&mut self, _: &RequestHead<'_>) -> BodyMode {
    ///         let pool = self.0.clone();
    ///         BodyMode::read(1 << 30, move |body, responder| {
    ///             let queued = pool.run_with((body, responder), |(mut body, responder): (BodyReader, Responder)| {
    ///                 match io::copy(&mut body, &mut io::sink()) {
    ///                     Ok(bytes) => responder.respond(format!("{bytes} bytes\n")),
    ///                     Err(_) => responder.respond(StatusCode::BAD_REQUEST), // the client disconnected
    ///                 }
    ///             });
    ///             if let Err(PoolFull(((_body, responder), _work))) = queued {
    ///                 responder.respond(PoolFull(()));
    ///             }
    ///         })
    ///     }
    ///
    ///     fn call(&mut self, _: &Request<'_>) -> Response {
    ///         Response::error(StatusCode::BAD_REQUEST, "no body\n")
    ///     }
    /// }
    /// # drop(Import(Pool::new(4, 0)?));
    /// # Ok::<(), io::Error>(())
    /// ```
    pub fn run_with<T, F>(&self, value: T, work: F) -> Result<(), PoolFull<(T, F)>>
    where
        T: Send + 'static,
        F: FnOnce(T) + Send + 'static,
    {
        self.push((value, work), |(value, work)| Box::new(move || work(value))).map_err(PoolFull)
    }

    /// Queues `work` for a client; `None` is one client too. Clients take turns, so that one with many jobs does not
    /// delay the others. If the queue is full, the newest job of the client with the most is dropped without being run,
    /// which may be this one. Not for a pool that also streams bodies, whose jobs must not be dropped.
    #[cfg(feature = "files")]
    pub(crate) fn run_for(&self, client: Option<IpAddr>, work: impl FnOnce() + Send + 'static) {
        let mut queue = lock(&self.shared.queue);
        let is_full = queue.jobs.len() + queue.busy >= self.shared.jobs_max;
        queue.jobs.push(client, Box::new(work));
        let dropped = if is_full { queue.jobs.evict() } else { None };
        drop(queue);
        self.shared.changed.notify_one();
        // Dropping a job may wake a loop, so the lock is not held.
        drop(dropped);
    }

    /// Returns whether the pool would accept a job now.
    #[cfg(feature = "compress")]
    pub(super) fn has_room(&self) -> bool {
        let queue = lock(&self.shared.queue);
        queue.jobs.len() + queue.busy < self.shared.jobs_max
    }

    /// Reserves memory for a response that is produced on this pool. Returns `None` if more than `bytes_max` would be
    /// reserved.
    #[cfg(feature = "compress")]
    pub(super) fn reserve(&self, bytes: usize, bytes_max: usize) -> Option<Reservation> {
        let add = |reserved: usize| reserved.checked_add(bytes).filter(|sum| *sum <= bytes_max);
        self.shared.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Reservation { shared: Arc::clone(&self.shared), bytes })
    }

    /// Queues the continuation of an accepted job, regardless of the queue limit.
    pub(super) fn push_unbounded(&self, job: impl FnOnce() + Send + 'static) {
        lock(&self.shared.queue).jobs.push(None, Box::new(job));
        self.shared.changed.notify_one();
    }

    /// Queues a job that is made of `work`, or returns `work` if the pool is full.
    fn push<T>(&self, work: T, make_job: impl FnOnce(T) -> Job) -> Result<(), T> {
        let mut queue = lock(&self.shared.queue);
        if queue.jobs.len() + queue.busy >= self.shared.jobs_max {
            return Err(work);
        }
        queue.jobs.push(None, make_job(work));
        drop(queue);
        self.shared.changed.notify_one();
        Ok(())
    }
}

/// The responder of a request whose job waits for a thread.
#[cfg(feature = "files")]
pub(crate) struct QueuedResponder {
    responder: Option<Responder>,
    refuse: fn(Responder),
}

#[cfg(feature = "files")]
impl QueuedResponder {
    /// Calls `refuse` if this is dropped before the job begins, because the queue is full.
    pub(crate) fn new(responder: Responder, refuse: fn(Responder)) -> Self {
        QueuedResponder { responder: Some(responder), refuse }
    }

    /// Returns the responder when the job begins; `None` if the client has disconnected.
    pub(crate) fn start(mut self) -> Option<Responder> {
        self.responder.take().filter(|responder| !responder.is_closed())
    }
}

#[cfg(feature = "files")]
impl Drop for QueuedResponder {
    fn drop(&mut self) {
        if let Some(responder) = self.responder.take() {
            (self.refuse)(responder);
        }
    }
}

/// Memory reserved with [`Pool::reserve`], until it is dropped.
#[cfg(feature = "compress")]
pub(super) struct Reservation {
    shared: Arc<Shared>,
    bytes: usize,
}

#[cfg(feature = "compress")]
impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Main loop of a pool thread.
fn work(shared: &Shared) {
    loop {
        let mut queue = lock(&shared.queue);
        let job = loop {
            match queue.jobs.pop() {
                Some(job) => break job,
                None if queue.closed => return,
                None => queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        };
        queue.busy += 1;
        drop(queue);
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            log::error!("a job panicked on a pool thread");
        }
        lock(&shared.queue).busy -= 1;
    }
}

/// Error returned by [`Pool::run`], [`Pool::run_with`] and [`Pool::stream`] when the queue is full, with the work that
/// was not accepted. Converts into a 503 response with Retry-After.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PoolFull<T = ()>(pub T);

impl<T> From<PoolFull<T>> for Response {
    fn from(_: PoolFull<T>) -> Self {
        Response::from(StatusCode::SERVICE_UNAVAILABLE).header("Retry-After", RETRY_AFTER)
    }
}

impl<T> std::fmt::Debug for PoolFull<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("PoolFull").finish_non_exhaustive()
    }
}

impl<T> std::fmt::Display for PoolFull<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the thread pool's queue is full")
    }
}

impl<T> std::error::Error for PoolFull<T> {}

/// Maximum number of pieces one job produces before it yields its thread to other jobs.
const PIECES_PER_JOB: usize = 16;

/// A body that is being produced. Its owner is a running job, the pool's queue, or, while the body queue is full, the
/// body queue itself.
struct PoolStream<I> {
    pieces: I,
    /// A piece rejected because the body queue was full.
    unsent: Option<Bytes>,
    sender: Arc<Sender>,
    pool: Pool,
}

impl Pool {
    /// Creates a 200 (OK) response that streams the items of an iterator, which runs on the pool's threads: for bodies
    /// that are expensive to produce, such as compressed content. Production pauses while 256 KiB are queued for the
    /// client, without blocking a thread. An error item closes the connection, as in [`Response::try_stream`].
    ///
    /// # Errors
    /// Returns an error if the pool's queue is full.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Pool};
    ///
    /// let pool = Pool::new(2, 64)?;
    /// let server = HttpServer::new(move |_| {
    ///     let primes = (2_u32..100_000).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0));
    ///     pool.stream(primes.map(|prime| Ok(format!("{prime}\n"))))
    /// });
    /// # drop(server);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn stream<T, I>(&self, pieces: I) -> Result<Response, PoolFull>
    where
        T: Into<Bytes>,
        I: IntoIterator<Item = io::Result<T>, IntoIter: Send + 'static>,
    {
        let (response, sender) = Response::channel();
        let pieces = pieces.into_iter().map(|piece| piece.map(Into::into));
        let stream = PoolStream { pieces, unsent: None, sender: Arc::new(sender), pool: self.clone() };
        self.run(move || stream.advance()).map(|()| response).map_err(|_| PoolFull(()))
    }
}

impl<I: Iterator<Item = io::Result<Bytes>> + Send + 'static> PoolStream<I> {
    fn advance(mut self) {
        for _ in 0..PIECES_PER_JOB {
            if self.sender.is_closed() {
                return;
            }
            match self.unsent.take().map(Ok).or_else(|| self.pieces.next()) {
                None => return self.sender.end_body(),
                // Dropping the sender without ending the body closes the connection.
                Some(Err(error)) => return log::warn!("response body failed: {error}"),
                Some(Ok(piece)) => match self.sender.send(piece) {
                    Ok(()) => {}
                    Err(SendError::Closed(_)) => return,
                    Err(SendError::Full(piece)) => {
                        self.unsent = Some(piece);
                        return self.wait();
                    }
                },
            }
        }
        self.reschedule();
    }

    /// Parks the stream in the body queue until the queue drains. If the connection closes, the stream is dropped.
    fn wait(self) {
        let sender = Arc::clone(&self.sender);
        let mut waiting = Some(self);
        sender.on_drained(move || {
            if let Some(stream) = waiting.take() {
                stream.reschedule();
            }
        });
    }

    /// Queues the next job, even if the pool is full: the stream has been accepted, and there is at most one per
    /// connection.
    fn reschedule(self) {
        let pool = self.pool.clone();
        pool.push_unbounded(move || self.advance());
    }
}

/// A queue in which clients take turns, so that a client with many requests does not delay the others.
pub(super) struct FairQueue<T> {
    /// The clients with queued items, in the order of their turns.
    clients: VecDeque<(Option<IpAddr>, VecDeque<T>)>,
    len: usize,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        FairQueue { clients: VecDeque::new(), len: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Returns the number of queued items.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds an item of a client.
    pub(super) fn push(&mut self, client: Option<IpAddr>, item: T) {
        self.len += 1;
        match self.clients.iter_mut().find(|(known, _)| *known == client) {
            Some((_, items)) => items.push_back(item),
            None => self.clients.push_back((client, VecDeque::from([item]))),
        }
    }

    /// Removes the oldest item of the client whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let (client, mut items) = self.clients.pop_front()?;
        let item = items.pop_front();
        self.len -= 1;
        if !items.is_empty() {
            self.clients.push_back((client, items));
        }
        item
    }

    /// Removes the newest item of the client with the most items; among equals, of the client whose turn is last.
    #[cfg(any(feature = "basic-auth", feature = "files", test))]
    pub(super) fn evict(&mut self) -> Option<T> {
        let (at, _) = self.clients.iter().enumerate().max_by_key(|(_, (_, items))| items.len())?;
        let item = self.clients[at].1.pop_back();
        self.len -= 1;
        self.clients.retain(|(_, items)| !items.is_empty());
        item
    }
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "files")]
    use std::sync::mpsc;
    #[cfg(feature = "files")]
    use std::time::Duration;

    use super::*;

    #[cfg(feature = "files")]
    #[test]
    fn clients_take_turns_and_the_busiest_one_loses_jobs_when_the_queue_is_full() {
        let client = |number: u8| Some(IpAddr::from([10, 0, 0, number]));
        let pool = Pool::new(1, 10).unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let (send, done) = mpsc::channel();
        let (started, is_busy) = mpsc::channel();
        pool.run(move || {
            started.send(()).unwrap();
            gate.recv().unwrap();
        })
        .unwrap();
        is_busy.recv().unwrap();
        let push = |of: u8, number: u8| {
            let send = send.clone();
            pool.run_for(client(of), move || send.send((of, number)).unwrap());
        };
        // One client has 80 jobs; only 10 fit in the queue, and each job of another client displaces one.
        (0..80).for_each(|number| push(1, number));
        (0..3).for_each(|number| push(2, number));
        (0..2).for_each(|number| push(3, number));
        assert_eq!(pool.run_with(7, |_| ()).map_err(|PoolFull((value, _))| value), Err(7));
        drop((open, send));
        let order: Vec<_> = done.iter().collect();
        assert_eq!(order, [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 3), (1, 4)]);
        assert!(done.recv_timeout(Duration::ZERO).is_err());
    }

    #[test]
    fn clients_take_turns_and_the_busiest_one_loses_its_newest_item() {
        let client = |number: u8| Some(IpAddr::from([10, 0, 0, number]));
        let mut queue = FairQueue::default();
        for item in 0..5 {
            queue.push(client(1), item);
        }
        queue.push(client(2), 10);
        queue.push(None, 20);
        queue.push(client(2), 11);
        assert_eq!((queue.len(), queue.evict(), queue.len()), (8, Some(4), 7));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [0, 10, 20, 1, 11, 2, 3]);
        assert!(queue.clients.is_empty() && queue.len() == 0 && queue.evict().is_none());
    }
}
