//! Handing out letters, those of other threads and those of the turn, and telling the application that a turn is over.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::EventLoop;
use crate::r#loop::app::{App, ConnId};
use crate::r#loop::connection::{Outcome, Stage};
use crate::r#loop::readiness::Readiness;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Hands out the letters of other threads and of the connections themselves.
    #[inline]
    pub(super) fn deliver(&mut self) {
        let rung = self.mailbox.bell.answer();
        if rung || !self.lent.posts.is_empty() {
            self.stirred = true;
            let mut letters = std::mem::take(&mut self.letters);
            letters.append(&mut self.lent.posts);
            if rung {
                self.mailbox.collect(&mut letters);
                self.schedule.extend(&mut self.mailbox.bell.tasks());
                for id in self.mailbox.bell.warmed() {
                    self.with_connection(id, |connection, lent, buffer| {
                        connection.warmed();
                        connection.step_apart(id, lent, buffer)
                    });
                }
            }
            self.hand_out(letters);
        }
    }

    /// Tells the application that the turn is over, and delivers what it posts then: whatever a turn brought a
    /// connection can leave in one send.
    pub(super) fn end_turn(&mut self) {
        let (app, posts) = (&mut self.lent.app, &mut self.lent.posts);
        if catch_unwind(AssertUnwindSafe(|| app.end_of_turn(posts))).is_err() {
            self.lent.counters.panics += 1;
            log::error!("the application panicked at the end of a turn");
        }
        let closes = self.lent.counters.closes;
        if !self.lent.posts.is_empty() {
            let mut letters = std::mem::take(&mut self.letters);
            letters.append(&mut self.lent.posts);
            self.hand_out(letters);
        }
        self.unheard = self.lent.counters.closes != closes;
    }

    fn hand_out(&mut self, mut letters: Vec<(ConnId, A::Letter)>) {
        for (id, letter) in letters.drain(..) {
            self.with_connection(id, |connection, lent, _| {
                if matches!(connection.stage, Stage::Closing { .. } | Stage::Lingering | Stage::Connecting) {
                    return Outcome::Stay;
                }
                connection.call(lent, id, &[], |app, state, wire| app.letter(state, letter, wire));
                connection.finish(lent)
            });
        }
        self.letters = letters;
    }
}
