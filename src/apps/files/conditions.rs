//! Preconditions, evaluated in the order of RFC 9110 section 13.2.2.

use std::time::UNIX_EPOCH;

use super::validators::Validators;
use crate::httpserver::RequestHead;

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
        None => file.mtime_is_stable && file.modified.is_some() && parse_date(value) == file.modified,
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

#[cfg(test)]
mod tests {
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
}
