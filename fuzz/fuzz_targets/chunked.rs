//! Invariants: no chunked body makes the decoder panic or exceed its limits; the events do not depend on how the input
//! is split; and the decoded data equals that of a naive decoder based on httparse's chunk sizes.
#![no_main]

#[path = "../../tests/it/feed_input.rs"]
mod feed_input;

use libfuzzer_sys::fuzz_target;
use serverd::http1::Limits;

const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Naive reference decoder: decodes all chunks up to the last one.
fn naive(mut input: &[u8]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((at, size))) = httparse::parse_chunk_size(input) else { return None };
        let size = usize::try_from(size).ok()?;
        if size == 0 {
            return Some(data);
        }
        data.extend_from_slice(input.get(at..at.checked_add(size)?)?);
        input = input.get(at + size..)?.strip_prefix(b"\r\n")?;
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&seed, body)) = data.split_first() else { return };
    let input = [HEAD, body].concat();
    let limits = if seed & 1 == 0 {
        Limits::default()
    } else {
        Limits::default().body_bytes_max(64).trailer_bytes_max(64).headers_max(4)
    };
    let unsplit = feed_input::feed(&input, &limits, false, &mut || usize::MAX >> 1);
    assert_eq!(feed_input::feed(&input, &limits, false, &mut || 1), unsplit);
    assert_eq!(feed_input::feed(&input, &limits, false, &mut feed_input::random_splits(u64::from(seed))), unsplit);
    if unsplit.ends > 0
        && let Some(data) = naive(body)
    {
        assert_eq!(unsplit.bodies[0], data);
    }
});
