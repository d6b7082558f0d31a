//! Deterministic simulation of a server: hours of virtual time take moments of real time. Each run is reproducible from
//! its seed.
//!
//! `SERVERD_SIM_SEEDS` is the number of seeds to try, `SERVERD_SIM_FIRST` the first one. Failing seeds are printed.
//!
//! This is a separate test binary because it counts memory allocations, with a process-wide allocator, and because its
//! optimised build for many seeds then takes little time.

#![cfg(unix)]

mod chat;
mod client;
mod link;
mod slow;
mod tls;
mod totals;
mod uploads;
mod world;

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write as _};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serverd::{
    Counters, EventLoop, Handle, HttpServer, LoopLimits, Part, Readiness, Request, Responder, Response, Sender,
    StatusCode, Timeouts, Turn,
};

use self::client::{Client, Outcome, Step};
use self::uploads::Uploads;
use self::world::{Conditions, Rng, Sim, SimListener, World};

/// Body size of a large response.
const LARGE_BYTES: usize = 700_000;

/// Maximum body size of a huge response, which fills the send buffer several times.
const HUGE_BYTES: usize = 12_000_000;

/// Maximum body size of a response that takes two hours at the lowest rate.
const HOURS_BYTES: usize = 30_000_000;

/// Period of the [`pattern`].
const PATTERN_BYTES: usize = 251;

/// Memory that the server may use besides that of its connections, and for each client that there has been.
const MEMORY_MAX: usize = 1 << 20;
const MEMORY_PER_CLIENT: usize = 1024;

/// More connections than any simulation has.
const CONNECTIONS_UNLIMITED: usize = 1 << 20;

/// Default number of seeds.
const COUNT: u64 = 4;

/// Interval of the pieces of a ticking stream.
const TICK: Duration = Duration::from_secs(4);

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

#[test]
fn a_drain_does_not_delay_the_check_whether_a_peer_is_present() {
    let script = vec![
        send(get("/later/86400000/1")),
        Step::Offer(get("/get/behind").repeat(1000).into()),
        Step::Pause(1000),
        Step::Reset,
    ];
    for seed in 0..20 {
        let clients = vec![(0, Client::new("leaving", script.clone()))];
        run_clients::<false>(seed, 10, clients, Some(12_000_000));
        let clients = vec![(0, Client::new("leaving", script.clone()))];
        run_clients::<true>(seed, 10, clients, Some(12_000_000));
    }
}

#[test]
fn an_upload_may_pause_however_many_reads_its_start_took() {
    let head = b"PUT /put/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n";
    let script = || {
        let begin = send([&head[..], &[b'x'; 10_000]].concat());
        vec![begin, Step::Pause(25_000), send(vec![b'x'; 10_000]), Step::Response(200, "/put/1 20000;".into())]
    };
    for seed in 0..50 {
        let clients = || vec![(0, Client::new("pausing", script()).more_memory(1024 * 1024))];
        run_clients::<false>(seed, 10, clients(), None);
        run_clients::<true>(seed, 10, clients(), None);
    }
}

#[test]
fn a_loop_without_connections_does_not_wake_up() {
    for seed in 0..20 {
        let ends = [run_silent::<false>(seed), run_silent::<true>(seed)];
        assert!(ends.iter().all(|end_us| *end_us < 3_000_000), "seed {seed}: {ends:?}");
    }
}

/// Runs a client that sends nothing and resets its connection; returns the time of the end.
fn run_silent<const EDGE: bool>(seed: u64) -> u64 {
    let script = vec![Step::Pause(500), Step::Reset];
    let limits = LoopLimits::default();
    let populate = |world: &mut World| {
        world.add_client(Client::new("vanishing", script), 0);
        None
    };
    simulate::<EDGE>(seed, Conditions::default(), limits, populate).1
}

#[test]
fn a_vanished_reader_of_a_stream_is_noticed_and_a_slow_one_is_not_disconnected() {
    for seed in 0..20 {
        let ticking = |steps: Vec<Step>| [vec![send(get("/ticks/1"))], steps].concat();
        let slow = vec![[Step::Receive("tick\r\n"), Step::Pause(50_000)]; 20].concat();
        let clients = || {
            let lost = Client::new("lost", ticking(vec![Step::Receive("tick\r\n"), Step::Vanish]));
            vec![(0, lost), (0, Client::new("slow", ticking([slow.clone(), vec![Step::Reset]].concat())))]
        };
        run_clients::<false>(seed, 2, clients(), None);
        run_clients::<true>(seed, 2, clients(), None);
    }
}

