//! Ending whoever ran out of time, after a last look at what came.

use super::EventLoop;
use crate::r#loop::app::{App, Closed, ConnId, Phase};
use crate::r#loop::connection::{Connection, Lent, Outcome, Stage};
use crate::r#loop::readiness::{Readiness, Stream};

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Ends, or asks the application about, whoever ran out of time.
    pub(super) fn expire(&mut self) {
        while let Some((index, phase)) = self.timers.expired(self.lent.now_ms) {
            let Some(id) = self.table.at(index) else {
                self.timers.cancel(index);
                continue;
            };
            // Before the work, so that the connection is armed anew whatever comes of it.
            self.timers.cancel(index);
            let pace = self.timeouts.body_bytes_min();
            self.with_connection(id, |connection, lent, buffer| match phase {
                Phase::Writing => {
                    connection.stream.abort();
                    Outcome::Gone(Closed::TooSlow)
                }
                Phase::Lingering | Phase::Parting => Outcome::Gone(connection.reason()),
                Phase::Body if connection.received >= pace.max(1) => Outcome::Stay,
                Phase::Reply => time_out(connection, lent, id, phase),
                _ => last_look(connection, lent, buffer, id, phase, pace.max(1)),
            });
        }
    }
}

/// A connection that has been waited for long enough: what came in the last moment, and is not reported yet, counts. So
/// it is not the client's fault that the process stood still, as after SIGCONT, which interrupts the wait as well.
fn last_look<S, A>(
    connection: &mut Connection<S, A::State>,
    lent: &mut Lent<A>,
    buffer: &mut [u8],
    id: ConnId,
    phase: Phase,
    pace: u64,
) -> Outcome
where
    S: Stream,
    A: App,
{
    let before = connection.received;
    connection.readable = true;
    let outcome = connection.step_apart(id, lent, buffer);
    let is_same = connection.clock() == phase && !connection.restart;
    let in_vain = match phase {
        Phase::Head => is_same,
        Phase::Body => is_same && connection.received < pace,
        _ => connection.received == before,
    };
    match outcome {
        Outcome::Stay if in_vain => time_out(connection, lent, id, phase),
        outcome => outcome,
    }
}

/// Tells the application that a phase ran out, and why the connection ends if it does.
fn time_out<S, A>(connection: &mut Connection<S, A::State>, lent: &mut Lent<A>, id: ConnId, phase: Phase) -> Outcome
where
    S: Stream,
    A: App,
{
    let reason = if lent.draining { Closed::Drain } else { Closed::Timeout(phase) };
    connection.call(lent, id, &[], |app, state, wire| app.timer(state, phase, wire));
    if matches!(connection.stage, Stage::Closing { .. }) {
        connection.blame(reason);
    }
    connection.finish(lent)
}
