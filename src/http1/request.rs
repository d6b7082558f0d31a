//! Request head encoder for clients (RFC 9112 section 3).

use super::encode::{Length, Persistence, end_head, length_line};
use super::error::Error;
use super::syntax::{check_target, is_authority, is_token};

/// The head of a request to send. Its content follows, framed by [`SendFraming`](super::SendFraming).
///
/// # Examples
/// ```
/// use serverd::http1::{Length, RequestHead};
///
/// let mut output = Vec::new();
/// RequestHead::new("GET", "/a?b", "example.com").headers(b"Accept: */*\r\n").encode(&mut output)?;
/// assert_eq!(output, b"GET /a?b HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\n\r\n");
/// # Ok::<(), serverd::http1::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestHead<'a> {
    /// The method, such as `GET`.
    pub method: &'a str,
    /// The request target, usually a path and a query.
    pub target: &'a str,
    /// The value of the Host header: the host, and the port if it is not the default one.
    pub host: &'a str,
    /// Additional header lines, each ending in CRLF. They are not validated, and must not contain Host, Content-Length,
    /// Transfer-Encoding or Connection.
    pub headers: &'a [u8],
    /// The framing of the content.
    pub length: Length,
    /// The Connection header, which says whether the connection stays open.
    pub persistence: Persistence,
}

impl<'a> RequestHead<'a> {
    /// Creates the head of a request without content on a connection that stays open.
    pub fn new(method: &'a str, target: &'a str, host: &'a str) -> Self {
        let (length, persistence) = (Length::Unspecified, Persistence::Implicit);
        RequestHead { method, target, host, headers: b"", length, persistence }
    }

    setters! {
        headers: &'a [u8],
        length: Length,
        persistence: Persistence,
    }

    /// Appends the head to `out`.
    ///
    /// # Errors
    /// Returns an error, and appends nothing, if the method, the target or the host is invalid.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        check(self.method.as_bytes(), self.target.as_bytes(), self.host.as_bytes())?;
        for part in [self.method, " ", self.target, VERSION_AND_HOST, self.host, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(self.headers);
        length_line(out, self.length);
        end_head(out, self.persistence);
        Ok(())
    }
}

/// What is between the target and the value of Host.
const VERSION_AND_HOST: &str = " HTTP/1.1\r\nHost: ";

fn check(method: &[u8], target: &[u8], host: &[u8]) -> Result<(), Error> {
    if !is_token(method) {
        return Err(Error::Method);
    }
    check_target(method, target)?;
    if is_authority(host) { Ok(()) } else { Err(Error::Host) }
}

/// The head of a request that is written in the buffer from which it is sent, and validated at its end.
#[derive(Debug)]
pub(crate) struct RequestDraft {
    bytes: Vec<u8>,
    method_len: usize,
    target_len: usize,
    host_len: usize,
}

impl RequestDraft {
    /// Begins a head. The target consists of parts. `headers_bytes` is the expected size of further header lines.
    pub(crate) fn new(method: &[u8], target: &[&[u8]], host: &[u8], headers_bytes: usize) -> Self {
        let target_len = target.iter().map(|part| part.len()).sum();
        let fixed_bytes = method.len() + 1 + target_len + VERSION_AND_HOST.len() + host.len() + 2;
        let mut bytes = Vec::with_capacity(fixed_bytes + headers_bytes);
        for part in [method, b" "].iter().chain(target).chain(&[VERSION_AND_HOST.as_bytes(), host, b"\r\n"]) {
            bytes.extend_from_slice(part);
        }
        RequestDraft { bytes, method_len: method.len(), target_len, host_len: host.len() }
    }

    pub(crate) fn method(&self) -> &[u8] {
        &self.bytes[..self.method_len]
    }

    fn target(&self) -> &[u8] {
        &self.bytes[self.method_len + 1..][..self.target_len]
    }

    fn host_start(&self) -> usize {
        self.method_len + 1 + self.target_len + VERSION_AND_HOST.len()
    }

    /// Replaces the value of Host.
    pub(crate) fn set_host(&mut self, host: &str) {
        let start = self.host_start();
        self.bytes.splice(start..start + self.host_len, host.bytes());
        self.host_len = host.len();
    }