#[test]
fn a_vanished_reader_is_noticed_while_others_wait_for_its_connection() {
    for seed in 0..20 {
        let clients = || {
            let lost = vec![send(get("/huge/50000/1")), Step::Pause(1000), Step::Vanish];
            let lost = Client::new("lost", lost).more_memory(256 * 1024);
            let others = (1..20).map(|number| {
                let script = vec![send(get("/get/other")), Step::Response(200, "/get/other".into())];
                (number * 10_000_000, Client::new("keep-alive", script))
            });
            std::iter::once((0, lost)).chain(others).collect()
        };
        run_clients::<false>(seed, 1, clients(), None);
        run_clients::<true>(seed, 1, clients(), None);
    }
}

/// Runs a simulation of these clients, with their start times.
fn run_clients<const EDGE: bool>(
    seed: u64,
    connections_max: usize,
    clients: Vec<(u64, Client)>,
    drain_us: Option<u64>,
) {
    let limits = LoopLimits::default().connections_max(connections_max);
    simulate::<EDGE>(seed, Conditions::default(), limits, |world| {
        for (start_us, client) in clients {
            world.add_client(client, start_us);
        }
        drain_us
    });
}

fn try_seeds<const EDGE: bool>() {
    let first = variable("SERVERD_SIM_FIRST", 1);
    let seeds = first..first + variable("SERVERD_SIM_SEEDS", COUNT);
    let (mut clients, mut virtual_us, mut failing) = (0, 0, Vec::new());
    for seed in seeds {
        // In a thread of its own, because memory is counted per thread.
        if let Ok((seed_clients, seed_us)) = std::thread::spawn(move || run::<EDGE>(seed)).join() {
            clients += seed_clients;
            virtual_us += seed_us;
        } else {
            println!("seed {seed} fails: SERVERD_SIM_FIRST={seed} SERVERD_SIM_SEEDS=1 cargo test --test sim");
            failing.push(seed);
        }
    }
    println!("{clients} clients in {} s of virtual time", virtual_us / 1_000_000);
    assert!(failing.is_empty(), "failing seeds: {failing:?}");
}

/// Runs a simulation of random clients under random conditions; returns the number of clients and the virtual time in
/// microseconds.
fn run<const EDGE: bool>(seed: u64) -> (usize, u64) {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let conditions = Conditions { faulty: rng.one_in(3), stalls: rng.one_in(4) };
    let connections_max =
        if rng.one_in(4) { 3 + usize::try_from(rng.below(20)).expect("small") } else { CONNECTIONS_UNLIMITED };
    let limits = LoopLimits::default().connections_max(connections_max);
    simulate::<EDGE>(seed, conditions, limits, |world| {
        let arrivals = populate(world, &mut rng);
        rng.one_in(2).then(|| rng.below(arrivals.span_us))
    })
}

/// Runs a server until all clients are done, and checks the outcome. `populate` adds the clients, and returns the time
/// at which the server drains, if that is before they are done. Returns the number of clients and the virtual time in
/// microseconds.
fn simulate<const EDGE: bool>(
    seed: u64,
    conditions: Conditions,
    limits: LoopLimits,
    populate: impl FnOnce(&mut World) -> Option<u64>,
) -> (usize, u64) {
    let world = World::new(seed, EDGE, conditions);
    let backend = Sim::<EDGE>(Rc::clone(&world));
    let listen = |event_loop: &mut EventLoop<_, _>| event_loop.listen(SimListener(Rc::clone(&world)));
    let counters = serve(&world, backend, listen, limits, populate);
    let world = world.borrow();
    check(&world, &counters);
    (world.clients.len(), world.now_us())
}

/// The server of the simulations.
type Server = HttpServer<Uploads<Box<dyn FnMut(&Request<'_>) -> Response>>>;

/// Runs a server on a backend of the simulation until all clients are done; see [`simulate`].
fn serve<B: Readiness<Stream: 'static>>(
    world: &Rc<RefCell<World>>,
    backend: B,
    listen: impl FnOnce(&mut EventLoop<B, Server>) -> io::Result<()>,
    limits: LoopLimits,
    populate: impl FnOnce(&mut World) -> Option<u64>,
) -> Counters {
    let handle: Rc<RefCell<Option<Handle>>> = Rc::default();
    let connections_max = limits.connections_max;
    let deferrals = Deferrals::default();
    let app: Server = HttpServer::with(Uploads::new(&handle, Box::new(handler(&handle, &deferrals))));
    let mut event_loop = EventLoop::with_backend(backend, Timeouts::default(), limits, app);
    listen(&mut event_loop).expect("no faults are injected yet");
    *handle.borrow_mut() = Some(event_loop.handle());
    {
        let world = &mut *world.borrow_mut();
        world.may_evict |= connections_max < CONNECTIONS_UNLIMITED;
        world.open_max = connections_max;
        let own = event_loop.handle();
        world.drain = Some(Box::new(move || own.drain()));
        if let Some(us) = populate(world) {
            world.drain_at(us);
        }
    }
    run_to_end(&mut event_loop, world);
    for deferral in deferrals.borrow().iter() {
        deferral.check();
    }
    event_loop.counters().clone()
}

