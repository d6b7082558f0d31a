//! Client-side parser for one response (RFC 9112 sections 4 and 6.3).
//!
//! Interim responses (1xx) are skipped. Where the RFC leaves a choice the parser is strict: folded lines,
//! Transfer-Encoding together with Content-Length or in HTTP/1.0, differing Content-Length values and a truncated body
//! are errors.

use std::fmt;

use super::body::{Body, Piece};
use super::error::{Error, Limits};
use super::head::Framing;
use super::syntax::{eq_lower, is_header_value, is_token, list_elements, split_field, trim};

/// Maximum number of interim responses before the final one; real servers send few.
const INTERIM_MAX: u8 = 16;

/// An error in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseError {
    /// The response does not begin with a status line.
    NotHttp,
    /// The major version is not 1.
    Version,
    /// A header line is malformed.
    Header,
    /// The head exceeds `head_bytes_max` or `headers_max` of [`Limits`].
    HeadTooLarge,
    /// Content-Length or Transfer-Encoding is malformed, or they conflict.
    Framing,
    /// An unsolicited protocol switch (101), or too many interim responses.
    Interim,
    /// The chunked framing of the body is malformed.
    Body(Error),
    /// The connection closed before the response was complete.
    Truncated,
}

impl fmt::Display for ResponseError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            ResponseError::NotHttp => "the response does not begin with an HTTP status line",
            ResponseError::Version => "the major version of HTTP is not 1",
            ResponseError::Header => "malformed header line",
            ResponseError::HeadTooLarge => "response head too large",
            ResponseError::Framing => "malformed or conflicting Content-Length and Transfer-Encoding",
            ResponseError::Interim => "unsolicited protocol switch or too many interim responses",
            ResponseError::Body(error) => error.text(),
            ResponseError::Truncated => "the connection was closed before the response was complete",
        })
    }
}

impl std::error::Error for ResponseError {}

/// The result of parsing a piece of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseEvent<'a> {
    /// More input is needed. Call again with the unconsumed input followed by new bytes.
    NeedMore,
    /// The head of the final response is complete.
    Head {
        /// The status code, from 200 to 999.
        status: u16,
        /// The status line, without its line ending.
        line: &'a [u8],
        /// The complete head, including the final empty line.
        head: &'a [u8],
    },
    /// A piece of the body, with the chunked coding removed.
    Body(&'a [u8]),
    /// The response is complete.
    End,
}

#[derive(Debug)]
enum State {
    /// In a head: the offset up to which the input has been searched for the end of the head.
    Head(usize),
    Body(Body),
    /// The body ends when the connection closes (RFC 9112 section 6.3, rule 8).
    UntilClose,
    Done,
}

/// Incremental parser for one response, for use in a client.
///
/// # Examples
/// ```
/// use serverd::http1::{Limits, ResponseEvent, ResponseReader};
///
/// let mut reader = ResponseReader::new(Limits::default());
/// let input = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
/// let (used, event) = reader.receive(input)?;
/// assert!(matches!(event, ResponseEvent::Head { status: 200, line: b"HTTP/1.1 200 OK", .. }));
/// let (more, event) = reader.receive(&input[used..])?;
/// assert_eq!(event, ResponseEvent::Body(b"hi"));
/// assert_eq!(reader.receive(&input[used + more..])?, (0, ResponseEvent::End));
/// # Ok::<(), serverd::http1::ResponseError>(())
/// ```
#[derive(Debug)]
pub struct ResponseReader {
    limits: Limits,
    state: State,
    interim: u8,
    /// The request had the method HEAD: the response has no content.
    is_head: bool,
    facts: Facts,
    trailers: Vec<u8>,
}

/// The properties of the final response that its head determines.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    /// The value of Content-Length.
    length: Option<u64>,
    chunked: bool,
    /// There is a transfer coding other than chunked.
    is_coded: bool,
    /// The connection persists after the response, if its end is known.
    persists: bool,
}

impl ResponseReader {
    /// Creates a reader for the response to a request with a method other than HEAD and CONNECT.
    pub fn new(limits: Limits) -> Self {
        let (facts, trailers) = (Facts::default(), Vec::new());
        ResponseReader { limits, state: State::Head(0), interim: 0, is_head: false, facts, trailers }
    }

