//! The client's side: reads one response (RFC 9112 sections 4 and 6.3), to a GET.
//!
//! Interim responses (1xx) are skipped. What the RFC leaves to the recipient is settled on the strict side: folded
//! lines, Transfer-Encoding together with Content-Length and differing Content-Length values are faults, and so is a
//! body that ends before its time.

use std::fmt;

use super::body::{Body, Piece};
use super::head::{Framing, VALUE, elements, is_token, trim};
use super::{Error, Limits};

/// Interim responses before the final one: nobody sends more than a few.
const INTERIM_MAX: u8 = 16;

/// What is wrong with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseFault {
    /// It does not begin with a status line.
    NotHttp,
    /// Another version than HTTP/1.0 or HTTP/1.1.
    Version,
    /// A field line is malformed.
    Field,
    /// The head is larger, or has more fields, than [`Limits`] allow.
    HeadTooLarge,
    /// Content-Length or Transfer-Encoding is malformed, or they contradict each other.
    Framing,
    /// A protocol nobody asked for (101), or interim responses without end.
    Interim,
    /// The chunks of the body are malformed, or the body is too large.
    Body(Error),
    /// The connection ended within the response.
    Truncated,
}

impl fmt::Display for ResponseFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            ResponseFault::NotHttp => "it does not begin with an HTTP status line",
            ResponseFault::Version => "its version is neither HTTP/1.0 nor HTTP/1.1",
            ResponseFault::Field => "a field line is malformed",
            ResponseFault::HeadTooLarge => "the head is too large",
            ResponseFault::Framing => "Content-Length or Transfer-Encoding is wrong",
            ResponseFault::Interim => "it switches protocols, or sends interim responses without end",
            ResponseFault::Body(error) => error.text(),
            ResponseFault::Truncated => "the connection was closed before the response was whole",
        })
    }
}

impl std::error::Error for ResponseFault {}

/// What a stretch of a response was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseEvent<'a> {
    /// Call again with what is left of the input and more.
    NeedMore,
    /// The final head is whole.
    Head {
        /// The status code, from 200 to 999.
        status: u16,
        /// The status line, without its end.
        line: &'a [u8],
        /// All of the head, with the empty line.
        head: &'a [u8],
    },
    /// A stretch of the body, decoded.
    Body(&'a [u8]),
    /// The response is whole.
    End,
}

#[derive(Debug)]
enum State {
    /// How far the end of the head has been looked for.
    Head(usize),
    Body(Body),
    /// The body lasts until the connection ends (RFC 9112 section 6.3, rule 8).
    UntilClose,
    Done,
}

/// Reads one response, whatever the pieces it comes in.
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
/// # Ok::<(), serverd::http1::ResponseFault>(())
/// ```
#[derive(Debug)]
pub struct ResponseReader {
    limits: Limits,
    state: State,
    interim: u8,
}

impl ResponseReader {
    /// A reader before the first octet.
    pub fn new(limits: Limits) -> Self {
        ResponseReader { limits, state: State::Head(0), interim: 0 }
    }

