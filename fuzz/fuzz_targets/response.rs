//! Invariant: no server makes a client's reader panic, or keep more than a head's limit before the head is whole; the
//! cuts change nothing; and httparse takes every head the reader takes, and reads the same status and length in it.
#![no_main]

#[path = "../../tests/it/feed.rs"]
#[allow(dead_code)]
mod feed;

use libfuzzer_sys::fuzz_target;
use serverd::http1::{Limits, ResponseEvent, ResponseFault, ResponseReader};

#[derive(Debug, Default, PartialEq)]
struct Response {
    status: u16,
    head: Vec<u8>,
    body: Vec<u8>,
    /// The body came to an end of its own, and not by that of the connection.
    whole: bool,
}

/// Reads a response that comes in pieces.
fn read(mut input: &[u8], limits: &Limits, cut: &mut dyn FnMut() -> usize) -> Result<Response, ResponseFault> {
    let mut reader = ResponseReader::new(limits.clone());
    let (mut seen, mut buffer) = (Response::default(), Vec::new());
    loop {
        let (used, event) = reader.receive(&buffer)?;
        assert!(used <= buffer.len());
        match event {
            ResponseEvent::NeedMore => {
                buffer.drain(..used);
                assert!(seen.status != 0 || buffer.len() <= limits.head_bytes_max);
                if input.is_empty() {
                    return reader.finish().map(|()| seen);
                }
                let (piece, rest) = input.split_at(cut().clamp(1, input.len()));
                buffer.extend_from_slice(piece);
                input = rest;
                continue;
            }
            ResponseEvent::Head { status, line, head } => {
                assert!(seen.status == 0 && status >= 200 && head.starts_with(line) && head.len() <= used);
                (seen.status, seen.head) = (status, head.to_vec());
            }
            ResponseEvent::Body(bytes) => {
                assert!(seen.status != 0 && !bytes.is_empty());
                seen.body.extend_from_slice(bytes);
            }
            ResponseEvent::End => {
                seen.whole = true;
                return Ok(seen);
            }
        }
        buffer.drain(..used);
    }
}

/// What httparse makes of the same head.
fn compare(response: &Response) {
    let mut slots = [httparse::EMPTY_HEADER; 100];
    let mut other = httparse::Response::new(&mut slots);
    assert_eq!(other.parse(&response.head), Ok(httparse::Status::Complete(response.head.len())));
    assert_eq!(other.code, Some(response.status));
    let of = |name: &str| other.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
    if let (Some(length), None, true) = (of("content-length"), of("transfer-encoding"), response.whole) {
        let length: usize = std::str::from_utf8(length.value).expect("digits").parse().expect("a number");
        assert_eq!(response.body.len(), if matches!(response.status, 204 | 304) { 0 } else { length });
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&seed, input)) = data.split_first() else { return };
    let limits = if seed & 1 == 0 {
        Limits::default()
    } else {
        Limits { head_bytes_max: 256, fields_max: 4, target_bytes_max: 32, body_bytes_max: 64, trailer_bytes_max: 64 }
    };
    let whole = read(input, &limits, &mut || usize::MAX >> 1);
    assert_eq!(read(input, &limits, &mut || 1), whole);
    assert_eq!(read(input, &limits, &mut feed::random_cuts(u64::from(seed))), whole);
    if let Ok(response) = &whole {
        compare(response);
    }
});
