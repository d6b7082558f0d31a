//! The chat in the simulated network: members that flood, members that read slowly, and members that read at once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use serverd::apps::chat::{Bounds, Chat};
use serverd::{EventLoop, LoopLimits, Timeouts};

use super::client::{Client, Step};
use super::world::{Conditions, Rng, Sim, SimListener, World};
use super::{check, run_to_end, send, variable};

/// Members that send [`LINES`] lines each, as fast as they can.
const SPEAKERS: u64 = 6;

/// Number of lines of a speaker. With the default budget, 100 of them are accepted at once, and 10 per second later.
const LINES: u64 = 300;

/// Length of a line, chosen so that all speakers together send less at once, but more in all, than may be unsent.
const TEXT_BYTES: usize = 380;

/// The minimum time between the first and the last line of a speaker.
const SPEECH_MIN_US: u64 = 19_500_000;

/// Memory for the lines that a member has not received.
const QUEUE_BYTES: usize = 256 * 1024;

/// Earliest time at which a speaker connects, in microseconds of virtual time.
const SPEAKERS_START_US: u64 = 2_000_000;

/// The last line of a session.
const LAST_LINE: &str = "] the end";

/// The lines of one speaker, as a member has received them.
#[derive(Clone, Copy, Debug, Default)]
struct Speech {
    /// The numbers of the first and of the next line.
    first: u64,
    next: u64,
    /// Number of lines that were not received.
    missed: u64,
    last_us: u64,
}

/// Everything that a member has received.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    speeches: BTreeMap<String, Speech>,
    skipped: u64,
}

impl Transcript {
    /// Adds a line. Returns whether it was the last one of the session, or an error if it is out of order.
    pub(super) fn add(&mut self, line: &str, now_us: u64) -> Result<bool, String> {
        if let Some(count) = line.strip_prefix("* ").and_then(|line| line.strip_suffix(" lines skipped")) {
            self.skipped += count.parse::<u64>().map_err(|error| format!("{line}: {error}"))?;
            return Ok(false);
        }
        if line.ends_with(LAST_LINE) {
            return Ok(true);
        }
        let Some((name, text)) = line.strip_prefix('[').and_then(|line| line.split_once("] line ")) else {
            return Ok(false);
        };
        let number = text.split(' ').next().unwrap_or_default();
        let number: u64 = number.parse().map_err(|error| format!("{line}: {error}"))?;
        let begin = Speech { first: number, next: number, ..Speech::default() };
        let speech = self.speeches.entry(name.to_owned()).or_insert(begin);
        if number < speech.next {
            return Err(format!("{line} after line {}", speech.next - 1));
        }
        speech.missed += number - speech.next;
        (speech.next, speech.last_us) = (number + 1, now_us);
        Ok(false)
    }

    /// Checks a complete session. A member that always reads at once misses nothing, and sees that the speakers are
    /// slowed down. Others miss at most as many lines as the notices say.
    pub(super) fn check(&self, reads_at_once: bool) -> Result<(), String> {
        let missed: u64 = self.speeches.values().map(|speech| speech.missed).sum();
        if missed > self.skipped || (reads_at_once && self.skipped > 0) {
            return Err(format!("{missed} lines are missing, notices count {}", self.skipped));
        }
        let is_complete = |speech: &Speech| {
            // The first line may have been received late, so the time counts from the earliest start.
            (speech.first, speech.next) == (0, LINES) && speech.last_us >= SPEAKERS_START_US + SPEECH_MIN_US
        };
        if reads_at_once && !self.speeches.values().all(is_complete) {
            return Err(format!("{:?}", self.speeches));
        }
        Ok(())
    }
}

/// Runs one session; returns the number of skipped lines.
fn run<const EDGE: bool>(seed: u64) -> u64 {
    let mut rng = Rng::new(seed ^ 0xc4a7);
    let conditions = Conditions { faulty: false, stalls: rng.one_in(3) };
    let world = World::new(seed, EDGE, conditions);
    let timeouts = Timeouts::default().silent(Duration::from_secs(600));
    let sim = Sim::<EDGE>(Rc::clone(&world));
    let mut event_loop = EventLoop::with_backend(sim, timeouts, LoopLimits::default(), Chat::new(Bounds::default()));
    event_loop.listen(SimListener(Rc::clone(&world))).expect("no faults are injected yet");
    populate(&world, &mut rng);
    run_to_end(&mut event_loop, &world);
    let world = world.borrow();
    check(&world, event_loop.counters());
    world.clients.iter().flatten().map(|client| client.transcript.skipped).sum()
}

fn populate(world: &RefCell<World>, rng: &mut Rng) {
    let world = &mut *world.borrow_mut();
    let closing = vec![send(LAST_LINE[2..].to_owned() + "\n"), Step::Pause(1000)];
    world.add_client(Client::new("closing", closing), 150_000_000);
    for _ in 0..4 {
        let start_us = rng.below(900_000);
        world.add_client(Client::new("listening", vec![Step::Listen(0)]).more_memory(QUEUE_BYTES), start_us);
        let interval_ms = 1500 + rng.below(3000);
        world.add_client(
            Client::new("listening late", vec![Step::Listen(interval_ms)]).more_memory(QUEUE_BYTES),
            start_us,
        );
    }
    for _ in 0..SPEAKERS {
        let lines: String =
            (0..LINES).flat_map(|number| [format!("line {number} "), "x".repeat(TEXT_BYTES), "\n".into()]).collect();
        let start_us = SPEAKERS_START_US + rng.below(3_000_000);
        world.add_client(Client::new("speaking", vec![send(lines), Step::Listen(0)]), start_us);
    }
}

/// Runs a few sessions. Some members must have missed lines, so that skipping is covered.
fn try_seeds<const EDGE: bool>() {
    let first = variable("SERVERD_SIM_FIRST", 1);
    let seeds = first..first + variable("SERVERD_SIM_SEEDS", 6);
    let skipped: u64 = seeds.clone().map(run::<EDGE>).sum();
    assert!(skipped > 0 || seeds.count() < 6, "no line was skipped in any session");
}

#[test]
fn floods_are_slowed_down_and_slow_readers_miss_only_counted_lines_on_a_level_triggered_backend() {
    try_seeds::<false>();
}

#[test]
fn floods_are_slowed_down_and_slow_readers_miss_only_counted_lines_on_an_edge_triggered_backend() {
    try_seeds::<true>();
}
