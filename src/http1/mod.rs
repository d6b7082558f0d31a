//! Sans-I/O HTTP/1.1 (RFC 9112).
//!
//! [`Connection`] parses requests on the server side, [`Encoder`] writes response heads, and [`ResponseReader`] parses
//! a response on the client side. Nothing here uses a socket, a clock or a thread: the caller passes input bytes and
//! gets events, or passes the parts of a response head and gets bytes.
//!
//! [`Limits`] bounds the size of a request. Three more limits are fixed: 4,096 bytes for a chunk line, 16 KiB for all
//! chunk extensions of a body, and 8 empty lines before a request line.
//!
//! # Choices the RFCs leave open
//!
//! Each choice ensures that no proxy can parse the message differently (request smuggling). The connection is closed
//! after a rejected request.
//!
//! | RFC 9112 | behaviour |
//! |---|---|
//! | 2.2 | The lines of a head end either all in CRLF or all in LF (as typed into netcat). A mixture is rejected, as is a bare CR anywhere |
//! | 2.2 | Up to 8 empty lines before a request line are skipped, each ending in CRLF or LF |
//! | 2.2 | Whitespace before the first header is rejected, not dropped |
//! | 3 | Exactly one SP, and no other whitespace, separates the elements of the request line |
//! | 3.2 | An empty Host is rejected: an http URI has a host (RFC 9110 section 4.2.1) |
//! | 3.2 | A target must match RFC 3986, except for some characters browsers do not encode, such as `[` and `]`, and a `%` in a query; nothing is repaired |
//! | 5.2 | Line folding is rejected, not unfolded |
//! | 6.1 | Transfer-Encoding together with Content-Length, or in HTTP/1.0, is rejected, not repaired |
//! | 6.1, 6.3 | An unknown transfer coding gets 501 if chunked comes last, and 400 otherwise |
//! | 6.1 | A Transfer-Encoding line without a coding is rejected, even if another line has one |
//! | 6.3 | A repeated Content-Length is rejected even if the values are equal |
//! | 7.1 | In chunked framing only CRLF ends a line |
//! | 7.1.1 | Chunk extensions are ignored if well-formed, and rejected if not |
//! | 7.1.2 | Trailers are validated, limited and kept separate from the headers |
//!
//! | RFC 9110 | behaviour |
//! |---|---|
//! | 2.5 | HTTP/1.2 to HTTP/1.9 are treated as HTTP/1.1 |
//! | 5.5 | Control characters in header values are rejected, not replaced by SP; HTAB and obs-text are allowed |
//! | 7.4 | A target with a scheme other than http gets 421 |
//! | 7.8 | Upgrade is ignored unless the application handles it |
//! | 10.1.1 | An expectation other than 100-continue gets 417; 100 is not sent if there is no body or part of it has already arrived |
//!
//! [`conformance`] lists the applicable clauses of the RFCs with the tests that cover them.

#[doc = include_str!("../../docs/CONFORMANCE.md")]
pub mod conformance {}

mod body;
mod connection;
mod encode;
mod error;
mod head;
mod response;
mod scan;
mod target;

pub use connection::{Connection, Event};
pub use encode::{CONTINUE, Encoder, Length, Persistence, ResponseHead};
pub use error::Error;
pub use head::{Framing, Head, Version, is_header_value, is_token};
pub use response::{ResponseError, ResponseEvent, ResponseReader};
pub use target::TargetForm;

/// Maximum size of a head in bytes, since offsets within a head are stored as 16-bit integers.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Limits on the size of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
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

impl Limits {
    fn head_bytes_max(&self) -> usize {
        self.head_bytes_max.min(HEAD_BYTES_MAX)
    }
}

/// Returns the authority of a target in absolute form.
pub(crate) fn authority(target: &[u8]) -> &[u8] {
    target::authority(target)
}

/// Splits a target into its path and query.
pub(crate) fn path_and_query(form: TargetForm, target: &[u8]) -> (&[u8], Option<&[u8]>) {
    target::path_and_query(form, target)
}
