//! A file as it is sent, with all that is told of it written out once.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use cap_std::fs::Metadata;
use http::StatusCode;

use super::conditions::{self, Verdict};
use super::ranges::{self, Ranges};
use super::root::Root;
use super::small::{self, SMALL_BYTES_MAX};
use super::validators::{Identity, Validators};
use super::variants::{self, Variants};
use super::{Caching, media, multipart};
use crate::httpserver::{ContentCoding, FieldBlock, RequestHead, Response};

/// Which file stands for a path, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Form {
    relative: PathBuf,
    content_type: String,
    coding: ContentCoding,
    /// The other files that hold the same.
    variants: Variants,
}

impl Form {
    /// A file as it is.
    pub(super) fn plain(relative: PathBuf, variants: Variants) -> Self {
        let content_type = media::content_type(&relative);
        Form { relative, content_type, coding: ContentCoding::Identity, variants }
    }

    /// Whether the answer depends on what codings the client takes.
    #[inline]
    pub(super) fn varies(&self) -> bool {
        self.variants.any()
    }

    /// The same content in the coding that suits the client best, where that is another file.
    pub(super) fn for_client(&self, head: &RequestHead<'_>) -> Option<Form> {
        let coding = self.variants.choose(head.accepted_codings())?;
        coding.name()?;
        Some(Form { relative: variants::name(&self.relative, coding), coding, ..self.clone() })
    }

    /// Its name among the forms of a path.
    pub(super) fn name(&self) -> &'static str {
        self.coding.name().unwrap_or_default()
    }
}

/// A regular file.
pub(super) struct Entry {
    pub(super) form: Form,
    identity: Identity,
    validators: Validators,
    content: Content,
    /// Small, and to be read into memory once the system has it there.
    cold: bool,
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
    pub(super) fn load(root: &Root, form: Form, now: u64, caching: &Caching) -> io::Result<Entry> {
        let (file, mut metadata) = root.file(&form.relative)?;
        let mut text = None;
        if metadata.len() <= SMALL_BYTES_MAX {
            text = small::read(&file, metadata.len())?;
            // Whatever changed it meanwhile has set its time since, so that its tag is weak.
            metadata = Metadata::from_file(&file)?;
        }
        let cold = text.is_none() && metadata.len() <= SMALL_BYTES_MAX;
        let content = match text {
            Some(text) => Content::Memory(text.into()),
            None => Content::Open(Arc::new(file), metadata.len()),
        };
        let identity = Identity::of(&metadata);
        let validators = Validators::new(&identity, SystemTime::now()).coded(form.coding.name());
        // A hash in the name is told of in all forms.
        let cache_control = caching.value(&variants::original(&form.relative, form.coding));
        let mut unchanged = FieldBlock::new().with("ETag", &validators.etag).with("Cache-Control", cache_control);
        if form.varies() {
            unchanged = unchanged.with("Vary", "Accept-Encoding");
        }
        let mut whole = unchanged.clone().with("Content-Type", &form.content_type);
        if let Some(coding) = form.coding.name() {
            whole = whole.with("Content-Encoding", coding);
        }
        if let Some(date) = validators.last_modified() {
            whole = whole.with("Last-Modified", date);
        }
        whole = whole.with("Accept-Ranges", "bytes").with("X-Content-Type-Options", "nosniff");
        let (whole, unchanged) = (Arc::new(whole), Arc::new(unchanged));
        Ok(Entry { form, identity, validators, content, cold, whole, unchanged, checked: now })
    }

    /// Whether the file is still the one that was loaded. One that was not at rest then is not sure to be.
    pub(super) fn is_current(&self, root: &Root, form: &Form) -> bool {
        let is_same = |metadata| self.identity == Identity::of(&metadata);
        self.validators.settled && !self.cold && self.form == *form && root.metadata(&form.relative).is_ok_and(is_same)
    }

    /// What it holds of the memory, besides some hundred bytes.
    pub(super) fn bytes(&self) -> usize {
        let Form { relative, content_type, .. } = &self.form;
        let names = relative.as_os_str().len() + content_type.len() + self.validators.etag.len();
        names
            + self.whole.len()
            + self.unchanged.len()
            + if let Content::Memory(text) = &self.content { text.len() } else { 0 }
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
            _ => self.all(),
        }
    }

    /// The whole of it, as what is said with a status other than 200: so without what concerns the file itself.
    pub(super) fn respond_with(&self, status: StatusCode) -> Response {
        let fields = FieldBlock::new().with("Content-Type", &self.form.content_type);
        let fields = fields.with("X-Content-Type-Options", "nosniff");
        self.part(0..self.len()).with_status(status).with_fields(&Arc::new(fields))
    }

    fn partial(&self, range: &[u8]) -> Response {
        let len = self.len();
        let partial = StatusCode::PARTIAL_CONTENT;
        match ranges::parse(range, len) {
            Ranges::Whole => self.all(),
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

    /// The answer that most requests get.
    fn all(&self) -> Response {
        let response = match &self.content {
            Content::Memory(text) => Response::new(StatusCode::OK).body(text.clone()),
            Content::Open(file, len) => Response::file(Arc::clone(file), 0..*len),
        };
        response.with_fields(&self.whole)
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
        multipart::response(&self.form.content_type, self.len(), ranges, piece)
    }
}

/// A part of what is in memory, which is small.
fn slice(text: &Bytes, range: &Range<u64>) -> Bytes {
    let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(text.len());
    if range.end - range.start == text.len() as u64 { text.clone() } else { text.slice(at(range.start)..at(range.end)) }
}
