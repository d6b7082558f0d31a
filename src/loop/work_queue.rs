//! A queue of blocking work for threads that start on demand and exit when they are idle, for the whole process.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::std_ext::lock;

/// Maximum number of queued jobs of a queue.
const QUEUE_MAX: usize = 1024;

/// Time after which an idle thread exits.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Jobs that wait for a thread, and the threads.
pub(super) struct WorkQueue<J> {
    state: Mutex<State<J>>,
    job_added: Condvar,
    threads_max: usize,
}

struct State<J> {
    jobs: VecDeque<J>,
    threads: usize,
    idle: usize,
}

impl<J> WorkQueue<J> {
    pub(super) const fn new(threads_max: usize) -> Self {
        let state = State { jobs: VecDeque::new(), threads: 0, idle: 0 };
        WorkQueue { state: Mutex::new(state), job_added: Condvar::new(), threads_max }
    }

    /// Queues a job, and starts a thread with this name that runs `work` if none is idle. `work` must process the jobs
    /// of [`WorkQueue::next`] until there are no more.
    ///
    /// # Errors
    /// Returns the job if the queue is full or no thread can be started.
    pub(super) fn push(&self, job: J, (name, work): (&str, fn())) -> Result<(), J> {
        let mut state = lock(&self.state);
        if state.jobs.len() >= QUEUE_MAX {
            return Err(job);
        }
        if state.idle <= state.jobs.len() && state.threads < self.threads_max {
            let started = thread::Builder::new().name(name.into()).spawn(work);
            state.threads += usize::from(started.is_ok());
        }
        if state.threads == 0 {
            return Err(job);
        }
        state.jobs.push_back(job);
        drop(state);
        self.job_added.notify_one();
        Ok(())
    }

    /// Waits for the next job. Returns `None` if the thread has been idle for too long and should exit.
    pub(super) fn next(&self) -> Option<J> {
        let mut state = lock(&self.state);
        state.idle += 1;
        let waited = self.job_added.wait_timeout_while(state, IDLE_MAX, |state| state.jobs.is_empty());
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.idle -= 1;
        let job = state.jobs.pop_front();
        state.threads -= usize::from(job.is_none());
        job
    }

    #[cfg(test)]
    pub(super) fn threads(&self) -> usize {
        lock(&self.state).threads
    }
}
