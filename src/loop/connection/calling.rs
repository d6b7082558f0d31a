//! Calling the application, and obeying the flow it returns.

use std::io;

use super::{Connection, Lent, Stage};
use crate::r#loop::app::{App, Closed, ConnId, Ends, Flow, Wire};
use crate::r#loop::readiness::Stream;

impl<S: Stream, T> Connection<S, T> {
    /// Calls one method of the application and obeys the flow it returns; returns how much it consumed.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    pub(in crate::r#loop) fn call<A>(
        &mut self,
        lent: &mut Lent<A>,
        id: ConnId,
        input: &[u8],
        method: impl FnOnce(&mut A, &mut T, &mut Wire<'_, A::Letter>) -> Flow,
    ) -> usize
    where
        A: App<State = T>,
    {
        let output = match &mut self.pending {
            Some(pending) => &mut **pending,
            None => &mut lent.scratch,
        };
        let mut wire = Wire {
            id,
            input,
            consumed: 0,
            output,
            posts: &mut lent.posts,
            returned: 0..0,
            ends: Ends { stream: Some(&self.stream) },
            wall: lent.wall,
            now_ms: lent.now_ms,
            restarted: false,
            panics: 0,
            ended: self.ended,
            draining: lent.draining,
        };
        let flow = method(&mut lent.app, &mut self.state, &mut wire);
        let Wire { consumed, restarted, returned, panics, .. } = wire;
        self.restart |= restarted;
        lent.counters.panics += u64::from(panics);
        if !returned.is_empty() {
            self.send_back(lent, &input[returned]);
        }
        self.obey(flow);
        if flow == Flow::Abort {
            lent.scratch.clear();
        }
        consumed
    }

    /// Sends input back from where it lies; only what the socket does not take is copied. Nothing else waits to be sent.
    fn send_back<A>(&mut self, lent: &mut Lent<A>, bytes: &[u8])
    where
        A: App<State = T>,
    {
        let mut taken = 0;
        if self.writable {
            lent.counters.writes += 1;
            match self.stream.write(bytes) {
                Ok(sent) => {
                    taken = sent.bytes;
                    self.writable = sent.more;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                // The flush that follows meets the same error, and tells it.
                Err(_) => {}
            }
        }
        match &mut self.pending {
            Some(pending) => pending.extend(&bytes[taken..]),
            None => lent.scratch.extend(&bytes[taken..]),
        }
    }

    #[inline]
    pub(in crate::r#loop) fn obey(&mut self, flow: Flow) {
        match flow {
            Flow::Read(phase) if !self.ended => {
                self.phase = phase;
                self.stage = Stage::Reading;
            }
            other => self.obey_other(other),
        }
    }

    fn obey_other(&mut self, flow: Flow) {
        match flow {
            // Nothing more will come.
            Flow::Read(_) => self.close(false, Closed::Peer),
            Flow::Yield(phase) => {
                self.phase = phase;
                self.stage = Stage::Yielded;
            }
            Flow::Pause => self.stage = Stage::Paused,
            Flow::Close => self.close(false, if self.ended { Closed::Peer } else { Closed::Done }),
            Flow::Linger => self.close(true, Closed::Done),
            Flow::Refuse => self.close(true, Closed::Refused),
            Flow::Abort => {
                self.stream.abort();
                self.pending = None;
                self.ended = true;
                self.close(false, Closed::Refused);
            }
        }
    }
}
