//! Preconditions, in the order of RFC 9110 section 13.2.2.

use std::time::UNIX_EPOCH;

use super::validators::Validators;
use crate::httpserver::RequestHead;

/// What the preconditions of a request for reading come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Answer as if there were none.
    Proceed,
    /// 304: the client has it.
    NotModified,
    /// 412.
    Failed,
}

/// Judges all but If-Range, which has to do with ranges alone.
pub(super) fn judge(head: &RequestHead<'_>, file: &Validators) -> Verdict {
    match (tags(head, "if-match"), date(head, "if-unmodified-since")) {
        (Some(wanted), _) if !wanted.any(|tag| file.matches_strongly(tag)) => return Verdict::Failed,
        (None, Some(date)) if file.modified.is_some_and(|modified| modified > date) => return Verdict::Failed,
        _ => {}
    }
    match (tags(head, "if-none-match"), date(head, "if-modified-since")) {
        (Some(known), _) if known.any(|tag| file.matches_weakly(tag)) => Verdict::NotModified,
        (None, Some(date)) if file.modified.is_some_and(|modified| modified <= date) => Verdict::NotModified,
        _ => Verdict::Proceed,
    }
}

/// Whether a Range is to be honoured: If-Range is absent, or the client has a part of this very state of the file
/// (RFC 9110 section 13.1.5).
pub(super) fn is_in_range(head: &RequestHead<'_>, file: &Validators) -> bool {
    let Some(value) = head.field("if-range") else { return true };
    let Ok(value) = std::str::from_utf8(value) else { return false };
    match (Tags { rest: value }).next() {
        Some(tag) => tag == value && file.matches_strongly(tag),
        // A date is as good as a strong tag where nothing can have changed again within its second, and only if it is
        // exactly the one that was told.
        None => file.settled && file.modified.is_some() && parse_date(value) == file.modified,
    }
}

/// The entity tags that a field lists, if it is there.
enum Listed<'a> {
    /// `*`: there is something.
    Any,
    Tags(Vec<&'a str>),
}

impl Listed<'_> {
    fn any(&self, is_it: impl Fn(&str) -> bool) -> bool {
        match self {
            Listed::Any => true,
            Listed::Tags(tags) => tags.iter().any(|tag| is_it(tag)),
        }
    }
}

fn values<'a>(head: &RequestHead<'a>, name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    head.fields().filter(move |(own, _)| own.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
}

fn tags<'a>(head: &RequestHead<'a>, name: &'static str) -> Option<Listed<'a>> {
    let mut listed = None;
    for value in values(head, name) {
        if value == b"*" {
            return Some(Listed::Any);
        }
        let Listed::Tags(list) = listed.get_or_insert(Listed::Tags(Vec::new())) else { continue };
        list.extend(Tags { rest: std::str::from_utf8(value).unwrap_or_default() });
    }
    listed
}

/// The date of a field; one that is malformed, or told twice, counts as absent.
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

/// Reads `entity-tag` after `entity-tag` from a list, up to what is none (RFC 9110 section 8.8.3).
struct Tags<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Tags<'a> {
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
    fn entity_tags_are_read_from_lists() {
        for (list, tags) in [
            ("\"a\"", &["\"a\""][..]),
            ("W/\"a\", \"b,c\" ,,\t\"\"", &["W/\"a\"", "\"b,c\"", "\"\""]),
            ("", &[]),
            ("a", &[]),
            ("\"a\", b, \"c\"", &["\"a\""]),
            ("\"a", &[]),
            ("w/\"a\"", &[]),
        ] {
            assert_eq!(Tags { rest: list }.collect::<Vec<_>>(), tags, "{list}");
        }
    }

    #[test]
    fn dates_come_in_three_forms() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(parse_date(text), Some(784_111_777), "{text}");
        }
        for text in ["", "0", "yesterday", "Sun, 06 Nov 1994 08:49:37 CET", "784111777"] {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }
}
