//! Several ranges of a file in one response: multipart/byteranges (RFC 9110 section 14.6).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use crate::httpserver::{Part, Response};

/// Returns the value of Content-Range for a range of `len` bytes in total.
pub(super) fn content_range(range: &Range<u64>, len: u64) -> String {
    format!("bytes {}-{}/{len}", range.start, range.end - 1)
}

/// Builds a multipart/byteranges response with the given `ranges` of a file of `len` bytes; `piece` returns the content
/// of a range.
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
    Response::parts(parts).header("Content-Type", format!("multipart/byteranges; boundary={boundary}"))
}

/// Returns an unpredictable boundary, which occurs in the content with a probability of about 2^-64.
fn boundary() -> String {
    format!("serverd-{:016x}", RandomState::new().build_hasher().finish())
}
