//! The head of a response, from parts that are ready.
//!
//! The head of a 200 stands ready in one block: status line, Server, Date, and the Content-Type and Content-Length that
//! were used last. What differs in the next one is written over; then it is one copy.

use std::io::Write;

use http::StatusCode;

/// What the connection is to hear about itself (RFC 9112 section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// HTTP/1.1 goes on without a word.
    Silent,
    /// HTTP/1.0 that asked for it is told that the connection goes on.
    KeepAlive,
    /// This is the last response.
    Close,
}

/// How the length of a response is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// By Content-Length.
    Known(u64),
    /// By chunks (RFC 9112 section 7.1); only for HTTP/1.1.
    Chunked,
    /// Not at all: by the close of the connection for HTTP/1.0; 1xx, 204, 304, and 2xx to CONNECT (RFC 9110 section 8.6).
    Untold,
}

const OK_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";
const SERVER: &[u8] = b"Server: serverd\r\nDate: ";
const DATE_LEN: usize = "Sun, 06 Nov 1994 08:49:37 GMT".len();
/// Where the line of the date ends, with its CRLF.
const DATE_END: usize = OK_LINE.len() + SERVER.len() + DATE_LEN + 2;
const CONTENT_LENGTH: &[u8] = b"Content-Length: ";
/// The interim response that asks for the body (RFC 9110 section 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a response head says.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    /// The status.
    pub status: StatusCode,
    /// The Content-Type, if there is one.
    pub content_type: Option<&'static str>,
    /// Whole, checked field lines.
    pub fields: &'a [u8],
    /// More of them.
    pub shared: &'a [u8],
    /// How the length is told.
    pub length: Length,
    /// What becomes of the connection.
    pub persistence: Persistence,
}

/// Writes response heads; one per thread.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// `OK_LINE`, `SERVER`, the date, CRLF; then the Content-Type and the Content-Length of the last 200, and the end.
    block: Vec<u8>,
    content_type: Option<&'static str>,
    /// The Content-Length in the block, and where its number begins.
    length: u64,
    length_start: usize,
    /// The second whose date stands in the block.
    second: u64,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An encoder that has not seen a clock yet.
    pub fn new() -> Self {
        let block = [OK_LINE, SERVER, &[b'-'; DATE_LEN], b"\r\n"].concat();
        let mut encoder = Encoder { block, content_type: None, length: 0, length_start: 0, second: u64::MAX };
        encoder.render_date(0);
        encoder.render_content_type(None, 0);
        encoder
    }

    /// Appends a head to `out`. `now` is the calendar time in seconds since 1970.
    pub fn head(&mut self, out: &mut Vec<u8>, now: u64, head: &ResponseHead<'_>) {
        match head.length {
            Length::Known(length) if head.status == StatusCode::OK => {
                self.usual_head(out, now, head.content_type, length);
                if head.fields.is_empty() && head.shared.is_empty() && head.persistence == Persistence::Silent {
                    return;
                }
                out.truncate(out.len() - 2);
            }
            _ => self.unusual(out, now, head),
        }
        out.extend_from_slice(head.shared);
        out.extend_from_slice(head.fields);
        match head.persistence {
            Persistence::Silent => out.extend_from_slice(b"\r\n"),
            Persistence::KeepAlive => out.extend_from_slice(b"Connection: keep-alive\r\n\r\n"),
            Persistence::Close => out.extend_from_slice(b"Connection: close\r\n\r\n"),
        }
    }

    /// Appends the head that most responses have: 200 (OK), a length, on a connection that goes on, no further field.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    pub fn usual_head(&mut self, out: &mut Vec<u8>, now: u64, content_type: Option<&'static str>, length: u64) {
        if self.second != now {
            self.render_date(now);
        }
        if !is_same(self.content_type, content_type) {
            self.render_content_type(content_type, length);
        } else if self.length != length {
            self.render_length(length);
        }
        out.extend_from_slice(&self.block);
    }

    /// The lines of another status, or of another length, up to the length.
    fn unusual(&mut self, out: &mut Vec<u8>, now: u64, head: &ResponseHead<'_>) {
        if self.second != now {
            self.render_date(now);
        }
        status_line(out, head.status);
        out.extend_from_slice(&self.block[OK_LINE.len()..DATE_END]);
        if let Some(content_type) = head.content_type {
            content_type_line(out, content_type);
        }
        match head.length {
            Length::Known(length) => {
                out.extend_from_slice(CONTENT_LENGTH);
                decimal_line(out, length);
            }
            Length::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            Length::Untold => {}
        }
    }

    #[cold]
    fn render_date(&mut self, now: u64) {
        self.second = now;
        // The format has four digits for the year (RFC 9110 section 5.6.7), and httpdate insists.
        let last = 253_402_300_799;
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(now.min(last));
        let start = OK_LINE.len() + SERVER.len();
        let mut place = &mut self.block[start..start + DATE_LEN];
        // In place, since a string would be an allocation; it fits, as the format has one length.
        let written = write!(place, "{}", httpdate::HttpDate::from(time));
        debug_assert!(written.is_ok() && place.is_empty(), "a date has {DATE_LEN} octets");
    }

    #[cold]
    fn render_content_type(&mut self, content_type: Option<&'static str>, length: u64) {
        self.content_type = content_type;
        self.block.truncate(DATE_END);
        if let Some(content_type) = content_type {
            content_type_line(&mut self.block, content_type);
        }
        self.block.extend_from_slice(CONTENT_LENGTH);
        self.length_start = self.block.len();
        self.render_length(length);
    }

    #[cold]
    fn render_length(&mut self, length: u64) {
        self.length = length;
        self.block.truncate(self.length_start);
        decimal_line(&mut self.block, length);
        self.block.extend_from_slice(b"\r\n");
    }
}

