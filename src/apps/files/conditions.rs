//! Conditional and range requests: the validators ETag and Last-Modified (RFC 9110 section 8.8), preconditions (section
//! 13), evaluated in the order of section 13.2.2, byte ranges (section 14), and responses with several of them:
//! multipart/byteranges (section 14.6).
//!
//! The entity tag of a small file is a hash of its content. That of a larger one is its length and mtime, so that
//! copies of a file on several servers have the same tag. Where the mtime cannot be trusted to change with the content,
//! the ctime is added, which a program cannot set.

use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cap_std::fs::Metadata;
use lru::LruCache;
use sha2::{Digest, Sha256};

use crate::httpserver::{Part, RequestHead, Response};
use crate::r#loop::lock;

/// Maximum number of ranges in a request. More are considered an attack: Range is ignored, as sending the whole file is
/// cheaper.
const RANGES_MAX: usize = 100;

/// Approximate overhead of a multipart part in bytes; ranges closer together than this are merged.
const PART_OVERHEAD_BYTES: u64 = 128;

/// The outcome of the preconditions of a GET or HEAD request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All preconditions hold: respond normally.
    Proceed,
    /// 304: the client's copy is current.
    NotModified,
    /// 412: a precondition failed.
    Failed,
}

/// Evaluates all preconditions except If-Range, which only affects ranges (see [`range_applies`]).
pub(super) fn evaluate(head: &RequestHead<'_>, file: &Validators) -> Outcome {
    match (tags(head, "if-match"), date(head, "if-unmodified-since")) {
        (Some(wanted), _) if !wanted.any(|tag| file.matches_strongly(tag)) => return Outcome::Failed,
        (None, Some(date)) if file.modified.is_some_and(|modified| modified > date) => return Outcome::Failed,
        _ => {}
    }
    match (tags(head, "if-none-match"), date(head, "if-modified-since")) {
        (Some(known), _) if known.any(|tag| file.matches_weakly(tag)) => Outcome::NotModified,
        (None, Some(date)) if file.modified.is_some_and(|modified| modified <= date) => Outcome::NotModified,
        _ => Outcome::Proceed,
    }
}

/// Returns whether a Range header applies: If-Range is absent or matches the current file (RFC 9110 section 13.1.5).
pub(super) fn range_applies(head: &RequestHead<'_>, file: &Validators) -> bool {
    let Some(value) = head.header("if-range") else { return true };
    let Ok(value) = std::str::from_utf8(value) else { return false };
    match (TagIter { rest: value }).next() {
        Some(tag) => tag == value && file.matches_strongly(tag),
        // A date is a strong validator only if the file cannot have changed again within that second; it must match
        // Last-Modified exactly.
        None => file.date_is_strong && parse_date(value) == file.modified,
    }
}

/// The value of an If-Match or If-None-Match header.
enum EntityTags<'a> {
    /// `*`: matches any existing representation.
    Any,
    Tags(Vec<&'a str>),
}

impl EntityTags<'_> {
    fn any(&self, matches: impl Fn(&str) -> bool) -> bool {
        match self {
            EntityTags::Any => true,
            EntityTags::Tags(tags) => tags.iter().any(|tag| matches(tag)),
        }
    }
}

fn values<'a>(head: &RequestHead<'a>, name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    head.headers().filter(move |(header, _)| header.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
}

fn tags<'a>(head: &RequestHead<'a>, name: &'static str) -> Option<EntityTags<'a>> {
    let mut listed = None;
    for value in values(head, name) {
        if value == b"*" {
            return Some(EntityTags::Any);
        }
        let EntityTags::Tags(list) = listed.get_or_insert(EntityTags::Tags(Vec::new())) else { continue };
        list.extend(TagIter { rest: std::str::from_utf8(value).unwrap_or_default() });
    }
    listed
}

/// Parses the date in a header. A malformed or repeated header counts as absent.
fn date(head: &RequestHead<'_>, name: &'static str) -> Option<u64> {
    let mut values = values(head, name);
    match (values.next(), values.next()) {
        (Some(value), None) => parse_date(std::str::from_utf8(value).ok()?),
        _ => None,
    }
}

fn parse_date(value: &str) -> Option<u64> {
    let date = httpdate::parse_http_date(value).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Iterates over a list of entity tags, up to the first malformed one (RFC 9110 section 8.8.3).
struct TagIter<'a> {
    rest: &'a str,
}

