//! Bodies of which parts, or all, stand in open files.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::response::Body;
use crate::r#loop::Output;

/// A part of a body; see [`Response::parts`](super::Response::parts).
#[derive(Clone, Debug)]
pub enum Part {
    /// Bytes that are there.
    Bytes(Bytes),
    /// A regular file, from one position up to another.
    File(Arc<File>, Range<u64>),
}

impl Part {
    /// How many octets it has.
    #[allow(clippy::len_without_is_empty, reason = "a part may be empty, but nobody needs to know")]
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
    /// The length of a body that is there, and need not be made.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            Body::Bytes(bytes) => Some(bytes.len() as u64),
            Body::File(_, range) => Some(range.end.saturating_sub(range.start)),
            Body::Parts(parts) => Some(parts.iter().fold(0, |sum, part| sum.saturating_add(part.len()))),
            Body::Stream(_) | Body::Later(_) => None,
        }
    }

    /// Hands a body over that is there.
    pub(super) fn push(self, output: &mut Output) {
        match self {
            Body::Bytes(bytes) => output.push(&bytes),
            Body::File(file, range) => output.push_file(file, range),
            Body::Parts(parts) => parts.into_iter().for_each(|part| match part {
                Part::Bytes(bytes) => output.push(&bytes),
                Part::File(file, range) => output.push_file(file, range),
            }),
            Body::Stream(_) | Body::Later(_) => {}
        }
    }
}
