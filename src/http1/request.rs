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
        if !is_token(self.method.as_bytes()) {
            return Err(Error::Method);
        }
        check_target(self.method.as_bytes(), self.target.as_bytes())?;
        if !is_authority(self.host.as_bytes()) {
            return Err(Error::Host);
        }
        for part in [self.method, " ", self.target, " HTTP/1.1\r\nHost: ", self.host, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(self.headers);
        length_line(out, self.length);
        end_head(out, self.persistence);
        Ok(())
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
}
