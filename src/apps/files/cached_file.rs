//! A cached file with pre-rendered response headers.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use cap_std::fs::Metadata;
use http::StatusCode;

use super::conditions::{self, Outcome};
use super::precompressed::{self, Precompressed};
use super::ranges::{self, Ranges};
use super::root::Root;
use super::small_file::{self, SMALL_BYTES_MAX};
use super::validators::{Fingerprint, Validators};
use super::{CacheControl, media, multipart};
use crate::httpserver::{ContentCoding, HeaderBlock, RequestHead, Response};

/// A representation of a resource: a file, its media type and its content coding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Representation {
    relative: PathBuf,
    content_type: String,
    coding: ContentCoding,
    /// The precompressed siblings of the file.
    precompressed: Precompressed,
}

impl Representation {
    /// Creates the identity (uncompressed) representation of a file.
    pub(super) fn identity(relative: PathBuf, precompressed: Precompressed) -> Self {
        let content_type = media::content_type(&relative);
        Representation { relative, content_type, coding: ContentCoding::Identity, precompressed }
    }

    /// Returns whether the response depends on Accept-Encoding.
    #[inline]
    pub(super) fn varies(&self) -> bool {
        self.precompressed.any()
    }

    /// Returns the precompressed representation to send to this client, or `None` if that is `self`.
    pub(super) fn for_client(&self, head: &RequestHead<'_>) -> Option<Representation> {
        let coding = self.precompressed.best(head.accepted_codings())?;
        coding.name()?;
        Some(Representation { relative: precompressed::sibling_name(&self.relative, coding), coding, ..self.clone() })
    }

    /// Returns the name of its content coding; empty for identity.
    pub(super) fn coding_name(&self) -> &'static str {
        self.coding.name().unwrap_or_default()
    }
}

/// A regular file with its metadata, content and rendered headers.
pub(super) struct CachedFile {
    pub(super) representation: Representation,
    fingerprint: Fingerprint,
    validators: Validators,
    content: Content,
    /// True for a small file that was not in the page cache when loaded; it is loaded again at the next validation.
    cold: bool,
    /// Headers of a 200 response.
    ok_headers: Arc<HeaderBlock>,
    /// Headers of a 304 response.
    not_modified_headers: Arc<HeaderBlock>,
    /// When this was last validated against the file system, as a Unix time in seconds.
    pub(super) validated_at: u64,
}

enum Content {
    Memory(Bytes),
    Open(Arc<File>, u64),
}

impl CachedFile {
    /// Opens a file, and reads it into memory if it is small.
    pub(super) fn load(
        root: &Root,
        representation: Representation,
        now: u64,
        cache_control: &CacheControl,
    ) -> io::Result<CachedFile> {
        let (file, mut metadata) = root.open_file(&representation.relative)?;
        let mut bytes = None;
        if metadata.len() <= SMALL_BYTES_MAX {
            bytes = small_file::read(&file, metadata.len())?;
            // A change during the read updates the mtime. A recent mtime makes the ETag weak.
            metadata = Metadata::from_file(&file)?;
        }
        let cold = bytes.is_none() && metadata.len() <= SMALL_BYTES_MAX;
        let content = match bytes {
            Some(bytes) => Content::Memory(bytes.into()),
            None => Content::Open(Arc::new(file), metadata.len()),
        };
        let fingerprint = Fingerprint::of(&metadata);
        let validators = Validators::new(&fingerprint, SystemTime::now()).with_coding(representation.coding.name());
        // Every representation gets the Cache-Control of the original name, which may contain a content hash.
        let cache_control =
            cache_control.value(&precompressed::original_name(&representation.relative, representation.coding));
        let mut not_modified_headers =
            HeaderBlock::new().with("ETag", &validators.etag).with("Cache-Control", cache_control);
        if representation.varies() {
            not_modified_headers = not_modified_headers.with("Vary", "Accept-Encoding");
        }
        let mut ok_headers = not_modified_headers.clone().with("Content-Type", &representation.content_type);
        if let Some(coding) = representation.coding.name() {
            ok_headers = ok_headers.with("Content-Encoding", coding);
        }
        if let Some(date) = validators.last_modified() {
            ok_headers = ok_headers.with("Last-Modified", date);
        }
        ok_headers = ok_headers.with("Accept-Ranges", "bytes").with("X-Content-Type-Options", "nosniff");
        let (ok_headers, not_modified_headers) = (Arc::new(ok_headers), Arc::new(not_modified_headers));
        Ok(CachedFile {
            representation,
            fingerprint,
            validators,
            content,
            cold,
            ok_headers,
            not_modified_headers,
            validated_at: now,
        })
    }

