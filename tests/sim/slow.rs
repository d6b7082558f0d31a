//! Clients with slow networks, and clients that leave without a word while the server waits for them.

use super::client::{Client, Download, Step};
use super::world::Rng;
use super::{HOURS_BYTES, HUGE_BYTES, get, send};

/// Longest pause of an upload that the server has to accept, in milliseconds. The balance of time is 30 s, and is
/// checked every second.
const UPLOAD_PAUSE_MAX_MS: u64 = 25_000;

/// Longest pause of a reader that the server has to accept, in milliseconds. The write timeout is 60 s.
const READ_PAUSE_MAX_MS: u64 = 55_000;

/// Longest pause after a burst that the server has to accept, in milliseconds.
const BURST_PAUSE_MAX_MS: u64 = 100_000;

pub(super) fn client(number: u64, rng: &mut Rng, huge_bytes: usize) -> Client {
    match rng.below(9) {
        0 => Client::new("slow reading", slow_reading(number, rng, huge_bytes)),
        8 => Client::new("bursting", bursting(number, rng, huge_bytes)),
        1 => Client::new("sending late bytes", sending_late_bytes(number, rng, huge_bytes / 6)),
        2 => Client::new("waiting", waiting(number, rng)),
        3 => Client::new("leaving", leaving(number, rng)),
        4 => Client::new("lost", lost(number, rng, huge_bytes)).more_memory(256 * 1024),
        5 => Client::new("pausing", pausing(number, rng)).more_memory(1024 * 1024),
        6 => {
            let script = vec![
                send([put(number, 200_000), vec![b'x'; 100_000]].concat()),
                Step::Mark,
                Step::Response(408, "request body".into()),
                Step::Took(28_500, 33_000),
                Step::Finish,
                Step::End,
            ];
            Client::new("stalling late", script).more_memory(256 * 1024)
        }
        _ => Client::new("refused", refused(number, rng)),
    }
}

fn put(number: u64, bytes: usize) -> Vec<u8> {
    format!("PUT /put/{number} HTTP/1.1\r\nHost: x\r\nContent-Length: {bytes}\r\n\r\n").into_bytes()
}

fn number_below(rng: &mut Rng, bound: usize) -> usize {
    usize::try_from(rng.below(bound as u64)).expect("small")
}

/// A rate of 4 to 64 KB/s.
fn download(rng: &mut Rng, bytes: usize) -> Download {
    let (rate, interval_ms) = (4_000 << rng.below(5), 100 + rng.below(900));
    let piece = usize::try_from(rate * interval_ms / 1000).expect("small");
    Download { bytes, piece, interval_ms, pause_max_ms: 0, send_interval_ms: 0, bursts: false }
}

/// A download at a low rate, with or without long pauses, that may take hours.
fn slow_reading(number: u64, rng: &mut Rng, huge_bytes: usize) -> Vec<Step> {
    let takes_hours = huge_bytes >= HUGE_BYTES / 2 && rng.one_in(4);
    let bytes = if takes_hours {
        HOURS_BYTES / 2 + number_below(rng, HOURS_BYTES / 2)
    } else {
        huge_bytes / 10 + number_below(rng, huge_bytes)
    };
    let pause_max_ms = if rng.one_in(2) { READ_PAUSE_MAX_MS } else { 0 };
    let download = Download { pause_max_ms, ..download(rng, bytes) };
    vec![send(get(&format!("/huge/{bytes}/{number}"))), Step::Download(download)]
}

/// A download with bursts and long pauses, as by curl with a rate limit: it reads up to 100 s' worth at once, and then
/// nothing for that long.
fn bursting(number: u64, rng: &mut Rng, huge_bytes: usize) -> Vec<Step> {
    let bytes = huge_bytes / 2 + number_below(rng, huge_bytes);
    let piece = 1_000_000 + number_below(rng, 3_000_000);
    let interval_ms = 60_000 + rng.below(BURST_PAUSE_MAX_MS - 60_000);
    let download = Download { bytes, piece, interval_ms, pause_max_ms: 0, send_interval_ms: 0, bursts: true };
    vec![send(get(&format!("/huge/{bytes}/{number}"))), Step::Download(download)]
}