    /// Sets the method of the request: the response to HEAD has no content, whatever its headers declare.
    ///
    /// # Examples
    /// ```
    /// use serverd::http1::{Limits, ResponseEvent, ResponseReader};
    ///
    /// let mut reader = ResponseReader::new(Limits::default()).method("HEAD");
    /// let (used, _) = reader.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")?;
    /// assert_eq!((reader.receive(b"")?, reader.content_length()), ((0, ResponseEvent::End), Some(2)));
    /// # Ok::<(), serverd::http1::ResponseError>(())
    /// ```
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        ResponseReader { is_head: method == "HEAD", ..self }
    }

    /// Returns the value of Content-Length, once the head is complete.
    pub fn content_length(&self) -> Option<u64> {
        self.facts.length
    }

    /// Returns whether the content has a transfer coding other than chunked, which is not removed.
    pub fn is_coded(&self) -> bool {
        self.facts.is_coded
    }

    /// Returns whether the response is complete and another request may follow on the connection.
    pub fn is_reusable(&self) -> bool {
        matches!(self.state, State::Done) && self.facts.persists
    }

    /// Returns the trailer lines, each ending in CRLF, once the response is complete.
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Returns the names and values of the headers in the head of [`ResponseEvent::Head`], in order.
    pub fn headers(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
        Fields::of(head).filter_map(Result::ok)
    }

    /// Parses `input`, which must begin with the bytes the previous call did not consume. Returns the number of bytes
    /// consumed and an event.
    ///
    /// # Errors
    /// Returns an error if the response is malformed or exceeds a limit. The reader must not be used afterwards.
    pub fn receive<'a>(&mut self, input: &'a [u8]) -> Result<(usize, ResponseEvent<'a>), ResponseError> {
        self.receive_and_visit(input, |_, _| {})
    }

    /// Parses `input` as [`ResponseReader::receive`] does, and calls `visit` with the name and value of each header of the
    /// final response while its head is parsed. If an error follows, the headers must not be used.
    pub(crate) fn receive_and_visit<'a>(
        &mut self,
        input: &'a [u8],
        visit: impl FnMut(&'a [u8], &'a [u8]),
    ) -> Result<(usize, ResponseEvent<'a>), ResponseError> {
        match &mut self.state {
            State::Head(_) => self.receive_head(input, visit),
            State::Body(body) => {
                let (used, piece) = body.decode(input, &self.limits).map_err(ResponseError::Body)?;
                let event = match piece {
                    Piece::NeedMore => ResponseEvent::NeedMore,
                    Piece::Data(bytes) => ResponseEvent::Body(bytes),
                    Piece::End => {
                        self.trailers = body.take_trailers();
                        self.state = State::Done;
                        ResponseEvent::End
                    }
                };
                Ok((used, event))
            }
            State::UntilClose if input.is_empty() => Ok((0, ResponseEvent::NeedMore)),
            State::UntilClose => Ok((input.len(), ResponseEvent::Body(input))),
            State::Done => Ok((0, ResponseEvent::End)),
        }
    }

    /// Checks that the response is complete. Call this when the server has closed the connection.
    ///
    /// # Errors
    /// Returns [`ResponseError::Truncated`] if the response is incomplete.
    pub fn finish(&self) -> Result<(), ResponseError> {
        match self.state {
            State::UntilClose | State::Done => Ok(()),
            _ => Err(ResponseError::Truncated),
        }
    }

    fn receive_head<'a>(
        &mut self,
        input: &'a [u8],
        visit: impl FnMut(&'a [u8], &'a [u8]),
    ) -> Result<(usize, ResponseEvent<'a>), ResponseError> {
        let mut start = 0;
        loop {
            let rest = &input[start..];
            check_prefix(rest)?;
            let State::Head(searched) = &mut self.state else { return Ok((start, ResponseEvent::NeedMore)) };
            let Some(end) = head_end(rest, searched) else {
                if rest.len() > self.limits.head_bytes_capped() {
                    return Err(ResponseError::HeadTooLarge);
                }
                return Ok((start, ResponseEvent::NeedMore));
            };
            let head = &rest[..end];
            if end > self.limits.head_bytes_capped() {
                return Err(ResponseError::HeadTooLarge);
            }
            let (status, line) = status_line(head)?;
            if (200..=999).contains(&status) {
                self.facts = read_facts(head, &self.limits, visit)?;
                self.state = match body_framing(status, self.is_head, self.facts)? {
                    Some(framing) => State::Body(Body::new(framing, u64::MAX).map_err(ResponseError::Body)?),
                    None => State::UntilClose,
                };
                return Ok((start + end, ResponseEvent::Head { status, line, head }));
            }
            self.interim += 1;
            if status == 101 || self.interim > INTERIM_MAX {
                return Err(ResponseError::Interim);
            }
            Fields::of(head).try_for_each(|field| field.map(drop))?;
            self.state = State::Head(0);
            start += end;
        }
    }
}

