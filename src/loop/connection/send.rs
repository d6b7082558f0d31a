//! Sends output: writes immediately, buffers what the socket does not accept, and applies back-pressure above
//! `output_bytes_max`.
//!
//! A function `NAME_outlined` is the rare part of `NAME`, or `NAME` itself out of line; it exists only for code layout:
//! `NAME` is inlined into the hot path and has to stay small there.

use std::io;

use super::{Connection, FileCache, LoopContext, Stage};
use crate::r#loop::app::App;
use crate::r#loop::file_read::Readahead;
use crate::r#loop::limits::LoopLimits;
use crate::r#loop::output::Flushed;
use crate::r#loop::readiness::Stream;
use crate::r#loop::table::ConnId;

impl<S: Stream, T> Connection<S, T> {
    /// Sends output up to the quota; buffers what the socket does not accept. The common case is inlined: no pending
    /// output, and the socket accepts everything.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub(super) fn flush<A: App>(&mut self, context: &mut LoopContext<A>) -> io::Result<()> {
        if self.pending.is_some() || !self.writable || !context.scratch.is_little(context.little_bytes) {
            return self.flush_outlined(context);
        }
        context.counters.writes += 1;
        match context.scratch.flush_little(&mut self.stream, context.limits.write_bytes_per_turn) {
            Ok((Flushed::All, _)) => Ok(()),
            outcome => self.after_flush(context, outcome),
        }
    }

    /// Sends output in all other cases.
    #[inline(never)]
    pub(in crate::r#loop) fn flush_outlined<A: App>(&mut self, context: &mut LoopContext<A>) -> io::Result<()> {
        let output = match &mut self.pending {
            Some(pending) => &mut **pending,
            None => &mut context.scratch,
        };
        if output.is_empty() {
            self.pending = None;
            self.backpressured = false;
            return Ok(());
        }
        if !self.writable {
            self.buffer_unsent(context);
            return Ok(());
        }
        context.counters.writes += 1;
        let outcome = output.flush(&mut self.stream, context.limits.write_bytes_per_turn, 0);
        self.after_flush(context, outcome)
    }

    /// Updates the connection for the result of a flush.
    #[inline(never)]
    fn after_flush<A: App>(
        &mut self,
        context: &mut LoopContext<A>,
        outcome: io::Result<(Flushed, usize)>,
    ) -> io::Result<()> {
        let (flushed, sent) = match outcome {
            Ok(done) => done,
            Err(error) => {
                // Kept so that `CloseInfo::unsent_bytes` is correct.
                self.buffer_unsent(context);
                return Err(error);
            }
        };
        self.restart |= sent > 0 && self.pending.is_some();
        self.sent_much |= flushed != Flushed::All;
        match flushed {
            Flushed::All | Flushed::AllOfMuch => {
                self.pending = None;
                self.backpressured = false;
                self.count_buffers(&context.buffers);
            }
            Flushed::Blocked => {
                self.writable = false;
                self.file_cache = FileCache::Ready;
                self.buffer_unsent(context);
            }
            Flushed::Quota => {
                self.file_cache = FileCache::Ready;
                self.buffer_unsent(context);
            }
            Flushed::NeedsReadahead => {
                self.writable = false;
                if self.file_cache == FileCache::Ready {
                    self.file_cache = FileCache::Missing;
                }
                self.buffer_unsent(context);
            }
        }
        Ok(())
    }

    /// Sends pending output and calls [`App::output_drained`] when it is sent or has dropped to the low watermark.
    pub(super) fn flush_pending<A>(&mut self, id: ConnId, context: &mut LoopContext<A>) -> io::Result<()>
    where
        A: App<State = T>,
    {
        let unsent = self.pending_bytes();
        self.flush_outlined(context)?;
        if self.has_drained(unsent, &context.limits) && matches!(self.stage, Stage::Reading | Stage::Paused) {
            self.call(context, id, &[], App::output_drained);
            self.flush_outlined(context)?;
        }
        Ok(())
    }

    /// Returns whether a flush that started with `before` bytes sent everything or crossed the low watermark.
    fn has_drained(&self, before: usize, limits: &LoopLimits) -> bool {
        let left = self.pending_bytes();
        left == 0 || (left <= limits.output_resume_bytes && before > limits.output_resume_bytes)
    }

    fn pending_bytes(&self) -> usize {
        self.pending.as_ref().map_or(0, |output| output.len())
    }

    /// Updates back-pressure: on above the high watermark, off at the low watermark.
    fn update_backpressure(&mut self, limits: &LoopLimits) {
        let unsent = self.pending_bytes();
        if unsent > limits.output_bytes_max {
            self.backpressured = true;
        } else if unsent <= limits.output_resume_bytes {
            self.backpressured = false;
        }
    }

    /// Moves unsent output from the loop's buffer to a buffer owned by the connection.
    #[cold]
    fn buffer_unsent<A: App>(&mut self, context: &mut LoopContext<A>) {
        if self.pending.is_none() {
            self.pending = Some(Box::new(std::mem::take(&mut context.scratch)));
        }
        self.count_buffers(&context.buffers);
        self.update_backpressure(&context.limits);
    }

    /// Takes the read-ahead to request, if one is needed and not requested yet.
    pub(in crate::r#loop) fn take_readahead(&mut self) -> Option<Readahead> {
        if self.file_cache != FileCache::Missing {
            return None;
        }
        self.file_cache = FileCache::Requested;
        self.pending.as_ref()?.readahead()
    }

    /// Resumes sending after a read-ahead, whether it succeeded or not.
    pub(in crate::r#loop) fn readahead_done(&mut self) {
        self.file_cache = FileCache::Ready;
        self.writable = true;
        if let Some(pending) = &mut self.pending {
            pending.readahead_done();
        }
    }
}