impl<'a> Iterator for TagIter<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let list = self.rest.trim_start_matches([',', ' ', '\t']);
        let start = list.strip_prefix("W/").unwrap_or(list).strip_prefix('"')?;
        let len = list.len() - start.len() + start.find('"')? + 1;
        let (tag, rest) = list.split_at(len);
        self.rest = rest;
        Some(tag)
    }
}

/// A parsed Range header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ranges {
    /// The whole file: the header is ignored, because it is malformed or has too many ranges, or the file is empty.
    Full,
    /// A single range.
    Single(Range<u64>),
    /// Several disjoint ranges, in the order of the request.
    Multiple(Vec<Range<u64>>),
    /// No range overlaps the file (416).
    Unsatisfiable,
}

/// Parses a Range header for a file of `len` bytes.
pub(super) fn parse_range(value: &[u8], len: u64) -> Ranges {
    let Some(specs) = std::str::from_utf8(value).ok().and_then(strip_unit) else { return Ranges::Full };
    let (mut parts, mut count) = (Vec::new(), 0);
    for spec in specs.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty()) {
        count += 1;
        match parse_spec(spec, len) {
            _ if count > RANGES_MAX => return Ranges::Full,
            None => return Ranges::Full,
            Some(part) if part.is_empty() => {}
            Some(part) => coalesce(&mut parts, part),
        }
    }
    match parts.len() {
        // Programs that send a Range with every request expect an empty file, not an error.
        _ if count == 0 || len == 0 => Ranges::Full,
        0 => Ranges::Unsatisfiable,
        1 => Ranges::Single(parts.remove(0)),
        _ => Ranges::Multiple(parts),
    }
}

fn strip_unit(value: &str) -> Option<&str> {
    let (unit, specs) = value.split_once('=')?;
    unit.eq_ignore_ascii_case("bytes").then_some(specs)
}

/// Parses one range of a file of `len` bytes. Returns `None` if it is malformed, and the empty range `1..1` if it is
/// unsatisfiable.
fn parse_spec(spec: &str, len: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    match (first, last) {
        ("", suffix) => {
            let count = parse_number(suffix)?;
            // `-0` is never satisfiable.
            Some(if count == 0 { 1..1 } else { len.saturating_sub(count)..len })
        }
        (first, "") => Some(clamp(parse_number(first)?, len)),
        (first, last) => {
            let (first, last) = (parse_number(first)?, parse_number(last)?);
            (first <= last).then(|| clamp(first, len.min(last.saturating_add(1))))
        }
    }
}

/// Returns `first..end`, or `1..1` if that is empty.
fn clamp(first: u64, end: u64) -> Range<u64> {
    if first < end { first..end } else { 1..1 }
}

/// Parses decimal digits; saturates at `u64::MAX`.
fn parse_number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Adds a range, merging it with those that it overlaps or nearly touches.
fn coalesce(parts: &mut Vec<Range<u64>>, mut part: Range<u64>) {
    let mut insert_at = parts.len();
    // The merged range may overlap others in turn.
    while let Some(at) = parts.iter().position(|existing| should_merge(existing, &part)) {
        let existing = parts.remove(at);
        part = existing.start.min(part.start)..existing.end.max(part.end);
        insert_at = insert_at.min(at);
    }
    parts.insert(insert_at.min(parts.len()), part);
}

fn should_merge(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start <= b.end.saturating_add(PART_OVERHEAD_BYTES) && b.start <= a.end.saturating_add(PART_OVERHEAD_BYTES)
}

/// Returns the value of Content-Range for a range of `len` bytes in total.
pub(super) fn content_range(range: &Range<u64>, len: u64) -> String {
    format!("bytes {}-{}/{len}", range.start, range.end - 1)
}

