//! Limits on the size of requests, and the errors for which a request is rejected, each with the status code of its
//! response.

use std::fmt;

use http::StatusCode;

/// Maximum size of a head in bytes, since the offsets in a [`Head`](super::Head) are 16-bit integers.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Limits on the size of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Maximum size of the request line and headers in bytes, line endings included. Default: [`HEAD_BYTES_MAX`], which
    /// is also the upper bound. A larger head gets 431.
    pub head_bytes_max: usize,
    /// Maximum number of headers, and of trailers. Default: 100, more than twice what browsers send. A request with
    /// more gets 431.
    pub headers_max: usize,
    /// Maximum size of a request target in bytes. Default: 8 KiB, slightly more than the 8,000 octets that RFC 9112
    /// section 3 recommends as the minimum for a request line. A larger target gets 414.
    pub target_bytes_max: usize,
    /// Maximum size of a body in bytes. Default: 1 MiB, since bodies are collected in memory by default. A larger body
    /// gets 413.
    pub body_bytes_max: u64,
    /// Maximum size of a trailer section in bytes; it is held in memory. Default: 8 KiB. A larger one gets 431.
    pub trailer_bytes_max: usize,
}

impl Limits {
    setters! {
        head_bytes_max: usize,
        headers_max: usize,
        target_bytes_max: usize,
        body_bytes_max: u64,
        trailer_bytes_max: usize,
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            head_bytes_max: HEAD_BYTES_MAX,
            headers_max: 100,
            target_bytes_max: 8 * 1024,
            body_bytes_max: 1024 * 1024,
            trailer_bytes_max: 8 * 1024,
        }
    }
}

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident => $status:ident, $text:literal;)*) => {
        /// A protocol error in a request, or a timeout while receiving one.
        ///
        /// [`Error::text`] is a fixed string that contains nothing the client sent.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Error {
            $($(#[$doc])* $name,)*
        }

        impl Error {
            /// Returns the status code of the response to this error.
            pub fn status(self) -> StatusCode {
                match self { $(Error::$name => StatusCode::$status,)* }
            }

            /// Returns a one-line explanation for the response body.
            pub fn text(self) -> &'static str {
                match self { $(Error::$name => $text,)* }
            }
        }
    };
}

