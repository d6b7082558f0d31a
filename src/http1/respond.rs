//! The rules for what may be sent in response to a request: framing, persistence, and which responses have no content.
//!
//! | request or status | rule | RFC |
//! |---|---|---|
//! | HEAD | the head of the response to GET, without content | 9110 9.3.2 |
//! | CONNECT with 2xx | neither Content-Length nor Transfer-Encoding, no content; the connection closes, or is a tunnel | 9110 9.3.6 |
//! | CONNECT with another status | the connection closes: the client may have sent data for the tunnel | 9931 |
//! | 204, 304 | no content, no Content-Type, no framing header | 9110 15.3.5, 15.4.5 |
//! | 205 | `Content-Length: 0` | 9110 15.3.6 |
//! | content of unknown length | chunked; in HTTP/1.0, where the close of the connection ends it, `Connection: close` | 9112 6.1, 6.3 |
//! | HTTP/1.0 with keep-alive | `Connection: keep-alive` | 9112 9.3 |
//! | trailers | only in chunked framing, for clients that send `TE: trailers` | 9110 6.5.1 |
//! | request body not read to its end | `Connection: close`, since the next request cannot be found | 9112 9.3 |

use http::StatusCode;

use super::connection::Connection;
use super::encode::{Encoder, Length, Persistence, ResponseHead};
use super::head::{Head, Version};
use super::syntax::TargetForm;

/// The properties of a request that determine how its response is sent. Small, so that it can be kept until the
/// response is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyContext {
    version: Version,
    persistent: bool,
    is_head: bool,
    successor: Successor,
    /// The client accepts trailers (RFC 9110 section 10.1.4).
    accepts_trailers: bool,
}

/// The protocol that the client asks to follow HTTP on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Successor {
    None,
    /// The protocol inside the tunnel of a CONNECT request.
    Tunnel,
    /// The protocol of an upgrade (RFC 9110 section 7.8).
    Upgrade,
}

impl ReplyContext {
    /// Creates the context of a response without trailers.
    #[inline]
    pub fn new(head: &Head) -> Self {
        ReplyContext {
            version: head.version(),
            persistent: head.is_persistent(),
            is_head: head.is_head_method(),
            // Only CONNECT has a target in authority form.
            successor: if head.form() == TargetForm::Authority { Successor::Tunnel } else { Successor::None },
            accepts_trailers: false,
        }
    }

    /// Creates the context of a response that may have trailers or change the protocol: looks for `TE: trailers` and
    /// for `Upgrade` in the head, which was parsed from `bytes`. Separate from [`ReplyContext::new`] because few
    /// responses need it.
    pub fn with_trailers(head: &Head, bytes: &[u8]) -> Self {
        let lists = |field: &str, member: &str| {
            head.headers(bytes).filter(|(name, _)| name.eq_ignore_ascii_case(field.as_bytes())).any(|(_, value)| {
                let mut members = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
                members.any(|found| found.eq_ignore_ascii_case(member.as_bytes()))
            })
        };
        let has_protocol =
            head.headers(bytes).any(|(name, value)| name.eq_ignore_ascii_case(b"upgrade") && !value.is_empty());
        // A server ignores Upgrade in HTTP/1.0 (RFC 9110 section 7.8).
        let asks_for_upgrade = has_protocol && head.version() == Version::Http11 && lists("connection", "upgrade");
        let mut context = ReplyContext { accepts_trailers: lists("te", "trailers"), ..ReplyContext::new(head) };
        if asks_for_upgrade && !context.is_connect() {
            context.successor = Successor::Upgrade;
        }
        context
    }

    /// Creates the context of the error response to a request that was rejected by the parser or for its timing.
    /// `is_head` is set if the method is known to be HEAD.
    pub fn for_malformed(is_head: bool) -> Self {
        let version = Version::Http11;
        ReplyContext { version, persistent: false, is_head, successor: Successor::None, accepts_trailers: false }
    }

    /// Returns whether the request asks for an upgrade to a protocol that its Upgrade header names. The caller must
    /// check that [`Connection::switch`] changes to one of these.
    pub(crate) fn asks_for_upgrade(self) -> bool {
        self.successor == Successor::Upgrade
    }

    /// Returns the context of a request that cannot be upgraded.
    pub(crate) fn without_upgrade(mut self) -> Self {
        if self.asks_for_upgrade() {
            self.successor = Successor::None;
        }
        self
    }

