//! Handles expired phase timers. The timers of some phases are checks of the peer's progress: they are armed again as
//! long as it makes progress. For the other phases the timeout takes effect, after one last read.

use super::EventLoop;
use crate::r#loop::app::{App, CloseReason, Phase};
use crate::r#loop::connection::{Connection, LoopContext, Outcome, Stage};
use crate::r#loop::readiness::{Readiness, Stream};
use crate::r#loop::std_ext::millis;
use crate::r#loop::table::ConnId;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Handles every connection whose phase timer has expired.
    pub(super) fn expire(&mut self) {
        let now_ms = self.context.now_ms;
        let write_ms = self.timeouts.write.map_or(u64::MAX, millis);
        while let Some((index, phase)) = self.timers.expired(now_ms) {
            let Some(id) = self.table.at(index) else {
                self.timers.cancel(index);
                continue;
            };
            // Armed or cancelled first, so that a connection that stays open has a timer.
            match phase {
                Phase::Body | Phase::Handling | Phase::Writing | Phase::Lingering | Phase::LingeringBriefly => {
                    self.timers.arm(index, phase, now_ms);
                }
                _ => self.timers.cancel(index),
            }
            let timeouts = self.timeouts.clone();
            self.with_connection(id, |connection, context, buffer| match phase {
                Phase::Writing if !connection.write_has_timed_out(now_ms, write_ms) => Outcome::Open,
                Phase::Writing => {
                    connection.stream.abort();
                    Outcome::Closed(CloseReason::TooSlow)
                }
                Phase::Lingering | Phase::LingeringBriefly if connection.is_receiving(now_ms, write_ms) => {
                    Outcome::Open
                }
                Phase::Lingering | Phase::LingeringBriefly => Outcome::Closed(connection.take_reason()),
                Phase::Body if !connection.body_is_too_slow(&timeouts, now_ms) => Outcome::Open,
                Phase::Handling => connection.check_presence(now_ms, write_ms),
                Phase::Handshake => connection.expire_handshake(id, context, buffer),
                _ => final_read(connection, context, buffer, id, phase),
            });
        }
    }
}

/// Reads once more before the timeout takes effect, since data may have arrived that was not reported yet. Clients
/// are thus not disconnected because the process was stopped (SIGSTOP); SIGCONT interrupts the poll without reporting
/// events.
fn final_read<S, A>(
    connection: &mut Connection<S, A::State>,
    context: &mut LoopContext<A>,
    buffer: &mut [u8],
    id: ConnId,
    phase: Phase,
) -> Outcome
where
    S: Stream,
    A: App,
{
    let is_yielded = connection.stage == Stage::Yielded;
    connection.readable = true;
    let mut outcome = connection.step_outlined(id, context, buffer);
    if is_yielded && matches!(outcome, Outcome::Open) {
        // That step only delivered input that was read before.
        connection.readable = true;
        outcome = connection.step_outlined(id, context, buffer);
    }
    let timed_out = match phase {
        Phase::AwaitingFirstByte | Phase::Head => connection.timed_phase() == phase && !connection.restart,
        Phase::Body if connection.timed_phase() != phase => false,
        _ => context.read_bytes == 0 && !connection.has_ended(),
    };
    match outcome {
        Outcome::Open if timed_out => on_timeout(connection, context, id, phase, CloseReason::Timeout(phase)),
        outcome => outcome,
    }
}

/// Calls [`App::timer`] and, if the application closes the connection, sets the reason.
pub(super) fn on_timeout<S, A>(
    connection: &mut Connection<S, A::State>,
    context: &mut LoopContext<A>,
    id: ConnId,
    phase: Phase,
    reason: CloseReason,
) -> Outcome
where
    S: Stream,
    A: App,
{
    let reason = context.life.or_drain(reason);
    // If the connection stays in the phase, its timer starts again.
    connection.restart = true;
    connection.call(context, id, &[], |app, state, wire| app.timer(state, phase, wire));
    if matches!(connection.stage, Stage::Closing { .. }) {
        connection.set_close_reason(reason);
    }
    connection.finish(context)
}
