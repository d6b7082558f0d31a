//! Conditional and range requests: preconditions (RFC 9110 section 13), evaluated in the order of section 13.2.2, byte
//! ranges (section 14), and responses with several of them: multipart/byteranges (section 14.6).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;
use std::time::UNIX_EPOCH;

use super::validators::Validators;
use crate::httpserver::{Part, RequestHead, Response};

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
}
