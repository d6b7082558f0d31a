//! Feeds input to the request parser of `http1` the way the server does, and collects the events. Used by the
//! conformance cases, the property tests, and the fuzz targets, which include this file.

use serverd::http1::{Connection, Error, Event, Framing, Head, Limits};

/// The events for some input in order, with the pieces of each body joined.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) heads: Vec<(Vec<u8>, Head)>,
    pub(crate) bodies: Vec<Vec<u8>>,
    pub(crate) ends: usize,
    pub(crate) error: Option<Error>,
    /// Bytes of input consumed, not counting an incomplete head. Always 0 after an error, since how early an error is
    /// detected depends on how the input is split.
    pub(crate) used: usize,
}

/// Feeds a connection in pieces of the sizes that `split` returns; unused bytes are fed again. With `shortcut`, a body
/// that is complete in the input is taken directly, as the server does. Asserts that an error is permanent.
pub(crate) fn feed(input: &[u8], limits: &Limits, shortcut: bool, split: &mut dyn FnMut() -> usize) -> Seen {
    let (mut connection, mut scratch) = (Connection::new(), Head::default());
    let mut seen = Seen::default();
    let (mut from, mut to) = (0, 0);
    while to < input.len() {
        to = (to + split().max(1)).min(input.len());
        loop {
            let (used, event) = match connection.receive(&mut scratch, limits, &input[from..to]) {
                Ok(outcome) => outcome,
                Err(error) => {
                    let again = connection.receive(&mut scratch, limits, &input[from..to]);
                    assert_eq!(again, Err(error), "an error is permanent");
                    seen.error = Some(error);
                    seen.used = 0;
                    return seen;
                }
            };
            assert!(used <= to - from, "used more than the input");
            from += used;
            seen.used = from;
            match event {
                Event::NeedMore => break,
                Event::Head { len } => {
                    assert!(len <= limits.head_bytes_max, "a head over the limit");
                    assert!(scratch.headers(&input[from - len..from]).count() <= limits.headers_max);
                    seen.heads.push((input[from - len..from].to_vec(), scratch.clone()));
                    seen.bodies.push(Vec::new());
                    from += take_complete_body(&mut connection, &mut seen, limits, shortcut, &input[from..to]);
                }
                Event::Body(bytes) => {
                    assert!(!bytes.is_empty(), "an empty piece of a body");
                    seen.bodies.last_mut().expect("a head precedes a body").extend_from_slice(bytes);
                }
                Event::End => seen.ends += 1,
            }
            let body = seen.bodies.last().map_or(0, Vec::len);
            assert!(body as u64 <= limits.body_bytes_max, "a body over the limit");
        }
    }
    seen
}

/// Takes the body of the last head directly from `rest` if it is complete. Returns its length.
fn take_complete_body(
    connection: &mut Connection,
    seen: &mut Seen,
    limits: &Limits,
    shortcut: bool,
    rest: &[u8],
) -> usize {
    let framing = seen.heads.last().expect("a head precedes a body").1.framing();
    match framing {
        Framing::Length(length) if shortcut && length <= rest.len() as u64 && length <= limits.body_bytes_max => {
            let body = &rest[..usize::try_from(length).expect("at most the length of the input")];
            connection.body_taken();
            seen.bodies.last_mut().expect("a head precedes a body").extend_from_slice(body);
            seen.ends += 1;
            seen.used += body.len();
            body.len()
        }
        _ => 0,
    }
}

/// Returns a generator of reproducible piece sizes, most of them small.
pub(crate) fn random_splits(seed: u64) -> impl FnMut() -> usize {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let size_max = [1, 3, 17, 200, 70_000][usize::try_from(state % 5).expect("small")];
        1 + usize::try_from((state >> 8) % size_max).expect("small")
    }
}
