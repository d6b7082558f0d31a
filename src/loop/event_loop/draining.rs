//! Ending the loop: at once, or after a drain, which lets in whoever has come and finishes what is under way.

use std::time::Duration;

use super::EventLoop;
use crate::r#loop::app::{App, Closed};
use crate::r#loop::connection::{Outcome, Stage};
use crate::r#loop::mailbox::Order;
use crate::r#loop::readiness::Readiness;
use crate::r#loop::timers::Timers;

/// How long idle and silent connections are kept once the loop drains, for a request already on its way.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How long a drain keeps the listeners for connections whose handshake has begun, where no further one can begin:
/// some round trips.
const SETTLE_MS: u64 = 100;

/// So often a drain tries to empty a listener that nobody can be accepted from, when no connection is left.
const SETTLING_MAX: u32 = 10;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Carries out what a [`Handle`] ordered. Says whether everything was closed at once.
    #[inline]
    pub(super) fn obey_orders(&mut self) -> bool {
        let order = self.mailbox.bell.order();
        if order == Order::Run && self.drain.is_none() {
            return false;
        }
        self.stirred = true;
        self.obey(order)
    }

    fn obey(&mut self, order: Order) -> bool {
        let late = self.drain.is_some_and(|deadline| deadline <= self.lent.now_ms);
        if late && self.table.len() > 0 {
            log::warn!("the drain took longer than its limit; {} connections are cut off", self.table.len());
        }
        if order == Order::Stop || late {
            self.close_all();
            return true;
        }
        if order == Order::Drain && self.drain.is_none() {
            self.begin_drain();
        } else if self.drain.is_some() {
            self.close_doors();
        }
        false
    }

    /// Begins to drain: nobody new may come, whoever has come to a door is let in, then the doors are closed.
    ///
    /// A connection whose handshake is under way belongs to the listener it began at, also where several loops
    /// listen on one port, and would be reset with it. So where the system can turn away newcomers, the doors stay
    /// open for some round trips after that.
    fn begin_drain(&mut self) {
        // The order may have come when this turn had gone on for a while.
        self.clock.tick(&self.backend, &mut self.lent);
        let limit_ms = u64::try_from(self.lent.limits.drain.as_millis()).unwrap_or(u64::MAX);
        // One more millisecond, because the clock is cut to milliseconds: never early.
        self.drain = Some(self.lent.now_ms.saturating_add(limit_ms).saturating_add(1));
        self.lent.draining = true;
        let mut able = true;
        for door in &mut self.doors {
            able &= door.turn_away();
        }
        self.settled_ms = Some(self.lent.now_ms + if able { SETTLE_MS } else { 0 });
        self.accept(usize::MAX);
        self.close_doors();
        self.timeouts.idle = Some(self.timeouts.idle.map_or(DRAIN_GRACE, |own| own.min(DRAIN_GRACE)));
        self.timeouts.silent = Some(self.timeouts.silent.map_or(DRAIN_GRACE, |own| own.min(DRAIN_GRACE)));
        self.timers = Timers::new(&self.timeouts);
        for id in self.table.ids() {
            self.with_connection(id, |connection, lent, _| {
                if !matches!(connection.stage, Stage::Reading | Stage::Paused | Stage::Yielded) {
                    return Outcome::Stay;
                }
                let yielded = connection.stage == Stage::Yielded;
                connection.call(lent, id, &[], App::drain);
                if yielded && connection.stage == Stage::Reading {
                    // Input is at hand that was not shown in this call.
                    connection.stage = Stage::Yielded;
                }
                if matches!(connection.stage, Stage::Closing { .. }) {
                    connection.blame(Closed::Drain);
                }
                connection.finish(lent)
            });
        }
    }

    /// Closes the doors of a drain once nobody stands there any more.
    fn close_doors(&mut self) {
        if self.settled_ms.is_none_or(|settled| self.lent.now_ms < settled) {
            return;
        }
        self.settling += 1;
        let mut index = 0;
        while index < self.doors.len() {
            let was_quiet = self.doors[index].is_quiet();
            self.doors[index].note();
            if self.doors[index].due_ms() <= self.lent.now_ms {
                self.let_in(index, usize::MAX);
            }
            // A door that could not be emptied is tried again while connections may leave that hold what is short.
            let hopeless = self.table.len() == 0 && self.settling > SETTLING_MAX;
            if was_quiet || self.doors[index].is_quiet() || hopeless {
                self.doors.swap_remove(index).close(&mut self.backend);
            } else {
                index += 1;
            }
        }
        self.settled_ms = (!self.doors.is_empty()).then_some(self.lent.now_ms + SETTLE_MS);
    }

    /// Closes everything at once.
    fn close_all(&mut self) {
        for door in self.doors.drain(..) {
            door.close(&mut self.backend);
        }
        for id in self.table.ids() {
            self.bury(id, Closed::Drain);
        }
    }

    /// Nothing is open any more, and nobody will come.
    pub(super) fn is_drained(&self) -> bool {
        self.drain.is_some() && self.doors.is_empty() && self.table.len() == 0
    }
}