/// Builds a multipart/byteranges response with the given `ranges` of a file of `len` bytes; `piece` returns the content
/// of a range.
pub(super) fn multipart_response(
    content_type: &str,
    len: u64,
    ranges: &[Range<u64>],
    piece: impl Fn(&Range<u64>) -> Part,
) -> Response {
    let boundary = boundary();
    let mut parts = Vec::with_capacity(2 * ranges.len() + 1);
    let mut line_end = "";
    for range in ranges {
        let content_range = content_range(range, len);
        let head =
            format!("{line_end}--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {content_range}\r\n\r\n");
        parts.push(Part::from(head));
        parts.push(piece(range));
        line_end = "\r\n";
    }
    parts.push(Part::from(format!("\r\n--{boundary}--\r\n")));
    Response::parts(parts).header("Content-Type", format!("multipart/byteranges; boundary={boundary}"))
}

/// Returns an unpredictable boundary, which occurs in the content with a probability of about 2^-64.
fn boundary() -> String {
    format!("serverd-{:016x}", RandomState::new().build_hasher().finish())
}

/// Within this time after its mtime or ctime, a file may change again without a new one: the granularity of FAT, the
/// coarsest in use.
const GRANULARITY: Duration = Duration::from_secs(2);

/// Number of bytes of the SHA-256 hash in an entity tag.
const TAG_BYTES: usize = 15;

/// Midnight of 1980-01-01, the earliest date in a zip archive, in any time zone.
const ZIP_EPOCH: std::ops::RangeInclusive<u64> = 315_532_800 - 14 * 3600..=315_532_800 + 14 * 3600;

/// Number of files whose fingerprints are remembered: as many small ones, and as many larger ones.
const HISTORY_MAX: usize = 4096;

/// File metadata that changes when the file does, as far as the operating system can detect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    pub(super) len: u64,
    modified: Option<SystemTime>,
    /// `None` outside Unix.
    changed: Option<SystemTime>,
    /// Device and inode number; zeros outside Unix.
    inode: (u64, u64),
}

/// The information in the mtime of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mtime {
    /// The time of the last change.
    Plain(SystemTime),
    /// In the future.
    Future,
    /// A fixed value that build tools set, or none.
    Fixed,
}

impl Fingerprint {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok().map(cap_std::time::SystemTime::into_std);
        let (changed, inode) = inode(metadata);
        Fingerprint { len: metadata.len(), modified, changed, inode }
    }

    fn mtime(&self, now: SystemTime) -> Mtime {
        match self.modified {
            Some(time) if time > now => Mtime::Future,
            Some(time) if seconds(time) > 1 && !ZIP_EPOCH.contains(&seconds(time)) => Mtime::Plain(time),
            _ => Mtime::Fixed,
        }
    }

    /// Returns whether any later change of the file must alter this fingerprint, read at `now`.
    pub(super) fn is_stable(&self, now: SystemTime) -> bool {
        self.changed.or(self.modified).is_some_and(|time| is_old(time, now))
    }
}

