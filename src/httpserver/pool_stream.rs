//! Response bodies produced on a thread pool, with back-pressure from the client.
//!
//! ```text
//!   pool thread                                    loop
//!   produce pieces, push them ... queue full  -->  sends them
//!   (the thread is free for other jobs)       <--  queue half empty: schedules the next job
//! ```

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{Pool, PoolFull, Response, SendError, Sender};

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
    /// use serverd::{HttpServer, Pool, Response, StatusCode};
    ///
    /// let pool = Pool::new(2, 64)?;
    /// let server = HttpServer::new(move |_| {
    ///     let primes = (2_u32..100_000).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0));
    ///     match pool.stream(primes.map(|prime| Ok(format!("{prime}\n")))) {
    ///         Ok(response) => response,
    ///         Err(_) => Response::from(StatusCode::SERVICE_UNAVAILABLE),
    ///     }
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
        self.run(move || stream.advance())?;
        Ok(response)
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