    /// Returns whether this can be reused: neither the file nor its representation has changed. Always `false` if the
    /// mtime was too recent at load time to detect a later change.
    pub(super) fn is_current(&self, root: &Root, representation: &Representation) -> bool {
        let is_same = |metadata| self.fingerprint == Fingerprint::of(&metadata);
        self.validators.mtime_is_stable
            && !self.cold
            && self.representation == *representation
            && root.metadata(&representation.relative).is_ok_and(is_same)
    }

    /// Returns the approximate memory use in bytes, without fixed overhead.
    pub(super) fn bytes(&self) -> usize {
        let Representation { relative, content_type, .. } = &self.representation;
        let names = relative.as_os_str().len() + content_type.len() + self.validators.etag.len();
        names
            + self.ok_headers.len()
            + self.not_modified_headers.len()
            + if let Content::Memory(bytes) = &self.content { bytes.len() } else { 0 }
    }

    /// Returns whether this holds an open file descriptor.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.content, Content::Open(..))
    }

    fn len(&self) -> u64 {
        match &self.content {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::Open(_, len) => *len,
        }
    }

    /// Responds to a GET or HEAD request.
    pub(super) fn respond(&self, head: &RequestHead<'_>) -> Response {
        if head.is_conditional() {
            match conditions::evaluate(head, &self.validators) {
                Outcome::Proceed => {}
                Outcome::NotModified => {
                    return Response::new(StatusCode::NOT_MODIFIED).with_headers(&self.not_modified_headers);
                }
                Outcome::Failed => return StatusCode::PRECONDITION_FAILED.into(),
            }
        }
        // RFC 9110 section 14.2: Range is only defined for GET.
        match head.header("range") {
            Some(range) if head.method_bytes() == b"GET" && conditions::range_applies(head, &self.validators) => {
                self.range_response(range)
            }
            _ => self.full_response(),
        }
    }

    /// Responds with the whole file as the body of an error response, without its validators and Accept-Ranges.
    pub(super) fn respond_as_error(&self, status: StatusCode) -> Response {
        let headers = HeaderBlock::new().with("Content-Type", &self.representation.content_type);
        let headers = headers.with("X-Content-Type-Options", "nosniff");
        self.slice_response(0..self.len()).with_status(status).with_headers(&Arc::new(headers))
    }

    fn range_response(&self, range: &[u8]) -> Response {
        let len = self.len();
        let partial = StatusCode::PARTIAL_CONTENT;
        match ranges::parse(range, len) {
            Ranges::Full => self.full_response(),
            Ranges::Single(part) => {
                let content_range = multipart::content_range(&part, len);
                let response = self.slice_response(part).with_status(partial).with_headers(&self.ok_headers);
                response.header("Content-Range", content_range)
            }
            Ranges::Multiple(parts) => {
                let response = self.multipart_response(&parts).with_status(partial);
                // Each part carries the file's Content-Type; the response is multipart/byteranges.
                response.with_headers(&Arc::new(self.ok_headers.without("Content-Type")))
            }
            Ranges::Unsatisfiable => {
                let response = Response::from(StatusCode::RANGE_NOT_SATISFIABLE);
                response.header("Content-Range", format!("bytes */{len}"))
            }
        }
    }

    /// Responds with the whole file. This is the hot path.
    fn full_response(&self) -> Response {
        let response = match &self.content {
            Content::Memory(bytes) => Response::new(StatusCode::OK).body(bytes.clone()),
            Content::Open(file, len) => Response::file(Arc::clone(file), 0..*len),
        };
        response.with_headers(&self.ok_headers)
    }

    /// Returns a response with a slice of the content.
    fn slice_response(&self, range: Range<u64>) -> Response {
        match &self.content {
            Content::Memory(bytes) => Response::new(StatusCode::OK).body(slice(bytes, &range)),
            Content::Open(file, _) => Response::file(Arc::clone(file), range),
        }
    }

    fn multipart_response(&self, ranges: &[Range<u64>]) -> Response {
        let piece = |range: &Range<u64>| match &self.content {
            Content::Memory(bytes) => slice(bytes, range).into(),
            Content::Open(file, _) => crate::httpserver::Part::File(Arc::clone(file), range.clone()),
        };
        multipart::response(&self.representation.content_type, self.len(), ranges, piece)
    }
}

/// Returns a slice of in-memory content.
fn slice(bytes: &Bytes, range: &Range<u64>) -> Bytes {
    let index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    if range.end - range.start == bytes.len() as u64 {
        bytes.clone()
    } else {
        bytes.slice(index(range.start)..index(range.end))
    }
}
