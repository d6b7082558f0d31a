//! Delivers messages from other threads and from this turn, and ends the turn.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::EventLoop;
use crate::r#loop::app::{App, ConnId};
use crate::r#loop::connection::{Outcome, Stage};
use crate::r#loop::readiness::Readiness;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Takes messages, closures and read-ahead notifications from the mailbox, and delivers all pending messages.
    #[inline]
    pub(super) fn process_mailbox(&mut self) {
        let notified = self.mailbox.waker.take_notified();
        if notified || !self.context.messages.is_empty() {
            self.wakeup_dirty = true;
            let mut batch = std::mem::take(&mut self.message_batch);
            batch.append(&mut self.context.messages);
            if notified {
                self.mailbox.collect(&mut batch);
                self.schedule.extend(&mut self.mailbox.waker.take_tasks());
                for id in self.mailbox.waker.take_readahead_done() {
                    self.with_connection(id, |connection, context, buffer| {
                        connection.readahead_done();
                        connection.step_outlined(id, context, buffer)
                    });
                }
            }
            self.deliver_messages(batch);
        }
    }

    /// Calls [`App::end_of_turn`] and delivers the messages it sends.
    pub(super) fn end_turn(&mut self) {
        let (app, messages) = (&mut self.context.app, &mut self.context.messages);
        if catch_unwind(AssertUnwindSafe(|| app.end_of_turn(messages))).is_err() {
            self.context.counters.panics += 1;
            log::error!("application panicked in its end_of_turn callback");
        }
        let closes = self.context.counters.closes;
        if !self.context.messages.is_empty() {
            let mut batch = std::mem::take(&mut self.message_batch);
            batch.append(&mut self.context.messages);
            self.deliver_messages(batch);
        }
        self.end_of_turn_pending = self.context.counters.closes != closes;
    }

    fn deliver_messages(&mut self, mut batch: Vec<(ConnId, A::Message)>) {
        for (id, message) in batch.drain(..) {
            self.with_connection(id, |connection, context, _| {
                if matches!(connection.stage, Stage::Closing { .. } | Stage::Lingering | Stage::Connecting) {
                    return Outcome::Open;
                }
                connection.call(context, id, &[], |app, state, wire| app.message(state, message, wire));
                connection.finish(context)
            });
        }
        self.message_batch = batch;
    }
}
