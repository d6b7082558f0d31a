//! The memory of all connections together, while many clients fill the buffers of their connections.

use serverd::LoopLimits;

use super::client::{Client, Download, Step};
use super::world::{Conditions, Rng, World};
use super::{get, send, simulate, variable};

/// Limit of all buffers together. An eighth more is the reserve, and one turn of the loop may add to both.
const BUFFERED_BYTES_MAX: usize = 2 << 20;
const TURN_BYTES_MAX: usize = 1 << 20;

/// Clients that fill their buffers: for more than ten times the limit.
const HOARDERS: u64 = 120;

/// Runs clients that fill buffers beside others that must be served, and checks the total memory after each turn.
fn run<const EDGE: bool>(seed: u64) {
    let mut rng = Rng::new(seed ^ 0x707a1);
    let conditions = Conditions { faulty: false, stalls: rng.one_in(4) };
    let limits = LoopLimits::default().buffered_bytes_max(BUFFERED_BYTES_MAX);
    simulate::<EDGE>(seed, conditions, limits, |world| {
        world.memory_max = BUFFERED_BYTES_MAX + BUFFERED_BYTES_MAX / 8 + TURN_BYTES_MAX;
        populate(world, &mut rng);
        None
    });
}

fn populate(world: &mut World, rng: &mut Rng) {
    for number in 0..HOARDERS {
        let start_us = rng.below(20_000_000);
        let script = if rng.one_in(3) { unfinished_head(rng) } else { unread_output(number) };
        world.add_client(Client::new("non-reading", script).memory(0), start_us);
    }
    for number in 0..20 {
        let start_us = rng.below(10_000_000);
        world.add_client(Client::new("keep-alive", small_requests(number, rng)).memory(0), start_us);
        let bytes = 100_000;
        let download = Download {
            bytes,
            piece: 1000 + usize::try_from(rng.below(2000)).expect("small"),
            interval_ms: 200 + rng.below(500),
            pause_max_ms: 0,
            send_interval_ms: 0,
            bursts: false,
        };
        let script = vec![send(get(&format!("/huge/{bytes}/{number}"))), Step::Download(download)];
        world.add_client(Client::new("slow reading", script).memory(0), start_us);
    }
}

/// Most of a request head of up to 60 KB, which does not end.
fn unfinished_head(rng: &mut Rng) -> Vec<Step> {
    let bytes = 1000 + usize::try_from(rng.below(59_000)).expect("small");
    let head = [&b"GET / HTTP/1.1\r\nHost: x\r\nA: "[..], &vec![b'a'; bytes]].concat();
    vec![Step::Push(head.into()), Step::Pause(30_000), Step::Reset]
}

/// Requests whose responses are not read.
fn unread_output(number: u64) -> Vec<Step> {
    vec![Step::Push(get(&format!("/text/2000/{number}")).repeat(3000).into()), Step::Pause(90_000), Step::Reset]
}

/// One request after another for a minute, each of which must get its response soon.
fn small_requests(number: u64, rng: &mut Rng) -> Vec<Step> {
    let mut script = Vec::new();
    for turn in 0..60 {
        let path = format!("/get/{number}/{turn}");
        script.extend([send(get(&path)), Step::Mark, Step::Response(200, path), Step::Took(0, 200)]);
        script.push(Step::Pause(500 + rng.below(1000)));
    }
    script
}

fn try_seeds<const EDGE: bool>() {
    let first = variable("SERVERD_SIM_FIRST", 1);
    // One in ten seeds, because each takes long and has the same kinds of clients.
    for seed in first..first + variable("SERVERD_SIM_SEEDS", 40).div_ceil(10) {
        let run = std::thread::spawn(move || run::<EDGE>(seed));
        assert!(run.join().is_ok(), "seed {seed} fails");
    }
}

#[test]
fn clients_that_fill_their_buffers_share_a_limit_and_others_are_served_on_a_level_triggered_backend() {
    try_seeds::<false>();
}

#[test]
fn clients_that_fill_their_buffers_share_a_limit_and_others_are_served_on_an_edge_triggered_backend() {
    try_seeds::<true>();
}
