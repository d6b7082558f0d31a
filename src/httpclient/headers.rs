//! The headers of forwarded messages, without the hop-by-hop ones (RFC 9110 section 7.6.1).

use super::error::ClientError;
use crate::http1::{is_token, list_elements};
use crate::httpserver::{HeaderError, Trailers};

/// A set of names of headers.
pub(super) struct HeaderNames {
    names: &'static [&'static str],
    /// Bit `n` is set if some name has `n` bytes, so that most other names need no comparison.
    lengths: u32,
}

impl HeaderNames {
    pub(super) const fn new(names: &'static [&'static str]) -> Self {
        let (mut lengths, mut index) = (0, 0);
        while index < names.len() {
            lengths |= 1 << names[index].len();
            index += 1;
        }
        HeaderNames { names, lengths }
    }

    pub(super) fn contains(&self, name: &[u8]) -> bool {
        let may_contain = name.len() < 32 && self.lengths >> name.len() & 1 == 1;
        may_contain && self.names.iter().any(|own| name.eq_ignore_ascii_case(own.as_bytes()))
    }
}

/// Hop-by-hop headers, besides those that Connection lists.
const HOP_BY_HOP: HeaderNames = HeaderNames::new(&[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
]);

/// Headers of a request that are not copied but written anew.
pub(super) const REWRITTEN_IN_REQUEST: HeaderNames = HeaderNames::new(&["content-length", "expect", "host"]);

/// Headers of a response that are not copied but written anew. Date and Server are, see [`HeaderCopy::finish`].
pub(super) const REWRITTEN_IN_RESPONSE: HeaderNames = HeaderNames::new(&["content-length", "date", "server"]);

/// Memory reserved for the header lines of a response.
const LINES_BYTES: usize = 512;

/// Maximum options of the Connection header, and of the names in Trailer: each is compared with each header.
const OPTIONS_MAX: usize = 64;

/// Returns whether proxies pass on what they know about a client in this header. Underscores count as hyphens, since CGI and
/// similar interfaces make no difference between them.
pub(super) fn describes_client(name: &[u8]) -> bool {
    const PREFIX: &[u8] = b"x-forwarded-";
    const NAMES: [&[u8]; 4] = [b"forwarded", b"x-real-ip", b"x-client-ip", b"true-client-ip"];
    let is = |name: &[u8], own: &[u8]| {
        let normal = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
        name.len() == own.len() && name.iter().map(normal).eq(own.iter().copied())
    };
    name.get(..PREFIX.len()).is_some_and(|start| is(start, PREFIX)) || NAMES.iter().any(|own| is(name, own))
}

/// Appends the header lines that are forwarded.
pub(super) struct HeaderCopy<'l, 'a> {
    lines: &'l mut Vec<u8>,
    /// The offset of the first copied line.
    start: usize,
    omitted: &'static HeaderNames,
    /// The names that Connection lists, usually none; at most one more than [`OPTIONS_MAX`].
    listed: Vec<&'a [u8]>,
    /// The omitted Date, and the omitted Server.
    origin: (Option<&'a [u8]>, Option<&'a [u8]>),
}

impl<'l, 'a> HeaderCopy<'l, 'a> {
    pub(super) fn new(lines: &'l mut Vec<u8>, omitted: &'static HeaderNames) -> Self {
        HeaderCopy { start: lines.len(), lines, omitted, listed: Vec::new(), origin: (None, None) }
    }

    pub(super) fn push(&mut self, name: &'a [u8], value: &'a [u8]) {
        if HOP_BY_HOP.contains(name) {
            if name.eq_ignore_ascii_case(b"connection") {
                let options = list_elements(value).filter(|option| !HOP_BY_HOP.contains(option));
                let left = OPTIONS_MAX + 1 - self.listed.len();
                self.listed.extend(options.filter(|option| is_token(option)).take(left));
            }
        } else if !self.omitted.contains(name) {
            if self.lines.capacity() == 0 {
                self.lines.reserve(LINES_BYTES);
            }
            push_line(self.lines, name, value);
        } else if name.eq_ignore_ascii_case(b"date") {
            self.origin.0.get_or_insert(value);
        } else if name.eq_ignore_ascii_case(b"server") {
            self.origin.1.get_or_insert(value);
        }
    }

    /// Inserts the Date and Server of a response before the other lines, where they replace those of this server. Server
    /// is inserted only with Date. Removes the lines that Connection lists.
    ///
    /// # Errors
    /// Returns an error if it lists too many.
    pub(super) fn finish(self) -> Result<(), ClientError> {
        let listed = self.listed;
        if listed.len() > OPTIONS_MAX {
            return Err(ClientError::Header);
        }
        if let (Some(date), server) = self.origin {
            let mut first = Vec::new();
            push_line(&mut first, b"Date", date);
            if let Some(server) = server {
                push_line(&mut first, b"Server", server);
            }
            self.lines.splice(self.start..self.start, first);
        }
        if !listed.is_empty() {
            remove_lines(self.lines, self.start, |line| listed.iter().any(|name| is_line_of(line, name)));
        }
        Ok(())
    }
}

/// Appends a header line, without checks.
pub(super) fn push_line(lines: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    lines.reserve(name.len() + value.len() + 4);
    for part in [name, b": ", value, b"\r\n"] {
        lines.extend_from_slice(part);
    }
}

/// Returns whether this is a header line with this name.
pub(super) fn is_line_of(line: &[u8], name: &[u8]) -> bool {
    line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name)
}

