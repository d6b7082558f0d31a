//! A backend that uses all the freedom the contract gives: [`Chaos`] adds events without a cause, reorders
//! batches and lets reads and writes move only a few bytes. What works on it does not depend on luck.
//!
//! The dice are seeded: by the environment variable `SERVERD_CHAOS_SEED`, or else always the same.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use super::file_range;
use super::handover::Handed;
use super::readiness::{Event, Interest, Listener, Readiness, Received, Sent, Stream, Token};

/// Each poller and stream gets dice of its own, so that one does not disturb the other.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A small generator (xorshift64*): repeatable is all it has to be.
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("SERVERD_CHAOS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed_u64);
        let own = NEXT.fetch_add(1, Ordering::Relaxed);
        Dice(seed.wrapping_add(own).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    /// At most `len`, mostly a little, sometimes all.
    fn cap(&mut self, len: usize) -> usize {
        let most = [1, 7, 64, 1024, usize::MAX][usize::try_from(self.roll(5)).unwrap_or(0)];
        len.min(most)
    }
}

/// The backend `B`, as unkind as its contract allows.
#[derive(Debug)]
pub struct Chaos<B> {
    inner: B,
    tokens: Vec<Token>,
    dice: Dice,
}

/// A listener of [`Chaos`].
#[derive(Debug)]
pub struct ChaosListener<L>(L);

/// A stream of [`Chaos`].
#[derive(Debug)]
pub struct ChaosStream<S> {
    inner: S,
    dice: Dice,
}

impl<L: From<std::net::TcpListener>> From<std::net::TcpListener> for ChaosListener<L> {
    fn from(listener: std::net::TcpListener) -> Self {
        ChaosListener(listener.into())
    }
}

impl<L: From<Handed>> From<Handed> for ChaosListener<L> {
    fn from(handed: Handed) -> Self {
        ChaosListener(handed.into())
    }
}

impl<S> From<S> for ChaosStream<S> {
    fn from(inner: S) -> Self {
        ChaosStream { inner, dice: Dice::new() }
    }
}

impl<B: Readiness> Readiness for Chaos<B> {
    type Listener = ChaosListener<B::Listener>;
    type Stream = ChaosStream<B::Stream>;
    type Source = B::Source;

    const NAME: &'static str = "chaos";
    const REPEATS: bool = B::REPEATS;

    fn new() -> io::Result<Self> {
        Ok(Chaos { inner: B::new()?, tokens: Vec::new(), dice: Dice::new() })
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

    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        let before = events.len();
        // One wait in eight finds nothing, as after a signal: what was ready is still reported later.
        if self.dice.roll(8) == 0 {
            return Ok(());
        }
        self.inner.wait(events, timeout)?;
        self.invent(events);
        let batch = &mut events[before..];
        for index in (1..batch.len()).rev() {
            let other = usize::try_from(self.dice.roll(index as u64 + 1)).unwrap_or(0);
            batch.swap(index, other);
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}

impl<B> Chaos<B> {
    /// Adds events without a cause.
    fn invent(&mut self, events: &mut Vec<Event>) {
        if self.tokens.is_empty() {
            return;
        }
        for _ in 0..self.dice.roll(3) {
            let index = usize::try_from(self.dice.roll(self.tokens.len() as u64)).unwrap_or(0);
            let bits = self.dice.roll(8);
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

    fn prepare(&mut self, backlog: u32) -> io::Result<()> {
        self.0.prepare(backlog)
    }

    fn turn_away(&mut self) -> bool {
        self.0.turn_away()
    }

    fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)> {
        let (inner, peer) = self.0.accept()?;
        Ok((inner.into(), peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn source(&self) -> &<L::Stream as Stream>::Source {
        self.0.source()
    }
}

impl<S: Stream> Stream for ChaosStream<S> {
    type Source = S::Source;

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let cap = self.dice.cap(buffer.len());
        self.inner.read(&mut buffer[..cap])
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        let cap = self.dice.cap(bytes.len());
        self.inner.write(&bytes[..cap])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent> {
        slices
            .iter()
            .find(|slice| !slice.is_empty())
            .map_or(Ok(Sent { bytes: 0, more: true }), |slice| self.write(slice))
    }

    /// By either way, and mostly a little.
    fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
        let cap = self.dice.cap(count);
        if self.dice.roll(2) == 0 {
            return file_range::copy(&mut self.inner, file, offset, cap);
        }
        self.inner.send_file(file, offset, cap)
    }

    fn is_cold(&mut self, file: &File, offset: u64, count: usize) -> bool {
        self.dice.roll(8) == 0 || self.inner.is_cold(file, offset, count)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.inner.shutdown_write()
    }

    fn abort(&mut self) {
        self.inner.abort();
    }

    fn connected(&mut self) -> io::Result<()> {
        self.inner.connected()
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.inner.peer_addr()
    }

    fn source(&self) -> &S::Source {
        self.inner.source()
    }
}
