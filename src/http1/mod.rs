//! Sans-I/O HTTP/1.1 (RFC 9112).
//!
//! [`Connection`] is the server side, a state machine of both directions: [`Connection::receive`] parses requests, and
//! [`Connection::respond`] decides how a response is framed and whether the connection persists, and writes its head
//! with an [`Encoder`]. [`SendFraming`] frames the content that follows. On the client side, [`RequestHead`] encodes
//! the head of a request, and [`ResponseReader`] parses a response. Nothing here uses a socket, a clock or a thread:
//! the caller passes input bytes and gets events, or passes the parts of a message and gets bytes.
//!
//! [`Limits`] bounds the size of a request. Three more limits are fixed: 4,096 bytes for a chunk line, 16 KiB for all
//! chunk extensions of a body, and 8 empty lines before a request line.
//!
//! Enums without `#[non_exhaustive]` are closed sets: the RFC fixes their values, or a caller must handle each of them.
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
mod respond;
mod response;
mod syntax;

pub use connection::{Connection, Event};
pub(crate) use encode::RequestDraft;
pub use encode::{CONTINUE, Encoder, Length, Persistence, RequestHead, ResponseHead};
pub use error::{Error, HEAD_BYTES_MAX, Limits};
pub use head::{Framing, Head, Version};
pub use respond::{ChunkLine, Next, Reply, ReplyContext, Responded, SendFraming};
pub use response::{ResponseError, ResponseEvent, ResponseReader};
pub(crate) use syntax::list_elements;
pub use syntax::{TargetForm, is_header_value, is_token};
pub(crate) use syntax::{authority, is_https, path_and_query};
