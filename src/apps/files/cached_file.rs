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

use super::conditions::{self, Fingerprint, History, Outcome, Ranges, Validators};
use super::look_ups::timed;
use super::options::Options;
use super::representation::{self, Media, Representation};
use super::root::{Root, is_removed};
use crate::httpserver::{HeaderBlock, RequestHead, Response};
use crate::r#loop::read_at;

/// Maximum size of a file that is held in memory. Sending it from memory costs less than half as much as the system
/// calls that send it from a descriptor. Also the size of the beginning of a larger file by which its type is
/// recognized.
pub(super) const SMALL_BYTES_MAX: u64 = 32 * 1024;

/// Maximum size of a page held in memory that is sent in place of a missing file, so that it is there when its file
/// cannot be read.
pub(super) const PAGE_BYTES_MAX: u64 = 256 * 1024;

/// Value of `validated_at` that is never current.
const NEVER: u64 = u64::MAX;

/// A regular file with its metadata, content and rendered headers. A clone shares the content.
#[derive(Clone)]
pub(super) struct CachedFile {
    pub(super) representation: Representation,
    content_type: String,
    fingerprint: Fingerprint,
    validators: Validators,
    content: Content,
    /// True if any change of the file since it was loaded shows in its metadata.
    is_stable: bool,
    /// Headers of a 200 response.
    ok_headers: Arc<HeaderBlock>,
    /// Headers of a 304 response.
    not_modified_headers: Arc<HeaderBlock>,
    /// When this was last validated against the file system, as a Unix time in seconds.
    pub(super) validated_at: u64,
}

#[derive(Clone)]
enum Content {
    Memory(Bytes),
    Open(Arc<File>, u64),
}

/// The reason a file could not be loaded.
pub(super) enum LoadError {
    Io(io::Error),
    /// The beginning of the file is not in the page cache, so that reading it would block the loop.
    Cold(File),
}

impl From<io::Error> for LoadError {
    fn from(error: io::Error) -> Self {
        LoadError::Io(error)
    }
}

/// The parameters of [`CachedFile::load`].
#[derive(Clone, Copy)]
pub(super) struct Loader<'a> {
    pub(super) root: &'a Root,
    pub(super) options: &'a Options,
    pub(super) history: &'a History,
    /// The current Unix time in seconds.
    pub(super) now: u64,
    /// Maximum size of a file that is held in memory.
    pub(super) memory_bytes_max: u64,
    /// Allows to read from disk. Set once another thread has read the file into the page cache.
    pub(super) may_block: bool,
}

impl Loader<'_> {
    /// Returns the identity representation of a file, with its precompressed siblings.
    pub(super) fn identity(&self, relative: PathBuf) -> Representation {
        Representation::find(self.root, relative, self.options.precompressed)
    }

    /// Returns the value of [`CachedFile::validated_at`] for a file that was just compared with the file system.
    fn validated_now(&self) -> u64 {
        if self.options.cache_bytes_max == 0 { NEVER } else { self.now }
    }
}

impl CachedFile {
    /// Opens a file, and reads it into memory if it is small.
    pub(super) fn load(loader: &Loader<'_>, representation: Representation) -> Result<CachedFile, LoadError> {
        let (file, mut metadata) = loader.root.open_file(&representation.relative)?;
        let types = &loader.options.types;
        let is_small = metadata.len() <= loader.memory_bytes_max;
        let has_own_type = representation.content_type.is_none();
        let needs_start = has_own_type && representation::needs_content(&representation.relative, types);
        let mut start = Vec::new();
        if is_small || needs_start {
            match timed(|| read_start(&file, metadata.len(), loader.memory_bytes_max, loader.may_block))? {
                Some(bytes) => start = bytes,
                None => return Err(LoadError::Cold(file)),
            }
            // A change during the read updates the mtime and the ctime. A recent one makes the entry unstable.
            metadata = timed(|| Metadata::from_file(&file))?;
        }
        let (now, fingerprint) = (SystemTime::now(), Fingerprint::of(&metadata));
        let media = match &representation.content_type {
            Some(content_type) => Media { content_type: content_type.clone(), is_gzip: false },
            None => Media::new(&representation.relative, types, &start),
        };
        // The file may have grown.
        let (content, validators) = if is_small && start.len() as u64 <= loader.memory_bytes_max {
            let relative = &representation.relative;
            let validators = Validators::of_content(&start, relative, &fingerprint, loader.history, now);
            (Content::Memory(start.into()), validators)
        } else {
            let mtime_is_reused = loader.history.record(&representation.relative, &fingerprint);
            let coding = representation.coding.name();
            let validators = Validators::of_metadata(&fingerprint, coding, mtime_is_reused, now);
            (Content::Open(Arc::new(file), metadata.len()), validators)
        };
        // Without a ctime, a file can be replaced by one of the same length and mtime. Without a cache every request
        // must see that.
        let is_detectable = cfg!(unix) || loader.options.cache_bytes_max > 0;
        let is_stable = is_detectable && fingerprint.is_stable(now);
        let (ok_headers, not_modified_headers) = headers(loader, &representation, &media, &validators, &content);
        Ok(CachedFile {
            representation,
            content_type: media.content_type,
            fingerprint,
            validators,
            content,
            is_stable,
            ok_headers,
            not_modified_headers,
            validated_at: loader.validated_now(),
        })
    }