/// A slow download of a last response, during which the client sends bytes that are not part of a request.
fn sending_late_bytes(number: u64, rng: &mut Rng, huge_bytes: usize) -> Vec<Step> {
    let bytes = 20_000 + number_below(rng, huge_bytes);
    let download = Download { send_interval_ms: 100 + rng.below(10_000), ..download(rng, bytes) };
    let request = format!("GET /huge/{bytes}/{number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    vec![send(request), Step::Download(download)]
}

/// A request that the server answers after an hour or more.
fn waiting(number: u64, rng: &mut Rng) -> Vec<Step> {
    let delay_ms = 3_600_000 + rng.below(7_200_000);
    let path = format!("/later/{delay_ms}/{number}");
    vec![send(get(&path)), Step::Mark, Step::Response(200, path), Step::Took(delay_ms, delay_ms + 100)]
}

/// A client that resets the connection while it waits for a response or for more of one, some after a half-close, some
/// behind more pipelined requests than the server reads ahead.
fn leaving(number: u64, rng: &mut Rng) -> Vec<Step> {
    let path = match rng.below(3) {
        0 => format!("/huge/{HUGE_BYTES}/{number}"),
        1 => format!("/quiet/{number}"),
        _ => format!("/later/86400000/{number}"),
    };
    let mut script = vec![send(get(&path))];
    if rng.one_in(3) {
        script.push(Step::Offer(get("/get/behind").repeat(1000).into()));
    }
    script.push(Step::Pause(1 + rng.below(30_000)));
    if rng.one_in(2) {
        script.extend([Step::Finish, Step::Pause(1 + rng.below(30_000))]);
    }
    script.push(Step::Reset);
    script
}

/// A client that vanishes without a word.
fn lost(number: u64, rng: &mut Rng, huge_bytes: usize) -> Vec<Step> {
    let mut script = match rng.below(8) {
        6 => vec![send(get(&format!("/ticks/{number}"))), Step::Receive("tick\r\n")],
        5 => vec![send(get(&format!("/quiet/{number}"))), Step::Receive("the first piece\r\n")],
        0 => vec![],
        1 => vec![send(b"GET / HTTP/1.1\r\nHo".to_vec())],
        2 => vec![send(get(&format!("/get/{number}"))), Step::Response(200, String::new())],
        3 => vec![send([put(number, 200_000), vec![b'x'; 100_000]].concat())],
        4 => vec![send(get(&format!("/huge/{huge_bytes}/{number}")))],
        _ => vec![send(get(&format!("/later/86400000/{number}")))],
    };
    script.extend([Step::Pause(rng.below(20_000)), Step::Vanish]);
    script
}

/// An upload that pauses, for no longer than the time that it has gained.
fn pausing(number: u64, rng: &mut Rng) -> Vec<Step> {
    let pauses = 1 + number_below(rng, 3);
    let parts: Vec<usize> = (0..=pauses).map(|_| 10_000 + number_below(rng, 150_000)).collect();
    let bytes = parts.iter().sum();
    let mut script = vec![send(put(number, bytes))];
    for part in parts {
        script.extend([send(vec![b'x'; part]), Step::Pause(rng.below(UPLOAD_PAUSE_MAX_MS))]);
    }
    script.push(Step::Response(200, format!("/put/{number} {bytes};")));
    script
}

/// An upload that is refused, by a client on a slow link that reads the response only after it has sent everything.
fn refused(number: u64, rng: &mut Rng) -> Vec<Step> {
    let (interval_ms, duration_ms) = (50 + rng.below(2500), 1000 + rng.below(22_000));
    let piece_bytes = 1 + number_below(rng, 1000);
    let pieces = usize::try_from(1 + duration_ms / interval_ms).expect("small");
    vec![
        send(put(number, 50_000_000)),
        Step::Trickle { pieces, piece_bytes, interval_ms },
        Step::Response(413, String::new()),
        Step::Finish,
        Step::End,
    ]
}
