//! A fault-injecting backend: the n-th call of one kind fails, once or from then on, as the failing allocators in the
//! test suites of curl and `SQLite` do.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use serverd::readiness::{Event, Interest, Listener, Received, Sent, Stream, Token};
use serverd::{Peer, Readiness};

/// The kind of call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Accept,
    Read,
    Write,
    SendFile,
    /// File data is reported as not in the page cache. This is not a failure; the error is ignored.
    PageCacheMiss,
    Shutdown,
    Wait,
    Add,
    SetInterest,
}

/// A fault to inject: which call fails, with which error, and whether later calls fail as well.
#[derive(Debug)]
pub(crate) struct Plan {
    call: Call,
    error: i32,
    /// Calls left until the fault, including the failing one; 0 after it.
    left: AtomicUsize,
    /// Calls after the first failing one fail as well.
    persistent: bool,
    fired: AtomicBool,
    disabled: AtomicBool,
    /// Accepted streams that are not closed yet.
    open_streams: AtomicUsize,
}

impl Plan {
    pub(crate) fn new(call: Call, error: i32, number: usize, persistent: bool) -> Arc<Self> {
        Arc::new(Plan {
            call,
            error,
            left: AtomicUsize::new(number),
            persistent,
            fired: AtomicBool::new(false),
            disabled: AtomicBool::new(false),
            open_streams: AtomicUsize::new(0),
        })
    }

    /// Stops injecting faults.
    pub(crate) fn disable(&self) {
        self.disabled.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst)
    }

    /// Returns the number of accepted streams that are not closed yet.
    pub(crate) fn open_streams(&self) -> usize {
        self.open_streams.load(Ordering::SeqCst)
    }

    fn check(&self, call: Call) -> io::Result<()> {
        if call != self.call || self.disabled.load(Ordering::SeqCst) {
            return Ok(());
        }
        let left = self.left.load(Ordering::SeqCst);
        self.left.store(left.saturating_sub(1), Ordering::SeqCst);
        if left == 1 || (left == 0 && self.persistent) {
            self.fired.store(true, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(self.error));
        }
        Ok(())
    }
}

/// The backend `B` with injected faults.
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
    pub(crate) fn wrap(inner: B, plan: &Arc<Plan>) -> Self {
        Faulty { inner, plan: Arc::clone(plan) }
    }
}

impl<L> FaultyListener<L> {
    pub(crate) fn wrap(inner: L, plan: &Arc<Plan>) -> Self {
        FaultyListener { inner, plan: Arc::clone(plan) }
    }
}

impl<S> Drop for FaultyStream<S> {
    fn drop(&mut self) {
        self.plan.open_streams.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<B: Readiness> Readiness for Faulty<B> {
    type Listener = FaultyListener<B::Listener>;
    type Stream = FaultyStream<B::Stream>;
    type Source = B::Source;

    const NAME: &'static str = "faulty";
    const LEVEL_TRIGGERED: bool = B::LEVEL_TRIGGERED;

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

    fn stop_new_connections(&mut self) -> bool {
        self.inner.stop_new_connections()
    }

    fn accept(&mut self) -> io::Result<(Self::Stream, Peer)> {
        self.plan.check(Call::Accept)?;
        let (inner, peer) = self.inner.accept()?;
        self.plan.open_streams.fetch_add(1, Ordering::SeqCst);
        Ok((FaultyStream { inner, plan: Arc::clone(&self.plan) }, peer))
    }

    fn has_waiting(&mut self) -> bool {
        self.inner.has_waiting()
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

    fn needs_readahead(&mut self, file: &File, offset: u64, count: usize) -> bool {
        self.plan.check(Call::PageCacheMiss).is_err() || self.inner.needs_readahead(file, offset, count)
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

    fn peer(&self) -> io::Result<Peer> {
        self.inner.peer()
    }

    fn source(&self) -> &Self::Source {
        self.inner.source()
    }
}
