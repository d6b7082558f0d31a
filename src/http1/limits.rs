//! Limits on the size of a message.

/// Maximum size of a head in bytes, since offsets within a head are stored as 16-bit integers.
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

impl Limits {
    pub(super) fn head_bytes_capped(&self) -> usize {
        self.head_bytes_max.min(HEAD_BYTES_MAX)
    }
}