/// Rejects input that cannot be a status line as soon as possible, to distinguish a server that speaks another protocol
/// from a slow one.
fn check_prefix(bytes: &[u8]) -> Result<(), ResponseError> {
    let expected = b"HTTP/";
    let seen = bytes.len().min(expected.len());
    if bytes[..seen] == expected[..seen] { Ok(()) } else { Err(ResponseError::NotHttp) }
}

/// Returns the offset after the empty line that ends the head. Lines end in CRLF or LF. `searched` is the offset at
/// which to resume the search, and is updated.
fn head_end(bytes: &[u8], searched: &mut usize) -> Option<usize> {
    while let Some(found) = memchr::memchr(b'\n', &bytes[*searched..]) {
        let end = *searched + found;
        let line = &bytes[..end];
        if line.ends_with(b"\n") || line.ends_with(b"\n\r") {
            return Some(end + 1);
        }
        *searched = end + 1;
    }
    *searched = bytes.len();
    None
}

/// Splits off the first line, without its line ending.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = match memchr::memchr(b'\n', bytes) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &b""[..]),
    };
    (line.strip_suffix(b"\r").unwrap_or(line), rest)
}

/// Parses `HTTP-version SP status-code [ SP [ reason-phrase ] ]`. Many servers omit the space if there is no reason
/// phrase.
fn status_line(head: &[u8]) -> Result<(u16, &[u8]), ResponseError> {
    let (line, _) = split_line(head);
    let (version, rest) = line.split_at_checked(8).ok_or(ResponseError::NotHttp)?;
    match version {
        // A later minor version is processed as 1.1 (RFC 9110 section 6.2).
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] if minor.is_ascii_digit() => {}
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err(ResponseError::Version);
        }
        _ => return Err(ResponseError::NotHttp),
    }
    let [b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..] = rest else {
        return Err(ResponseError::NotHttp);
    };
    if !matches!(reason, [] | [b' ', ..]) || !is_header_value(reason) {
        return Err(ResponseError::NotHttp);
    }
    let digit = |byte: &u8| u16::from(byte - b'0');
    Ok((digit(a) * 100 + digit(b) * 10 + digit(c), line))
}

/// The field lines of a head.
#[derive(Clone)]
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Returns the field lines after the status line of `head`.
    fn of(head: &'a [u8]) -> Self {
        Fields { rest: split_line(head).1 }
    }

    /// Parses a line that the fast path does not apply to.
    fn next_general(&mut self) -> Option<<Self as Iterator>::Item> {
        let (line, rest) = split_line(self.rest);
        self.rest = rest;
        if line.is_empty() {
            self.rest = b"";
            return None;
        }
        let Some(colon) = memchr::memchr(b':', line) else { return Some(Err(ResponseError::Header)) };
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        let is_valid = is_token(name) && is_header_value(value);
        Some(if is_valid { Ok((name, value)) } else { Err(ResponseError::Header) })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), ResponseError>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.rest;
        let Some(span) = split_field(line) else { return self.next_general() };
        self.rest = &line[span.value_end + 2..];
        Some(Ok((&line[..span.name_end], &line[span.value_start..span.value_end])))
    }
}