/// Whether both are the same constant; equal ones in two places count as different, which costs only time.
#[inline]
fn is_same(one: Option<&'static str>, other: Option<&'static str>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => std::ptr::eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

#[inline]
fn decimal_line(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn content_type_line(out: &mut Vec<u8>, content_type: &str) {
    out.extend_from_slice(b"Content-Type: ");
    out.extend_from_slice(content_type.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    // The space stands also where no reason follows (RFC 9112 section 4).
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: StatusCode, length: Length, persistence: Persistence) -> String {
        let mut out = Vec::new();
        let head = ResponseHead {
            status,
            content_type: Some("text/plain"),
            fields: b"A: b\r\n",
            shared: b"",
            length,
            persistence,
        };
        Encoder::new().head(&mut out, 784_111_777, &head);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_head_has_its_parts_in_order() {
        assert_eq!(
            head(StatusCode::OK, Length::Known(28), Persistence::Silent),
            "HTTP/1.1 200 OK\r\nServer: serverd\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             Content-Type: text/plain\r\nContent-Length: 28\r\nA: b\r\n\r\n"
        );
    }

    #[test]
    fn a_status_without_a_reason_keeps_its_space() {
        let text = head(StatusCode::from_u16(599).unwrap(), Length::Untold, Persistence::Close);
        assert!(text.starts_with("HTTP/1.1 599 \r\nServer: "), "{text}");
        assert!(text.ends_with("A: b\r\nConnection: close\r\n\r\n"), "{text}");
    }

    #[test]
    fn every_head_has_its_own_content_type() {
        let mut encoder = Encoder::new();
        let (length, persistence, fields) = (Length::Known(1), Persistence::Silent, &b""[..]);
        for content_type in [Some("text/html"), None, Some("text/css"), Some("text/html"), Some("text/html")] {
            let mut out = Vec::new();
            let head = ResponseHead { status: StatusCode::OK, content_type, fields, shared: b"", length, persistence };
            encoder.head(&mut out, 0, &head);
            let text = String::from_utf8(out).unwrap();
            let seen: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("Content-Type: ")).collect();
            assert_eq!(seen, content_type.into_iter().collect::<Vec<_>>());
            assert!(text.ends_with("Content-Length: 1\r\n\r\n"), "{text}");
        }
    }

    #[test]
    fn the_date_follows_the_clock() {
        let mut encoder = Encoder::new();
        for (now, date) in [(0, "Thu, 01 Jan 1970 00:00:00 GMT"), (1, "Thu, 01 Jan 1970 00:00:01 GMT")] {
            let mut out = Vec::new();
            let (length, persistence) = (Length::Known(0), Persistence::KeepAlive);
            let head = ResponseHead {
                status: StatusCode::OK,
                content_type: None,
                fields: b"",
                shared: b"",
                length,
                persistence,
            };
            encoder.head(&mut out, now, &head);
            assert!(String::from_utf8(out).unwrap().contains(date));
        }
        encoder.render_date(u64::MAX);
    }
}
