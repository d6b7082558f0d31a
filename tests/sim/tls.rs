//! The server with TLS: the clients of the other simulations over TLS, and ones that fail in the handshake or in the
//! session.
//!
//! Keys and nonces are random and cannot be seeded, so that ciphertext differs between two runs. All lengths are the same:
//! the key of the server is an Ed25519 one, whose signatures have a fixed length. The schedule of a seed, which depends on
//! lengths only, is thus reproducible.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use serverd::tls::Tls;
use serverd::{EventLoop, LoopLimits, WithTls};

use super::client::{Client, Download, Step};
use super::link::{self, Link};
use super::world::{Conditions, Rng, Sim, SimListener, World};
use super::{CONNECTIONS_UNLIMITED, check, client, get, send, serve, timed_out_after, variable};

const CERTIFICATE: &[u8] = include_bytes!("../tls/ed25519.pem");
const KEY: &[u8] = include_bytes!("../tls/ed25519.key");

/// Memory that a connection may take for TLS: the session, and up to 64 KiB of ciphertext in each direction.
const SESSION_BYTES: usize = 160 * 1024;

/// Default number of seeds, of which [`SHARE`] are run.
const COUNT: u64 = 12;

/// One in this many seeds is run, because handshakes take long.
const SHARE: u64 = 4;

/// The limit on handshakes, in milliseconds.
const HANDSHAKE_MS: u64 = 10_000;

/// The configuration of the clients of one simulation, which resume the sessions of others.
fn client_config(version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE).expect("PEM")).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]);
    let mut config = builder.expect("ring has cipher suites").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Runs a server with TLS; returns the number of clients, the virtual time in microseconds, and a number that depends on
/// the whole schedule.
fn simulate<const EDGE: bool>(
    seed: u64,
    conditions: Conditions,
    limits: LoopLimits,
    populate: impl FnOnce(&mut World) -> Option<u64>,
) -> (usize, u64, u64) {
    let world = World::new(seed, EDGE, conditions);
    let tls = Tls::from_pem(CERTIFICATE, KEY).expect("a key pair").alpn_protocols(&["http/1.1"]);
    let listener = SimListener(Rc::clone(&world));
    let listen = |event_loop: &mut EventLoop<WithTls<Sim<EDGE>>, _>| event_loop.listen_tls(listener, &tls);
    let counters = serve(&world, WithTls::from(Sim::<EDGE>(Rc::clone(&world))), listen, limits, populate);
    let world = &mut *world.borrow_mut();
    check(world, &counters);
    assert_eq!(counters.handshakes + counters.failed_handshakes, counters.closes, "each handshake succeeds or fails");
    (world.clients.len(), world.now_us(), world.rng.below(u64::MAX))
}

/// Runs a simulation of random clients under random conditions; returns the result of [`simulate`].
fn run<const EDGE: bool>(seed: u64) -> (usize, u64, u64) {
    let mut rng = Rng::new(seed ^ 0x715);
    let conditions = Conditions { faulty: rng.one_in(4), stalls: rng.one_in(4) };
    let connections_max =
        if rng.one_in(4) { 3 + usize::try_from(rng.below(20)).expect("small") } else { CONNECTIONS_UNLIMITED };
    let config = client_config(if rng.one_in(4) { &TLS12 } else { &TLS13 });
    simulate::<EDGE>(seed, conditions, LoopLimits::default().connections_max(connections_max), |world| {
        let span_us = [1_000_000, 60_000_000, 3_600_000_000][usize::try_from(rng.below(3)).expect("small")];
        let count = if rng.one_in(20) { 300 } else { 5 + rng.below(60) };
        for number in 0..count {
            let client = if rng.one_in(4) { adverse(&config, &mut rng) } else { usual(number, &config, &mut rng) };
            let start_us = rng.below(span_us);
            world.add_client(client, start_us);
        }
        rng.one_in(2).then(|| rng.below(span_us))
    })
}

/// A client of the simulation without TLS, or one of those for which only TLS makes a difference, over TLS.
fn usual(number: u64, config: &Arc<ClientConfig>, rng: &mut Rng) -> Client {
    let client = if rng.one_in(8) { waiting_in_line(number, rng) } else { client(number, rng, true) };
    client.over(Link::tls(config, rng)).more_memory(SESSION_BYTES)
}

/// More pipelined requests than the server reads ahead, behind one whose response takes a while. The server decrypts only
/// some of what it has read, and continues later without an event of the socket.
fn waiting_in_line(number: u64, rng: &mut Rng) -> Client {
    let first = format!("/later/{}/{number}", rng.below(3000));
    // About what the server reads ahead, or much more.
    let spread = if rng.one_in(4) { 1000 } else { 100 };
    let count = 350 + rng.below(spread);
    let paths = std::iter::once(first).chain((0..count).map(|turn| format!("/behind/{number}/{turn}")));
    let paths: Vec<String> = paths.collect();
    let requests: Vec<u8> = paths.iter().flat_map(|path| get(path)).collect();
    let responses = paths.into_iter().map(|path| Step::Response(200, format!("{path} 0;")));
    Client::new("pipelining", std::iter::once(send(requests)).chain(responses).collect()).more_memory(256 * 1024)
}

