//! Sending: what the socket takes goes at once, the rest is kept, and so much may be kept and no more.

use std::io;

use super::{Connection, Lent, Stage};
use crate::r#loop::Limits;
use crate::r#loop::app::{App, ConnId};
use crate::r#loop::output::Flushed;
use crate::r#loop::read_ahead::Cold;
use crate::r#loop::readiness::Stream;

/// Whether the file that is to be sent next is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disk {
    /// As far as is known.
    Ready,
    /// It is not, and nobody has been told.
    Cold,
    /// Somebody reads it.
    Asked,
}

impl<S: Stream, T> Connection<S, T> {
    /// As [`Connection::flush`], and made for the common case that nothing was kept and the socket takes all.
    #[inline]
    pub(super) fn flush_answer<A: App>(&mut self, lent: &mut Lent<A>) -> io::Result<()> {
        if self.pending.is_some() || !self.writable {
            return self.flush(lent);
        }
        self.stuffed = false;
        if lent.scratch.is_empty() {
            return Ok(());
        }
        lent.counters.writes += 1;
        match lent.scratch.flush(&mut self.stream, lent.limits.write_bytes_per_turn) {
            Ok((Flushed::All, _)) => Ok(()),
            outcome => self.end_flush(lent, outcome),
        }
    }

    /// Sends what there is; what the socket does not take is kept.
    #[inline(never)]
    pub(in crate::r#loop) fn flush<A: App>(&mut self, lent: &mut Lent<A>) -> io::Result<()> {
        let output = match &mut self.pending {
            Some(pending) => &mut **pending,
            None => &mut lent.scratch,
        };
        if output.is_empty() {
            self.pending = None;
            self.stuffed = false;
            return Ok(());
        }
        if !self.writable {
            self.park(lent);
            return Ok(());
        }
        lent.counters.writes += 1;
        let outcome = output.flush(&mut self.stream, lent.limits.write_bytes_per_turn);
        self.end_flush(lent, outcome)
    }

    fn end_flush<A: App>(&mut self, lent: &mut Lent<A>, outcome: io::Result<(Flushed, usize)>) -> io::Result<()> {
        let (how, gone) = match outcome {
            Ok(done) => done,
            Err(error) => {
                // Kept to be counted, since the application is told of what was not sent.
                self.park(lent);
                return Err(error);
            }
        };
        self.restart |= gone > 0 && self.pending.is_some();
        match how {
            Flushed::All => {
                self.pending = None;
                self.stuffed = false;
            }
            Flushed::Blocked => {
                self.writable = false;
                self.disk = Disk::Ready;
                self.park(lent);
            }
            Flushed::Quota => {
                self.disk = Disk::Ready;
                self.park(lent);
            }
            Flushed::Cold => {
                self.writable = false;
                if self.disk == Disk::Ready {
                    self.disk = Disk::Cold;
                }
                self.park(lent);
            }
        }
        Ok(())
    }

    pub(super) fn flush_pending<A>(&mut self, id: ConnId, lent: &mut Lent<A>) -> io::Result<()>
    where
        A: App<State = T>,
    {
        let waiting = self.pending_bytes();
        self.flush(lent)?;
        if self.has_drained(waiting, &lent.limits) && matches!(self.stage, Stage::Reading | Stage::Paused) {
            self.call(lent, id, &[], App::drained);
            self.flush(lent)?;
        }
        Ok(())
    }

    /// Whether a flush that found `before` bytes left nothing, or crossed the low mark.
    fn has_drained(&self, before: usize, limits: &Limits) -> bool {
        let left = self.pending_bytes();
        left == 0 || (left <= limits.output_resume_bytes && before > limits.output_resume_bytes)
    }

    fn pending_bytes(&self) -> usize {
        self.pending.as_ref().map_or(0, |output| output.len())
    }

    /// Compares what waits with the high and the low mark.
    fn gauge(&mut self, limits: &Limits) {
        let waiting = self.pending_bytes();
        if waiting > limits.output_bytes_max {
            self.stuffed = true;
        } else if waiting <= limits.output_resume_bytes {
            self.stuffed = false;
        }
    }

    /// Moves what is unsent from the loop's buffer into one of the connection's own.
    #[cold]
    fn park<A: App>(&mut self, lent: &mut Lent<A>) {
        if self.pending.is_none() {
            self.pending = Some(Box::new(std::mem::take(&mut lent.scratch)));
        }
        self.gauge(&lent.limits);
    }

    /// What has to be read from a disk, once for each time.
    pub(in crate::r#loop) fn take_cold(&mut self) -> Option<Cold> {
        if self.disk != Disk::Cold {
            return None;
        }
        self.disk = Disk::Asked;
        self.pending.as_ref()?.cold()
    }

    /// That was read, or cannot be.
    pub(in crate::r#loop) fn warmed(&mut self) {
        self.disk = Disk::Ready;
        self.writable = true;
        if let Some(pending) = &mut self.pending {
            pending.warmed();
        }
    }
}