    /// Returns the head so far, and the offset at which the header lines after Host begin.
    pub(crate) fn lines(&mut self) -> (&mut Vec<u8>, usize) {
        let start = self.host_start() + self.host_len + 2;
        (&mut self.bytes, start)
    }

    /// Ends the head of a request on a connection that stays open.
    ///
    /// # Errors
    /// Returns an error if the method, the target or the host is invalid.
    pub(crate) fn finish(mut self, length: Length) -> Result<Vec<u8>, Error> {
        let start = self.host_start();
        check(self.method(), self.target(), &self.bytes[start..start + self.host_len])?;
        length_line(&mut self.bytes, length);
        end_head(&mut self.bytes, Persistence::Implicit);
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{Connection, Event, Framing, Head, Limits};

    #[test]
    fn an_encoded_head_is_parsed_with_the_same_meaning() {
        for (method, target, length, framing) in [
            ("GET", "/", Length::Unspecified, Framing::None),
            ("OPTIONS", "*", Length::Unspecified, Framing::None),
            ("POST", "/a?b=%20", Length::Known(0), Framing::None),
            ("PUT", "/a", Length::Known(12), Framing::Length(12)),
            ("X-ANY", "/", Length::Chunked, Framing::Chunked),
        ] {
            let mut bytes = Vec::new();
            let request = RequestHead::new(method, target, "a.test:81").headers(b"X-A: b\r\n").length(length);
            request.persistence(Persistence::Close).encode(&mut bytes).unwrap();
            let (mut connection, mut head) = (Connection::new(), Head::default());
            let (_, event) = connection.receive(&mut head, &Limits::default(), &bytes).unwrap();
            assert_eq!(event, Event::Head { len: bytes.len() });
            assert_eq!((head.method(&bytes), head.target(&bytes)), (method.as_bytes(), target.as_bytes()));
            assert_eq!((head.framing(), head.is_persistent()), (framing, false));
        }
    }

    #[test]
    fn nothing_is_appended_for_an_invalid_head() {
        for (method, target, host, error) in [
            ("", "/", "a", Error::Method),
            ("GET /", "/", "a", Error::Method),
            ("GET", "", "a", Error::Target),
            ("GET", "/ HTTP/1.1\r\nX: y", "a", Error::Target),
            ("GET", "*", "a", Error::Asterisk),
            ("GET", "/", "", Error::Host),
            ("GET", "/", "a\r\nX: y", Error::Host),
        ] {
            let mut bytes = Vec::new();
            assert_eq!(
                RequestHead::new(method, target, host).encode(&mut bytes),
                Err(error),
                "{method} {target} {host}"
            );
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn a_draft_becomes_the_same_head() {
        for (method, target, host, other, length) in [
            ("GET", ["/", "", ""], "a", "a.test:81", Length::Unspecified),
            ("POST", ["/a", "?", "b=c"], "a.test", "b", Length::Known(2)),
            ("X-ANY", ["*", "", ""], "", "a", Length::Chunked),
            ("GET /", ["/", "", ""], "a", "b", Length::Chunked),
            ("GET", ["/", "", ""], "a", "a\r\nX: y", Length::Chunked),
            ("GET", ["/", "?", "a b"], "a", "b", Length::Chunked),
            ("", ["", "", ""], "", "", Length::Chunked),
        ] {
            for host in [host, other] {
                let parts = target.map(str::as_bytes);
                let mut draft = RequestDraft::new(method.as_bytes(), &parts, b"a.test", 0);
                assert_eq!(draft.method(), method.as_bytes());
                draft.lines().0.extend_from_slice(b"A: b\r\n");
                draft.set_host(host);
                let (bytes, start) = draft.lines();
                assert_eq!(&bytes[start..], b"A: b\r\n");
                bytes.truncate(start);
                bytes.extend_from_slice(b"C: d\r\n");
                let mut expected = Vec::new();
                let target = target.concat();
                let head = RequestHead::new(method, &target, host).headers(b"C: d\r\n").length(length);
                let result = head.encode(&mut expected).map(|()| expected);
                assert_eq!(draft.finish(length), result, "{method} {target} {host}");
            }
        }
    }
}
