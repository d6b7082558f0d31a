//! Time limits: one list of connections per [`Phase`], each with one constant duration.
//!
//! Because every entry of a list waits equally long, appending keeps the list sorted, and arming,
//! cancelling and finding the next deadline are all O(1). The lists are doubly linked through the
//! connections' slots, so they own no memory of their own.

use std::time::Duration;

use super::app::Phase;

const NONE: u32 = u32::MAX;

/// The time limits of a loop. `None` is no limit.
///
/// Deadlines are kept in milliseconds. A limit may run out later than it says, by at most 550 ms or a
/// sixteenth of it, whichever is less, so that many connections end in one wake-up; never earlier.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// From the accept to the first byte: a connection that never speaks holds a descriptor for nothing. 10 s.
    pub silent: Option<Duration>,
    /// From the first byte of a head to its last, however it drips (slowloris). 10 s.
    pub head: Option<Duration>,
    /// The period after which the pace of a body is checked, again and again. 5 s.
    pub body: Option<Duration>,
    /// Bytes a second that a body has to bring in every period. 240, as other servers ask (2,400 bit/s modems are gone).
    pub body_rate: u32,
    /// Between messages on a persistent connection. 75 s, what nginx grants.
    pub idle: Option<Duration>,
    /// For raw TCP applications. None.
    pub open: Option<Duration>,
    /// Without a single byte of blocked output taken by the peer. 30 s; then the connection is reset.
    pub write: Option<Duration>,
    /// For reading away what a peer is still sending that was refused, or told that its last answer is the last. 5 s.
    pub linger: Option<Duration>,
    /// For the peer's end, once the server has said its own without a refusal: what it sent meanwhile must not turn
    /// into a reset that destroys the answer. 1 s, some round trips; when it does send, the limit above holds instead.
    pub part: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = |count| Some(Duration::from_secs(count));
        Timeouts {
            silent: seconds(10),
            head: seconds(10),
            body: seconds(5),
            body_rate: 240,
            idle: seconds(75),
            open: None,
            write: seconds(30),
            linger: seconds(5),
            part: seconds(1),
        }
    }
}

impl Timeouts {
    /// Lets no phase last longer than `limit`.
    pub fn cap(&mut self, limit: Duration) {
        for phase in [
            &mut self.silent,
            &mut self.head,
            &mut self.body,
            &mut self.idle,
            &mut self.open,
            &mut self.write,
            &mut self.linger,
            &mut self.part,
        ] {
            *phase = Some(phase.map_or(limit, |own| own.min(limit)));
        }
    }

    /// What the body has to bring in one period.
    pub(super) fn body_bytes_min(&self) -> u64 {
        let period = self.body.unwrap_or_default();
        u64::try_from(u128::from(self.body_rate) * period.as_millis() / 1000).unwrap_or(u64::MAX)
    }

    fn of(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::Silent => self.silent,
            Phase::Head => self.head,
            Phase::Body => self.body,
            Phase::Idle => self.idle,
            Phase::Open => self.open,
            Phase::Reply => None,
            Phase::Writing => self.write,
            Phase::Lingering => self.linger,
            Phase::Parting => self.part,
        }
    }
}

const PHASES: [Phase; Phase::COUNT] = [
    Phase::Silent,
    Phase::Head,
    Phase::Body,
    Phase::Idle,
    Phase::Open,
    Phase::Reply,
    Phase::Writing,
    Phase::Lingering,
    Phase::Parting,
];

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    /// `u64::MAX`: no limit, and the list stays empty.
    limit_ms: u64,
    /// A clock that starts anew so soon after it did before is not worth moving.
    lazy_ms: u64,
    /// A clock that starts now is worth moving when less than this is left of it; 0 for never.
    stale_ms: u64,
    /// What runs out waits for the next multiple of this, so that many run out at once: two wake-ups a second.
    bundle_ms: u64,
}

impl List {
    fn new(limit_ms: u64) -> Self {
        let slack_ms = (limit_ms / 16).min(550);
        let lazy_ms = slack_ms / 11;
        let bundle_ms = (slack_ms - lazy_ms).max(1);
        let stale_ms = if limit_ms < Due::DEADLINE_MAX { limit_ms + 1 - lazy_ms } else { 0 };
        List { first: NONE, last: NONE, limit_ms, lazy_ms, stale_ms, bundle_ms }
    }

    /// When an entry that is linked with this deadline has run out for certain.
    fn due_ms(&self, deadline_ms: u64) -> u64 {
        deadline_ms.saturating_add(self.lazy_ms)
    }

    /// When to look for entries of this deadline.
    fn wake_ms(&self, deadline_ms: u64) -> u64 {
        self.due_ms(deadline_ms).div_ceil(self.bundle_ms).saturating_mul(self.bundle_ms)
    }

