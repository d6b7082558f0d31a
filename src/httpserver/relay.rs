//! Bodies that are made on a pool's threads, piece by piece, as fast as the client takes them.
//!
//! ```text
//!   thread of the pool                         loop
//!   make a piece, push it ... queue full  -->  sends
//!   (the thread is free for others)       <--  queue half empty: on with it
//! ```

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{Pool, PoolFull, Response, SendError, Sender};

/// Pieces made before others have the thread.
const PIECES_PER_JOB: usize = 16;

/// A body on its way, wherever it is: with a thread, in the pool's queue, or with the connection that has no room.
struct Relay<I> {
    pieces: I,
    /// One that found no room.
    held: Option<Bytes>,
    sender: Arc<Sender>,
    pool: Pool,
}

impl Pool {
    /// 200 (OK) with a body made piece by piece on the threads of the pool: for what is slow to make, such as compressed
    /// content. At most 256 KiB are made ahead of the client, and while it is slow no thread waits for it. A piece that
    /// fails ends the connection early, as in [`Response::try_stream`].
    ///
    /// # Errors
    /// When the queue is full.
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
        let relay = Relay { pieces, held: None, sender: Arc::new(sender), pool: self.clone() };
        self.run(move || relay.advance())?;
        Ok(response)
    }
}

impl<I: Iterator<Item = io::Result<Bytes>> + Send + 'static> Relay<I> {
    fn advance(mut self) {
        for _ in 0..PIECES_PER_JOB {
            if self.sender.is_closed() {
                return;
            }
            match self.held.take().map(Ok).or_else(|| self.pieces.next()) {
                None => return self.sender.end_body(),
                // Dropped without an end, the connection breaks off.
                Some(Err(error)) => return log::warn!("the body of an answer broke off: {error}"),
                Some(Ok(piece)) => match self.sender.send(piece) {
                    Ok(()) => {}
                    Err(SendError::Closed(_)) => return,
                    Err(SendError::Full(piece)) => {
                        self.held = Some(piece);
                        return self.wait();
                    }
                },
            }
        }
        self.again();
    }

    /// Stays with the connection until there is room. When that ends, it is dropped with it.
    fn wait(self) {
        let sender = Arc::clone(&self.sender);
        let mut waiting = Some(self);
        sender.on_drained(move || {
            if let Some(relay) = waiting.take() {
                relay.again();
            }
        });
    }

    /// What was let in once has a place for ever; there are no more of these than connections.
    fn again(self) {
        let pool = self.pool.clone();
        pool.push_on(move || self.advance());
    }
}