    fn is_connect(self) -> bool {
        self.successor == Successor::Tunnel
    }

    /// Returns whether the method is HEAD: the response has no content.
    pub fn is_head(self) -> bool {
        self.is_head
    }
}

/// A response to send, except for its content. [`Connection::respond`] adds the headers that depend on the state of the
/// connection.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Reply<'a> {
    /// The status code, 200 or higher.
    pub status: StatusCode,
    /// The value of Content-Type, if any.
    pub content_type: Option<&'static str>,
    /// Additional header lines, each ending in CRLF. They are not validated.
    pub headers: &'a [u8],
    /// Additional header lines that several responses share, in the same format.
    pub shared_headers: &'a [u8],
    /// The length of the content in bytes; `None` if it is not known in advance.
    pub length: Option<u64>,
    /// The value of the Trailer header, if trailers follow the content.
    pub trailer_names: Option<&'a str>,
    /// Set to close the connection after this response.
    pub close: bool,
    /// The value of the Keep-Alive header to send if the connection persists, such as `timeout=75`; empty for none.
    pub keep_alive: &'a [u8],
}

impl<'a> Reply<'a> {
    /// Creates a response without content that does not close the connection.
    pub fn new(status: StatusCode) -> Self {
        Reply {
            status,
            content_type: None,
            headers: b"",
            shared_headers: b"",
            length: Some(0),
            trailer_names: None,
            close: false,
            keep_alive: b"",
        }
    }

    setters! {
        headers: &'a [u8],
        shared_headers: &'a [u8],
        close: bool,
        keep_alive: &'a [u8],
    }

    optional_setters! {
        content_type: &'static str,
        length: u64,
        trailer_names: &'a str,
    }
}

/// The framing of content that is being sent: how the client recognizes its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFraming {
    /// Content-Length, with the number of bytes left to send.
    Length(u64),
    /// The chunked transfer coding. Trailers may follow if `trailers` is set.
    Chunked {
        /// The client accepts trailers.
        trailers: bool,
    },
    /// The close of the connection, for HTTP/1.0.
    Close,
}

/// The action to take on the connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Keep the connection open and serve the next request.
    Request,
    /// Close once the response is sent: the client requested it and sends nothing more.
    Close,
    /// Lingering close: the server ends the connection, and the client may still be sending.
    Linger,
    /// Lingering close with an unread request body, which is discarded.
    Refuse,
}

/// The result of [`Connection::respond`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Responded {
    /// The framing of the content that must follow; `None` if the response has none.
    pub content: Option<SendFraming>,
    /// The action to take after the content.
    pub next: Next,
}