    /// When a clock that starts now runs out. One more millisecond, because the clock is read once per turn and cut to
    /// milliseconds: never early.
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

/// A deadline and its phase in one word, since every connection has one.
#[derive(Clone, Copy, Debug)]
struct Due(u64);

impl Due {
    const NEVER: Due = Due(u64::MAX);
    const PHASE_SHIFT: u32 = 56;
    /// Two million years.
    const DEADLINE_MAX: u64 = (1 << Due::PHASE_SHIFT) - 1;

    #[inline]
    fn new(deadline_ms: u64, phase: Phase) -> Self {
        Due(deadline_ms.min(Due::DEADLINE_MAX) | (phase as u64) << Due::PHASE_SHIFT)
    }

    /// At most the laziness of the list before the real deadline, and never after it.
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

/// The lists. Slots are the indices of the connection table; times are milliseconds of the loop's clock.
///
/// An entry runs out a little after the deadline it is linked with. So an entry whose clock starts anew within that
/// little stays where it is: a busy connection is linked anew some times a second, not with every request.
#[derive(Debug)]
pub(super) struct Timers {
    lists: [List; Phase::COUNT],
    links: Vec<Link>,
    /// Nothing runs out before this. Right, or too early after a cancellation: that costs one look, or one wake-up.
    wake_ms: u64,
}

impl Timers {
    pub(super) fn new(timeouts: &Timeouts) -> Self {
        let lists = PHASES.map(|phase| {
            let limit_ms = timeouts
                .of(phase)
                .map_or(u64::MAX, |limit| u64::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
            List::new(limit_ms)
        });
        Timers { lists, links: Vec::new(), wake_ms: u64::MAX }
    }

    /// Tells which phase a slot is in. Its clock starts when that is another than before, or upon `restart`;
    /// returns whether it did.
    #[inline]
    pub(super) fn enter(&mut self, slot: u32, phase: Phase, restart: bool, now_ms: u64) -> bool {
        if let Some(link) = self.links.get(slot as usize)
            && link.due.is_in(phase)
        {
            let stale_ms = self.lists[phase as usize].stale_ms;
            if !restart || link.due.deadline_ms() >= now_ms + stale_ms {
                return restart;
            }
        }
        self.arm(slot, phase, now_ms);
        true
    }

    /// Starts the clock of `phase` for a slot, whatever it was armed for before.
    fn arm(&mut self, slot: u32, phase: Phase, now_ms: u64) {
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

    /// Stops the clock of a slot.
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

    /// Whether it is time to look.
    #[inline]
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        now_ms >= self.wake_ms
    }

    /// One slot whose time is up, with its phase. The slot stays armed.
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

    /// When to look again; `u64::MAX` for never.
    #[inline]
    pub(super) fn wake_ms(&self) -> u64 {
        self.wake_ms
    }
}

#[cfg(test)]
mod tests {
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
    fn a_clock_that_starts_anew_within_the_slack_is_neither_early_nor_late() {
        let mut timers = timers();
        timers.enter(0, Phase::Head, false, 0);
        timers.enter(1, Phase::Head, false, 0);
        for now_ms in 1..=40 {
            assert!(timers.enter(0, Phase::Head, true, now_ms));
        }
        // Slot 1 was left alone; slot 0 was behind it the first time it moved.
        assert_eq!(timers.expired(101 + 6), Some((1, Phase::Head)));
        timers.cancel(1);
        assert_eq!(timers.expired(140), None);
        let wake = timers.wake_ms();
        assert!((141..=141 + 6).contains(&wake), "{wake}");
        assert_eq!(timers.expired(wake), Some((0, Phase::Head)));
    }

    #[test]
    fn many_deadlines_end_in_two_wake_ups_a_second() {
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
    fn a_clock_starts_when_the_phase_changes_or_when_told() {
        let mut timers = timers();
        assert!(timers.enter(0, Phase::Head, false, 0));
        assert!(!timers.enter(0, Phase::Head, false, 90));
        assert!(timers.enter(0, Phase::Open, false, 90));
        assert!(timers.enter(0, Phase::Open, true, 95));
        assert_eq!(timers.expired(10_000), None);
        assert_eq!(timers.wake_ms(), u64::MAX);
    }

    #[test]
    fn cancelling_in_any_order_keeps_the_lists_whole() {
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
    fn a_phase_without_a_limit_never_expires() {
        let mut timers = timers();
        timers.enter(0, Phase::Reply, false, 0);
        assert_eq!(timers.wake_ms(), u64::MAX);
        assert_eq!(timers.expired(u64::MAX), None);
        assert!(!timers.enter(0, Phase::Reply, false, 0));
    }

    #[test]
    fn a_cap_shortens_every_phase_and_lengthens_none() {
        let mut timeouts = Timeouts::default();
        timeouts.cap(Duration::from_secs(7));
        assert_eq!(timeouts.body, Some(Duration::from_secs(5)));
        assert_eq!(timeouts.idle, Some(Duration::from_secs(7)));
        assert_eq!(timeouts.open, Some(Duration::from_secs(7)));
    }
}
