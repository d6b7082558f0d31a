//! Opens outgoing connections: tries the addresses of a destination in order, each for a part of the time.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::EventLoop;
use crate::r#loop::app::{Accepted, App, CloseInfo, CloseReason, Wire};
use crate::r#loop::connect::{Attempt, Connect, ConnectStep, Context, ContextCell};
use crate::r#loop::connection::{Registration, Stage};
use crate::r#loop::readiness::{Readiness, Stream};
use crate::r#loop::std_ext::{drop_each, millis};
use crate::r#loop::table::ConnId;

impl<B: Readiness, A: App> EventLoop<B, A> {
    /// Takes a step of an outgoing connection.
    #[cold]
    pub(super) fn step_connect(&mut self, step: ConnectStep) {
        match step {
            ConnectStep::Open(connect) => self.open_outgoing(connect),
            ConnectStep::Fail(context, error) => self.fail_outgoing(context, error),
            ConnectStep::Expire(id, number) => {
                let is_current = self.context.connects.get_mut(id).is_some_and(|attempt| attempt.number == number);
                if is_current && !self.try_next_address(id) {
                    self.close_connection(id, CloseReason::Error(io::ErrorKind::TimedOut.into()));
                }
            }
        }
    }

    fn open_outgoing(&mut self, connect: Connect) {
        let Connect { mut addresses, limit, context } = connect;
        let stream = match self.connect_to_next(&mut addresses) {
            Ok(stream) => stream,
            Err(error) => return self.fail_outgoing(context, error),
        };
        self.connection_limit.reserve();
        self.connection_limit.commit();
        let context = ContextCell::new(Some(context));
        let id = self.open_unaccepted(stream, true, Some(&context));
        let left = context.take();
        let is_for_another = left.as_ref().is_some_and(|left| !left.is::<()>());
        drop_each(left);
        if is_for_another {
            let error = io::Error::other("the application does not accept this outgoing connection");
            log::error!("closing an outgoing connection: {error}");
            return self.close_connection(id, CloseReason::Error(error));
        }
        let deadline_ms = self.context.now_ms.saturating_add(millis(limit));
        self.context.connects.insert(id, Attempt { addresses, deadline_ms, number: 0, timer: None });
        self.start_attempt(id);
    }

    /// Begins to connect to the first address for which that does not fail at once.
    fn connect_to_next(&mut self, addresses: &mut std::collections::VecDeque<SocketAddr>) -> io::Result<B::Stream> {
        let mut outcome = Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        while outcome.is_err()
            && let Some(address) = addresses.pop_front()
        {
            outcome = self.backend.connect(address);
        }
        outcome
    }

    /// Limits the time of an attempt.
    fn start_attempt(&mut self, id: ConnId) {
        let handle = self.handle();
        let waker = Arc::downgrade(&self.mailbox.waker);
        if let Some(attempt) = self.context.connects.get_mut(id) {
            attempt.stop_timer();
            attempt.number += 1;
            let number = attempt.number;
            let share = attempt.share(self.context.now_ms).max(Duration::from_millis(1));
            attempt.timer = Some(handle.call_later(share, move || {
                if let Some(waker) = waker.upgrade() {
                    waker.connect(ConnectStep::Expire(id, number));
                }
            }));
        }
    }

    /// Continues a failed connect with the next address. Returns false if there is none.
    #[cold]
    pub(super) fn try_next_address(&mut self, id: ConnId) -> bool {
        let Some(attempt) = self.context.connects.get_mut(id) else { return false };
        let mut addresses = std::mem::take(&mut attempt.addresses);
        let stream = self.connect_to_next(&mut addresses);
        let attempt = self.context.connects.get_mut(id);
        let (Ok(stream), Some(attempt), Some(connection)) = (stream, attempt, self.table.get_mut(id)) else {
            return false;
        };
        if connection.stage != Stage::Connecting {
            return false;
        }
        attempt.addresses = addresses;
        if connection.registered != Registration::NONE
            && let Err(error) = self.backend.remove(connection.stream.source(), id.token())
        {
            log::warn!("cannot deregister a connection: {error}");
        }
        connection.replace_stream(stream);
        self.start_attempt(id);
        self.update_registration(id).is_ok()
    }

    /// Reports an outgoing connection that could not be opened to the application.
    fn fail_outgoing(&mut self, context: Context, error: io::Error) {
        let id = self.table.skip_id();
        let now = Duration::from_millis(self.context.now_ms);
        let unix_time = self.context.unix_time;
        let context = ContextCell::new(Some(context));
        let accepted = Accepted { context: Some(&context), ..Accepted::detached() };
        let (app, messages) = (&mut self.context.app, &mut self.context.messages);
        let output = &mut self.context.scratch;
        let reported = catch_unwind(AssertUnwindSafe(|| {
            let mut wire = Wire::from_bytes(&[], false, output, messages).detached(id, now);
            let (state, _) = app.open(&accepted, &mut wire);
            let unsent_bytes = wire.unsent() as u64;
            app.closed(id, state, CloseInfo { reason: CloseReason::Error(error), unsent_bytes, unix_time, now });
        }));
        drop_each(context.take());
        self.context.scratch.clear();
        if reported.is_err() {
            self.context.counters.panics += 1;
            log::error!("application panicked in its open or closed callback for {id:?}");
        }
    }
}
