//! Slow work on other threads, while the loop goes on.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use http::StatusCode;

use super::Response;
use super::link::lock;

/// What a client that was turned away is told to wait, in seconds (RFC 9110 section 10.2.3).
const RETRY_AFTER: &str = "1";

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that work.
    busy: usize,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    news: Condvar,
    /// Pieces of work under way and waiting.
    jobs_max: usize,
}

/// A bounded number of threads for work that would keep a loop from its other connections: files, databases,
/// password hashes. Clones are the same pool; when the last is dropped the threads end once the queue is empty.
///
/// # Examples
/// ```
/// use serverd::{HttpServer, Pool, Request};
///
/// let pool = Pool::new(4, 64)?;
/// let server = HttpServer::new(move |request: &Request<'_>| {
///     let path = request.path().to_owned();
///     pool.offload(move || std::fs::read_to_string(path), |outcome| match outcome {
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
    /// Dropped with the last clone.
    _owner: Arc<Owner>,
}

/// Ends the threads.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        lock(&self.0.queue).closed = true;
        self.0.news.notify_all();
    }
}

impl Pool {
    /// Starts `threads` threads (one at least) with room for `queued_max` pieces of work that wait until one is free.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn new(threads: usize, queued_max: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        let jobs_max = threads.saturating_add(queued_max);
        let shared = Arc::new(Shared { queue: Mutex::default(), news: Condvar::new(), jobs_max });
        let owner = Arc::new(Owner(Arc::clone(&shared)));
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("pool-{number}")).spawn(move || work(&shared))?;
        }
        Ok(Pool { shared, _owner: owner })
    }

    /// Does `work` on a thread of the pool, and answers with what `then` makes of its outcome, on the thread of the
    /// loop. Where the queue is full the answer is 503 with Retry-After at once; a panic is answered 500.
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
        // Nobody who has gone is worked for; a panic drops the responder, and that answers 500.
        let job = move || {
            if !responder.is_closed() {
                let outcome = work();
                responder.respond_with(move || then(outcome));
            }
        };
        match self.push(Box::new(job)) {
            Ok(()) => response,
            Err(job) => {
                // In this order: the responder in the job sees that nobody waits for it.
                drop(response);
                drop(job);
                Response::from(StatusCode::SERVICE_UNAVAILABLE).field("Retry-After", RETRY_AFTER)
            }
        }
    }

    /// Does `work` on a thread of the pool.
    ///
    /// # Errors
    /// When the queue is full; the work is dropped undone.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) -> Result<(), PoolFull> {
        self.push(Box::new(work)).map_err(|_| PoolFull)
    }

    /// Whether work would be taken now.
    #[cfg(feature = "files")]
    pub(super) fn has_room(&self) -> bool {
        let queue = lock(&self.shared.queue);
        queue.jobs.len() + queue.busy < self.shared.jobs_max
    }

    /// Goes on with work that was let in before, whatever waits.
    pub(super) fn push_on(&self, job: impl FnOnce() + Send + 'static) {
        lock(&self.shared.queue).jobs.push_back(Box::new(job));
        self.shared.news.notify_one();
    }

    /// Hands the work back when there is no thread for it and no place to wait.
    fn push(&self, job: Job) -> Result<(), Job> {
        let mut queue = lock(&self.shared.queue);
        if queue.jobs.len() + queue.busy >= self.shared.jobs_max {
            return Err(job);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.news.notify_one();
        Ok(())
    }
}

/// One thread's life.
fn work(shared: &Shared) {
    loop {
        let mut queue = lock(&shared.queue);
        let job = loop {
            match queue.jobs.pop_front() {
                Some(job) => break job,
                None if queue.closed => return,
                None => queue = shared.news.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        };
        queue.busy += 1;
        drop(queue);
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            log::error!("work on a pool's thread panicked");
        }
        lock(&shared.queue).busy -= 1;
    }
}

/// A pool takes no more work for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolFull;

impl std::fmt::Display for PoolFull {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the pool's queue is full")
    }
}

impl std::error::Error for PoolFull {}
