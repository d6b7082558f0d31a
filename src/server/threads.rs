//! The threads of a server: their end, by a graceful shutdown or at once, and the first failure.
//!
//! If acceptor threads distribute the connections, a graceful shutdown ends them first. The last of them drains the
//! workers, which have received all accepted connections by then.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::start_error::StartError;
use crate::r#loop::{AcceptorHandle, Handle, lock};

/// The threads of a server. Dropping this ends them at once.
#[derive(Default)]
pub(super) struct Threads {
    pub(super) control: Arc<Control>,
    running: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts a thread.
    pub(super) fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce(&Control) + Send + 'static,
    ) -> Result<(), StartError> {
        let control = Arc::clone(&self.control);
        let spawned = thread::Builder::new().name(name).spawn(move || run(&control));
        self.running.push(spawned.map_err(|error| StartError::from_io("cannot start a thread", error))?);
        Ok(())
    }

    /// Waits until all threads have ended, except the calling one. Returns the first failure.
    pub(super) fn join(&mut self) -> Result<(), StartError> {
        let own = thread::current().id();
        for thread in self.running.drain(..).filter(|thread| thread.thread().id() != own) {
            // A panic has been reported as a failure.
            let _ = thread.join();
        }
        lock(&self.control.state).failure.take().map_or(Ok(()), Err)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if !self.running.is_empty() {
            self.control.stop();
            // The caller is not interested in the result.
            let _ = self.join();
        }
    }
}

/// The end of the threads that was requested.
#[derive(Clone, Copy)]
enum Command {
    Run,
    /// A graceful shutdown. With a time, idle connections are closed at once, and all others by then.
    Drain(Option<Instant>),
    Stop,
}

/// Ends the threads of a server, from any thread.
pub(super) struct Control {
    state: Mutex<State>,
}

struct State {
    command: Command,
    workers: Vec<Handle>,
    acceptors: Vec<AcceptorHandle>,
    acceptors_running: usize,
    failure: Option<StartError>,
}

impl Default for Control {
    fn default() -> Self {
        let (workers, acceptors) = (Vec::new(), Vec::new());
        let state = State { command: Command::Run, workers, acceptors, acceptors_running: 0, failure: None };
        Control { state: Mutex::new(state) }
    }
}

impl Control {
    /// Starts a graceful shutdown, or shortens one in progress. Without a `limit`, that of the loops applies.
    pub(super) fn drain(&self, limit: Option<Duration>) {
        let mut state = lock(&self.state);
        let new = limit.and_then(|limit| Instant::now().checked_add(limit));
        state.command = match state.command {
            Command::Run => Command::Drain(new),
            Command::Drain(old) => Command::Drain(old.into_iter().chain(new).min()),
            Command::Stop => Command::Stop,
        };
        state.pass_on();
    }

    /// Returns whether the server is shutting down.
    pub(super) fn is_ending(&self) -> bool {
        !matches!(lock(&self.state).command, Command::Run)
    }

    /// Ends all threads at once.
    pub(super) fn stop(&self) {
        let mut state = lock(&self.state);
        state.command = Command::Stop;
        state.pass_on();
    }

    /// Adds the loop of a worker.
    pub(super) fn add_worker(&self, handle: Handle) {
        let mut state = lock(&self.state);
        state.workers.push(handle);
        state.pass_on();
    }

    /// Adds an acceptor whose thread is about to start.
    pub(super) fn add_acceptor(&self, handle: AcceptorHandle) {
        let mut state = lock(&self.state);
        state.acceptors.push(handle);
        state.acceptors_running += 1;
        state.pass_on();
    }

    /// Called at the end of the thread of an acceptor. Without acceptors there are no new connections.
    pub(super) fn acceptor_ended(&self) {
        let mut state = lock(&self.state);
        state.acceptors_running -= 1;
        if state.acceptors_running == 0 && matches!(state.command, Command::Run) {
            state.command = Command::Drain(None);
        }
        state.pass_on();
    }

    /// Reports that a thread has failed, and drains the others.
    pub(super) fn fail(&self, error: StartError) {
        log::error!("{error}; draining the other workers");
        lock(&self.state).failure.get_or_insert(error);
        self.drain(None);
    }
}

impl State {
    /// Passes the command on to the threads that should act on it now.
    fn pass_on(&self) {
        if !matches!(self.command, Command::Run) {
            self.acceptors.iter().for_each(AcceptorHandle::stop);
        }
        for worker in &self.workers {
            match self.command {
                Command::Stop => worker.stop(),
                Command::Drain(None) if self.acceptors_running == 0 => worker.drain(),
                Command::Drain(Some(end)) if self.acceptors_running == 0 => {
                    worker.drain_within(end.saturating_duration_since(Instant::now()));
                }
                Command::Run | Command::Drain(_) => {}
            }
        }
    }
}