/// The deferred responses of a run.
type Deferrals = Rc<RefCell<Vec<Arc<Deferral>>>>;

/// One deferred response.
#[derive(Default)]
struct Deferral {
    /// [`serverd::Responder::on_closed`] was called.
    closed: AtomicBool,
    /// Keeps a quiet stream open.
    sender: OnceLock<Sender>,
    responded: AtomicBool,
    /// The connection was closed without that call.
    missed: AtomicBool,
}

impl Deferral {
    fn respond(&self, responder: Responder, text: String) {
        let missed = responder.is_closed() && !self.closed.load(Ordering::Relaxed);
        self.missed.store(missed, Ordering::Relaxed);
        self.responded.store(true, Ordering::Relaxed);
        responder.respond(Response::text(text));
    }

    fn check(&self) {
        let [closed, responded, missed] =
            [&self.closed, &self.responded, &self.missed].map(|flag| flag.load(Ordering::Relaxed));
        assert!((closed || responded) && !missed, "no callback for a closed connection");
    }
}

/// Runs the loop until all clients are done, then drains it; it must end by itself.
fn run_to_end<B, A: serverd::App>(event_loop: &mut EventLoop<B, A>, world: &Rc<RefCell<World>>)
where
    B: Readiness<Stream: 'static>,
{
    let (mut drained, mut memory) = (false, 0);
    loop {
        let mut turn = Ok(Turn::Again);
        let used = allocation_counter::measure(|| turn = event_loop.turn());
        let turn = turn.expect("waiting does not fail");
        memory += used.bytes_current;
        check_memory(memory, &world.borrow());
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

/// Checks that the server uses little memory besides what its connections may take.
fn check_memory(memory: i64, world: &World) {
    let memory_max = MEMORY_MAX + world.clients.len() * MEMORY_PER_CLIENT + world.memory_max;
    let memory = usize::try_from(memory).unwrap_or(0);
    assert!(memory <= memory_max, "{memory} bytes are in use with {} connections, not {memory_max}", world.open);
}

fn check(world: &World, counters: &Counters) {
    let (closes, panics) = (counters.closes, counters.panics);
    assert_eq!(panics, 0, "the server or the simulation has panicked");
    let accepted = world.sockets.iter().filter(|conn| conn.accepted_us.is_some()).count();
    assert_eq!(closes, accepted as u64, "every accepted connection is closed once");
    assert!(world.sockets.iter().all(|conn| !conn.open), "a stream is still open at the end");
    for conn in &world.sockets {
        let (Some(accepted_us), Some(released_us), Some(gone)) = (conn.accepted_us, conn.released_us, conn.gone) else {
            continue;
        };
        let took_us = released_us.saturating_sub(gone.at_us.max(accepted_us));
        let kind = world.clients[conn.client].as_ref().map_or("", |client| client.kind);
        assert!(
            took_us <= gone.limit_us + world.stalled_us,
            "{kind}: closed {took_us} us after the client was gone at {} us",
            gone.at_us
        );
    }
    for client in world.clients.iter().flatten() {
        match &client.outcome {
            Outcome::Done => {}
            Outcome::Refused if world.drain_us.is_some() => {}
            outcome => {
                let times = client.socket.map(|socket| {
                    let conn = &world.sockets[socket];
                    [conn.accepted_us, conn.closed_us, conn.released_us]
                });
                let (drain_us, open_max) = (world.drain_us, world.open_max);
                let conditions = world.conditions;
                panic!("{outcome:?}; accepted, closed, released: {times:?}; {drain_us:?}, {open_max}, {conditions:?}")
            }
        }
    }
}

/// Bytes that differ from those around them, so that none can be lost, repeated or reordered.
fn pattern() -> &'static Bytes {
    static PATTERN: OnceLock<Bytes> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let period: Vec<u8> = (0..=u8::MAX).take(PATTERN_BYTES).collect();
        period.repeat(HOURS_BYTES.div_ceil(PATTERN_BYTES) + 1).into()
    })
}

/// Returns a real file with this content. Reading it is deterministic, since its content never changes.
fn file(content: &[u8]) -> Arc<File> {
    let file = tempfile::tempfile().expect("a temporary file");
    (&file).write_all(content).expect("there is room");
    Arc::new(file)
}

/// The large and huge bodies, in memory and as files.
struct Bodies {
    large: Bytes,
    large_file: Arc<File>,
    huge_file: Arc<File>,
}