/// Reads the headers that determine the framing of the body and whether the connection persists.
fn read_facts<'a>(
    head: &'a [u8],
    limits: &Limits,
    mut visit: impl FnMut(&'a [u8], &'a [u8]),
) -> Result<Facts, ResponseError> {
    let is_http10 = head.starts_with(b"HTTP/1.0");
    let (mut facts, mut close, mut keep_alive) = (Facts::default(), false, false);
    for (count, field) in Fields::of(head).enumerate() {
        let (name, value) = field?;
        if count >= limits.headers_max {
            return Err(ResponseError::HeadTooLarge);
        }
        visit(name, value);
        match name.len() {
            14 if eq_lower(name, b"content-length") => {
                let number = content_length(value)?;
                if facts.length.is_some_and(|known| known != number) {
                    return Err(ResponseError::Framing);
                }
                facts.length = Some(number);
            }
            17 if eq_lower(name, b"transfer-encoding") => facts.read_codings(value, is_http10)?,
            10 if eq_lower(name, b"connection") => {
                close |= list_elements(value).any(|option| option.eq_ignore_ascii_case(b"close"));
                keep_alive |= list_elements(value).any(|option| option.eq_ignore_ascii_case(b"keep-alive"));
            }
            _ => {}
        }
    }
    facts.persists = !close && (keep_alive || !is_http10);
    Ok(facts)
}

impl Facts {
    /// Reads the value of a Transfer-Encoding header.
    fn read_codings(&mut self, value: &[u8], is_http10: bool) -> Result<(), ResponseError> {
        if is_http10 || list_elements(value).next().is_none() {
            return Err(ResponseError::Framing);
        }
        for coding in list_elements(value) {
            // chunked must be the last coding.
            if self.chunked {
                return Err(ResponseError::Framing);
            }
            self.chunked = coding.eq_ignore_ascii_case(b"chunked");
            self.is_coded |= !self.chunked;
        }
        Ok(())
    }
}

/// Determines how the body is delimited (RFC 9112 section 6.3). Returns `None` if the close of the connection ends it.
fn body_framing(status: u16, is_head: bool, facts: Facts) -> Result<Option<Framing>, ResponseError> {
    let has_coding = facts.chunked || facts.is_coded;
    match (has_coding, facts.length) {
        _ if is_head || status == 204 || status == 304 => Ok(Some(Framing::None)),
        (true, Some(_)) => Err(ResponseError::Framing),
        (true, None) => Ok(facts.chunked.then_some(Framing::Chunked)),
        (false, Some(0)) => Ok(Some(Framing::None)),
        (false, Some(length)) => Ok(Some(Framing::Length(length))),
        (false, None) => Ok(None),
    }
}

