//! A file as it is sent, with all that is told of it written out once.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use cap_std::fs::Metadata;
use http::StatusCode;

use super::conditions::{self, Verdict};
use super::ranges::{self, Ranges};
use super::root::Root;
use super::validators::{Identity, Validators};
use super::{media, multipart};
use crate::httpserver::{FieldBlock, RequestHead, Response};

/// Files up to this size are kept in memory: sending one from there costs less than half of what the calls cost that
/// send it from a descriptor.
pub(super) const SMALL_BYTES_MAX: u64 = 32 * 1024;

/// A regular file.
pub(super) struct Entry {
    relative: PathBuf,
    identity: Identity,
    validators: Validators,
    content_type: String,
    content: Content,
    /// What is told with the whole of it.
    whole: Arc<FieldBlock>,
    /// What is told where it is not sent, because the client has it.
    unchanged: Arc<FieldBlock>,
    /// When it was last compared with the file, in seconds since 1970.
    pub(super) checked: u64,
}

enum Content {
    Memory(Bytes),
    Open(Arc<File>, u64),
}

impl Entry {
    /// Opens a file, and reads it if it is small.
    pub(super) fn load(root: &Root, relative: &Path, now: u64) -> io::Result<Entry> {
        let (mut file, mut metadata) = root.file(relative)?;
        let content = if metadata.len() <= SMALL_BYTES_MAX {
            let text = read_small(&mut file)?;
            // Whatever changed it meanwhile has set its time since, so that its tag is weak.
            metadata = Metadata::from_file(&file)?;
            text.map(|text| Content::Memory(text.into()))
        } else {
            None
        };
        let content = content.unwrap_or_else(|| Content::Open(Arc::new(file), metadata.len()));
        let identity = Identity::of(&metadata);
        let validators = Validators::new(&identity, SystemTime::now());
        let content_type = media::content_type(relative);
        let unchanged = FieldBlock::new().with("ETag", &validators.etag);
        let mut whole = unchanged.clone().with("Content-Type", &content_type);
        if let Some(date) = validators.last_modified() {
            whole = whole.with("Last-Modified", date);
        }
        whole = whole.with("Accept-Ranges", "bytes").with("X-Content-Type-Options", "nosniff");
        let (whole, unchanged) = (Arc::new(whole), Arc::new(unchanged));
        let relative = relative.to_owned();
        Ok(Entry { relative, identity, validators, content_type, content, whole, unchanged, checked: now })
    }

    /// Whether the file is still the one that was loaded. One that was not at rest then is not sure to be.
    pub(super) fn is_current(&self, relative: &Path, metadata: &Metadata) -> bool {
        self.validators.settled && self.relative == relative && self.identity == Identity::of(metadata)
    }

    /// What it holds of the memory, besides some hundred bytes.
    pub(super) fn bytes(&self) -> usize {
        let fields = self.whole.len() + self.unchanged.len() + self.content_type.len() + self.validators.etag.len();
        fields + if let Content::Memory(text) = &self.content { text.len() } else { 0 }
    }

    /// Whether it holds a descriptor.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.content, Content::Open(..))
    }

    fn len(&self) -> u64 {
        match &self.content {
            Content::Memory(text) => text.len() as u64,
            Content::Open(_, len) => *len,
        }
    }

    /// The answer to a request for reading.
    pub(super) fn respond(&self, head: &RequestHead<'_>) -> Response {
        if head.is_conditional() {
            match conditions::judge(head, &self.validators) {
                Verdict::Proceed => {}
                Verdict::NotModified => return Response::new(StatusCode::NOT_MODIFIED).with_fields(&self.unchanged),
                Verdict::Failed => return StatusCode::PRECONDITION_FAILED.into(),
            }
        }
        // RFC 9110 section 14.2: ranges are for GET alone.
        match head.field("range") {
            Some(range) if head.method_bytes() == b"GET" && conditions::is_in_range(head, &self.validators) => {
                self.partial(range)
            }
            _ => self.part(0..self.len()).with_fields(&self.whole),
        }
    }

    fn partial(&self, range: &[u8]) -> Response {
        let len = self.len();
        let partial = StatusCode::PARTIAL_CONTENT;
        match ranges::parse(range, len) {
            Ranges::Whole => self.part(0..len).with_fields(&self.whole),
            Ranges::One(part) => {
                let content_range = multipart::content_range(&part, len);
                let response = self.part(part).with_status(partial).with_fields(&self.whole);
                response.field("Content-Range", content_range)
            }
            Ranges::Several(parts) => {
                let response = self.several(&parts).with_status(partial);
                // The type of the whole is told in each part, and that of the answer is another.
                response.with_fields(&Arc::new(self.whole.without("Content-Type")))
            }
            Ranges::Unsatisfiable => {
                let response = Response::from(StatusCode::RANGE_NOT_SATISFIABLE);
                response.field("Content-Range", format!("bytes */{len}"))
            }
        }
    }

    /// A response with a part of the content.
    fn part(&self, range: Range<u64>) -> Response {
        match &self.content {
            Content::Memory(text) => Response::new(StatusCode::OK).body(slice(text, &range)),
            Content::Open(file, _) => Response::file(Arc::clone(file), range),
        }
    }

    fn several(&self, ranges: &[Range<u64>]) -> Response {
        let piece = |range: &Range<u64>| match &self.content {
            Content::Memory(text) => slice(text, range).into(),
            Content::Open(file, _) => crate::httpserver::Part::File(Arc::clone(file), range.clone()),
        };
        multipart::response(&self.content_type, self.len(), ranges, piece)
    }
}

/// The whole of a file, unless it has grown out of the bound.
fn read_small(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    file.take(SMALL_BYTES_MAX + 1).read_to_end(&mut text)?;
    Ok((text.len() as u64 <= SMALL_BYTES_MAX).then_some(text))
}

/// A part of what is in memory, which is small.
fn slice(text: &Bytes, range: &Range<u64>) -> Bytes {
    let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(text.len());
    if range.end - range.start == text.len() as u64 { text.clone() } else { text.slice(at(range.start)..at(range.end)) }
}