impl Connection {
    /// Appends the head of the response to the current request to `out`, according to the rules of this module. `now`
    /// is the Unix time in seconds, for the Date header.
    ///
    /// If the request body has not been read to its end, the connection closes after this response. Call
    /// [`Connection::receive`] for the next request only if the result is [`Next::Request`]; otherwise it consumes
    /// nothing.
    ///
    /// # Examples
    /// ```
    /// use serverd::http1::{Connection, Encoder, Event, Head, Limits, Next, Reply, ReplyContext, SendFraming};
    /// use serverd::StatusCode;
    ///
    /// let (mut connection, mut head, mut encoder) = (Connection::new(), Head::default(), Encoder::new());
    /// let input = b"HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    /// let (_, event) = connection.receive(&mut head, &Limits::default(), input)?;
    /// assert_eq!(event, Event::Head { len: input.len() });
    ///
    /// let reply = Reply::new(StatusCode::OK).content_type("text/plain").length(5);
    /// let mut output = Vec::new();
    /// let responded = connection.respond(&mut encoder, &mut output, 0, ReplyContext::new(&head), &reply);
    /// assert_eq!((responded.content, responded.next), (None, Next::Request));
    /// assert!(output.ends_with(b"Content-Length: 5\r\n\r\n"));
    /// # Ok::<(), serverd::http1::Error>(())
    /// ```
    #[allow(clippy::inline_always, reason = "hot path of the last response on a connection")]
    #[inline(always)]
    pub fn respond(
        &mut self,
        encoder: &mut Encoder,
        out: &mut Vec<u8>,
        now: u64,
        context: ReplyContext,
        reply: &Reply<'_>,
    ) -> Responded {
        // RFC 9110 section 9.3.6: a successful response to CONNECT has no Content-Length or Transfer-Encoding.
        let is_tunnel = context.is_connect() && reply.status.is_success();
        let has_content = !context.is_head && !is_tunnel && allows_content(reply.status);
        let framing = match (reply.length, context.version) {
            (Some(length), _) => SendFraming::Length(length),
            (None, Version::Http11) => SendFraming::Chunked { trailers: context.accepts_trailers },
            (None, Version::Http10) => SendFraming::Close,
        };
        let until_close = framing == SendFraming::Close && has_content;
        let (mut persistence, next) = self.decide_persistence(context, reply.close || until_close);
        let has_keep_alive = next == Next::Request && !reply.keep_alive.is_empty();
        if has_keep_alive {
            // Keep-Alive applies to this connection only, so Connection lists it (RFC 9110 section 7.6.1).
            persistence = Persistence::KeepAlive;
        }
        let mut head = ResponseHead {
            status: reply.status,
            content_type: reply.content_type,
            headers: reply.headers,
            shared_headers: reply.shared_headers,
            length: Length::Unspecified,
            persistence,
        };
        if !allows_content(reply.status) {
            // RFC 9110 section 15.4.5: a 304 carries no representation metadata except what guides cache updates.
            head.content_type = None;
        }
        head.length = match framing {
            _ if is_tunnel => Length::Unspecified,
            _ if reply.status == StatusCode::RESET_CONTENT => Length::Known(0),
            _ if !allows_content(reply.status) => Length::Unspecified,
            SendFraming::Length(length) => Length::Known(length),
            // RFC 9112 section 6.1: Transfer-Encoding is optional on HEAD; without it no client can misread the
            // response.
            SendFraming::Chunked { .. } if context.is_head => Length::Unspecified,
            SendFraming::Chunked { .. } => Length::Chunked,
            SendFraming::Close => Length::Unspecified,
        };
        encoder.head(out, now, &head);
        if let (Length::Chunked, Some(names)) = (head.length, reply.trailer_names)
            && context.accepts_trailers
        {
            append_header(out, b"Trailer: ", names.as_bytes());
        }
        if has_keep_alive {
            append_header(out, b"Keep-Alive: ", reply.keep_alive);
        }
        Responded { content: has_content.then_some(framing), next }
    }

    /// Appends the head of a response that ends HTTP on this connection: 101 (Switching Protocols) to a request that
    /// asks for an upgrade, or a success to CONNECT. The input after the request belongs to the new protocol, and
    /// [`Connection::receive`] consumes nothing more. The caller must check that the client has offered the protocol of a
    /// 101 (RFC 9110 section 7.8).
    ///
    /// Returns `false`, and appends nothing, if the request does not permit that or its body has not been read.
    pub fn switch(
        &mut self,
        encoder: &mut Encoder,
        out: &mut Vec<u8>,
        now: u64,
        context: ReplyContext,
        reply: &Reply<'_>,
    ) -> bool {
        let is_permitted = match reply.status {
            StatusCode::SWITCHING_PROTOCOLS => context.successor == Successor::Upgrade && !context.is_head,
            status => context.is_connect() && status.is_success(),
        };
        if !is_permitted || self.is_unread() {
            return false;
        }
        self.close();
        let head = ResponseHead::new(reply.status).length(Length::Unspecified);
        encoder.head(out, now, &head.headers(reply.headers).shared_headers(reply.shared_headers));
        true
    }

    /// Decides whether the connection persists after the response, and how the Connection header announces that.
    #[inline]
    fn decide_persistence(&mut self, context: ReplyContext, close: bool) -> (Persistence, Next) {
        let is_unread = self.is_unread();
        if context.persistent && !close && !context.is_connect() && !is_unread {
            let persistence =
                if context.version == Version::Http10 { Persistence::KeepAlive } else { Persistence::Implicit };
            return (persistence, Next::Request);
        }
        self.close();
        let next = match (is_unread, context.persistent) {
            (true, _) => Next::Refuse,
            (false, true) => Next::Linger,
            (false, false) => Next::Close,
        };
        (Persistence::Close, next)
    }
}

/// Adds a header line before the empty line that ends the head at the end of `out`.
#[inline(never)]
fn append_header(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.truncate(out.len() - 2);
    for part in [name, value, b"\r\n\r\n"] {
        out.extend_from_slice(part);
    }
}

