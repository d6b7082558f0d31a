//! Deterministic simulation of a server: hours of virtual time take moments of real time. Each run is reproducible from
//! its seed.
//!
//! `SERVERD_SIM_SEEDS` is the number of seeds to try, `SERVERD_SIM_FIRST` the first one. Failing seeds are printed; add
//! them to `SEEDS` as regression tests.

mod chat;
mod client;
mod world;

use std::cell::RefCell;
use std::fs::File;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serverd::{
    EventLoop, Handle, HttpServer, LoopLimits, Part, Poller, Readiness, Request, Response, StatusCode, Timeouts, Turn,
};

use self::client::{Client, Outcome, Step};
use self::world::{Conditions, Rng, Sim, SimListener, World};

/// Regression tests: seeds that have found bugs.
const SEEDS: [u64; 9] = [23, 76, 596, 1334, 1463, 1825, 3363, 9431, 20365];

/// Body size of a large response.
const LARGE_BYTES: usize = 700_000;

/// Default number of seeds.
const COUNT: u64 = 12;

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn every_request_is_answered_once_in_order_and_in_time_on_a_level_triggered_backend() {
    try_seeds::<false>();
}

#[test]
fn every_request_is_answered_once_in_order_and_in_time_on_an_edge_triggered_backend() {
    try_seeds::<true>();
}

fn try_seeds<const EDGE: bool>() {
    let first = variable("SERVERD_SIM_FIRST", 1);
    let seeds = SEEDS.into_iter().chain(first..first + variable("SERVERD_SIM_SEEDS", COUNT));
    let (mut clients, mut virtual_us, mut failing) = (0, 0, Vec::new());
    for seed in seeds {
        if let Ok((seed_clients, seed_us)) = std::panic::catch_unwind(|| run::<EDGE>(seed)) {
            clients += seed_clients;
            virtual_us += seed_us;
        } else {
            println!("seed {seed} fails: SERVERD_SIM_FIRST={seed} SERVERD_SIM_SEEDS=1 cargo test --test it sim::");
            failing.push(seed);
        }
    }
    println!("{clients} clients in {} s of virtual time", virtual_us / 1_000_000);
    assert!(failing.is_empty(), "failing seeds: {failing:?}");
}

/// Runs one simulation; returns the number of clients and the virtual time in microseconds.
fn run<const EDGE: bool>(seed: u64) -> (usize, u64) {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let conditions = Conditions { faulty: rng.one_in(3), stalls: rng.one_in(4) };
    let world = World::new(seed, EDGE, conditions);
    let handle: Rc<RefCell<Option<Handle>>> = Rc::default();
    let connections_max = if rng.one_in(4) { 3 + usize::try_from(rng.below(20)).expect("small") } else { 1 << 20 };
    let limits = LoopLimits::default().connections_max(connections_max);
    let app = HttpServer::new(handler(&handle));
    let mut event_loop = EventLoop::with_backend(Sim::<EDGE>(Rc::clone(&world)), Timeouts::default(), limits, app);
    event_loop.listen(SimListener(Rc::clone(&world))).expect("no faults are injected yet");
    *handle.borrow_mut() = Some(event_loop.handle());
    let arrivals = populate(&world, &mut rng);
    let drains = rng.one_in(2);
    {
        let world = &mut *world.borrow_mut();
        world.may_evict |= connections_max < 1 << 20;
        let own = event_loop.handle();
        world.drain = Some(Box::new(move || own.drain()));
        if drains {
            let us = rng.below(arrivals.span_us);
            world.drain_at(us);
        }
    }
    run_to_end(&mut event_loop, &world);
    let world = world.borrow();
    check(&world, event_loop.counters().closes);
    (world.clients.len(), world.now_us())
}

/// Runs the loop until all clients are done, then drains it; it must end by itself.
fn run_to_end<const EDGE: bool, A: serverd::App>(event_loop: &mut EventLoop<Sim<EDGE>, A>, world: &Rc<RefCell<World>>)
where
    Sim<EDGE>: Readiness<Stream: 'static>,
{
    let mut drained = false;
    loop {
        let turn = event_loop.turn().expect("waiting does not fail");
        let asleep = std::mem::take(&mut world.borrow_mut().asleep);
        if turn == Turn::Over {
            break;
        }
        if asleep {
            assert!(!drained, "the loop waits forever with {} open connections", event_loop.connections());
            drained = true;
            let world = &mut *world.borrow_mut();
            assert!(world.backlog.is_empty(), "the loop waits while the accept queue is not empty");
            world.drain_us.get_or_insert(world.now_us());
            event_loop.handle().drain();
        }
    }
    assert_eq!(event_loop.connections(), 0);
    world.borrow_mut().finish();
}