errors! {
    /// The bytes cannot start a request (RFC 9112 section 2.2).
    NotHttp => BAD_REQUEST, "not an HTTP request";
    /// Too many empty lines before the request line (RFC 9112 section 2.2).
    BlankLines => BAD_REQUEST, "too many empty lines before the request line";
    /// Some lines end in CRLF and others in a bare LF (RFC 9112 section 2.2), so a proxy may parse the head in another
    /// way.
    MixedLineEndings => BAD_REQUEST, "mixed CRLF and LF line endings in the head";
    /// The request line is malformed (RFC 9112 section 3).
    RequestLine => BAD_REQUEST, "malformed request line: expected method, one space, target, one space, version";
    /// The method is not a token (RFC 9110 section 9.1).
    Method => BAD_REQUEST, "the method is not a valid token";
    /// The method is longer than any the server implements (RFC 9112 section 3).
    MethodTooLong => NOT_IMPLEMENTED, "the method is too long";
    /// The request target is invalid (RFC 9112 section 3.2).
    Target => BAD_REQUEST, "invalid request target";
    /// The request target is `*`, but the method is not OPTIONS (RFC 9112 section 3.2.4).
    Asterisk => BAD_REQUEST, "the request target * is only valid with OPTIONS";
    /// The request target of CONNECT is not a host and port (RFC 9112 section 3.2.3).
    Authority => BAD_REQUEST, "the request target of CONNECT must be host:port";
    /// The server is not authoritative for the scheme of the request target (RFC 9110 section 7.4).
    Scheme => MISDIRECTED_REQUEST, "the scheme of the request target is not served on this connection";
    /// The request target exceeds [`target_bytes_max`](Limits::target_bytes_max) (RFC 9112 section 3).
    TargetTooLong => URI_TOO_LONG, "the request target is too long";
    /// The HTTP version is malformed (RFC 9112 section 2.3).
    Version => BAD_REQUEST, "malformed HTTP version";
    /// The major HTTP version is not supported (RFC 9110 section 15.6.6).
    VersionUnsupported => HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.0 and HTTP/1.1 are supported";
    /// A header line is malformed (RFC 9112 section 5).
    HeaderLine => BAD_REQUEST, "malformed header line: expected name, colon, value";
    /// A header name is invalid or followed by whitespace, which enables request smuggling (RFC 9112 section 5.1).
    HeaderName => BAD_REQUEST, "invalid header name or whitespace before the colon";
    /// A header value contains a control character (RFC 9110 section 5.5).
    HeaderValue => BAD_REQUEST, "control character in a header value";
    /// A header line begins with whitespace (RFC 9112 sections 2.2 and 5.2).
    Folded => BAD_REQUEST, "a header line begins with whitespace";
    /// The number of headers exceeds [`headers_max`](Limits::headers_max) (RFC 6585 section 5).
    TooManyHeaders => REQUEST_HEADER_FIELDS_TOO_LARGE, "too many headers";
    /// The size of the head exceeds [`head_bytes_max`](field@Limits::head_bytes_max) (RFC 6585 section 5).
    HeadTooLarge => REQUEST_HEADER_FIELDS_TOO_LARGE, "request head too large";
    /// An HTTP/1.1 request has no Host header (RFC 9112 section 3.2).
    HostMissing => BAD_REQUEST, "missing Host header";
    /// There is more than one Host header (RFC 9112 section 3.2).
    HostRepeated => BAD_REQUEST, "more than one Host header";
    /// The Host header is invalid (RFC 9110 section 7.2).
    Host => BAD_REQUEST, "invalid Host header: expected host or host:port";
    /// The Content-Length is not a decimal number (RFC 9110 section 8.6).
    ContentLength => BAD_REQUEST, "invalid Content-Length: expected a decimal number";
    /// There is more than one Content-Length value. RFC 9112 section 6.3 permits merging equal values, but recipients
    /// differ in how they treat a list, so it is rejected.
    ContentLengthRepeated => BAD_REQUEST, "more than one Content-Length value";
    /// Both Content-Length and Transfer-Encoding are present (RFC 9112 section 6.1).
    BothFramings => BAD_REQUEST, "both Content-Length and Transfer-Encoding";
    /// An HTTP/1.0 request has a Transfer-Encoding (RFC 9112 section 6.1).
    FramingInHttp10 => BAD_REQUEST, "Transfer-Encoding in an HTTP/1.0 request";
    /// The Transfer-Encoding is malformed, or chunked is not its last coding (RFC 9112 sections 6.3 and 7.1).
    TransferEncoding => BAD_REQUEST, "chunked must be the last transfer coding, used once and without parameters";
    /// A transfer coding other than chunked is applied (RFC 9112 section 6.1).
    UnknownCoding => NOT_IMPLEMENTED, "unsupported transfer coding: only chunked is implemented";
    /// An expectation other than 100-continue (RFC 9110 section 10.1.1).
    Expectation => EXPECTATION_FAILED, "unsupported expectation: only 100-continue is implemented";
    /// A chunk size is malformed (RFC 9112 section 7.1).
    ChunkSize => BAD_REQUEST, "malformed chunk size: expected a hexadecimal number and CRLF";
    /// A chunk extension is malformed, or the extensions are too long (RFC 9112 section 7.1.1).
    ChunkExtension => BAD_REQUEST, "chunk extension malformed or too long";
    /// Chunk data is not followed by CRLF (RFC 9112 section 7.1).
    ChunkData => BAD_REQUEST, "chunk data does not match the chunk size";
    /// A trailer line is malformed (RFC 9112 section 7.1.2).
    Trailer => BAD_REQUEST, "malformed trailer line";
    /// The trailer section exceeds [`trailer_bytes_max`](Limits::trailer_bytes_max) or
    /// [`headers_max`](Limits::headers_max) (RFC 6585 section 5).
    TrailersTooLarge => REQUEST_HEADER_FIELDS_TOO_LARGE, "trailer section too large";
    /// The body exceeds its size limit (RFC 9110 section 15.5.14).
    BodyTooLarge => PAYLOAD_TOO_LARGE, "request body too large";
    /// The head was not received in time (RFC 9110 section 15.5.9).
    HeadTimeout => REQUEST_TIMEOUT, "request head not received in time";
    /// The body was received too slowly (RFC 9110 section 15.5.9).
    BodyTimeout => REQUEST_TIMEOUT, "request body received too slowly";
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text())
    }
}

impl std::error::Error for Error {}
