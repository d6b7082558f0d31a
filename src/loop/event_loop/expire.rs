//! Handles expired phase timers, after one last read.

use super::EventLoop;
use crate::r#loop::app::{App, CloseReason, Phase};
use crate::r#loop::connection::{Connection, LoopContext, Outcome, Stage};
use crate::r#loop::readiness::{Readiness, Stream};
use crate::r#loop::table::ConnId;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Handles every connection whose phase timer has expired.
    pub(super) fn expire(&mut self) {
        while let Some((index, phase)) = self.timers.expired(self.context.now_ms) {
            let Some(id) = self.table.at(index) else {
                self.timers.cancel(index);
                continue;
            };
            // Cancelled first, so that a connection that stays open gets a new timer.
            self.timers.cancel(index);
            let bytes_min = self.timeouts.body_bytes_min();
            self.with_connection(id, |connection, context, buffer| match phase {
                Phase::Writing => {
                    connection.stream.abort();
                    Outcome::Closed(CloseReason::TooSlow)
                }
                Phase::Lingering | Phase::LingeringBriefly => Outcome::Closed(connection.take_reason()),
                Phase::Body if connection.received >= bytes_min.max(1) => Outcome::Open,
                Phase::Handling => on_timeout(connection, context, id, phase),
                _ => final_read(connection, context, buffer, id, phase, bytes_min.max(1)),
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
    bytes_min: u64,
) -> Outcome
where
    S: Stream,
    A: App,
{
    let before = connection.received;
    connection.readable = true;
    let outcome = connection.step_outlined(id, context, buffer);
    let in_same_phase = connection.timed_phase() == phase && !connection.restart;
    let timed_out = match phase {
        Phase::AwaitingFirstByte | Phase::Head => in_same_phase,
        Phase::Body => in_same_phase && connection.received < bytes_min,
        _ => connection.received == before,
    };
    match outcome {
        Outcome::Open if timed_out => on_timeout(connection, context, id, phase),
        outcome => outcome,
    }
}

/// Calls [`App::timer`] and, if the application closes the connection, sets the reason.
fn on_timeout<S, A>(
    connection: &mut Connection<S, A::State>,
    context: &mut LoopContext<A>,
    id: ConnId,
    phase: Phase,
) -> Outcome
where
    S: Stream,
    A: App,
{
    let reason = if context.life.is_draining() { CloseReason::Drain } else { CloseReason::Timeout(phase) };
    connection.call(context, id, &[], |app, state, wire| app.timer(state, phase, wire));
    if matches!(connection.stage, Stage::Closing { .. }) {
        connection.set_close_reason(reason);
    }
    connection.finish(context)
}
