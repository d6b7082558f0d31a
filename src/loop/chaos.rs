//! A fault-injecting backend wrapper for tests: [`Chaos`] exhibits adverse behaviour that the [`readiness`] contract
//! permits. It adds spurious events, reorders batches, and limits reads and writes to a few bytes. Code that works with
//! it does not depend on favourable timing.
//!
//! The random number generator is seeded from the environment variable `SERVERD_CHAOS_SEED`, or with a constant if that
//! is unset.
//!
//! [`readiness`]: super::readiness

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use super::peer::Peer;
use super::readiness::{
    Event, Handshake, Interest, Listener, Readiness, Received, Sent, Stream, Token, pass_to_listener, pass_to_session,
    pass_to_socket, send_file_by_copy,
};
use super::socket::SystemSocket;

/// Number of the next random number generator. Each backend and stream has a generator of its own.
static NEXT_GENERATOR: AtomicU64 = AtomicU64::new(1);

/// A small random number generator (xorshift64*); it only has to be reproducible.
#[derive(Clone, Debug)]
struct Rng(u64);

impl Rng {
    fn new() -> Self {
        let seed = std::env::var("SERVERD_CHAOS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed_u64);
        let number = NEXT_GENERATOR.fetch_add(1, Ordering::Relaxed);
        Rng(seed.wrapping_add(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a random number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    /// Returns a random length of at most `len`: usually small, sometimes all of it.
    fn cap(&mut self, len: usize) -> usize {
        let max = [1, 7, 64, 1024, usize::MAX][usize::try_from(self.below(5)).unwrap_or(0)];
        len.min(max)
    }
}

/// A fault-injecting wrapper around the backend `B`, for tests. It adds spurious events, reorders batches, and limits
/// reads and writes to a few bytes; all of that is legal under the [`readiness`](super::readiness) contract.
///
/// The environment variable `SERVERD_CHAOS_SEED` sets the random seed.
#[derive(Debug)]
pub struct Chaos<B> {
    inner: B,
    tokens: Vec<Token>,
    rng: Rng,
}

/// The listener type of [`Chaos`].
#[derive(Debug)]
pub struct ChaosListener<L>(L);

/// The stream type of [`Chaos`].
#[derive(Debug)]
pub struct ChaosStream<S> {
    inner: S,
    rng: Rng,
}

impl<L: From<T>, T: SystemSocket> From<T> for ChaosListener<L> {
    fn from(listener: T) -> Self {
        ChaosListener(L::from(listener))
    }
}

impl<S> From<S> for ChaosStream<S> {
    fn from(inner: S) -> Self {
        ChaosStream { inner, rng: Rng::new() }
    }
}

impl<B: Readiness> Readiness for Chaos<B> {
    type Listener = ChaosListener<B::Listener>;
    type Stream = ChaosStream<B::Stream>;
    type Source = B::Source;

    const NAME: &'static str = "chaos";
    const LEVEL_TRIGGERED: bool = B::LEVEL_TRIGGERED;

    fn new() -> io::Result<Self> {
        Ok(Chaos { inner: B::new()?, tokens: Vec::new(), rng: Rng::new() })
    }

    fn add(&mut self, source: &B::Source, token: Token, interest: Interest) -> io::Result<()> {
        self.inner.add(source, token, interest)?;
        self.tokens.push(token);
        Ok(())
    }

    fn set_interest(&mut self, source: &B::Source, token: Token, interest: Interest) -> io::Result<()> {
        self.inner.set_interest(source, token, interest)
    }

    fn remove(&mut self, source: &B::Source, token: Token) -> io::Result<()> {
        self.tokens.retain(|other| *other != token);
        self.inner.remove(source, token)
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<Self::Stream> {
        self.inner.connect(address).map(From::from)
    }

    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        let before = events.len();
        // One wait in eight returns no events, as if interrupted; pending readiness is reported by a later wait.
        if self.rng.below(8) == 0 {
            return Ok(());
        }
        self.inner.wait(events, timeout)?;
        self.add_spurious(events);
        let batch = &mut events[before..];
        for index in (1..batch.len()).rev() {
            let other = usize::try_from(self.rng.below(index as u64 + 1)).unwrap_or(0);
            batch.swap(index, other);
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}

impl<B> Chaos<B> {
    /// Adds spurious events.
    fn add_spurious(&mut self, events: &mut Vec<Event>) {
        if self.tokens.is_empty() {
            return;
        }
        for _ in 0..self.rng.below(3) {
            let index = usize::try_from(self.rng.below(self.tokens.len() as u64)).unwrap_or(0);
            let bits = self.rng.below(8);
            let hangup = bits & 4 != 0;
            events.push(Event {
                token: self.tokens[index],
                readable: bits & 1 != 0 || hangup,
                writable: bits & 2 != 0 || hangup,
                hangup,
            });
        }
    }
}

impl<L: Listener> Listener for ChaosListener<L> {
    type Stream = ChaosStream<L::Stream>;

    fn accept(&mut self) -> io::Result<(Self::Stream, Peer)> {
        let (inner, peer) = self.0.accept()?;
        Ok((inner.into(), peer))
    }

    pass_to_listener!(0);
}

impl<S: Stream> Stream for ChaosStream<S> {
    type Source = S::Source;

    const ENCRYPTS: bool = S::ENCRYPTS;

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let cap = self.rng.cap(buffer.len());
        self.inner.read(&mut buffer[..cap])
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        let cap = self.rng.cap(bytes.len());
        self.inner.write(&bytes[..cap])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent> {
        slices
            .iter()
            .find(|slice| !slice.is_empty())
            .map_or(Ok(Sent { bytes: 0, more: true }), |slice| self.write(slice))
    }

    /// Sends with sendfile or with read and write, at random, and usually only part of the range.
    fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
        let cap = self.rng.cap(count);
        if self.rng.below(2) == 0 {
            return send_file_by_copy(&mut self.inner, file, offset, cap);
        }
        self.inner.send_file(file, offset, cap)
    }

    fn needs_readahead(&mut self, file: &File, offset: u64, count: usize) -> bool {
        self.rng.below(8) == 0 || self.inner.needs_readahead(file, offset, count)
    }

    fn discard(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let cap = self.rng.cap(buffer.len());
        self.inner.discard(&mut buffer[..cap])
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn handshake(&mut self) -> io::Result<Handshake> {
        self.inner.handshake()
    }

    fn buffered_bytes(&mut self) -> usize {
        self.inner.buffered_bytes()
    }

    fn proxied(&self) -> Option<super::Proxied> {
        self.inner.proxied()
    }

    pass_to_socket!(inner);
    pass_to_session!(inner);
}
