//! Scheduled closures: called on the loop's thread in the next turn, after a delay, or periodically.
//!
//! Any thread can add closures through [`Handle`](super::Handle). A delay counts from the first clock reading after the
//! closure was added, so that it is never called early; it may be called one turn late. A binary heap makes adding and
//! calling O(log n), and a loop without due closures sleeps. Only the program adds closures; a peer cannot.
//!
//! A function `NAME_outlined` is the rare part of `NAME`, or `NAME` itself out of line; it exists only for code layout:
//! `NAME` is inlined into the hot path and has to stay small there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::std_ext::drop_each;

/// Cancels a closure scheduled with [`Handle::call_later`](super::Handle::call_later) or
/// [`Handle::call_every`](super::Handle::call_every).
///
/// Dropping the timer does not cancel the closure.
#[derive(Clone, Debug)]
pub struct Timer {
    cancelled: Arc<AtomicBool>,
    /// Number of closures of the loop that were cancelled and may not have been dropped.
    cancelled_count: Arc<AtomicUsize>,
}

impl Timer {
    /// Cancels the closure. It is not called again, and is dropped at the time it would have been due or earlier, so
    /// that there are never many more cancelled closures than others.
    pub fn cancel(&self) {
        if !self.cancelled.swap(true, Ordering::AcqRel) {
            self.cancelled_count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Timer {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// The closure to call, once or every given number of milliseconds.
enum Work {
    Once(Box<dyn FnOnce() + Send>),
    Every(u64, Box<dyn FnMut() + Send>),
}

/// A closure to be scheduled.
pub(super) struct Task {
    delay_ms: u64,
    timer: Timer,
    work: Work,
}

impl Task {
    pub(super) fn once(delay: Duration, call: Box<dyn FnOnce() + Send>, cancelled_count: &Arc<AtomicUsize>) -> Self {
        Task::new(delay, Work::Once(call), cancelled_count)
    }

    /// The period is at least one millisecond, since zero would keep the loop from sleeping.
    pub(super) fn every(period: Duration, call: Box<dyn FnMut() + Send>, cancelled_count: &Arc<AtomicUsize>) -> Self {
        Task::new(period, Work::Every(millis(period).max(1), call), cancelled_count)
    }

    fn new(delay: Duration, work: Work, cancelled_count: &Arc<AtomicUsize>) -> Self {
        let timer = Timer { cancelled: Arc::default(), cancelled_count: Arc::clone(cancelled_count) };
        Task { delay_ms: millis(delay), timer, work }
    }

    pub(super) fn timer(&self) -> Timer {
        self.timer.clone()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// A scheduled closure. The serial keeps closures that are due in the same millisecond in order.
struct Entry {
    due_ms: u64,
    serial: u64,
    task: Task,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due_ms, self.serial).cmp(&(other.due_ms, other.serial))
    }
}

/// Number of cancelled closures that are kept until they are due.
const CANCELLED_MIN: usize = 64;

/// The scheduled closures of a loop.
#[derive(Default)]
pub(super) struct Schedule {
    /// Tasks added since the clock was last read.
    incoming: Vec<Task>,
    heap: BinaryHeap<Reverse<Entry>>,
    serial: u64,
}

impl Schedule {
    /// Adds tasks, leaving `tasks` empty. Drops the cancelled ones if they are many.
    pub(super) fn extend(&mut self, tasks: &mut Vec<Task>, cancelled_count: &AtomicUsize) {
        self.incoming.append(tasks);
        if cancelled_count.load(Ordering::Relaxed) > self.heap.len() / 2 + CANCELLED_MIN {
            cancelled_count.store(0, Ordering::Relaxed);
            let is_cancelled = |Reverse(entry): &Reverse<Entry>| entry.task.timer.is_cancelled();
            let (cancelled, left): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.heap).into_iter().partition(is_cancelled);
            self.heap = left.into();
            drop_each(cancelled);
        }
    }

    /// Drops all closures: the loop has ended.
    pub(super) fn clear(&mut self) {
        let Schedule { incoming, heap, .. } = std::mem::take(self);
        drop_each(incoming);
        drop_each(heap);
    }

    /// When the next closure is due; 0 if there are new tasks whose due time is not set yet.
    #[inline]
    pub(super) fn next_ms(&self) -> Option<u64> {
        if self.incoming.is_empty() { self.heap.peek().map(|Reverse(entry)| entry.due_ms) } else { Some(0) }
    }

    /// Schedules new tasks and calls closures that are due. Closures added by these calls run in the next turn at the
    /// earliest.
    #[inline]
    pub(super) fn run(&mut self, now_ms: u64) {
        if self.next_ms().is_some_and(|next| next <= now_ms) {
            self.run_outlined(now_ms);
        }
    }

    fn run_outlined(&mut self, now_ms: u64) {
        for task in std::mem::take(&mut self.incoming) {
            // The clock is truncated to milliseconds; an extra millisecond keeps the call from being early.
            let extra = u64::from(task.delay_ms > 0);
            self.insert(now_ms.saturating_add(task.delay_ms).saturating_add(extra), task);
        }
        let last = self.serial;
        while let Some(Reverse(entry)) = self.heap.peek() {
            if entry.due_ms > now_ms || entry.serial >= last {
                return;
            }
            let Some(Reverse(entry)) = self.heap.pop() else { return };
            self.call(entry.task, now_ms);
        }
    }

    fn insert(&mut self, due_ms: u64, task: Task) {
        self.heap.push(Reverse(Entry { due_ms, serial: self.serial, task }));
        self.serial += 1;
    }

    fn call(&mut self, task: Task, now_ms: u64) {
        let Task { delay_ms, timer, work } = task;
        if timer.is_cancelled() {
            return drop_each([work]);
        }
        match work {
            Work::Once(call) => call_guarded(call),
            Work::Every(period_ms, mut call) => {
                call_guarded(&mut call);
                let work = Work::Every(period_ms, call);
                self.insert(now_ms.saturating_add(period_ms), Task { delay_ms, timer, work });
            }
        }
    }
}

/// Calls a closure and catches a panic, so that the loop continues.
fn call_guarded(call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        log::error!("a scheduled closure panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    type Log = Arc<Mutex<Vec<&'static str>>>;

    fn once(log: &Log, name: &'static str, delay_ms: u64) -> Task {
        let log = Arc::clone(log);
        Task::once(Duration::from_millis(delay_ms), Box::new(move || log.lock().unwrap().push(name)), &Arc::default())
    }

    fn seen(log: &Log) -> Vec<&'static str> {
        std::mem::take(&mut log.lock().unwrap())
    }

    #[test]
    fn closures_are_called_in_order_of_due_time_and_never_early() {
        let (log, mut schedule) = (Log::default(), Schedule::default());
        schedule.extend(
            &mut vec![once(&log, "late", 20), once(&log, "now", 0), once(&log, "soon", 10), once(&log, "soon too", 10)],
            &AtomicUsize::new(0),
        );
        assert_eq!(schedule.next_ms(), Some(0));
        schedule.run(100);
        assert_eq!(seen(&log), ["now"]);
        assert_eq!(schedule.next_ms(), Some(111));
        schedule.run(110);
        assert!(seen(&log).is_empty());
        schedule.run(500);
        assert_eq!(seen(&log), ["soon", "soon too", "late"]);
        assert_eq!(schedule.next_ms(), None);
    }

    #[test]
    fn a_cancelled_closure_is_not_called_and_a_periodic_one_repeats() {
        let (log, mut schedule) = (Log::default(), Schedule::default());
        let never = once(&log, "never", 5);
        let count = Arc::clone(&log);
        let every = Task::every(
            Duration::from_millis(10),
            Box::new(move || count.lock().unwrap().push("tick")),
            &Arc::default(),
        );
        let (cancel, stop) = (never.timer(), every.timer());
        schedule.extend(&mut vec![never, every], &AtomicUsize::new(0));
        schedule.run(0);
        cancel.cancel();
        for now in [11, 21, 31] {
            schedule.run(now);
        }
        assert_eq!(seen(&log), ["tick", "tick", "tick"]);
        stop.cancel();
        schedule.run(1000);
        assert!(seen(&log).is_empty());
        assert_eq!(schedule.next_ms(), None);
    }

    #[test]
    fn cancelled_closures_do_not_accumulate() {
        let (alive, count, mut schedule) = (Arc::new(()), Arc::new(AtomicUsize::new(0)), Schedule::default());
        for round in 0..1000 {
            let held = Arc::clone(&alive);
            let task = Task::once(Duration::from_secs(3600), Box::new(move || drop(held)), &count);
            let timer = task.timer();
            schedule.extend(&mut vec![task], &count);
            schedule.run(round);
            if round % 10 != 0 {
                timer.cancel();
                timer.cancel();
            }
        }
        // A hundred are not cancelled.
        let kept = Arc::strong_count(&alive) - 1;
        assert!((100..=100 * 2 + 2 * CANCELLED_MIN + 1).contains(&kept), "{kept}");
        schedule.run(10_000_000);
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    /// A closure that panics when it is dropped.
    fn fatal(delay_ms: u64, count: &Arc<AtomicUsize>) -> Task {
        struct Fatal;
        impl Drop for Fatal {
            fn drop(&mut self) {
                panic!("intended");
            }
        }
        let fatal = Fatal;
        Task::every(
            Duration::from_millis(delay_ms),
            Box::new(move || {
                let _ = &fatal;
            }),
            count,
        )
    }

    #[test]
    fn a_panic_in_the_destructor_of_a_closure_does_not_stop_others() {
        let (log, count, mut schedule) = (Log::default(), Arc::new(AtomicUsize::new(0)), Schedule::default());
        for _ in 0..2 * CANCELLED_MIN {
            let task = fatal(1000, &count);
            task.timer().cancel();
            schedule.extend(&mut vec![task], &count);
            schedule.run(0);
        }
        let due = fatal(1, &count);
        due.timer().cancel();
        schedule.extend(&mut vec![due, once(&log, "after", 1)], &count);
        schedule.run(0);
        schedule.run(10);
        assert_eq!(seen(&log), ["after"]);
        schedule.clear();
        assert_eq!(schedule.next_ms(), None);
    }

    #[test]
    fn a_panic_stops_neither_other_closures_nor_the_repetition() {
        let (log, mut schedule) = (Log::default(), Schedule::default());
        let every = Task::every(Duration::from_millis(1), Box::new(|| panic!("intended")), &Arc::default());
        schedule.extend(&mut vec![every, once(&log, "after", 1)], &AtomicUsize::new(0));
        schedule.run(0);
        schedule.run(10);
        assert_eq!(seen(&log), ["after"]);
        assert!(schedule.next_ms().is_some());
    }
}