/// Removes those of the lines from `start` on for which `is_removed` returns true.
pub(super) fn remove_lines(lines: &mut Vec<u8>, mut start: usize, is_removed: impl Fn(&[u8]) -> bool) {
    while let Some(length) = memchr::memchr(b'\n', &lines[start..]) {
        let end = start + length + 1;
        if is_removed(&lines[start..end]) {
            lines.drain(start..end);
        } else {
            start = end;
        }
    }
}

/// Returns the names in the Trailer header, except those that are not allowed as trailers.
pub(super) fn trailer_names<'a>(headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<String> {
    let names = headers.filter(|(name, _)| name.eq_ignore_ascii_case(b"trailer"));
    let names = names.flat_map(|(_, value)| list_elements(value)).filter_map(|name| std::str::from_utf8(name).ok());
    let allowed = names.take(OPTIONS_MAX).filter(|name| push_trailer(&mut Trailers::new(), name, b"").is_ok());
    allowed.map(str::to_owned).collect()
}

/// Adds a trailer if it may be forwarded as one. What an upstream may believe about a client only if a proxy says so is in
/// the head.
fn push_trailer(trailers: &mut Trailers, name: &str, value: &[u8]) -> Result<(), HeaderError> {
    if describes_client(name.as_bytes()) { Err(HeaderError::Trailer) } else { trailers.push(name, value) }
}

/// Returns the trailers that may be forwarded.
pub(super) fn valid_trailers(lines: &[u8]) -> Trailers {
    let mut trailers = Trailers::new();
    for (name, value) in Trailers::received(lines).iter() {
        // Those that are not allowed as trailers are omitted (RFC 9110 section 6.5.1).
        let _ = push_trailer(&mut trailers, name, value);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::ResponseReader;

    #[test]
    fn headers_of_the_connection_are_not_forwarded() {
        let head =
            b"HTTP/1.1 200 OK\r\nx-other: 2\r\nConnection: close, X-Own\r\nx-own: 1\r\nClose: c\r\n\
            Connection: keep-alive, X-Other, A: 1, \r\nKeep-Alive: 5\r\nTE: a\r\nUpgrade: b\r\n\
            Transfer-Encoding: chunked\r\nTrailer: X-T, Host, X-U\r\nProxy-Connection: c\r\nDate: d\r\nServer: e\r\nA: 1\r\n\
            Content-Type: text/plain\r\nA: 2\r\n\r\n";
        let mut lines = b"Close: before\r\n".to_vec();
        let mut copy = HeaderCopy::new(&mut lines, &REWRITTEN_IN_RESPONSE);
        ResponseReader::headers(head).for_each(|(name, value)| copy.push(name, value));
        copy.finish().unwrap();
        let expected = "Close: before\r\nDate: d\r\nServer: e\r\nA: 1\r\nContent-Type: text/plain\r\nA: 2\r\n";
        assert_eq!(String::from_utf8(lines).unwrap(), expected);
        assert_eq!(trailer_names(ResponseReader::headers(head)), ["X-T", "X-U"]);
    }

    #[test]
    fn many_connection_options_are_rejected() {
        for (lines, options, is_ok) in
            [(1, 64, true), (1, 65, false), (2, 32, true), (2, 33, false), (1, 30_000, false)]
        {
            let (mut copied, value) = (Vec::new(), vec!["a"; options].join(","));
            let mut copy = HeaderCopy::new(&mut copied, &REWRITTEN_IN_REQUEST);
            for _ in 0..lines {
                copy.push(b"Connection", value.as_bytes());
            }
            assert_eq!(copy.finish().is_ok(), is_ok, "{lines} x {options}");
        }
        let names = vec!["A"; 1000].join(",");
        assert_eq!(trailer_names([(&b"Trailer"[..], names.as_bytes())].into_iter()).len(), 64);
    }

    #[test]
    fn headers_about_the_client_are_recognised_however_they_are_written() {
        for name in
            ["Forwarded", "X-Forwarded-For", "x_forwarded_for", "X-FORWARDED_Port", "X-Real-IP", "True_Client-IP"]
        {
            assert!(describes_client(name.as_bytes()), "{name}");
            assert!(trailer_names([(&b"Trailer"[..], name.as_bytes())].into_iter()).is_empty(), "{name}");
        }
        for name in ["", "X-Forwarded", "Forwarded-For", "X-Real-IPs", "Via"] {
            assert!(!describes_client(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn lines_are_removed_by_their_names() {
        let removed = |start: usize, name: &str| {
            let mut lines = b"A: 1\r\nAb: 2\r\na: 3\r\nB: a\r\nA:\r\n".to_vec();
            remove_lines(&mut lines, start, |line| is_line_of(line, name.as_bytes()));
            String::from_utf8(lines).unwrap()
        };
        assert_eq!(removed(0, "a"), "Ab: 2\r\nB: a\r\n");
        assert_eq!(removed(6, "A"), "A: 1\r\nAb: 2\r\nB: a\r\n");
        assert_eq!(removed(0, "C"), "A: 1\r\nAb: 2\r\na: 3\r\nB: a\r\nA:\r\n");
    }

    #[test]
    fn names_are_compared_ignoring_case() {
        for name in HOP_BY_HOP.names {
            assert!(HOP_BY_HOP.contains(name.as_bytes()) && HOP_BY_HOP.contains(name.to_uppercase().as_bytes()));
        }
        for name in ["", "t", "ta", "connectioN1", "x-connection", &"x".repeat(32), &"x".repeat(33), &"x".repeat(300)] {
            assert!(!HOP_BY_HOP.contains(name.as_bytes()), "{name}");
        }
    }
}
