//! Invariants: no response makes the client's response reader panic, or buffer more than the head limit before the head
//! is complete; the result does not depend on how the input is split; and httparse accepts every head that the reader
//! accepts, except for its minor version, with the same status and length.
#![no_main]

#[path = "../../tests/it/feed_input.rs"]
#[allow(dead_code)]
mod feed_input;

use libfuzzer_sys::fuzz_target;
use serverd::http1::{Limits, ResponseError, ResponseEvent, ResponseReader};

#[derive(Debug, Default, PartialEq)]
struct Response {
    status: u16,
    head: Vec<u8>,
    body: Vec<u8>,
    /// True if the body was delimited; false if it ended with the connection.
    delimited: bool,
}

/// Reads a response in pieces of the sizes that `split` returns.
fn read(mut input: &[u8], limits: &Limits, split: &mut dyn FnMut() -> usize) -> Result<Response, ResponseError> {
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
                let (piece, rest) = input.split_at(split().clamp(1, input.len()));
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
                seen.delimited = true;
                return Ok(seen);
            }
        }
        buffer.drain(..used);
    }
}

/// Compares the head with httparse's result.
fn compare(response: &Response) {
    let mut slots = [httparse::EMPTY_HEADER; 100];
    let mut other = httparse::Response::new(&mut slots);
    let mut head = response.head.clone();
    // HTTP/1.2 to 1.9 are read as 1.1 (RFC 9110 section 6.2); httparse rejects them.
    if head.starts_with(b"HTTP/1.") && (b'2'..=b'9').contains(&head[7]) {
        head[7] = b'1';
    }
    assert_eq!(other.parse(&head), Ok(httparse::Status::Complete(head.len())));
    assert_eq!(other.code, Some(response.status));
    let header = |name: &str| other.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    if let (Some(length), None, true) = (header("content-length"), header("transfer-encoding"), response.delimited) {
        let length: usize = std::str::from_utf8(length.value).expect("digits").parse().expect("a number");
        assert_eq!(response.body.len(), if matches!(response.status, 204 | 304) { 0 } else { length });
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&seed, input)) = data.split_first() else { return };
    let limits = if seed & 1 == 0 {
        Limits::default()
    } else {
        Limits::default().head_bytes_max(256).headers_max(4).target_bytes_max(32).body_bytes_max(64).trailer_bytes_max(64)
    };
    let unsplit = read(input, &limits, &mut || usize::MAX >> 1);
    assert_eq!(read(input, &limits, &mut || 1), unsplit);
    assert_eq!(read(input, &limits, &mut feed_input::random_splits(u64::from(seed))), unsplit);
    if let Ok(response) = &unsplit {
        compare(response);
    }
});