#[inline]
fn allows_content(status: StatusCode) -> bool {
    !matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED)
}

impl SendFraming {
    /// Returns how many of `len` bytes may be sent: all, or what is left of the declared length.
    pub fn allowed(self, len: usize) -> usize {
        match self {
            SendFraming::Length(left) => usize::try_from(left).unwrap_or(usize::MAX).min(len),
            SendFraming::Chunked { .. } | SendFraming::Close => len,
        }
    }

    /// Returns the bytes to send before and after a piece of content of `len` bytes, which must be at least 1 and at
    /// most [`SendFraming::allowed`], and counts the piece.
    pub fn frame(&mut self, len: usize) -> (ChunkLine, &'static [u8]) {
        match self {
            SendFraming::Chunked { .. } => (ChunkLine::new(len), b"\r\n"),
            SendFraming::Length(left) => {
                *left -= len as u64;
                (ChunkLine::default(), b"")
            }
            SendFraming::Close => (ChunkLine::default(), b""),
        }
    }

    /// Appends the end of the content to `out`. `trailers` are complete lines, sent only if this is
    /// [`SendFraming::Chunked`] with `trailers` set.
    ///
    /// # Errors
    /// Returns the number of bytes missing from the declared length. The connection must then be closed.
    pub fn finish(self, out: &mut Vec<u8>, trailers: &[u8]) -> Result<(), u64> {
        match self {
            SendFraming::Length(missing @ 1..) => return Err(missing),
            SendFraming::Length(0) | SendFraming::Close => {}
            SendFraming::Chunked { trailers: accepted } => {
                out.extend_from_slice(b"0\r\n");
                out.extend_from_slice(if accepted { trailers } else { b"" });
                out.extend_from_slice(b"\r\n");
            }
        }
        Ok(())
    }
}

/// The line before a chunk: its size in hexadecimal digits and CRLF. Empty in other framings.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChunkLine {
    bytes: [u8; 18],
    len: u8,
}

impl ChunkLine {
    fn new(size: usize) -> Self {
        let mut line = ChunkLine::default();
        let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
        for shift in (0..digits).rev() {
            let digit = size >> (4 * shift) & 0xf;
            line.bytes[usize::from(line.len)] = b"0123456789abcdef"[digit];
            line.len += 1;
        }
        line.bytes[usize::from(line.len)..usize::from(line.len) + 2].copy_from_slice(b"\r\n");
        line.len += 2;
        line
    }

    /// Returns the bytes of the line.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{Error, Event, Limits, ResponseError, ResponseEvent, ResponseReader};

    /// A server that answers each request with `reply` and sends `pieces` as the content.
    struct Server {
        connection: Connection,
        head: Head,
        encoder: Encoder,
        input: Vec<u8>,
    }

    impl Server {
        fn new() -> Self {
            let (connection, head) = (Connection::new(), Head::default());
            Server { connection, head, encoder: Encoder::new(), input: Vec::new() }
        }

        /// Parses the next event from the input; returns whether the head of a request is complete.
        fn receive(&mut self) -> Result<Option<(ReplyContext, Vec<u8>)>, Error> {
            let mut context = None;
            let mut body = Vec::new();
            loop {
                let (used, event) = self.connection.receive(&mut self.head, &Limits::default(), &self.input)?;
                match event {
                    Event::NeedMore => return Ok(None),
                    Event::Head { len } => {
                        context = Some(ReplyContext::with_trailers(&self.head, &self.input[used - len..used]));
                    }
                    Event::Body(bytes) => body.extend_from_slice(bytes),
                    Event::End => {}
                }
                self.input.drain(..used);
                if let (false, Some(context)) = (self.connection.is_within_body(), context) {
                    return Ok(Some((context, body)));
                }
            }
        }

        fn respond(&mut self, context: ReplyContext, reply: &Reply<'_>, pieces: &[&[u8]]) -> (Vec<u8>, Next) {
            let mut out = Vec::new();
            let Responded { content, next } = self.connection.respond(&mut self.encoder, &mut out, 0, context, reply);
            if let Some(mut framing) = content {
                for piece in pieces {
                    let (before, after) = framing.frame(piece.len());
                    out.extend_from_slice(before.as_bytes());
                    out.extend_from_slice(piece);
                    out.extend_from_slice(after);
                }
                framing.finish(&mut out, b"X-Sum: 1\r\n").expect("the declared length");
            }
            (out, next)
        }
    }

