//! Calls the application and applies the flow it returns.

use std::io;

use super::{Connection, LoopContext, Stage};
use crate::r#loop::app::{Addrs, App, CloseReason, ConnId, Flow, Wire};
use crate::r#loop::readiness::Stream;

impl<S: Stream, T> Connection<S, T> {
    /// Calls a method of the application and applies the flow it returns. Returns the number of bytes consumed.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub(in crate::r#loop) fn call<A>(
        &mut self,
        context: &mut LoopContext<A>,
        id: ConnId,
        input: &[u8],
        method: impl FnOnce(&mut A, &mut T, &mut Wire<'_, A::Message>) -> Flow,
    ) -> usize
    where
        A: App<State = T>,
    {
        let output = match &mut self.pending {
            Some(pending) => &mut **pending,
            None => &mut context.scratch,
        };
        let mut wire = Wire {
            id,
            input,
            consumed: 0,
            output,
            messages: &mut context.messages,
            echoed: 0..0,
            addrs: Addrs { stream: Some(&self.stream) },
            unix_time: context.unix_time,
            now_ms: context.now_ms,
            restarted: false,
            panics: 0,
            ended: self.ended,
            draining: context.draining,
        };
        let flow = method(&mut context.app, &mut self.state, &mut wire);
        let Wire { consumed, restarted, echoed, panics, .. } = wire;
        self.restart |= restarted;
        context.counters.panics += u64::from(panics);
        if !echoed.is_empty() {
            self.send_back(context, &input[echoed]);
        }
        self.apply_flow(flow);
        if flow == Flow::Abort {
            context.scratch.clear();
        }
        consumed
    }

    /// Echoes input straight from the read buffer; only bytes that the socket does not accept are copied. No other
    /// output may be pending.
    fn send_back<A>(&mut self, context: &mut LoopContext<A>, bytes: &[u8])
    where
        A: App<State = T>,
    {
        let mut sent_bytes = 0;
        if self.writable {
            context.counters.writes += 1;
            match self.stream.write(bytes) {
                Ok(sent) => {
                    sent_bytes = sent.bytes;
                    self.writable = sent.more;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                // The flush that follows gets the same error and returns it.
                Err(_) => {}
            }
        }
        match &mut self.pending {
            Some(pending) => pending.extend(&bytes[sent_bytes..]),
            None => context.scratch.extend(&bytes[sent_bytes..]),
        }
    }

    #[inline]
    pub(in crate::r#loop) fn apply_flow(&mut self, flow: Flow) {
        match flow {
            Flow::Read(phase) if !self.ended => {
                self.phase = phase;
                self.stage = Stage::Reading;
            }
            other => self.apply_other_flow(other),
        }
    }

    fn apply_other_flow(&mut self, flow: Flow) {
        match flow {
            // The input has ended.
            Flow::Read(_) => self.close(false, CloseReason::Peer),
            Flow::Yield(phase) => {
                self.phase = phase;
                self.stage = Stage::Yielded;
            }
            Flow::Pause => self.stage = Stage::Paused,
            Flow::Unchanged => {}
            Flow::Close => self.close(false, if self.ended { CloseReason::Peer } else { CloseReason::Done }),
            Flow::Linger => self.close(true, CloseReason::Done),
            Flow::Refuse => self.close(true, CloseReason::Refused),
            Flow::Abort => {
                self.stream.abort();
                self.pending = None;
                self.ended = true;
                self.close(false, CloseReason::Refused);
            }
        }
    }
}
