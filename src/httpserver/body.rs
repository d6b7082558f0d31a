//! Response bodies of known length: bytes in memory, ranges of open files, or both.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::response::Body;
use crate::r#loop::Output;

/// A part of a response body; see [`Response::parts`](super::Response::parts).
#[derive(Clone, Debug)]
pub enum Part {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A range of bytes of a regular file.
    File(Arc<File>, Range<u64>),
}

impl Part {
    /// Returns the length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a part may be empty, but no caller needs to know")]
    pub fn len(&self) -> u64 {
        match self {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::File(_, range) => range.end.saturating_sub(range.start),
        }
    }
}

impl<T: Into<Bytes>> From<T> for Part {
    fn from(bytes: T) -> Self {
        Part::Bytes(bytes.into())
    }
}

impl Body {
    /// Returns the length in bytes; `None` for a streamed body or a deferred response.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            Body::Bytes(bytes) => Some(bytes.len() as u64),
            Body::File(_, range) => Some(range.end.saturating_sub(range.start)),
            Body::Parts(parts) => Some(parts.iter().fold(0, |sum, part| sum.saturating_add(part.len()))),
            Body::Stream(_) | Body::Deferred(_) => None,
        }
    }

    /// Appends a body of known length to the output.
    pub(super) fn push(self, output: &mut Output) {
        match self {
            Body::Bytes(bytes) => output.push(&bytes),
            Body::File(file, range) => output.push_file(file, range),
            Body::Parts(parts) => parts.into_iter().for_each(|part| match part {
                Part::Bytes(bytes) => output.push(&bytes),
                Part::File(file, range) => output.push_file(file, range),
            }),
            Body::Stream(_) | Body::Deferred(_) => {}
        }
    }
}
