//! HTTP/1.1 without input and output (RFC 9112): bytes in, events out; parts in, bytes out.
//!
//! Nothing here has a socket, a clock or a thread. [`Connection`] reads requests and [`Encoder`] writes response
//! heads; who calls them decides what they are read from and written to.
//!
//! What a request may cost is told by [`Limits`]; besides these, a chunk line has at most 4,096 octets, the chunk
//! extensions of a body at most 16 KiB, and at most 8 empty lines may stand before a request line.

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
