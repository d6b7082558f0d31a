//! Connection timers: one list per [`Phase`], each with a constant timeout.
//!
//! Since all entries of a list have the same timeout, appending keeps the list sorted, and arming, cancelling and
//! finding the next deadline are O(1). The lists are doubly linked through an array indexed by connection slot.

use super::app::Phase;
use super::limits::Timeouts;

const NONE: u32 = u32::MAX;

/// Timeout of an idle phase without one, about 35,000 years: its list still records the order.
const FOREVER_MS: u64 = 1 << 50;

/// The phases of a connection on which no request is in flight.
const IDLE_PHASES: [Phase; 3] = [Phase::Idle, Phase::AwaitingFirstByte, Phase::Handshake];

const PHASES: [Phase; Phase::COUNT] = [
    Phase::Handshake,
    Phase::AwaitingFirstByte,
    Phase::Head,
    Phase::Body,
    Phase::Idle,
    Phase::Unlimited,
    Phase::Handling,
    Phase::Writing,
    Phase::Lingering,
    Phase::LingeringBriefly,
];

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    /// `u64::MAX` means no timeout; the list then stays empty.
    limit_ms: u64,
    /// A timer restarted within this time after it was armed keeps its place in the list.
    lazy_ms: u64,
    /// The phase, and the time from the last lazy restart of a timer to its recorded deadline. Compared in one piece,
    /// see [`Timers::enter`].
    fresh: u64,
    /// Expiry is rounded up to a multiple of this, to coalesce wake-ups to about two per second.
    coalesce_ms: u64,
}

impl List {
    /// Greater than any [`Due`] with a phase, so that nothing is fresh. Relinking is cheap without a timeout.
    const NEVER_FRESH: u64 = 1 << 63;

    fn new(phase: Phase, limit_ms: u64) -> Self {
        let slack_ms = (limit_ms / 16).min(550);
        let lazy_ms = slack_ms / 11;
        let coalesce_ms = (slack_ms - lazy_ms).max(1);
        let is_limited = limit_ms < Due::DEADLINE_MAX / 2;
        let fresh = if is_limited { Due::new(limit_ms + 1 - lazy_ms, phase).0 } else { List::NEVER_FRESH };
        List { first: NONE, last: NONE, limit_ms, lazy_ms, fresh, coalesce_ms }
    }

    /// The time by which an entry with this deadline has certainly expired, including lazy restarts.
    fn due_ms(&self, deadline_ms: u64) -> u64 {
        deadline_ms.saturating_add(self.lazy_ms)
    }

    /// The wake-up time for entries with this deadline.
    fn wake_ms(&self, deadline_ms: u64) -> u64 {
        if deadline_ms >= FOREVER_MS {
            return u64::MAX;
        }
        self.due_ms(deadline_ms).div_ceil(self.coalesce_ms).saturating_mul(self.coalesce_ms)
    }

    /// The deadline of a timer started now. It includes one extra millisecond so that the timer never expires early,
    /// because the clock is read once per turn and truncated to milliseconds.
    #[inline]
    fn deadline_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add(self.limit_ms).saturating_add(1).min(Due::DEADLINE_MAX)
    }
}

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
    due: Due,
}

/// A deadline and its phase, packed into one word to save memory per connection.
#[derive(Clone, Copy, Debug)]
struct Due(u64);

impl Due {
    const NEVER: Due = Due(u64::MAX);
    const PHASE_SHIFT: u32 = 56;
    /// About two million years.
    const DEADLINE_MAX: u64 = (1 << Due::PHASE_SHIFT) - 1;

    #[inline]
    fn new(deadline_ms: u64, phase: Phase) -> Self {
        Due(deadline_ms.min(Due::DEADLINE_MAX) | (phase as u64) << Due::PHASE_SHIFT)
    }

    /// The recorded deadline, which precedes the real one by at most `List::lazy_ms`.
    #[inline]
    fn deadline_ms(self) -> u64 {
        self.0 & Due::DEADLINE_MAX
    }

    #[inline]
    fn is_in(self, phase: Phase) -> bool {
        self.0 >> Due::PHASE_SHIFT == phase as u64
    }

    fn phase(self) -> Option<Phase> {
        PHASES.into_iter().find(|&phase| self.is_in(phase))
    }
}

const UNLINKED: Link = Link { prev: NONE, next: NONE, due: Due::NEVER };

/// The phase timers of all connections. Slots are indices of the connection table; times are milliseconds of the loop's
/// clock.
///
/// An entry expires slightly after its recorded deadline, by `List::lazy_ms`. A restart within that margin leaves the
/// entry in place, so that a busy connection is relinked a few times per second rather than on every request.
#[derive(Debug)]
pub(super) struct Timers {
    lists: [List; Phase::COUNT],
    links: Vec<Link>,
    /// No timer expires before this. It may be too early after a cancellation, at the cost of one unnecessary wake-up,
    /// unless that was the last timer.
    wake_ms: u64,
}