/// Returns whether a later change must have another time.
fn is_old(time: SystemTime, now: SystemTime) -> bool {
    now.duration_since(time).is_ok_and(|age| age >= GRANULARITY)
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> (Option<SystemTime>, (u64, u64)) {
    use cap_std::fs::MetadataExt;
    let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0).min(999_999_999);
    let changed = UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
    (changed, (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> (Option<SystemTime>, (u64, u64)) {
    (None, (0, 0))
}

/// The fingerprints of files that were served, by path. Shows which files change under the same mtime and length.
/// Bounded: the least recently loaded file is forgotten.
pub(super) struct History {
    small: Mutex<LruCache<u64, Seen>>,
    larger: Mutex<LruCache<u64, Seen>>,
    hasher: RandomState,
}

struct Seen {
    fingerprint: Fingerprint,
    /// A hash of the content of a small file.
    content: Option<u64>,
    mtime_is_reused: bool,
}

impl Default for History {
    fn default() -> Self {
        let files = || Mutex::new(LruCache::new(NonZeroUsize::new(HISTORY_MAX).unwrap_or(NonZeroUsize::MIN)));
        History { small: files(), larger: files(), hasher: RandomState::new() }
    }
}

impl History {
    /// Records the fingerprint of a larger file. Returns whether the file had another inode or ctime before, under this
    /// mtime and length.
    pub(super) fn record(&self, relative: &Path, fingerprint: &Fingerprint) -> bool {
        self.record_in(&self.larger, relative, fingerprint, None)
    }

    /// Records the fingerprint of a small file with this entity tag. Returns whether the file had another content
    /// before, under this mtime and length.
    fn record_small(&self, relative: &Path, fingerprint: &Fingerprint, etag: &str) -> bool {
        self.record_in(&self.small, relative, fingerprint, Some(self.hasher.hash_one(etag)))
    }

    fn record_in(
        &self,
        files: &Mutex<LruCache<u64, Seen>>,
        relative: &Path,
        fingerprint: &Fingerprint,
        content: Option<u64>,
    ) -> bool {
        let mut files = lock(files);
        let key = self.hasher.hash_one(relative);
        let mtime_is_reused = files.get(&key).is_some_and(|seen| {
            let has_same = (seen.fingerprint.len, seen.fingerprint.modified) == (fingerprint.len, fingerprint.modified);
            let is_other = if content.is_some() { seen.content != content } else { seen.fingerprint != *fingerprint };
            has_same && (seen.mtime_is_reused || is_other)
        });
        files.put(key, Seen { fingerprint: *fingerprint, content, mtime_is_reused });
        mtime_is_reused
    }
}

/// The validators of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Validators {
    /// The entity tag including its quotes, and the prefix `W/` if it is weak.
    pub(super) etag: String,
    /// The value of Last-Modified as a Unix time in seconds; `None` if the mtime says nothing about the content.
    pub(super) modified: Option<u64>,
    /// True if the date changes with every change of the content.
    pub(super) date_is_strong: bool,
}

impl Validators {
    /// Creates the validators of the file at `relative` from its content. If the content has changed under this mtime,
    /// the file has no date, so that a client that compares only dates does not take the old content for the new one.
    pub(super) fn of_content(
        content: &[u8],
        relative: &Path,
        fingerprint: &Fingerprint,
        history: &History,
        now: SystemTime,
    ) -> Self {
        let hash = Sha256::digest(content);
        let etag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&hash[..TAG_BYTES]));
        let mtime_is_reused = history.record_small(relative, fingerprint, &etag);
        let (modified, date_is_strong) = if mtime_is_reused { (None, false) } else { last_modified(fingerprint, now) };
        Validators { etag, modified, date_is_strong }
    }

    /// Creates the validators of a file from its metadata, which was read at `now`, and its content coding.
    /// `mtime_is_reused` is the result of [`History::record`].
    pub(super) fn of_metadata(
        fingerprint: &Fingerprint,
        coding: Option<&str>,
        mtime_is_reused: bool,
        now: SystemTime,
    ) -> Self {
        let Fingerprint { len, modified, changed, .. } = *fingerprint;
        let mut tag = format!("{:x}-{len:x}", modified.map_or(0, nanoseconds));
        let is_strong = match fingerprint.mtime(now) {
            Mtime::Plain(time) if !mtime_is_reused => is_old(time, now),
            _ => {
                let _ = write!(tag, "-{:x}", changed.map_or(0, nanoseconds));
                changed.is_some_and(|time| is_old(time, now))
            }
        };
        if let Some(coding) = coding {
            let _ = write!(tag, "-{coding}");
        }
        let (modified, date_is_strong) = if mtime_is_reused { (None, false) } else { last_modified(fingerprint, now) };
        let etag = if is_strong { format!("\"{tag}\"") } else { format!("W/\"{tag}\"") };
        Validators { etag, modified, date_is_strong }
    }

    /// Returns the value of Last-Modified, if there is one.
    pub(super) fn last_modified(&self) -> Option<String> {
        self.modified.map(|seconds| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds)))
    }

    /// Compares entity tags by the strong comparison (RFC 9110 section 8.8.3.2).
    fn matches_strongly(&self, tag: &str) -> bool {
        self.etag.starts_with('"') && self.etag == tag
    }

    /// Compares entity tags by the weak comparison (RFC 9110 section 8.8.3.2).
    fn matches_weakly(&self, tag: &str) -> bool {
        opaque(&self.etag) == opaque(tag)
    }
}

/// Returns the date of a file as a Unix time in seconds, and whether it is a strong validator. RFC 9110 section
/// 8.8.2.1: it must not be later than the response. In place of an mtime in the future it is the ctime, which does not
/// change with the clock as the date of the response does.
fn last_modified(fingerprint: &Fingerprint, now: SystemTime) -> (Option<u64>, bool) {
    let time = match fingerprint.mtime(now) {
        Mtime::Plain(time) => Some(time),
        Mtime::Future => fingerprint.changed.filter(|time| *time <= now),
        Mtime::Fixed => None,
    };
    (time.map(seconds), time.is_some_and(|time| is_old(time, now)))
}

fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// Returns the nanoseconds since the Unix epoch; negative for earlier times.
fn nanoseconds(time: SystemTime) -> i128 {
    let count = |duration: Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
    time.duration_since(UNIX_EPOCH).map_or_else(|before| -count(before.duration()), count)
}

/// Returns a Unix time in seconds, clamped to what an HTTP date can express: 1970 to 9999.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().min(253_402_300_799))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entity_tags_are_parsed_from_lists() {
        for (list, tags) in [
            ("\"a\"", &["\"a\""][..]),
            ("W/\"a\", \"b,c\" ,,\t\"\"", &["W/\"a\"", "\"b,c\"", "\"\""]),
            ("", &[]),
            ("a", &[]),
            ("\"a\", b, \"c\"", &["\"a\""]),
            ("\"a", &[]),
            ("w/\"a\"", &[]),
        ] {
            assert_eq!(TagIter { rest: list }.collect::<Vec<_>>(), tags, "{list}");
        }
    }

    #[test]
    fn dates_are_parsed_in_all_three_formats() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(parse_date(text), Some(784_111_777), "{text}");
        }
        for text in ["", "0", "yesterday", "Sun, 06 Nov 1994 08:49:37 CET", "784111777"] {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }

    #[test]
    fn a_single_range_is_parsed() {
        for (value, range) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-499", 0..500),
            ("Bytes=500-999", 500..1000),
            ("bytes=9500-", 9500..10_000),
            ("bytes=-500", 9500..10_000),
            ("bytes=-20000", 0..10_000),
            ("bytes=9999-20000", 9999..10_000),
            ("bytes=0-18446744073709551615", 0..10_000),
            ("bytes=5-99999999999999999999999", 5..10_000),
            ("bytes=-99999999999999999999999", 0..10_000),
            ("bytes=, 1-2 ,", 1..3),
            ("bytes=1-2, 20000-", 1..3),
            ("bytes=0-0, 100-200", 0..201),
            ("bytes=0-,-1", 0..10_000),
        ] {
            assert_eq!(parse_range(value.as_bytes(), 10_000), Ranges::Single(range), "{value}");
        }
    }

    #[test]
    fn invalid_ranges_are_ignored() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=2-1",
            "bytes=1",
            "bytes=1-2-3",
            "bytes=+1-2",
            "bytes=1 - 2",
            "bytes =1-2",
            "lines=1-2",
            "bytes=1-2, x",
            "bytes=0x1-2",
        ] {
            assert_eq!(parse_range(value.as_bytes(), 10_000), Ranges::Full, "{value}");
        }
        let many = |count: usize| (0..count).fold("bytes=".to_owned(), |list, at| format!("{list}{at}000-{at}000,"));
        assert!(matches!(parse_range(many(100).as_bytes(), 1 << 30), Ranges::Multiple(parts) if parts.len() == 100));
        assert_eq!(parse_range(many(101).as_bytes(), 1 << 30), Ranges::Full);
        assert_eq!(parse_range(b"bytes=\xff-1", 10_000), Ranges::Full);
    }

    #[test]
    fn ranges_beyond_the_end_are_unsatisfiable() {
        for (value, len) in [
            ("bytes=10000-", 10_000),
            ("bytes=10000-10001", 10_000),
            ("bytes=99999999999999999999-", 10_000),
            ("bytes=-0", 10_000),
            ("bytes=10000-, 10001-, -0", 10_000),
        ] {
            assert_eq!(parse_range(value.as_bytes(), len), Ranges::Unsatisfiable, "{value}");
        }
    }

    #[test]
    fn an_empty_file_is_sent_whole_whatever_the_range() {
        for value in ["bytes=0-", "bytes=0-0", "bytes=-0", "bytes=-5", "bytes=0-, -1", "bytes=7-9"] {
            assert_eq!(parse_range(value.as_bytes(), 0), Ranges::Full, "{value}");
        }
    }

    #[test]
    fn ranges_keep_their_order_and_are_merged_if_adjacent() {
        let several = |value: &str| match parse_range(value.as_bytes(), 10_000) {
            Ranges::Multiple(parts) => parts,
            other => panic!("{value}: {other:?}"),
        };
        assert_eq!(several("bytes=5000-5999,0-9"), [5000..6000, 0..10]);
        assert_eq!(several("bytes=0-9,5000-5009,-10"), [0..10, 5000..5010, 9990..10_000]);
        assert_eq!(several("bytes=0-9,5000-5009,100-200,5005-6000"), [0..201, 5000..6001]);
        assert_eq!(several("bytes=1000-1009,0-9,1500-1509,500-1400,9000-"), [500..1510, 0..10, 9000..10_000]);
        // Overlapping ranges never send a byte twice.
        let overlapping = (0..100).fold("bytes=".to_owned(), |list, at| format!("{list}{at}-,"));
        assert_eq!(parse_range(overlapping.as_bytes(), 10_000), Ranges::Single(0..10_000));
    }

    /// Generates Range values, most of them valid or almost valid.
    fn range_header() -> impl Strategy<Value = String> {
        let number = prop_oneof![4 => (0_u64..2000).prop_map(|number| number.to_string()), 1 => "[0-9]{0,25}"];
        let spec = prop_oneof![8 => (number.clone(), number).prop_map(|(one, other)| format!("{one}-{other}")), 1 => "[-0-9a ,=]{0,8}"];
        proptest::collection::vec(spec, 0..12).prop_map(|specs| format!("bytes={}", specs.join(",")))
    }

    proptest! {
        #[test]
        fn no_byte_is_sent_twice(value in range_header(), len in 0_u64..1500) {
            let parts = match parse_range(value.as_bytes(), len) {
                Ranges::Full | Ranges::Unsatisfiable => Vec::new(),
                Ranges::Single(part) => vec![part],
                Ranges::Multiple(parts) => {
                    prop_assert!(parts.len() > 1);
                    parts
                }
            };
            for (at, part) in parts.iter().enumerate() {
                prop_assert!(part.start < part.end && part.end <= len, "{value} of {len}: {part:?}");
                prop_assert!(parts[..at].iter().all(|other| !should_merge(other, part)), "{value} of {len}: {parts:?}");
            }
        }

        #[test]
        fn any_bytes_are_parsed_without_panic(value in proptest::collection::vec(any::<u8>(), 0..40), len: u64) {
            let _ = parse_range(&value, len);
        }
    }

    fn at(seconds: u64, nanoseconds: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanoseconds)
    }

    /// Times are multiples of 100 ns, the resolution of Windows.
    fn fingerprint(modified: SystemTime, changed: SystemTime) -> Fingerprint {
        Fingerprint { len: 255, modified: Some(modified), changed: Some(changed), inode: (0, 16) }
    }

    fn of_content(content: &[u8], file: &Fingerprint, now: SystemTime) -> Validators {
        Validators::of_content(content, Path::new("a"), file, &History::default(), now)
    }

    fn metadata_tag(file: &Fingerprint, now: SystemTime) -> String {
        Validators::of_metadata(file, None, false, now).etag
    }

    #[test]
    fn an_etag_is_strong_once_the_mtime_is_stable() {
        let file = fingerprint(at(5, 500), at(5, 500));
        assert_eq!(metadata_tag(&file, at(7, 400)), "W/\"12a05f3f4-ff\"");
        let stable = Validators::of_metadata(&file, None, false, at(7, 500));
        assert_eq!(stable.etag, "\"12a05f3f4-ff\"");
        assert!(stable.matches_strongly("\"12a05f3f4-ff\"") && !stable.matches_strongly("W/\"12a05f3f4-ff\""));
        assert!(stable.matches_weakly("W/\"12a05f3f4-ff\""));
        assert_eq!(Validators::of_metadata(&file, Some("gzip"), false, at(9, 0)).etag, "\"12a05f3f4-ff-gzip\"");
    }

    #[test]
    fn copies_have_the_same_tag_unless_the_mtime_says_nothing() {
        let now = at(1_700_000_000, 0);
        let tags = |modified| {
            let copies = [at(1_000, 0), at(2_000, 0)].map(|changed| fingerprint(modified, changed));
            copies.map(|copy| metadata_tag(&copy, now))
        };
        let [one, other] = tags(at(1_600_000_000, 1));
        assert_eq!(one, other);
        for modified in [at(0, 0), at(1, 999), at(315_532_800, 0), at(315_536_400, 0), at(1_700_000_001, 0)] {
            let [one, other] = tags(modified);
            assert_ne!(one, other, "{modified:?}");
        }
    }

    #[test]
    fn the_tag_of_content_depends_on_nothing_else() {
        let now = at(1_700_000_000, 0);
        let tag = |content: &[u8], modified| of_content(content, &fingerprint(modified, now), now).etag;
        assert_eq!(tag(b"one", at(1, 0)), tag(b"one", now));
        assert_ne!(tag(b"one", at(1, 0)), tag(b"two", at(1, 0)));
        assert!(tag(b"", now).starts_with('"'), "strong, whatever the mtime");
    }

    #[test]
    fn a_change_under_the_same_mtime_and_length_is_remembered() {
        let (history, now) = (History::default(), at(1_700_000_000, 0));
        let (path, modified) = (Path::new("a"), at(1_600_000_000, 0));
        let [first, second] = [10, 20].map(|changed| fingerprint(modified, at(changed, 0)));
        assert!(!history.record(path, &first) && !history.record(path, &first));
        assert!(!history.record(Path::new("b"), &second));
        assert!(history.record(path, &second), "another ctime");
        assert!(history.record(path, &second), "also when the file is opened again");
        let validators = Validators::of_metadata(&second, None, true, now);
        assert_ne!(validators.etag, metadata_tag(&second, now));
        assert_eq!((validators.last_modified(), validators.date_is_strong), (None, false));
        assert!(!history.record(path, &fingerprint(at(1_600_000_001, 0), at(30, 0))), "a new mtime is trusted");
        for number in 0..HISTORY_MAX {
            history.record(Path::new(&number.to_string()), &first);
        }
        assert_eq!(history.larger.lock().unwrap().len(), HISTORY_MAX);
    }

    #[test]
    fn a_small_file_has_no_date_after_its_content_has_changed_under_it() {
        let (history, now) = (History::default(), at(1_700_000_000, 0));
        let [first, touched] = [10, 20].map(|changed| fingerprint(at(1_600_000_000, 0), at(changed, 0)));
        let modified = |content: &[u8], file: &Fingerprint| {
            Validators::of_content(content, Path::new("a"), file, &history, now).modified
        };
        assert_eq!(modified(b"one", &first), Some(1_600_000_000));
        assert_eq!(modified(b"one", &touched), Some(1_600_000_000), "a copy with equal content");
        assert_eq!(modified(b"two", &touched), None);
        assert_eq!(modified(b"two", &touched), None, "also when the file is loaded again");
        let newer = fingerprint(at(1_600_000_001, 0), at(30, 0));
        assert_eq!(modified(b"two", &newer), Some(1_600_000_001), "a new mtime is trusted");
        for number in 0..HISTORY_MAX {
            Validators::of_content(b"", Path::new(&number.to_string()), &first, &history, now);
        }
        assert_eq!(history.small.lock().unwrap().len(), HISTORY_MAX);
        assert_eq!(history.larger.lock().unwrap().len(), 0);
    }

    #[test]
    fn last_modified_is_a_stable_date_in_the_past() {
        let now = at(1_000_000_000, 0);
        for (modified, seconds) in [
            (at(784_111_777, 999_999_999), Some(784_111_777)),
            // The ctime, in place of an mtime in the future.
            (at(2_000_000_000, 0), Some(900_000_000)),
            (UNIX_EPOCH - Duration::from_secs(5), None),
            (at(0, 0), None),
            (at(1, 0), None),
            (at(2, 0), Some(2)),
            (at(315_532_800, 0), None),
        ] {
            let file = fingerprint(modified, at(900_000_000, 0));
            assert_eq!(Validators::of_metadata(&file, None, false, now).modified, seconds, "{modified:?}");
            assert_eq!(of_content(b"", &file, now).modified, seconds, "{modified:?}");
        }
        let both_ahead = fingerprint(at(2_000_000_000, 0), at(2_000_000_000, 0));
        assert_eq!(of_content(b"", &both_ahead, now).modified, None);
        let date = of_content(b"", &fingerprint(at(784_111_777, 1), now), now).last_modified();
        assert_eq!(date.as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    }
}
