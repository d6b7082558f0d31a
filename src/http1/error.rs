//! What a peer did wrong, and the status that tells it.

use std::fmt;

use http::StatusCode;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident => $status:ident, $text:literal;)*) => {
        /// A fault of the peer. Its text is one constant line that never repeats what the peer sent.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Error {
            $($(#[$doc])* $name,)*
        }

        impl Error {
            /// The status that answers it.
            pub fn status(self) -> StatusCode {
                match self { $(Error::$name => StatusCode::$status,)* }
            }

            /// What is wrong, for the peer to read.
            pub fn text(self) -> &'static str {
                match self { $(Error::$name => $text,)* }
            }
        }
    };
}

faults! {
    /// RFC 9112 section 2.2: octets that match no request.
    NotHttp => BAD_REQUEST, "this is not an HTTP request";
    /// RFC 9112 section 2.2.
    BlankLines => BAD_REQUEST, "too many empty lines before the request line";
    /// RFC 9112 section 2.2: a recipient that takes LF for a line end takes it for all of them, or a proxy may disagree.
    MixedLineEnds => BAD_REQUEST, "the lines of a head end all in CRLF or all in LF";
    /// RFC 9112 section 3.
    RequestLine => BAD_REQUEST, "a request line is: method, one space, target, one space, version";
    /// RFC 9110 section 9.1: a method is a token.
    Method => BAD_REQUEST, "the method is not a token";
    /// RFC 9112 section 3: a method longer than any that is known here.
    MethodTooLong => NOT_IMPLEMENTED, "the method is too long to be one";
    /// RFC 9112 section 3.2.
    Target => BAD_REQUEST, "the request target is not valid";
    /// RFC 9112 section 3.2.4.
    Asterisk => BAD_REQUEST, "the target * is for OPTIONS alone";
    /// RFC 9112 section 3.2.3.
    Authority => BAD_REQUEST, "the target of CONNECT is host:port";
    /// RFC 9110 section 7.4: a resource of another scheme is not served here.
    Scheme => MISDIRECTED_REQUEST, "only http targets are served on this connection";
    /// RFC 9112 section 3.
    TargetTooLong => URI_TOO_LONG, "the request target is too long";
    /// RFC 9112 section 2.3.
    Version => BAD_REQUEST, "the version is not HTTP/ and two digits with a dot";
    /// RFC 9110 section 15.6.6.
    VersionUnsupported => HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.1 and HTTP/1.0 are spoken here";
    /// RFC 9112 section 5.
    FieldLine => BAD_REQUEST, "a field line is: name, colon, value";
    /// RFC 9112 section 5.1: white space between name and colon has been used to smuggle requests.
    FieldName => BAD_REQUEST, "a field name is a token, with no space before the colon";
    /// RFC 9110 section 5.5.
    FieldValue => BAD_REQUEST, "a field value has a control character in it";
    /// RFC 9112 sections 2.2 and 5.2.
    Folded => BAD_REQUEST, "a field line must not begin with white space";
    /// RFC 6585 section 5.
    TooManyFields => REQUEST_HEADER_FIELDS_TOO_LARGE, "too many fields";
    /// RFC 6585 section 5.
    HeadTooLarge => REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large";
    /// RFC 9112 section 3.2.
    HostMissing => BAD_REQUEST, "an HTTP/1.1 request needs a Host field";
    /// RFC 9112 section 3.2.
    HostRepeated => BAD_REQUEST, "more than one Host field";
    /// RFC 9110 section 7.2.
    Host => BAD_REQUEST, "the Host field is not host or host:port";
    /// RFC 9110 section 8.6.
    ContentLength => BAD_REQUEST, "Content-Length is not a decimal number";
    /// RFC 9112 section 6.3: repeated values may be merged or refused; two readers of a list may differ.
    ContentLengthRepeated => BAD_REQUEST, "more than one Content-Length";
    /// RFC 9112 section 6.1: refused, not repaired.
    BothFramings => BAD_REQUEST, "Content-Length and Transfer-Encoding in one request";
    /// RFC 9112 section 6.1.
    FramingInHttp10 => BAD_REQUEST, "Transfer-Encoding in an HTTP/1.0 request";
    /// RFC 9112 sections 6.3 and 7.1.
    TransferEncoding => BAD_REQUEST, "chunked must be the last transfer coding, once and without parameters";
    /// RFC 9112 section 6.1.
    UnknownCoding => NOT_IMPLEMENTED, "the only transfer coding understood is chunked";
    /// RFC 9110 section 10.1.1.
    Expectation => EXPECTATION_FAILED, "the only expectation met is 100-continue";
    /// RFC 9112 section 7.1.
    ChunkSize => BAD_REQUEST, "a chunk size is not a hexadecimal number and CRLF";
    /// RFC 9112 section 7.1.1: extensions are bounded.
    ChunkExtension => BAD_REQUEST, "a chunk extension is malformed or too long";
    /// RFC 9112 section 7.1.
    ChunkData => BAD_REQUEST, "chunk data does not end where its size says";
    /// RFC 9112 section 7.1.2.
    Trailer => BAD_REQUEST, "a trailer field is malformed";
    /// RFC 6585 section 5.
    TrailersTooLarge => REQUEST_HEADER_FIELDS_TOO_LARGE, "the trailer section is too large";
    /// RFC 9110 section 15.5.14.
    BodyTooLarge => PAYLOAD_TOO_LARGE, "the body is too large";
    /// RFC 9110 section 15.5.9.
    HeadTimeout => REQUEST_TIMEOUT, "the head did not come in time";
    /// RFC 9110 section 15.5.9.
    BodyTimeout => REQUEST_TIMEOUT, "the body came too slowly";
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text())
    }
}

impl std::error::Error for Error {}
