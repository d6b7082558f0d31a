//! The cases of tests/conformance, run through `http1` without sockets: whole, octet by octet and at random cuts. The
//! same octets give the same events however they are cut, and the answer a case wants.

use serde::Deserialize;
use serverd::http1::{Connection, Error, Event, Head, Limits};

#[derive(Deserialize)]
struct Cases {
    case: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    send: Send,
    accept: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Send {
    Text(String),
    Steps(Vec<Step>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Step {
    Text(String),
    Repeat {
        repeat: String,
        times: usize,
    },
    /// Pauses and the like mean nothing without a socket.
    Other(#[allow(dead_code)] toml::Table),
}

/// In a case one character is one octet.
fn octets(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).expect("one octet")).collect()
}

impl Case {
    fn input(&self) -> Vec<u8> {
        match &self.send {
            Send::Text(text) => octets(text),
            Send::Steps(steps) => steps
                .iter()
                .flat_map(|step| match step {
                    Step::Text(text) => octets(text),
                    Step::Repeat { repeat, times } => octets(repeat).repeat(*times),
                    Step::Other(_) => Vec::new(),
                })
                .collect(),
        }
    }
}

fn cases() -> Vec<Case> {
    let text = include_str!("../conformance/cases.toml");
    toml::from_str::<Cases>(text).expect("a case file").case
}

/// What came of some input: events in order, with neighbouring stretches of a body joined.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    heads: Vec<(Vec<u8>, Head)>,
    bodies: Vec<Vec<u8>>,
    ends: usize,
    error: Option<Error>,
    /// Unused input that is not an unfinished head.
    used: usize,
}

/// Feeds a connection the way a loop does: what is not used is shown again.
fn feed(input: &[u8], cuts: &mut dyn FnMut() -> usize) -> Seen {
    let (mut connection, mut scratch, limits) = (Connection::new(), Head::default(), Limits::default());
    let mut seen = Seen::default();
    let (mut from, mut to) = (0, 0);
    while to < input.len() {
        to = (to + cuts()).min(input.len());
        loop {
            let (used, event) = match connection.receive(&mut scratch, &limits, &input[from..to]) {
                Ok(outcome) => outcome,
                Err(error) => {
                    let again = connection.receive(&mut scratch, &limits, &input[from..to]);
                    assert_eq!(again, Err(error), "after an error nothing but the error");
                    seen.error = Some(error);
                    // How much was used up to a fault depends on the cuts, and means nothing after it.
                    seen.used = 0;
                    return seen;
                }
            };
            assert!(used <= to - from, "used more than there is");
            from += used;
            seen.used = from;
            match event {
                Event::NeedMore => break,
                Event::Head { len } => {
                    seen.heads.push((input[from - len..from].to_vec(), scratch.clone()));
                    seen.bodies.push(Vec::new());
                }
                Event::Body(bytes) => {
                    assert!(!bytes.is_empty());
                    seen.bodies.last_mut().expect("a head came before").extend_from_slice(bytes);
                }
                Event::End => seen.ends += 1,
            }
        }
    }
    seen
}

/// Repeatable cuts, most of them small.
fn random_cuts(mut state: u64) -> impl FnMut() -> usize {
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let most = [1, 3, 17, 200, 70_000][usize::try_from(state % 5).expect("small")];
        1 + usize::try_from((state >> 8) % most).expect("small")
    }
}

#[test]
fn the_same_octets_give_the_same_events_however_they_are_cut() {
    for case in cases() {
        let input = case.input();
        let whole = feed(&input, &mut || usize::MAX >> 1);
        // Octet by octet costs a call each; the long ones are long for their limits' sake, and random cuts do.
        if input.len() < 20_000 {
            assert_eq!(feed(&input, &mut || 1), whole, "{}: octet by octet", case.id);
        }
        for seed in 1..=20 {
            assert_eq!(feed(&input, &mut random_cuts(seed)), whole, "{}: seed {seed}", case.id);
        }
    }
}

/// A fault the core finds is one the case allows, and a case that allows only faults gets one: from the core, or from
/// the rules of the application, which this does not run.
#[test]
fn faults_are_found_where_the_cases_want_them() {
    let statuses = |accept: &str| -> Vec<String> {
        let words: Vec<&str> = accept.split(' ').collect();
        let last = words[..words.len() - 1].last().copied().unwrap_or("");
        last.split('|').map(str::to_owned).collect()
    };
    let mut faults = 0;
    for case in cases() {
        let seen = feed(&case.input(), &mut || usize::MAX >> 1);
        let Some(error) = seen.error else { continue };
        faults += 1;
        let status = error.status().as_u16().to_string();
        let fits = |allowed: &str| allowed == status || (allowed == "4xx" && status.starts_with('4'));
        let allowed = case.accept.iter().any(|accept| {
            accept.split(' ').next() == Some("close") || statuses(accept).iter().any(|allowed| fits(allowed))
        });
        assert!(allowed, "{}: {error:?} is not among {:?}", case.id, case.accept);
    }
    assert!(faults > 80, "only {faults} faults found: are the cases read?");
}