    fn reply(status: u16, length: Option<u64>) -> Reply<'static> {
        let status = StatusCode::from_u16(status).unwrap();
        Reply::new(status).content_type("text/plain").length(length).trailer_names("X-Sum")
    }

    /// Reads a response as a client does, byte by byte; returns its head and content.
    fn read(bytes: &[u8]) -> Result<(String, Vec<u8>, bool), ResponseError> {
        let mut reader = ResponseReader::new(Limits::default());
        let (mut head_text, mut content, mut buffer) = (String::new(), Vec::new(), Vec::new());
        for &byte in bytes {
            buffer.push(byte);
            loop {
                let (used, event) = reader.receive(&buffer)?;
                match event {
                    ResponseEvent::NeedMore => {
                        buffer.drain(..used);
                        break;
                    }
                    ResponseEvent::Head { head, .. } => head_text = String::from_utf8(head.to_vec()).unwrap(),
                    ResponseEvent::Body(piece) => content.extend_from_slice(piece),
                    ResponseEvent::End => return Ok((head_text, content, true)),
                }
                buffer.drain(..used);
            }
        }
        let (_, event) = reader.receive(&buffer)?;
        let is_delimited = event == ResponseEvent::End;
        reader.finish().map(|()| (head_text, content, is_delimited))
    }

    /// Sends a request to a server and its response to a client; returns what the client gets.
    fn exchange(request: &str, reply: &Reply<'_>) -> (String, String, bool, Next) {
        let mut server = Server::new();
        let mut received = None;
        for byte in request.bytes() {
            server.input.push(byte);
            received = received.or(server.receive().expect("a valid request"));
        }
        let (context, _) = received.expect("a complete request");
        let (bytes, next) = server.respond(context, reply, &[b"hel", b"lo, world"]);
        let (head, body, is_delimited) = read(&bytes).expect("a valid response");
        (head, String::from_utf8(body).unwrap(), is_delimited, next)
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const HTTP10: &str = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";

    #[test]
    fn a_client_reads_content_of_known_and_unknown_length() {
        for length in [Some(12), None] {
            let (head, content, is_delimited, next) = exchange(GET, &reply(200, length));
            assert_eq!((content.as_str(), is_delimited, next), ("hello, world", true, Next::Request));
            assert_eq!(head.contains("chunked"), length.is_none());
            assert!(!head.contains("Trailer") && !head.contains("Connection"), "{head}");
        }
        let (head, content, is_delimited, next) = exchange(HTTP10, &reply(200, None));
        assert_eq!((content.as_str(), is_delimited, next), ("hello, world", false, Next::Linger));
        assert!(head.contains("Connection: close\r\n") && !head.contains("chunked"), "{head}");
        let (head, content, _, next) = exchange(HTTP10, &reply(200, Some(12)));
        assert_eq!((content.as_str(), next), ("hello, world", Next::Request));
        assert!(head.contains("Connection: keep-alive\r\n"), "{head}");
    }

    #[test]
    fn trailers_are_sent_to_clients_that_accept_them() {
        let request = "GET / HTTP/1.1\r\nHost: a\r\nTE: gzip, Trailers\r\n\r\n";
        let (head, content, _, _) = exchange(request, &reply(200, None));
        assert!(head.contains("Trailer: X-Sum\r\n") && content == "hello, world", "{head}");
        assert!(!exchange(request, &reply(200, Some(12))).0.contains("Trailer"));
        assert!(!exchange(request, &reply(204, None)).0.contains("Trailer"));
    }

    #[test]
    fn some_responses_have_no_content() {
        for (status, length) in [(204, None), (205, Some(0)), (304, None)] {
            for declared in [Some(12), None] {
                let (head, content, _, next) = exchange(GET, &reply(status, declared));
                assert_eq!((content.as_str(), next), ("", Next::Request), "{status}");
                assert_eq!(head.contains("Content-Length: 0\r\n"), length.is_some(), "{head}");
                assert_eq!(head.matches("Content-Length").count(), usize::from(length.is_some()), "{head}");
                assert!(!head.contains("Content-Type") && !head.contains("chunked"), "{head}");
                let (_, content, _, next) = exchange(HTTP10, &reply(status, declared));
                assert_eq!((content.as_str(), next), ("", Next::Request), "{status} in HTTP/1.0");
            }
        }
    }

    #[test]
    fn head_and_connect_have_no_content() {
        let mut server = Server::new();
        for (method, target, status, length, next) in [
            ("HEAD", "/", 200, Some(12), Next::Request),
            ("HEAD", "/", 200, None, Next::Request),
            ("CONNECT", "a:1", 200, Some(12), Next::Linger),
        ] {
            server.input.extend(format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n").bytes());
            let (context, _) = server.receive().unwrap().unwrap();
            let (bytes, after) = server.respond(context, &reply(status, length), &[b"hello, world"]);
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(after, next);
            assert!(text.ends_with("\r\n\r\n") && !text.contains("hello") && !text.contains("chunked"), "{text}");
            assert_eq!(text.contains("Content-Length: 12"), method == "HEAD" && length.is_some(), "{text}");
        }
        let (_, content, _, next) = exchange("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", &reply(404, Some(12)));
        assert_eq!((content.as_str(), next), ("hello, world", Next::Linger));
    }

    #[test]
    fn the_connection_closes_if_either_side_asks_or_the_body_is_unread() {
        let close = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        assert_eq!(exchange(close, &reply(200, Some(12))).3, Next::Close);
        assert_eq!(exchange(GET, &Reply { close: true, ..reply(200, Some(12)) }).3, Next::Linger);
        let mut server = Server::new();
        server.input.extend(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhel");
        assert_eq!(server.receive(), Ok(None));
        let (bytes, next) = server.respond(ReplyContext::new(&server.head), &reply(200, Some(12)), &[b"hello, world"]);
        assert_eq!(next, Next::Refuse);
        assert!(read(&bytes).unwrap().0.contains("Connection: close\r\n"));
        server.input.extend(b"lo, wo");
        assert_eq!((server.receive(), server.input.len()), (Ok(None), 6), "nothing is parsed after the last response");
    }

    #[test]
    fn keep_alive_is_announced_while_the_connection_persists() {
        let reply = Reply { keep_alive: b"timeout=75", ..reply(200, Some(12)) };
        for request in [GET, HTTP10] {
            let (head, content, _, next) = exchange(request, &reply);
            assert_eq!((content.as_str(), next), ("hello, world", Next::Request));
            assert!(head.ends_with("Connection: keep-alive\r\nKeep-Alive: timeout=75\r\n\r\n"), "{head}");
        }
        let (head, _, _, _) = exchange(GET, &Reply { close: true, ..reply });
        assert!(!head.contains("Keep-Alive"), "{head}");
    }

    #[test]
    fn a_pipeline_of_requests_and_responses_stays_in_step() {
        let mut server = Server::new();
        server.input.extend(format!("{GET}POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc{GET}").bytes());
        for expected in [&b""[..], b"abc", b""] {
            let (context, body) = server.receive().unwrap().expect("a request");
            assert_eq!(body, expected);
            let (bytes, next) = server.respond(context, &reply(200, None), &[b"x"]);
            assert_eq!((read(&bytes).unwrap().1.as_slice(), next), (&b"x"[..], Next::Request));
        }
        assert_eq!(server.receive(), Ok(None));
    }

    #[test]
    fn a_rejected_request_gets_its_status_and_the_connection_closes() {
        let mut server = Server::new();
        server.input.extend(b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n");
        let error = server.receive().unwrap_err();
        let reply = Reply { status: error.status(), ..reply(200, Some(0)) };
        let (bytes, next) = server.respond(ReplyContext::for_malformed(false), &reply, &[]);
        assert_eq!(next, Next::Refuse);
        let head = read(&bytes).unwrap().0;
        assert!(head.starts_with("HTTP/1.1 400 ") && head.contains("Connection: close\r\n"), "{head}");
        assert_eq!(server.receive(), Err(error));
    }

    #[test]
    fn content_matches_its_declared_length() {
        let mut framing = SendFraming::Length(5);
        assert_eq!(framing.allowed(9), 5);
        assert_eq!(framing.frame(3).0.as_bytes(), b"");
        assert_eq!(framing.finish(&mut Vec::new(), b""), Err(2));
        for (size, line) in [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (0xabc_def0, "abcdef0\r\n")] {
            assert_eq!(ChunkLine::new(size).as_bytes(), line.as_bytes());
        }
        assert_eq!(ChunkLine::new(usize::MAX).as_bytes().len(), 2 + usize::BITS as usize / 4);
    }
}
