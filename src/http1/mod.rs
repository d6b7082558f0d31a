//! HTTP/1.1 without input and output (RFC 9112): bytes in, events out; parts in, bytes out.
//!
//! Nothing here has a socket, a clock or a thread. [`Connection`] reads requests and [`Encoder`] writes response
//! heads; who calls them decides what they are read from and written to.
//!
//! What a request may cost is told by [`Limits`]; besides these, a chunk line has at most 4,096 octets, the chunk
//! extensions of a body at most 16 KiB, and at most 8 empty lines may stand before a request line.
//!
//! # Where the RFCs leave a choice
//!
//! The one is taken that no proxy can read differently; what is refused ends the connection.
//!
//! | RFC 9112 | choice |
//! |---|---|
//! | 2.2 | A head's lines end all in CRLF, or all in LF, as a person in netcat types it. A mixture is refused, and a bare CR everywhere |
//! | 2.2 | Up to 8 empty lines are skipped before a request line, each in CRLF or LF |
//! | 2.2 | White space before the first field is refused, not dropped |
//! | 3 | One SP, and no other white space, separates the words of the request line |
//! | 3.2 | An empty Host is refused: an http URI has a host (RFC 9110 section 4.2.1) |
//! | 3.2 | A target is held to RFC 3986, besides `[` and `]` in a query; nothing is repaired |
//! | 5.2 | A folded line is refused, not joined |
//! | 6.1 | Transfer-Encoding together with Content-Length, or in HTTP/1.0, is refused, not repaired |
//! | 6.1, 6.3 | A coding that is not known is 501 where chunked comes last, and 400 where it does not |
//! | 6.1 | A Transfer-Encoding line that names no coding is refused, beside others too |
//! | 6.3 | A repeated Content-Length is refused even when the values are equal |
//! | 7.1 | In chunks only CRLF ends a line |
//! | 7.1.1 | Chunk extensions are ignored when they are well-formed, and refused when not |
//! | 7.1.2 | Trailer fields are checked, bounded and kept apart from the head |
//!
//! | RFC 9110 | choice |
//! |---|---|
//! | 2.5 | HTTP/1.2 to HTTP/1.9 are read as HTTP/1.1 |
//! | 5.5 | Control octets in values are refused, not replaced by SP; HTAB and obs-text pass |
//! | 7.4 | A target of another scheme than http is 421 |
//! | 7.8 | Upgrade is ignored unless the application asks for it |
//! | 10.1.1 | An expectation other than 100-continue is 417; 100 is left out where no body follows or some of it has come |
//!
//! Clause by clause, with the test that shows it: [`conformance`].

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
pub use head::{Framing, Head, Version, is_field_value, is_token};
pub use response::{ResponseEvent, ResponseFault, ResponseReader};
pub use target::Form;

/// The largest head there can be: offsets within a head have 16 bits.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// What a request may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Octets of a head, line ends included; at most [`HEAD_BYTES_MAX`], the default. Beyond: 431.
    pub head_bytes_max: usize,
    /// Fields of a head or a trailer section. 100, more than twice what browsers send. Beyond: 431.
    pub fields_max: usize,
    /// Octets of a request target. 8 KiB, a little more than the 8,000 octets of a request line that RFC 9112
    /// section 3 recommends. Beyond: 414.
    pub target_bytes_max: usize,
    /// Octets of a body. 1 MiB, since a body is held in memory as a whole. Beyond: 413.
    pub body_bytes_max: u64,
    /// Octets of a trailer section, which is held in memory. 8 KiB. Beyond: 431.
    pub trailer_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            head_bytes_max: HEAD_BYTES_MAX,
            fields_max: 100,
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

/// The authority of a target in absolute form.
pub(crate) fn authority(target: &[u8]) -> &[u8] {
    target::authority(target)
}

/// The path and the query of a target.
pub(crate) fn path_and_query(form: Form, target: &[u8]) -> (&[u8], Option<&[u8]>) {
    target::path_and_query(form, target)
}
