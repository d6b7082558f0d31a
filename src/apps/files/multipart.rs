//! Several parts of a file in one answer: multipart/byteranges (RFC 9110 section 14.6).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use crate::httpserver::{Part, Response};

/// The value of Content-Range for a part.
pub(super) fn content_range(range: &Range<u64>, len: u64) -> String {
    format!("bytes {}-{}/{len}", range.start, range.end - 1)
}

/// An answer with several parts of content of this type and length.
pub(super) fn response(
    content_type: &str,
    len: u64,
    ranges: &[Range<u64>],
    piece: impl Fn(&Range<u64>) -> Part,
) -> Response {
    let boundary = boundary();
    let mut parts = Vec::with_capacity(2 * ranges.len() + 1);
    let mut line_end = "";
    for range in ranges {
        let content_range = content_range(range, len);
        let head =
            format!("{line_end}--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {content_range}\r\n\r\n");
        parts.push(Part::from(head));
        parts.push(piece(range));
        line_end = "\r\n";
    }
    parts.push(Part::from(format!("\r\n--{boundary}--\r\n")));
    Response::parts(parts).field("Content-Type", format!("multipart/byteranges; boundary={boundary}"))
}

/// What stands in no file but by a chance of one in 2^64: nobody can foresee it.
fn boundary() -> String {
    format!("serverd-{:016x}", RandomState::new().build_hasher().finish())
}