impl Bodies {
    fn get() -> &'static Bodies {
        static BODIES: OnceLock<Bodies> = OnceLock::new();
        BODIES.get_or_init(|| {
            let large = Bytes::from(vec![b'x'; LARGE_BYTES]);
            Bodies { large_file: file(&large), huge_file: file(pattern()), large }
        })
    }

    /// A response of [`LARGE_BYTES`] or, for `/huge/COUNT/...`, of that many bytes of the pattern. For every other
    /// path, it is read from a file.
    fn response(path: &str) -> Option<Response> {
        let bodies = Bodies::get();
        let (body, file, len) = if let Some(rest) = path.strip_prefix("/huge/") {
            (pattern(), &bodies.huge_file, rest.split('/').next()?.parse().ok()?)
        } else if path.starts_with("/large") {
            (&bodies.large, &bodies.large_file, LARGE_BYTES)
        } else {
            return None;
        };
        if path.bytes().last().is_some_and(|byte| byte % 2 == 1) {
            return Some(Response::new(StatusCode::OK).body(body.slice(..len)));
        }
        let (middle, end) = (len / 2, len as u64);
        let parts = [
            Part::File(Arc::clone(file), 0..middle as u64),
            Part::from(body.slice(middle..=middle)),
            Part::File(Arc::clone(file), middle as u64 + 1..end),
        ];
        Some(Response::parts(parts))
    }
}

fn handler(
    handle: &Rc<RefCell<Option<Handle>>>,
    deferrals: &Deferrals,
) -> impl FnMut(&Request<'_>) -> Response + use<> {
    let (handle, deferrals) = (Rc::clone(handle), Rc::clone(deferrals));
    // Not part of the memory that is counted.
    Bodies::get();
    move |request| {
        let path = request.path();
        if let Some(response) = Bodies::response(path) {
            return response;
        }
        let text = format!("{path} {};", request.body().len());
        if let Some(rest) = path.strip_prefix("/text/") {
            let bytes = rest.split('/').next().and_then(|text| text.parse().ok()).unwrap_or(0);
            return Response::text("x".repeat(bytes));
        }
        let (is_quiet, is_ticking) = (path.starts_with("/quiet/"), path.starts_with("/ticks/"));
        let is_stream = is_quiet || is_ticking;
        let Some(delay) = path.strip_prefix("/later/").or(is_stream.then_some("")) else { return Response::text(text) };
        let deferral = Arc::<Deferral>::default();
        deferrals.borrow_mut().push(Arc::clone(&deferral));
        let closed = Arc::clone(&deferral);
        if is_stream {
            let (response, sender) = Response::channel();
            sender.on_closed(move || closed.closed.store(true, Ordering::Relaxed));
            if let Some(handle) = handle.borrow().as_ref().filter(|_| is_ticking) {
                tick(handle.clone(), sender);
                return response;
            }
            sender.send("the first piece").expect("an empty queue");
            deferral.sender.set(sender).ok();
            return response;
        }
        let delay_ms = delay.split('/').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        let (response, responder) = Response::later();
        responder.on_closed(move || closed.closed.store(true, Ordering::Relaxed));
        if let Some(handle) = &*handle.borrow() {
            handle.call_later(Duration::from_millis(delay_ms), move || deferral.respond(responder, text));
        }
        response
    }
}

/// Sends a piece of a stream every [`TICK`], until the client is gone.
fn tick(handle: Handle, sender: Sender) {
    if sender.send("tick").is_ok() {
        handle.clone().call_later(TICK, move || tick(handle, sender));
    }
}

/// Time distribution of the client arrivals.
struct Arrivals {
    /// Time span within which all clients start.
    span_us: u64,
}

/// Adds all clients, with their start times.
fn populate(world: &mut World, rng: &mut Rng) -> Arrivals {
    let crowded = rng.one_in(50);
    let count = if crowded { 2000 + rng.below(1000) } else { 5 + rng.below(80) };
    let span_us = [1_000_000, 60_000_000, 3_600_000_000][usize::try_from(rng.below(3)).expect("small")];
    for number in 0..count {
        let client = client(number, rng, crowded);
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

fn client(number: u64, rng: &mut Rng, crowded: bool) -> Client {
    // Of thousands of clients, few can have much to read.
    let huge_bytes = if crowded { 50_000 } else { HUGE_BYTES / 2 };
    match rng.below(22) {
        0..=3 => Client::new("keep-alive", keep_alive(number, rng)).more_memory(512 * 1024),
        4 => Client::new("pipelining", pipelining(number, rng)).more_memory(256 * 1024),
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
        13 => {
            let huge = send(get(&format!("/huge/{}/{number}", huge_bytes.max(5 << 20))));
            Client::new("non-reading", vec![huge, Step::Pause(90_000), Step::WasReset, Step::Reset])
        }
        _ => slow::client(number, rng, huge_bytes),
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