    /// Returns the file as it is now, or `None` if the cached one is current, which is then marked as validated.
    pub(super) fn reload(
        cached: Option<&mut CachedFile>,
        loader: &Loader<'_>,
        representation: Representation,
    ) -> Result<Option<CachedFile>, LoadError> {
        if cached.is_some_and(|file| file.revalidate(loader, &representation)) {
            return Ok(None);
        }
        CachedFile::load(loader, representation).map(Some)
    }

    /// Marks this as validated and returns true if it can be reused: neither the file nor its representation has
    /// changed. Always false if the file changed too shortly before it was loaded to detect a later change.
    fn revalidate(&mut self, loader: &Loader<'_>, representation: &Representation) -> bool {
        let is_same = |metadata| self.fingerprint == Fingerprint::of(&metadata);
        let is_current = self.is_stable
            && self.representation == *representation
            && loader.root.metadata(&representation.relative).is_ok_and(is_same);
        if is_current {
            self.set_validated(loader);
        }
        is_current
    }

    /// Marks this as validated.
    pub(super) fn set_validated(&mut self, loader: &Loader<'_>) {
        self.validated_at = loader.validated_now();
    }

    /// Makes the next request load the file again, even if its metadata does not change.
    pub(super) fn expire(&mut self) {
        (self.is_stable, self.validated_at) = (false, NEVER);
    }

    /// Returns a copy that has to be validated again.
    pub(super) fn stale_copy(&self) -> CachedFile {
        CachedFile { validated_at: 0, ..self.clone() }
    }

    /// Returns whether this was loaded or validated at `time` or later.
    pub(super) fn is_validated_since(&self, time: u64) -> bool {
        self.validated_at >= time
    }

    /// Returns whether this was validated after `time`, and stays valid until the end of a second.
    pub(super) fn is_validated_after(&self, time: u64) -> bool {
        self.validated_at != NEVER && self.validated_at > time
    }

    /// Moves the time of the last validation to `now`: a look-up may take longer than a second, and requests would find
    /// no valid file otherwise.
    pub(super) fn extend_validity(&mut self, now: u64) {
        if self.validated_at != NEVER {
            self.validated_at = now;
        }
    }

    /// Returns the precompressed representation to send to this client, or `None` if that is this file.
    pub(super) fn for_client(&self, head: &RequestHead<'_>) -> Option<Representation> {
        self.representation.for_client(head.accepted_codings(), &self.content_type)
    }

    /// Returns whether the file was deleted or replaced, as far as its descriptor shows.
    pub(super) fn is_deleted(&self) -> bool {
        match &self.content {
            Content::Memory(_) => false,
            Content::Open(file, _) => Metadata::from_file(file).is_ok_and(|metadata| is_removed(&metadata)),
        }
    }

    /// Returns the approximate memory use in bytes, without fixed overhead.
    pub(super) fn bytes(&self) -> usize {
        let Representation { relative, content_type, .. } = &self.representation;
        let names = relative.as_os_str().len()
            + content_type.as_ref().map_or(0, String::len)
            + self.content_type.len()
            + self.validators.etag.len();
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
        self.content.len()
    }

    /// Returns whether the file has no content.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
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
        let headers = HeaderBlock::new().with("Content-Type", &self.content_type);
        let headers = headers.with("X-Content-Type-Options", "nosniff");
        self.slice_response(0..self.len()).with_status(status).with_headers(&Arc::new(headers))
    }

    fn range_response(&self, range: &[u8]) -> Response {
        let len = self.len();
        let partial = StatusCode::PARTIAL_CONTENT;
        match conditions::parse_range(range, len) {
            Ranges::Full => self.full_response(),
            Ranges::Single(part) => {
                let content_range = conditions::content_range(&part, len);
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
        conditions::multipart_response(&self.content_type, self.len(), ranges, piece)
    }
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::Open(_, len) => *len,
        }
    }
}