    /// Reads on in `input`, which begins with what was not used before. Returns how much of it is done with, and
    /// what it was.
    ///
    /// # Errors
    /// The server's fault; the reader is of no use after it.
    pub fn receive<'a>(&mut self, input: &'a [u8]) -> Result<(usize, ResponseEvent<'a>), ResponseFault> {
        match &mut self.state {
            State::Head(_) => self.receive_head(input),
            State::Body(body) => {
                let (used, piece) = body.decode(input, &self.limits).map_err(ResponseFault::Body)?;
                let event = match piece {
                    Piece::More => ResponseEvent::NeedMore,
                    Piece::Data(bytes) => ResponseEvent::Body(bytes),
                    Piece::End => {
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

    /// The connection ended.
    ///
    /// # Errors
    /// [`ResponseFault::Truncated`] where that was before the response was whole.
    pub fn finish(&self) -> Result<(), ResponseFault> {
        match self.state {
            State::UntilClose | State::Done => Ok(()),
            _ => Err(ResponseFault::Truncated),
        }
    }

    fn receive_head<'a>(&mut self, input: &'a [u8]) -> Result<(usize, ResponseEvent<'a>), ResponseFault> {
        let mut start = 0;
        loop {
            let rest = &input[start..];
            check_beginning(rest)?;
            let State::Head(searched) = &mut self.state else { return Ok((start, ResponseEvent::NeedMore)) };
            let Some(end) = end_of_head(rest, searched) else {
                if rest.len() > self.limits.head_bytes_max() {
                    return Err(ResponseFault::HeadTooLarge);
                }
                return Ok((start, ResponseEvent::NeedMore));
            };
            let head = &rest[..end];
            if end > self.limits.head_bytes_max() {
                return Err(ResponseFault::HeadTooLarge);
            }
            let (status, line) = status_line(head)?;
            if (200..=999).contains(&status) {
                self.state = match body_framing(status, head, &self.limits)? {
                    Some(framing) => State::Body(Body::new(framing, u64::MAX).map_err(ResponseFault::Body)?),
                    None => State::UntilClose,
                };
                return Ok((start + end, ResponseEvent::Head { status, line, head }));
            }
            self.interim += 1;
            if status == 101 || self.interim > INTERIM_MAX {
                return Err(ResponseFault::Interim);
            }
            fields(head).try_for_each(|field| field.map(drop))?;
            self.state = State::Head(0);
            start += end;
        }
    }
}

/// Refuses at once what can be no status line, so that a wrong server is told from a slow one.
fn check_beginning(bytes: &[u8]) -> Result<(), ResponseFault> {
    let expected = b"HTTP/";
    let seen = bytes.len().min(expected.len());
    if bytes[..seen] == expected[..seen] { Ok(()) } else { Err(ResponseFault::NotHttp) }
}

/// The offset behind the empty line. Lines end in CRLF or LF; `searched` remembers where to go on.
fn end_of_head(bytes: &[u8], searched: &mut usize) -> Option<usize> {
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

fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split(|&byte| byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .take_while(|line| !line.is_empty())
}

/// `HTTP-version SP status-code [ SP [ reason-phrase ] ]`; the space before an absent reason is often forgotten.
fn status_line(head: &[u8]) -> Result<(u16, &[u8]), ResponseFault> {
    let line = lines(head).next().ok_or(ResponseFault::NotHttp)?;
    let (version, rest) = line.split_at_checked(8).ok_or(ResponseFault::NotHttp)?;
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => {}
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err(ResponseFault::Version);
        }
        _ => return Err(ResponseFault::NotHttp),
    }
    let [b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..] = rest else {
        return Err(ResponseFault::NotHttp);
    };
    if !matches!(reason, [] | [b' ', ..]) || !reason.iter().all(|&byte| VALUE[byte as usize]) {
        return Err(ResponseFault::NotHttp);
    }
    let digit = |byte: &u8| u16::from(byte - b'0');
    Ok((digit(a) * 100 + digit(b) * 10 + digit(c), line))
}

fn fields(head: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), ResponseFault>> {
    lines(head).skip(1).map(|line| {
        let colon = memchr::memchr(b':', line).ok_or(ResponseFault::Field)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if !is_token(name) || !value.iter().all(|&byte| VALUE[byte as usize]) {
            return Err(ResponseFault::Field);
        }
        Ok((name, value))
    })
}

/// RFC 9112 section 6.3. `None`: until the connection ends.
fn body_framing(status: u16, head: &[u8], limits: &Limits) -> Result<Option<Framing>, ResponseFault> {
    let (mut length, mut chunked, mut coded) = (None, false, false);
    for (count, field) in fields(head).enumerate() {
        let (name, value) = field?;
        if count >= limits.fields_max {
            return Err(ResponseFault::HeadTooLarge);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let number = content_length(value)?;
            if length.is_some_and(|known| known != number) {
                return Err(ResponseFault::Framing);
            }
            length = Some(number);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            for coding in elements(value) {
                // Once chunked, nothing may follow.
                if chunked {
                    return Err(ResponseFault::Framing);
                }
                coded = true;
                chunked = coding.eq_ignore_ascii_case(b"chunked");
            }
        }
    }
    if status == 204 || status == 304 {
        return Ok(Some(Framing::None));
    }
    match (coded, length) {
        (true, Some(_)) => Err(ResponseFault::Framing),
        (true, None) => Ok(chunked.then_some(Framing::Chunked)),
        (false, Some(0)) => Ok(Some(Framing::None)),
        (false, Some(length)) => Ok(Some(Framing::Length(length))),
        (false, None) => Ok(None),
    }
}

fn content_length(value: &[u8]) -> Result<u64, ResponseFault> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(ResponseFault::Framing);
    }
    let digits: &str = std::str::from_utf8(value).map_err(|_| ResponseFault::Framing)?;
    digits.parse().map_err(|_| ResponseFault::Framing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a whole response in pieces of `step` octets: the status, the body, and whether it came to its end.
    fn read(input: &[u8], step: usize) -> Result<(u16, Vec<u8>, bool), ResponseFault> {
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
        // A body of no octets ends without any more input.
        if let (_, ResponseEvent::End) = reader.receive(&buffer)? {
            return Ok((status, body, true));
        }
        reader.finish().map(|()| (status, body, false))
    }

    fn read_both(input: &str) -> Result<(u16, String, bool), ResponseFault> {
        let whole = read(input.as_bytes(), input.len().max(1));
        assert_eq!(read(input.as_bytes(), 1), whole, "{input}");
        whole.map(|(status, body, end)| (status, String::from_utf8(body).unwrap(), end))
    }

    #[test]
    fn bodies_are_delimited_by_length_by_chunks_and_by_the_end() {
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
    fn interim_responses_are_skipped_within_bounds() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
        let last = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(read_both(&format!("{interim}{last}")), Ok((404, String::new(), true)));
        assert_eq!(read_both(&format!("{}{last}", interim.repeat(9))), Err(ResponseFault::Interim));
        assert_eq!(read_both("HTTP/1.1 101 Switching Protocols\r\n\r\n"), Err(ResponseFault::Interim));
    }

    #[test]
    fn faults_are_told() {
        for (input, fault) in [
            ("SSH-2.0-OpenSSH\r\n", ResponseFault::NotHttp),
            ("HTTP/1.1 20 OK\r\n\r\n", ResponseFault::NotHttp),
            ("HTTP/1.1  200 OK\r\n\r\n", ResponseFault::NotHttp),
            ("HTTP/1.1 2000\r\n\r\n", ResponseFault::NotHttp),
            ("HTTP/1.1 200 a\x1bb\r\n\r\n", ResponseFault::NotHttp),
            ("HTTP/2.0 200 OK\r\n\r\n", ResponseFault::Version),
            ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", ResponseFault::Field),
            ("HTTP/1.1 200 OK\r\na : b\r\n\r\n", ResponseFault::Field),
            ("HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n", ResponseFault::Field),
            ("HTTP/1.1 200 OK\r\na: \x07\r\n\r\n", ResponseFault::Field),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", ResponseFault::Framing),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ResponseFault::Framing),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", ResponseFault::Framing),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", ResponseFault::Framing),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz", ResponseFault::Body(Error::ChunkSize)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", ResponseFault::Truncated),
            ("HTTP/1.1 200 OK\r\n", ResponseFault::Truncated),
            ("", ResponseFault::Truncated),
        ] {
            assert_eq!(read_both(input), Err(fault), "{input:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\na: {}", "x".repeat(70_000));
        assert_eq!(read(endless.as_bytes(), 4096), Err(ResponseFault::HeadTooLarge));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
        assert_eq!(read(many.as_bytes(), 4096), Err(ResponseFault::HeadTooLarge));
    }
}