fn content_length(value: &[u8]) -> Result<u64, ResponseError> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(ResponseError::Framing);
    }
    let digits: &str = std::str::from_utf8(value).map_err(|_| ResponseError::Framing)?;
    digits.parse().map_err(|_| ResponseError::Framing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a response in pieces of `step` bytes. Returns the status, the body, and whether the body was delimited.
    fn read(input: &[u8], step: usize) -> Result<(u16, Vec<u8>, bool), ResponseError> {
        let mut reader = ResponseReader::new(Limits::default());
        let (mut status, mut body, mut buffer) = (0, Vec::new(), Vec::new());
        for piece in input.chunks(step) {
            buffer.extend_from_slice(piece);
            loop {
                let (used, event) = reader.receive(&buffer)?;
                match event {
                    ResponseEvent::NeedMore => {
                        buffer.drain(..used);
                        break;
                    }
                    ResponseEvent::Head { status: seen, .. } => status = seen,
                    ResponseEvent::Body(bytes) => body.extend_from_slice(bytes),
                    ResponseEvent::End => return Ok((status, body, true)),
                }
                buffer.drain(..used);
            }
        }
        // An empty body ends without further input.
        if let (_, ResponseEvent::End) = reader.receive(&buffer)? {
            return Ok((status, body, true));
        }
        reader.finish().map(|()| (status, body, false))
    }

    /// Reads a response at once and byte by byte, and compares the results.
    fn read_both(input: &str) -> Result<(u16, String, bool), ResponseError> {
        let at_once = read(input.as_bytes(), input.len().max(1));
        assert_eq!(read(input.as_bytes(), 1), at_once, "{input}");
        at_once.map(|(status, body, end)| (status, String::from_utf8(body).unwrap(), end))
    }

    #[test]
    fn bodies_are_delimited_by_length_chunks_or_close() {
        for (input, body, ends) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "hi", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length:2\r\n\r\nhi", "hi", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n", "hi!", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi", "hi", false),
            ("HTTP/1.0 200 OK\r\n\r\nhi", "hi", false),
            ("HTTP/1.1 200\n\nhi", "hi", false),
        ] {
            assert_eq!(read_both(input), Ok((200, body.into(), ends)), "{input}");
        }
        assert_eq!(read_both("HTTP/1.1 204 No\r\n\r\n"), Ok((204, String::new(), true)));
        assert_eq!(read_both("HTTP/1.1 304 \r\nContent-Length: 9\r\n\r\n"), Ok((304, String::new(), true)));
    }

    #[test]
    fn the_method_and_the_headers_decide_about_content_and_reuse() {
        for (method, input, length, reusable) in [
            ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Some(2), true),
            ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", Some(2), true),
            ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None, true),
            ("GET", "HTTP/1.1 200 OK\r\nConnection: a, Close\r\nContent-Length: 0\r\n\r\n", Some(0), false),
            ("GET", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", Some(0), false),
            ("GET", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", Some(0), true),
            ("GET", "HTTP/1.1 304 OK\r\n\r\n", None, true),
            ("GET", "HTTP/1.1 200 OK\r\n\r\nhi", None, false),
        ] {
            let mut reader = ResponseReader::new(Limits::default()).method(method);
            let mut at = 0;
            while at < input.len() {
                at += reader.receive(&input.as_bytes()[at..]).unwrap().0;
            }
            reader.receive(b"").unwrap();
            assert_eq!((reader.content_length(), reader.is_reusable()), (length, reusable), "{method} {input}");
        }
    }

    #[test]
    fn trailers_are_kept_apart_from_the_headers() {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nA: b \r\n\r\n";
        let mut reader = ResponseReader::new(Limits::default());
        assert!(matches!(reader.receive(head), Ok((_, ResponseEvent::Head { status: 200, .. }))));
        assert_eq!(ResponseReader::headers(head).last(), Some((&b"A"[..], &b"b"[..])));
        assert!(reader.is_coded() && reader.trailers().is_empty());
        assert_eq!(reader.receive(b"0\r\nX-T: v\r\n\r\n"), Ok((13, ResponseEvent::End)));
        assert_eq!(reader.trailers(), b"X-T: v\r\n");
    }

    #[test]
    fn interim_responses_are_skipped_within_bounds() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
        let last = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(read_both(&format!("{interim}{last}")), Ok((404, String::new(), true)));
        assert_eq!(read_both(&format!("{}{last}", interim.repeat(9))), Err(ResponseError::Interim));
        assert_eq!(read_both("HTTP/1.1 101 Switching Protocols\r\n\r\n"), Err(ResponseError::Interim));
    }

    #[test]
    fn malformed_responses_are_rejected() {
        for (input, error) in [
            ("SSH-2.0-OpenSSH\r\n", ResponseError::NotHttp),
            ("HTTP/1.1 20 OK\r\n\r\n", ResponseError::NotHttp),
            ("HTTP/1.1  200 OK\r\n\r\n", ResponseError::NotHttp),
            ("HTTP/1.1 2000\r\n\r\n", ResponseError::NotHttp),
            ("HTTP/1.1 200 a\x1bb\r\n\r\n", ResponseError::NotHttp),
            ("HTTP/2.0 200 OK\r\n\r\n", ResponseError::Version),
            ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", ResponseError::Header),
            ("HTTP/1.1 200 OK\r\na : b\r\n\r\n", ResponseError::Header),
            ("HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n", ResponseError::Header),
            ("HTTP/1.1 200 OK\r\na: \x07\r\n\r\n", ResponseError::Header),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 O\0K\r\n\r\n", ResponseError::NotHttp),
            ("HTTP/1.1 200 O\rK\r\n\r\n", ResponseError::NotHttp),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: \r\n\r\n", ResponseError::Framing),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ResponseError::Framing),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz", ResponseError::Body(Error::ChunkSize)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", ResponseError::Truncated),
            ("HTTP/1.1 200 OK\r\n", ResponseError::Truncated),
            ("", ResponseError::Truncated),
        ] {
            assert_eq!(read_both(input), Err(error), "{input:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\na: {}", "x".repeat(70_000));
        assert_eq!(read(endless.as_bytes(), 4096), Err(ResponseError::HeadTooLarge));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
        assert_eq!(read(many.as_bytes(), 4096), Err(ResponseError::HeadTooLarge));
    }

    /// Reads a response with one more header line at the end of a head, and further on. Returns the header, and checks that
    /// its place does not matter.
    fn header_of(line: &str) -> Result<(Vec<u8>, Vec<u8>), ResponseError> {
        let place = |before: &str, after: &str| {
            let input = format!("HTTP/1.1 200 OK\r\n{before}{line}{after}Content-Length: 0\r\n\r\n");
            let at_once = read(input.as_bytes(), input.len());
            assert_eq!(read(input.as_bytes(), 1), at_once, "{input:?}");
            at_once?;
            let headers: Vec<_> = ResponseReader::headers(input.as_bytes()).collect();
            let (name, value) = headers[usize::from(!before.is_empty())];
            assert_eq!(headers.last(), Some(&(&b"Content-Length"[..], &b"0"[..])), "{input:?}");
            Ok((name.to_vec(), value.to_vec()))
        };
        let found = place("", "");
        for (before, after) in [("A: b\r\n", ""), ("", "A: b\r\n"), ("A: b\n", "B: a line longer than one block\r\n")] {
            assert_eq!(place(before, after), found, "{line:?}");
        }
        let at_end = format!("HTTP/1.1 204 No Content\r\n{line}\r\n");
        assert_eq!(read(at_end.as_bytes(), at_end.len()).err(), found.as_ref().err().copied(), "{line:?}");
        found
    }

    #[test]
    fn header_lines_are_split_alike_wherever_they_are() {
        let long = "x".repeat(100);
        for (line, name, value) in [
            ("Server: nginx\r\n", "Server", "nginx"),
            ("Server:nginx\r\n", "Server", "nginx"),
            ("Server: nginx\n", "Server", "nginx"),
            ("Server:  nginx \t\r\n", "Server", "nginx"),
            ("Server:\tnginx/1.22 (Debian)\r\n", "Server", "nginx/1.22 (Debian)"),
            ("X-Empty:\r\n", "X-Empty", ""),
            ("X-Empty: \n", "X-Empty", ""),
            ("X-Colons:: a:b:\r\n", "X-Colons", ": a:b:"),
            ("X_1.2~!#$%&'*+^`|: a\tb\r\n", "X_1.2~!#$%&'*+^`|", "a\tb"),
            ("X-Text: \u{e9}\r\n", "X-Text", "\u{e9}"),
            ("a:b\r\n", "a", "b"),
            (&format!("{long}: {long}\r\n"), &long, &long),
            (&format!("{long}: {long} \u{e9}\n"), &long, &format!("{long} \u{e9}")),
        ] {
            assert_eq!(header_of(line), Ok((name.into(), value.into())), "{line:?}");
        }
    }

    #[test]
    fn malformed_header_lines_are_rejected_wherever_they_are() {
        for line in [
            ": a\r\n",
            " A: b\r\n",
            "\tA: b\r\n",
            " folded value of the previous line\r\n",
            "A : b\r\n",
            "A\t: b\r\n",
            "A b: c\r\n",
            "no-colon\r\n",
            "no-colon-in-a-line-longer-than-one-block\n",
            "A: b\0c\r\n",
            "A\0: b\r\n",
            "A: b\x7f\r\n",
            "A: b\x1b[31m, in a line longer than one block\r\n",
            "A: b\rc\r\n",
            "A: b\r\r\n",
            "A: b\rB: c\n",
            "A\r: b\r\n",
            "\rA: b\r\n",
            "A\u{e9}: b\r\n",
            "(A): b\r\n",
            "A;b: c\r\n",
        ] {
            assert_eq!(header_of(line), Err(ResponseError::Header), "{line:?}");
        }
    }

    #[test]
    fn limits_are_exact() {
        let limits = Limits::default().head_bytes_max(100).headers_max(2);
        let result = |input: &str| ResponseReader::new(limits.clone()).receive(input.as_bytes()).map(|(used, _)| used);
        let head = |bytes: usize| format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "b".repeat(bytes - 24));
        assert_eq!(result(&head(100)), Ok(100));
        assert_eq!(result(&head(101)), Err(ResponseError::HeadTooLarge));
        assert_eq!(result(&head(102)[..100]), Ok(0));
        assert_eq!(result(&head(102)[..101]), Err(ResponseError::HeadTooLarge));
        assert!(result("HTTP/1.1 200 OK\r\na: b\r\nc: d\r\n\r\n").is_ok());
        assert_eq!(result("HTTP/1.1 200 OK\r\na: b\r\nc: d\r\ne: f\r\n\r\n"), Err(ResponseError::HeadTooLarge));
    }
}