/// The timeout of a phase in milliseconds; `u64::MAX` for none.
fn limit_ms(timeouts: &Timeouts, phase: Phase) -> u64 {
    let limit_ms = timeouts
        .of(phase)
        .map_or(u64::MAX, |limit| u64::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
    if IDLE_PHASES.contains(&phase) { limit_ms.min(FOREVER_MS) } else { limit_ms }
}

impl Timers {
    pub(super) fn new(timeouts: &Timeouts) -> Self {
        let lists = PHASES.map(|phase| List::new(phase, limit_ms(timeouts, phase)));
        Timers { lists, links: Vec::new(), wake_ms: u64::MAX }
    }

    /// Changes the timeouts. The timers of phases whose timeout differs stop; those of the other phases are not
    /// affected.
    #[cold]
    pub(super) fn change_limits(&mut self, timeouts: &Timeouts) {
        for phase in PHASES {
            let limit_ms = limit_ms(timeouts, phase);
            if limit_ms == self.lists[phase as usize].limit_ms {
                continue;
            }
            for link in self.links.iter_mut().filter(|link| link.due.is_in(phase)) {
                *link = UNLINKED;
            }
            self.lists[phase as usize] = List::new(phase, limit_ms);
        }
    }

    /// Sets the phase of a slot. Its timer starts if the phase has changed or `restart` is set; returns whether it did.
    #[inline]
    pub(super) fn enter(&mut self, slot: u32, phase: Phase, restart: bool, now_ms: u64) -> bool {
        if let Some(link) = self.links.get(slot as usize) {
            if restart {
                // In the phase, and armed at most `lazy_ms` ago: a deadline is never later than one that starts now.
                let list = &self.lists[phase as usize];
                if link.due.0.wrapping_sub(list.fresh + now_ms) <= list.lazy_ms {
                    return true;
                }
            } else if link.due.is_in(phase) {
                return false;
            }
        }
        self.arm(slot, phase, now_ms);
        true
    }

    /// Starts the timer of `phase` for a slot, replacing any previous one.
    pub(super) fn arm(&mut self, slot: u32, phase: Phase, now_ms: u64) {
        self.cancel(slot);
        let list = &mut self.lists[phase as usize];
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, UNLINKED);
        }
        let deadline_ms = list.deadline_ms(now_ms);
        self.links[slot as usize] = Link { prev: list.last, next: NONE, due: Due::new(deadline_ms, phase) };
        if list.limit_ms == u64::MAX {
            return;
        }
        if list.last == NONE {
            list.first = slot;
            self.wake_ms = self.wake_ms.min(list.wake_ms(deadline_ms));
        } else {
            self.links[list.last as usize].next = slot;
        }
        list.last = slot;
    }

    /// Makes the timer of a slot in `phase` expire at once, if the phase has a timeout.
    #[cold]
    pub(super) fn expire_now(&mut self, slot: u32, phase: Phase, now_ms: u64) {
        if self.lists[phase as usize].limit_ms == u64::MAX {
            return;
        }
        self.cancel(slot);
        let list = &mut self.lists[phase as usize];
        // The first of the list, which stays sorted, as no other timer of it is due much earlier.
        let due = Due::new(now_ms.saturating_sub(list.lazy_ms), phase);
        self.links[slot as usize] = Link { prev: NONE, next: list.first, due };
        match self.links.get_mut(list.first as usize) {
            Some(next) => next.prev = slot,
            None => list.last = slot,
        }
        list.first = slot;
        self.wake_ms = self.wake_ms.min(now_ms);
    }

    /// Stops the timer of a slot.
    #[inline]
    pub(super) fn cancel(&mut self, slot: u32) {
        let Some(link) = self.links.get_mut(slot as usize) else {
            return;
        };
        let Link { prev, next, due } = *link;
        let Some(phase) = due.phase() else { return };
        *link = UNLINKED;
        let list = &mut self.lists[phase as usize];
        if list.limit_ms == u64::MAX {
            return;
        }
        if prev == NONE {
            list.first = next;
        } else {
            self.links[prev as usize].next = next;
        }
        if next == NONE {
            list.last = prev;
        } else {
            self.links[next as usize].prev = prev;
        }
    }

    /// Cancels the next wake-up. Call this when all timers are stopped.
    pub(super) fn cancel_wakeup(&mut self) {
        self.wake_ms = u64::MAX;
    }

    /// Frees the memory of slots from `slots` on, whose timers are stopped.
    pub(super) fn shrink(&mut self, slots: usize) {
        self.links.truncate(slots);
        self.links.shrink_to_fit();
    }

    /// Returns whether a timer may have expired.
    #[inline]
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        now_ms >= self.wake_ms
    }

    /// Returns a slot whose timer has expired, and its phase. The timer stays armed.
    pub(super) fn expired(&mut self, now_ms: u64) -> Option<(u32, Phase)> {
        if !self.is_due(now_ms) {
            return None;
        }
        let mut wake_ms = u64::MAX;
        for (list, phase) in self.lists.iter().zip(PHASES) {
            if list.first == NONE {
                continue;
            }
            let deadline_ms = self.links[list.first as usize].due.deadline_ms();
            if list.due_ms(deadline_ms) <= now_ms {
                return Some((list.first, phase));
            }
            wake_ms = wake_ms.min(list.wake_ms(deadline_ms));
        }
        self.wake_ms = wake_ms;
        None
    }

    /// Returns the idle slots and their phases, the one that has been idle longest first.
    pub(super) fn longest_idle(&self) -> impl Iterator<Item = (u32, Phase)> {
        let mut next = IDLE_PHASES.map(|phase| self.lists[phase as usize].first);
        std::iter::from_fn(move || {
            let first = |position: usize| {
                let link = self.links.get(next[position] as usize)?;
                let limit_ms = self.lists[IDLE_PHASES[position] as usize].limit_ms;
                Some((link.due.deadline_ms().saturating_sub(limit_ms), position, link.next))
            };
            let (_, position, following) = (0..IDLE_PHASES.len()).filter_map(first).min()?;
            Some((std::mem::replace(&mut next[position], following), IDLE_PHASES[position]))
        })
    }

    /// Returns the slots of a phase, the one whose timer started first first.
    pub(super) fn slots(&self, phase: Phase) -> impl Iterator<Item = u32> {
        let mut next = self.lists[phase as usize].first;
        std::iter::from_fn(move || {
            let link = self.links.get(next as usize)?;
            Some(std::mem::replace(&mut next, link.next))
        })
    }

    /// The next wake-up time; `u64::MAX` for never.
    #[inline]
    pub(super) fn wake_ms(&self) -> u64 {
        self.wake_ms
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn timers() -> Timers {
        Timers::new(&Timeouts { head: Some(Duration::from_millis(100)), ..Timeouts::default() })
    }

    #[test]
    fn a_deadline_is_never_early_and_at_most_a_sixteenth_late() {
        let mut timers = timers();
        timers.enter(3, Phase::Head, false, 50);
        assert_eq!(timers.expired(150), None);
        let wake = timers.wake_ms();
        assert!((151..=151 + 100 / 16).contains(&wake), "{wake}");
        assert_eq!(timers.expired(wake), Some((3, Phase::Head)));
    }

    #[test]
    fn a_timer_restarted_within_the_slack_is_neither_early_nor_late() {
        let mut timers = timers();
        timers.enter(0, Phase::Head, false, 0);
        timers.enter(1, Phase::Head, false, 0);
        for now_ms in 1..=40 {
            assert!(timers.enter(0, Phase::Head, true, now_ms));
        }
        // Slot 1 was not restarted; slot 0 moved behind it on its first move.
        assert_eq!(timers.expired(101 + 6), Some((1, Phase::Head)));
        timers.cancel(1);
        assert_eq!(timers.expired(140), None);
        let wake = timers.wake_ms();
        assert!((141..=141 + 6).contains(&wake), "{wake}");
        assert_eq!(timers.expired(wake), Some((0, Phase::Head)));
    }

    #[test]
    fn a_timer_that_expires_at_once_precedes_the_others() {
        let mut timers = timers();
        for slot in 0..3 {
            timers.enter(slot, Phase::Head, false, 1000);
        }
        for slot in [1, 2] {
            timers.expire_now(slot, Phase::Head, 1010);
            assert_eq!(timers.wake_ms(), 1010);
            assert_eq!(timers.expired(1010), Some((slot, Phase::Head)));
            timers.cancel(slot);
        }
        timers.expire_now(0, Phase::Unlimited, 1010);
        assert_eq!(timers.expired(1010), None);
        assert_eq!(timers.expired(1106), Some((0, Phase::Head)));
        timers.expire_now(0, Phase::Head, 1106);
        timers.enter(1, Phase::Head, false, 1106);
        assert_eq!(timers.expired(1106), Some((0, Phase::Head)));
        timers.cancel(0);
        assert_eq!(timers.expired(1300), Some((1, Phase::Head)));
    }

    #[test]
    fn many_deadlines_cause_two_wake_ups_per_second() {
        let mut timers = Timers::new(&Timeouts::default());
        for slot in 0..10_000 {
            timers.enter(slot, Phase::Idle, false, u64::from(slot));
        }
        let mut wake_ups = 0;
        while timers.wake_ms() != u64::MAX {
            let now_ms = timers.wake_ms();
            while let Some((slot, _)) = timers.expired(now_ms) {
                let late_ms = now_ms - (u64::from(slot) + 75_000);
                assert!((1..=551).contains(&late_ms), "{late_ms}");
                timers.cancel(slot);
            }
            wake_ups += 1;
        }
        assert!(wake_ups <= 22, "{wake_ups} in ten seconds");
    }

    #[test]
    fn a_timer_starts_on_a_phase_change_or_on_request() {
        let mut timers = timers();
        assert!(timers.enter(0, Phase::Head, false, 0));
        assert!(!timers.enter(0, Phase::Head, false, 90));
        assert!(timers.enter(0, Phase::Unlimited, false, 90));
        assert!(timers.enter(0, Phase::Unlimited, true, 95));
        assert_eq!(timers.expired(10_000), None);
        assert_eq!(timers.wake_ms(), u64::MAX);
    }

    #[test]
    fn a_changed_timeout_stops_the_timers_of_its_phase_and_no_others() {
        let mut timers = timers();
        timers.enter(0, Phase::Idle, false, 0);
        timers.enter(1, Phase::Head, false, 0);
        timers.enter(2, Phase::Idle, false, 0);
        let idle = Some(Duration::from_millis(50));
        let timeouts = Timeouts { head: Some(Duration::from_millis(100)), idle, ..Timeouts::default() };
        timers.change_limits(&timeouts);
        assert!(timers.enter(0, Phase::Idle, false, 80));
        assert!(!timers.enter(1, Phase::Head, false, 80));
        // Nothing changes.
        timers.change_limits(&timeouts);
        assert!(!timers.enter(0, Phase::Idle, false, 90));
        assert_eq!(timers.expired(107), Some((1, Phase::Head)));
        timers.cancel(1);
        assert_eq!(timers.expired(107), None);
        assert_eq!(timers.expired(140), Some((0, Phase::Idle)));
        timers.cancel(0);
        // Slot 2 has no timer any more.
        assert_eq!(timers.expired(1_000_000), None);
    }

    #[test]
    fn cancelling_in_any_order_keeps_the_lists_intact() {
        let mut timers = timers();
        for slot in 0..5 {
            timers.enter(slot, Phase::Head, false, u64::from(slot));
        }
        for slot in [2, 0, 4] {
            timers.cancel(slot);
        }
        timers.cancel(2);
        assert_eq!(timers.expired(1000), Some((1, Phase::Head)));
        timers.cancel(1);
        assert_eq!(timers.expired(1000), Some((3, Phase::Head)));
        timers.enter(3, Phase::Idle, false, 1000);
        assert_eq!(timers.expired(1000), None);
        timers.cancel(3);
        assert_eq!(timers.expired(1_000_000), None);
        assert_eq!(timers.wake_ms(), u64::MAX);
    }

    #[test]
    fn the_longest_idle_slot_is_found_with_and_without_timeouts() {
        for idle in [Some(Duration::from_secs(75)), None] {
            let mut timers = Timers::new(&Timeouts { idle, ..Timeouts::default() });
            assert_eq!(timers.longest_idle().next(), None);
            timers.enter(0, Phase::Idle, false, 1000);
            timers.enter(1, Phase::AwaitingFirstByte, false, 2000);
            timers.enter(2, Phase::Idle, false, 3000);
            timers.enter(3, Phase::Handling, false, 10);
            assert_eq!(timers.longest_idle().next(), Some((0, Phase::Idle)));
            let slots: Vec<u32> = timers.longest_idle().map(|(slot, _)| slot).collect();
            assert_eq!(slots, [0, 1, 2]);
            assert!(timers.enter(0, Phase::Idle, true, 4000));
            assert_eq!(timers.longest_idle().next(), Some((1, Phase::AwaitingFirstByte)));
            timers.cancel(1);
            assert_eq!(timers.longest_idle().next(), Some((2, Phase::Idle)));
            timers.enter(2, Phase::Handling, false, 5000);
            assert_eq!(timers.longest_idle().next(), Some((0, Phase::Idle)));
            timers.cancel(3);
            timers.cancel(2);
            assert_eq!(timers.expired(70_000), None);
            assert_eq!(timers.wake_ms() == u64::MAX, idle.is_none());
        }
    }

    #[test]
    fn a_phase_without_a_timeout_never_expires() {
        let mut timers = timers();
        timers.enter(0, Phase::Unlimited, false, 0);
        assert_eq!(timers.wake_ms(), u64::MAX);
        assert_eq!(timers.expired(u64::MAX), None);
        assert!(!timers.enter(0, Phase::Unlimited, false, 0));
    }
}
