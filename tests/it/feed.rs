//! Feeds the request side of `http1` the way a loop does, and tells what came of it. Used by the cases, by the
//! property tests, and by the fuzz targets, which include this file.

use serverd::http1::{Connection, Error, Event, Framing, Head, Limits};

/// What came of some input: events in order, with neighbouring stretches of a body joined.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) heads: Vec<(Vec<u8>, Head)>,
    pub(crate) bodies: Vec<Vec<u8>>,
    pub(crate) ends: usize,
    pub(crate) error: Option<Error>,
    /// How much of the input is done with; an unfinished head is not. Means nothing after a fault, as faults are
    /// found earlier or later depending on the cuts.
    pub(crate) used: usize,
}

/// Feeds a connection in pieces of the sizes that `cuts` gives: what is not used is shown again. With `shortcut` a
/// body that stands whole in the input is taken as it is, as servers do. Asserts that after a fault there is nothing
/// but the fault.
pub(crate) fn feed(input: &[u8], limits: &Limits, shortcut: bool, cuts: &mut dyn FnMut() -> usize) -> Seen {
    let (mut connection, mut scratch) = (Connection::new(), Head::default());
    let mut seen = Seen::default();
    let (mut from, mut to) = (0, 0);
    while to < input.len() {
        to = (to + cuts().max(1)).min(input.len());
        loop {
            let (used, event) = match connection.receive(&mut scratch, limits, &input[from..to]) {
                Ok(outcome) => outcome,
                Err(error) => {
                    let again = connection.receive(&mut scratch, limits, &input[from..to]);
                    assert_eq!(again, Err(error), "after an error nothing but the error");
                    seen.error = Some(error);
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
                    assert!(len <= limits.head_bytes_max, "a head over its limit");
                    assert!(scratch.fields(&input[from - len..from]).count() <= limits.fields_max);
                    seen.heads.push((input[from - len..from].to_vec(), scratch.clone()));
                    seen.bodies.push(Vec::new());
                    from += take_whole_body(&mut connection, &mut seen, limits, shortcut, &input[from..to]);
                }
                Event::Body(bytes) => {
                    assert!(!bytes.is_empty(), "a piece of nothing");
                    seen.bodies.last_mut().expect("a head came before").extend_from_slice(bytes);
                }
                Event::End => seen.ends += 1,
            }
            let body = seen.bodies.last().map_or(0, Vec::len);
            assert!(body as u64 <= limits.body_bytes_max, "a body over its limit");
        }
    }
    seen
}

/// The shortcut: how much of `rest` was the body of the head that came last.
fn take_whole_body(
    connection: &mut Connection,
    seen: &mut Seen,
    limits: &Limits,
    shortcut: bool,
    rest: &[u8],
) -> usize {
    let framing = seen.heads.last().expect("a head came").1.framing();
    match framing {
        Framing::Length(length) if shortcut && length <= rest.len() as u64 && length <= limits.body_bytes_max => {
            let body = &rest[..usize::try_from(length).expect("no more than there is")];
            connection.skip_body();
            seen.bodies.last_mut().expect("a head came").extend_from_slice(body);
            seen.ends += 1;
            seen.used += body.len();
            body.len()
        }
        _ => 0,
    }
}

/// Repeatable cuts, most of them small.
pub(crate) fn random_cuts(seed: u64) -> impl FnMut() -> usize {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let most = [1, 3, 17, 200, 70_000][usize::try_from(state % 5).expect("small")];
        1 + usize::try_from((state >> 8) % most).expect("small")
    }
}
