//! Responses that are collected in memory.

use bytes::Bytes;
use http::StatusCode;

use crate::http1::ResponseReader;

/// A response that was received completely.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fetched {
    /// The status code.
    pub status: StatusCode,
    /// The body, without transfer coding.
    pub body: Bytes,
    /// The head, with the status line.
    head: Vec<u8>,
}

impl Fetched {
    pub(super) fn new(status: StatusCode, head: Vec<u8>, body: Bytes) -> Self {
        Fetched { status, body, head }
    }

    /// Returns the names and values of all headers in order.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        ResponseReader::headers(&self.head)
    }

    /// Returns the value of the first header called `name` (case-insensitive).
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }
}