fn check(world: &World, closes: u64) {
    let accepted = world.sockets.iter().filter(|conn| conn.accepted_us.is_some()).count();
    assert_eq!(closes, accepted as u64, "every accepted connection is closed once");
    assert!(world.sockets.iter().all(|conn| !conn.open), "a stream is still open at the end");
    for client in world.clients.iter().flatten() {
        match &client.outcome {
            Outcome::Done => {}
            Outcome::Refused if world.drain_us.is_some() => {}
            outcome => panic!("{}: {outcome:?}", client.kind),
        }
    }
}

/// Returns a real file with the bytes of the large body. Reading it is deterministic, since its content never changes.
fn large_file() -> Arc<File> {
    static FILE: OnceLock<Arc<File>> = OnceLock::new();
    let make = || {
        let path = std::env::temp_dir().join(format!("serverd-sim-{}", std::process::id()));
        std::fs::write(&path, vec![b'x'; LARGE_BYTES]).expect("a temporary file");
        let file = File::open(&path).expect("the file exists");
        std::fs::remove_file(&path).expect("the file exists");
        Arc::new(file)
    };
    Arc::clone(FILE.get_or_init(make))
}

fn handler(handle: &Rc<RefCell<Option<Handle>>>) -> impl FnMut(&Request<'_>) -> Response + use<> {
    let handle = Rc::clone(handle);
    let large = Bytes::from(vec![b'x'; LARGE_BYTES]);
    let file = large_file();
    move |request| {
        let path = request.path();
        if path.starts_with("/large") && path.bytes().last().is_some_and(|byte| byte % 2 == 0) {
            let half = LARGE_BYTES as u64 / 2;
            let parts = [
                Part::File(Arc::clone(&file), 0..half),
                Part::from("x"),
                Part::File(Arc::clone(&file), half + 1..2 * half),
            ];
            return Response::parts(parts);
        }
        if path.starts_with("/large") {
            return Response::new(StatusCode::OK).body(large.clone());
        }
        let text = format!("{path} {};", request.body().len());
        if let Some(delay) = path.strip_prefix("/later/") {
            let delay_ms = delay.split('/').next().and_then(|text| text.parse().ok()).unwrap_or(0);
            let (response, responder) = Response::later();
            let call = move || responder.respond(Response::text(text));
            if let Some(handle) = &*handle.borrow() {
                handle.call_later(Duration::from_millis(delay_ms), call);
            }
            return response;
        }
        Response::text(text)
    }
}

/// Time distribution of the client arrivals.
struct Arrivals {
    /// Time span within which all clients start.
    span_us: u64,
}