/// Renders the headers of 200 and 304 responses.
fn headers(
    loader: &Loader<'_>,
    representation: &Representation,
    media: &Media,
    validators: &Validators,
    content: &Content,
) -> (Arc<HeaderBlock>, Arc<HeaderBlock>) {
    // Every representation gets the Cache-Control of the original name, which may contain a content hash.
    let cache_control = loader.options.cache_control.value(&representation.original_name());
    let mut not_modified = HeaderBlock::new().with("ETag", &validators.etag).with("Cache-Control", cache_control);
    if representation.varies() {
        not_modified = not_modified.with("Vary", "Accept-Encoding");
    }
    let mut ok = not_modified.clone().with("Content-Type", &media.content_type);
    let coding = representation.coding.name().or_else(|| media.is_gzip.then_some("gzip"));
    match coding {
        Some(coding) => ok = ok.with("Content-Encoding", coding),
        None => not_modified = not_modified.describing(&media.content_type, content.len()),
    }
    if let Some(date) = validators.last_modified() {
        ok = ok.with("Last-Modified", date);
    }
    ok = ok.with("Accept-Ranges", "bytes").with("X-Content-Type-Options", "nosniff");
    (Arc::new(ok), Arc::new(not_modified))
}

/// Reads the beginning of a file of about `len` bytes: all of a file of at most `bytes_max` bytes, and one byte more
/// than that of a larger one. Returns `None` if it is not in the page cache, unless `may_block` is set.
fn read_start(file: &File, len: u64, bytes_max: u64, may_block: bool) -> io::Result<Option<Vec<u8>>> {
    let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX - 1) + 1;
    // One extra byte, to detect the end of the file without another read.
    let mut content = vec![0; usize::try_from(len).unwrap_or(usize::MAX).saturating_add(1).min(bytes_max)];
    let mut filled = 0;
    loop {
        let count = match read_cached(file, &mut content[filled..], filled as u64) {
            Ok(0) if filled as u64 >= len => 0,
            Ok(count @ 1..) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !may_block => return Ok(None),
            // The file has shrunk (or Linux 5.9 stopped at the end of the cached data), the file system does not
            // support RWF_NOWAIT, or an error occurred, which will recur.
            Ok(_) | Err(_) => read_at(file, &mut content[filled..], filled as u64)?,
        };
        filled += count;
        if count == 0 || filled == bytes_max {
            content.truncate(filled);
            content.shrink_to_fit();
            return Ok(Some(content));
        }
        if filled == content.len() {
            content.resize(bytes_max, 0);
        }
    }
}

/// Reads from the page cache only. Fails with `WouldBlock` if the data is not there.
#[cfg(target_os = "linux")]
fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    use rustix::io::{ReadWriteFlags, preadv2};
    Ok(preadv2(file, &mut [io::IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT)?)
}

#[cfg(not(target_os = "linux"))]
fn read_cached(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Reads the beginning of a file from disk, so that [`CachedFile::load`] finds it in the page cache.
pub(super) fn read_into_page_cache(file: &File) {
    // An error will recur, and is reported then.
    let _ = read_start(file, PAGE_BYTES_MAX, PAGE_BYTES_MAX, true);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_file_is_read_even_if_its_length_has_changed() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("file");
        for (written, expected_len) in
            [(0, 0), (1, 1), (5000, 5000), (5000, 10), (10, 5000), (32 * 1024, 32 * 1024), (32 * 1024, 1)]
        {
            let bytes = vec![b'x'; written];
            std::fs::write(&path, &bytes).unwrap();
            // Data just written is in the page cache.
            let read = read_start(&File::open(&path).unwrap(), expected_len, SMALL_BYTES_MAX, false).unwrap();
            assert_eq!(read, Some(bytes), "{written} bytes, expected {expected_len}");
        }
        for expected_len in [10, 100_000] {
            std::fs::write(&path, vec![b'x'; 100_000]).unwrap();
            let read = read_start(&File::open(&path).unwrap(), expected_len, SMALL_BYTES_MAX, false).unwrap();
            assert_eq!(read.map(|bytes| bytes.len()), Some(32 * 1024 + 1));
        }
    }
}