/// A client that does not complete the handshake, or violates the protocol later.
fn adverse(config: &Arc<ClientConfig>, rng: &mut Rng) -> Client {
    let hello = link::client_hello(config);
    let cut = |rng: &mut Rng| {
        let len = 1 + usize::try_from(rng.below(hello.len() as u64)).expect("small");
        send(hello[..len].to_vec())
    };
    // The beginning of a record of the maximum length.
    let endless = [22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f];
    let closed_after = |limit_ms| [Step::Closed, timed_out_after(limit_ms)];
    let (kind, script) = match rng.below(12) {
        0 => ("silent in the handshake", closed_after(HANDSHAKE_MS).to_vec()),
        1 => {
            let interval_ms = 50 + rng.below(2000);
            let late = Step::Took(HANDSHAKE_MS, HANDSHAKE_MS + 502 + 2000);
            ("dripping in the handshake", vec![send(endless.to_vec()), Step::Drip(interval_ms), Step::Closed, late])
        }
        2 => ("stalling in the handshake", [&[cut(rng)][..], &closed_after(HANDSHAKE_MS)].concat()),
        3 => {
            let script = vec![cut(rng), Step::Finish, Step::Mark, Step::Closed, Step::Took(0, 100)];
            ("interrupted in the handshake", script)
        }
        4 => ("leaving in the handshake", vec![cut(rng), Step::Pause(rng.below(5000)), Step::Reset]),
        5 => ("lost in the handshake", vec![cut(rng), Step::Pause(rng.below(5000)), Step::Vanish]),
        6 => {
            let garbage = [&b"\x16\x03\x01\x00\x05\xff\x00\x00\x01\x00"[..], b"\x80\x2e\x01\x00\x02", &[0x17; 100]];
            let garbage = garbage[usize::try_from(rng.below(3)).expect("small")];
            let more = vec![0; usize::try_from(rng.below(60_000)).expect("small")];
            ("malformed", vec![send(garbage), Step::Push(more.into()), Step::Alert, Step::Finish])
        }
        7 => {
            let more = vec![b'x'; usize::try_from(rng.below(60_000)).expect("small")];
            let expected = Step::Response(400, "This port requires TLS".into());
            ("malformed", vec![send(get("/plain")), Step::Push(more.into()), expected, Step::Finish, Step::End])
        }
        8 => {
            // Handshake records that together are larger than any handshake.
            let record = [&[22, 3, 1, 0x3f, 0xff][..], &[1, 0, 0xff, 0xff], &[0; 0x3fff - 4]].concat();
            ("excessive in the handshake", vec![Step::Push(record.repeat(8).into()), Step::Closed])
        }
        9 => return interrupted(rng).over(Link::tls(config, rng)).more_memory(SESSION_BYTES),
        10 => {
            let script = vec![send(get("/cut")), Step::Cut, Step::Response(200, "/cut".into()), Step::End];
            return Client::new("half-closing", script).over(Link::tls(config, rng)).more_memory(SESSION_BYTES);
        }
        _ => {
            let (first, second) = (Step::Response(200, "/first".into()), Step::Response(200, "/second".into()));
            let script = vec![send(get("/first")), first, send(get("/second")), second, Step::Forge, Step::Alert];
            return Client::new("forging", script).over(Link::tls(config, rng)).more_memory(SESSION_BYTES);
        }
    };
    Client::new(kind, script).more_memory(SESSION_BYTES)
}

/// A request that is cut off by a FIN without `close_notify`.
fn interrupted(rng: &mut Rng) -> Client {
    let request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhello";
    let len = 1 + usize::try_from(rng.below(request.len() as u64)).expect("small");
    let script = vec![send(request[..len].to_vec()), Step::Cut, Step::Mark, Step::End, Step::Took(0, 1000)];
    Client::new("interrupted", script)
}

fn try_seeds<const EDGE: bool>() {
    let first = variable("SERVERD_SIM_FIRST", 1);
    let seeds = first..first + variable("SERVERD_SIM_SEEDS", COUNT).div_ceil(SHARE);
    let (mut clients, mut virtual_us, mut failing) = (0, 0, Vec::new());
    for seed in seeds {
        if let Ok((seed_clients, seed_us, _)) = std::thread::spawn(move || run::<EDGE>(seed)).join() {
            clients += seed_clients;
            virtual_us += seed_us;
        } else {
            println!("seed {seed} fails: SERVERD_SIM_FIRST={seed} SERVERD_SIM_SEEDS=1 cargo test --test sim tls::");
            failing.push(seed);
        }
    }
    println!("{clients} clients with TLS in {:?} of virtual time", Duration::from_micros(virtual_us));
    assert!(failing.is_empty(), "failing seeds: {failing:?}");
}

#[test]
fn requests_over_tls_are_answered_once_in_order_and_in_time_on_a_level_triggered_backend() {
    try_seeds::<false>();
}

#[test]
fn requests_over_tls_are_answered_once_in_order_and_in_time_on_an_edge_triggered_backend() {
    try_seeds::<true>();
}

#[test]
fn the_schedule_of_a_seed_is_reproducible_although_its_keys_are_not() {
    let run = |seed| std::thread::spawn(move || run::<true>(seed)).join().expect("no failure");
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// The server keeps ciphertext of up to 64 KiB of a response, which such a client takes minutes to receive.
#[test]
fn a_slow_reader_over_tls_is_not_cut_off_while_the_server_holds_ciphertext() {
    fn run<const EDGE: bool>(seed: u64) {
        let download = Download {
            bytes: 60_000,
            piece: 300,
            interval_ms: 1000,
            pause_max_ms: 0,
            send_interval_ms: 0,
            bursts: false,
        };
        let script = vec![send(get("/huge/60000/1")), Step::Download(download)];
        simulate::<EDGE>(seed, Conditions::default(), LoopLimits::default(), |world| {
            let link = Link::tls(&client_config(&TLS13), &mut Rng::new(seed));
            world.add_client(Client::new("slow reading", script).over(link).more_memory(SESSION_BYTES), 0);
            None
        });
    }
    for seed in 0..20 {
        run::<false>(seed);
        run::<true>(seed);
    }
}