/// Adds all clients, with their start times.
fn populate(world: &Rc<RefCell<World>>, rng: &mut Rng) -> Arrivals {
    let world = &mut *world.borrow_mut();
    let crowded = rng.one_in(50);
    let count = if crowded { 2000 + rng.below(1000) } else { 5 + rng.below(80) };
    let span_us = [1_000_000, 60_000_000, 3_600_000_000][usize::try_from(rng.below(3)).expect("small")];
    for number in 0..count {
        let client = client(number, rng);
        let start_us = rng.below(span_us);
        world.add_client(client, start_us);
    }
    Arrivals { span_us }
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

fn send(bytes: impl Into<Bytes>) -> Step {
    Step::Send(bytes.into())
}

/// Expects a timeout after `limit_ms`, within the accuracy of the loop's timers.
fn timed_out_after(limit_ms: u64) -> Step {
    Step::Took(limit_ms, limit_ms + (limit_ms / 16).min(550) + 2)
}

fn client(number: u64, rng: &mut Rng) -> Client {
    match rng.below(14) {
        0..=3 => Client::new("keep-alive", keep_alive(number, rng)),
        4 => Client::new("pipelining", pipelining(number, rng)),
        5 => Client::new("silent", vec![Step::End, timed_out_after(10_000)]),
        6 => Client::new("dripping", dripping(rng)),
        7 => {
            let script = vec![
                send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n".to_vec()),
                Step::Mark,
                Step::Response(408, "request body".into()),
                Step::Took(4_500, 5_000 + 1_100 + 500),
                Step::Finish,
                Step::End,
            ];
            Client::new("stalling", script)
        }
        8 => {
            let id = format!("/idle/{number}");
            let script = vec![send(get(&id)), Step::Mark, Step::Response(200, id), Step::End, timed_out_after(75_000)];
            Client::new("idle", script)
        }
        9 => {
            let mut script = vec![send(get("/cut/1")), Step::Pause(rng.below(50)), Step::Reset];
            if rng.one_in(2) {
                script.remove(0);
            }
            Client::new("vanishing", script)
        }
        10 => {
            let (first, second) = (format!("/half/{number}"), format!("/half/second/{number}"));
            let script = vec![
                send([get(&first), get(&second)].concat()),
                Step::Finish,
                Step::Response(200, first),
                Step::Response(200, second),
                Step::End,
            ];
            Client::new("half-closing", script)
        }
        11 => {
            let script = vec![
                send(b"GET / HTTP/1.1\r\nBad Field: x\r\n\r\n".to_vec()),
                Step::Push(vec![b'x'; usize::try_from(rng.below(60_000)).expect("small")].into()),
                Step::Response(400, String::new()),
                Step::End,
            ];
            Client::new("malformed", script)
        }
        12 => {
            let cut = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhello";
            let len = 1 + usize::try_from(rng.below(cut.len() as u64)).expect("small");
            let script = vec![send(cut[..len].to_vec()), Step::Finish, Step::Mark, Step::End, Step::Took(0, 100)];
            Client::new("interrupted", script)
        }
        _ => {
            let script =
                vec![send(get("/large")), send(get("/large")), Step::Pause(85_000), Step::WasReset, Step::Reset];
            Client::new("non-reading", script)
        }
    }
}

/// A request head whose bytes arrive one by one for longer than a head may take.
fn dripping(rng: &mut Rng) -> Vec<Step> {
    vec![
        Step::Mark,
        send(b"GET / HTTP/1.1\r\nHost: x\r\nA: ".to_vec()),
        Step::Drip(50 + rng.below(2000)),
        Step::Response(408, "request head".into()),
        Step::Took(10_000, 10_502 + 2000),
        Step::Finish,
        Step::End,
    ]
}

/// Sequential requests, with pauses, request bodies, and large and deferred responses.
fn keep_alive(number: u64, rng: &mut Rng) -> Vec<Step> {
    let mut script = Vec::new();
    for turn in 0..=rng.below(12) {
        let id = format!("{number}/{turn}");
        match rng.below(6) {
            0 => {
                let length = usize::try_from(rng.below(150_000)).expect("small");
                let head = format!("PUT /put/{id} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
                script.push(send([head.into_bytes(), vec![b'x'; length]].concat()));
                script.push(Step::Response(200, format!("/put/{id} {length};")));
            }
            1 => {
                script.push(send(get(&format!("/large/{id}"))));
                script.push(Step::Response(200, "xxxx".into()));
            }
            2 => {
                let path = format!("/later/{}/{id}", rng.below(3000));
                script.push(send(get(&path)));
                script.push(Step::Response(200, format!("{path} 0;")));
            }
            _ => {
                script.push(send(get(&format!("/get/{id}"))));
                script.push(Step::Response(200, format!("/get/{id} 0;")));
            }
        }
        if rng.one_in(3) {
            script.push(Step::Pause(rng.below(30_000)));
        }
    }
    script
}

/// Many pipelined requests.
fn pipelining(number: u64, rng: &mut Rng) -> Vec<Step> {
    let paths: Vec<String> = (0..=rng.below(200)).map(|turn| format!("/pipe/{number}/{turn}")).collect();
    let requests: Vec<u8> = paths.iter().flat_map(|path| get(path)).collect();
    let responses = paths.into_iter().map(|path| Step::Response(200, format!("{path} 0;")));
    std::iter::once(send(requests)).chain(responses).collect()
}
