//! A backend whose n-th call of one kind fails, once or from then on: what curl and `SQLite` do to their allocators,
//! done to the system under a loop.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use serverd::r#loop::Readiness;
use serverd::r#loop::readiness::{Event, Interest, Listener, Received, Sent, Stream, Token};

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Accept,
    Read,
    Write,
    SendFile,
    /// A file is not in memory; it is no failure, whatever the error is.
    Cold,
    Shutdown,
    Wait,
    Add,
    SetInterest,
}

/// Which call fails, how, and for how long.
#[derive(Debug)]
pub(crate) struct Plan {
    call: Call,
    error: i32,
    /// Counts down; the call that finds 1 fails.
    left: AtomicUsize,
    lasting: bool,
    fired: AtomicBool,
    healed: AtomicBool,
    /// Streams that exist.
    streams: AtomicUsize,
}

impl Plan {
    pub(crate) fn new(call: Call, error: i32, number: usize, lasting: bool) -> Arc<Self> {
        Arc::new(Plan {
            call,
            error,
            left: AtomicUsize::new(number),
            lasting,
            fired: AtomicBool::new(false),
            healed: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
        })
    }

    /// From now on nothing fails.
    pub(crate) fn heal(&self) {
        self.healed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst)
    }

    /// Streams that were accepted and not closed.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::SeqCst)
    }

    fn check(&self, call: Call) -> io::Result<()> {
        if call != self.call || self.healed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let left = self.left.load(Ordering::SeqCst);
        self.left.store(left.saturating_sub(1), Ordering::SeqCst);
        if left == 1 || (left == 0 && self.lasting) {
            self.fired.store(true, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(self.error));
        }
        Ok(())
    }
}

/// The backend `B`, with a plan for its failure.
pub(crate) struct Faulty<B> {
    inner: B,
    plan: Arc<Plan>,
}

pub(crate) struct FaultyListener<L> {
    inner: L,
    plan: Arc<Plan>,
}

pub(crate) struct FaultyStream<S> {
    inner: S,
    plan: Arc<Plan>,
}

impl<B> Faulty<B> {
    pub(crate) fn over(inner: B, plan: &Arc<Plan>) -> Self {
        Faulty { inner, plan: Arc::clone(plan) }
    }
}

impl<L> FaultyListener<L> {
    pub(crate) fn over(inner: L, plan: &Arc<Plan>) -> Self {
        FaultyListener { inner, plan: Arc::clone(plan) }
    }
}

impl<S> Drop for FaultyStream<S> {
    fn drop(&mut self) {
        self.plan.streams.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<B: Readiness> Readiness for Faulty<B> {
    type Listener = FaultyListener<B::Listener>;
    type Stream = FaultyStream<B::Stream>;
    type Source = B::Source;

    const NAME: &'static str = "faulty";
    const REPEATS: bool = B::REPEATS;

    fn new() -> io::Result<Self> {
        Ok(Faulty { inner: B::new()?, plan: Plan::new(Call::Wait, 0, 0, false) })
    }

    fn add(&mut self, source: &Self::Source, token: Token, interest: Interest) -> io::Result<()> {
        self.plan.check(Call::Add)?;
        self.inner.add(source, token, interest)
    }

    fn set_interest(&mut self, source: &Self::Source, token: Token, interest: Interest) -> io::Result<()> {
        self.plan.check(Call::SetInterest)?;
        self.inner.set_interest(source, token, interest)
    }

    fn remove(&mut self, source: &Self::Source, token: Token) -> io::Result<()> {
        self.inner.remove(source, token)
    }

    fn wait(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        self.plan.check(Call::Wait)?;
        self.inner.wait(events, timeout)
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}

impl<L: Listener> Listener for FaultyListener<L> {
    type Stream = FaultyStream<L::Stream>;

    fn prepare(&mut self, backlog: u32) -> io::Result<()> {
        self.inner.prepare(backlog)
    }

    fn turn_away(&mut self) -> bool {
        self.inner.turn_away()
    }

    fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)> {
        self.plan.check(Call::Accept)?;
        let (inner, peer) = self.inner.accept()?;
        self.plan.streams.fetch_add(1, Ordering::SeqCst);
        Ok((FaultyStream { inner, plan: Arc::clone(&self.plan) }, peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn source(&self) -> &<L::Stream as Stream>::Source {
        self.inner.source()
    }
}

impl<S: Stream> Stream for FaultyStream<S> {
    type Source = S::Source;

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        self.plan.check(Call::Read)?;
        self.inner.read(buffer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        self.plan.check(Call::Write)?;
        self.inner.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent> {
        self.plan.check(Call::Write)?;
        self.inner.write_vectored(slices)
    }

    fn write_more(&mut self, bytes: &[u8]) -> io::Result<Sent> {
        self.plan.check(Call::Write)?;
        self.inner.write_more(bytes)
    }

    fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<Sent> {
        self.plan.check(Call::SendFile)?;
        self.inner.send_file(file, offset, count)
    }

    fn is_cold(&mut self, file: &File, offset: u64, count: usize) -> bool {
        self.plan.check(Call::Cold).is_err() || self.inner.is_cold(file, offset, count)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.plan.check(Call::Shutdown)?;
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

    fn source(&self) -> &Self::Source {
        self.inner.source()
    }
}
