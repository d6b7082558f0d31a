//! The headers of forwarded messages: those that concern only one connection are removed (RFC 9110 section 7.6.1).

use bytes::Bytes;
use http::StatusCode;

use crate::http1::{ResponseReader, list_elements};
use crate::httpserver::{Response, Trailers};

/// Headers that concern one connection, besides those that Connection lists.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers that are written again in a request.
pub(super) const REQUEST_ONLY: [&str; 3] = ["content-length", "expect", "host"];

/// Headers that are written again in a response.
const RESPONSE_ONLY: [&str; 3] = ["content-length", "date", "server"];

fn is_one_of(name: &[u8], list: &[&str]) -> bool {
    list.iter().any(|listed| name.eq_ignore_ascii_case(listed.as_bytes()))
}

/// Copies the headers that are forwarded.
pub(super) fn copy_headers<'a>(
    headers: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    omitted: &[&str],
) -> Vec<u8> {
    let connection = headers.clone().filter(|(name, _)| name.eq_ignore_ascii_case(b"connection"));
    let listed: Vec<&[u8]> = connection.flat_map(|(_, value)| list_elements(value)).collect();
    let mut lines = Vec::with_capacity(512);
    for (name, value) in headers {
        let is_listed = listed.iter().any(|option| option.eq_ignore_ascii_case(name));
        if !is_listed && !is_one_of(name, &HOP_BY_HOP) && !is_one_of(name, omitted) {
            push_line(&mut lines, name, value);
        }
    }
    lines
}

/// Appends a header line, without checks.
pub(super) fn push_line(lines: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        lines.extend_from_slice(part);
    }
}

/// Removes all header lines with this name, which mostly are none.
pub(super) fn remove_lines(lines: &mut Vec<u8>, name: &[u8]) {
    let mut start = 0;
    while let Some(length) = memchr::memchr(b'\n', &lines[start..]) {
        let (line, end) = (&lines[start..start + length], start + length + 1);
        let is_named = line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name);
        if is_named {
            lines.drain(start..end);
        } else {
            start = end;
        }
    }
}

/// Creates the response of this server that forwards a response with this head. The body is added by the caller.
pub(super) fn response(status: StatusCode, head: &[u8]) -> Response {
    let headers: Vec<_> = ResponseReader::headers(head).collect();
    Response::from_lines(status, copy_headers(headers.iter().copied(), &RESPONSE_ONLY), Bytes::new())
}

/// Returns the names in the Trailer header, except those that are not allowed as trailers.
pub(super) fn trailer_names<'a>(headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<String> {
    let names = headers.filter(|(name, _)| name.eq_ignore_ascii_case(b"trailer"));
    let names = names.flat_map(|(_, value)| list_elements(value)).filter_map(|name| std::str::from_utf8(name).ok());
    names.filter(|name| Trailers::new().push(name, "").is_ok()).map(str::to_owned).collect()
}

/// Returns the trailers that may be forwarded.
pub(super) fn valid_trailers(lines: &[u8]) -> Trailers {
    let mut trailers = Trailers::new();
    for (name, value) in Trailers::received(lines).iter() {
        // Those that are not allowed as trailers are omitted (RFC 9110 section 6.5.1).
        let _ = trailers.push(name, value);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_connection_are_not_forwarded() {
        let head =
            b"HTTP/1.1 200 OK\r\nConnection: close, X-Own\r\nx-own: 1\r\nKeep-Alive: 5\r\nTE: a\r\nUpgrade: b\r\n\
            Transfer-Encoding: chunked\r\nTrailer: X-T, Host, X-U\r\nProxy-Connection: c\r\nDate: d\r\nServer: e\r\nA: 1\r\n\
            Content-Type: text/plain\r\nA: 2\r\n\r\n";
        let headers: Vec<_> = ResponseReader::headers(head).collect();
        let lines = copy_headers(headers.iter().copied(), &RESPONSE_ONLY);
        assert_eq!(String::from_utf8(lines).unwrap(), "A: 1\r\nContent-Type: text/plain\r\nA: 2\r\n");
        let mut lines = b"A: 1\r\nAb: 2\r\na: 3\r\nB: a\r\nA:\r\n".to_vec();
        remove_lines(&mut lines, b"a");
        assert_eq!(String::from_utf8(lines).unwrap(), "Ab: 2\r\nB: a\r\n");
        assert_eq!(trailer_names(ResponseReader::headers(head)), ["X-T", "X-U"]);
    }
}
