//! Ranges of octets (RFC 9110 section 14).

use std::ops::Range;

/// More ranges in one request are taken for an attack, and ignored: then the whole file is cheaper.
const RANGES_MAX: usize = 100;

/// What a part costs besides its octets: two that lie closer together are sent as one.
const PART_OVERHEAD: u64 = 128;

/// What a Range asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ranges {
    /// Everything: what is asked for cannot be understood, or is no part.
    Whole,
    /// One part.
    One(Range<u64>),
    /// Some parts that do not touch each other, in the order of the request.
    Several(Vec<Range<u64>>),
    /// Nothing that is there.
    Unsatisfiable,
}

/// Reads a Range for a file of this length.
pub(super) fn parse(value: &[u8], len: u64) -> Ranges {
    let Some(specs) = std::str::from_utf8(value).ok().and_then(after_unit) else { return Ranges::Whole };
    let (mut parts, mut count) = (Vec::new(), 0);
    for spec in specs.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty()) {
        count += 1;
        match read_spec(spec, len) {
            _ if count > RANGES_MAX => return Ranges::Whole,
            None => return Ranges::Whole,
            Some(part) if part.is_empty() && (len > 0 || part.start > 0) => {}
            // Some of nothing: it has no first octet that could be told.
            Some(part) if part.is_empty() => return Ranges::Whole,
            Some(part) => coalesce(&mut parts, part),
        }
    }
    match parts.len() {
        _ if count == 0 => Ranges::Whole,
        0 => Ranges::Unsatisfiable,
        1 => Ranges::One(parts.remove(0)),
        _ => Ranges::Several(parts),
    }
}

fn after_unit(value: &str) -> Option<&str> {
    let (unit, specs) = value.split_once('=')?;
    unit.eq_ignore_ascii_case("bytes").then_some(specs)
}

/// A range of a file of this length; an empty one behind its start where there is nothing in it, and none where this is
/// no range.
fn read_spec(spec: &str, len: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    match (first, last) {
        ("", suffix) => {
            let count = number(suffix)?;
            // The last none of a file is nothing, wherever; the last few of an empty one are all of it.
            Some(if count == 0 { 1..1 } else { len.saturating_sub(count)..len })
        }
        (first, "") => Some(upto(number(first)?, len)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then(|| upto(first, len.min(last.saturating_add(1))))
        }
    }
}

/// From a first octet; past the end there is nothing.
fn upto(first: u64, end: u64) -> Range<u64> {
    if first < end { first..end } else { 1..1 }
}

/// Digits; a number beyond all files stands for any such.
fn number(digits: &str) -> Option<u64> {
    let good = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    good.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Adds a part, and joins it with those it touches.
fn coalesce(parts: &mut Vec<Range<u64>>, mut part: Range<u64>) {
    let mut place = parts.len();
    // A part that has grown may touch others.
    while let Some(at) = parts.iter().position(|own| is_close(own, &part)) {
        let own = parts.remove(at);
        part = own.start.min(part.start)..own.end.max(part.end);
        place = place.min(at);
    }
    parts.insert(place.min(parts.len()), part);
}

fn is_close(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start <= other.end.saturating_add(PART_OVERHEAD) && other.start <= one.end.saturating_add(PART_OVERHEAD)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_range_is_read() {
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
            assert_eq!(parse(value.as_bytes(), 10_000), Ranges::One(range), "{value}");
        }
    }

    #[test]
    fn what_is_no_range_is_ignored() {
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
            assert_eq!(parse(value.as_bytes(), 10_000), Ranges::Whole, "{value}");
        }
        let many = |count: usize| (0..count).fold("bytes=".to_owned(), |list, at| format!("{list}{at}000-{at}000,"));
        assert!(matches!(parse(many(100).as_bytes(), 1 << 30), Ranges::Several(parts) if parts.len() == 100));
        assert_eq!(parse(many(101).as_bytes(), 1 << 30), Ranges::Whole);
        assert_eq!(parse(b"bytes=\xff-1", 10_000), Ranges::Whole);
    }

    #[test]
    fn what_is_not_there_is_unsatisfiable() {
        for (value, len) in [
            ("bytes=10000-", 10_000),
            ("bytes=10000-10001", 10_000),
            ("bytes=99999999999999999999-", 10_000),
            ("bytes=-0", 10_000),
            ("bytes=10000-, 10001-, -0", 10_000),
            ("bytes=0-", 0),
            ("bytes=0-0", 0),
            ("bytes=-0", 0),
        ] {
            assert_eq!(parse(value.as_bytes(), len), Ranges::Unsatisfiable, "{value}");
        }
        assert_eq!(parse(b"bytes=-5", 0), Ranges::Whole);
    }

    #[test]
    fn ranges_keep_their_order_and_are_joined_where_they_touch() {
        let several = |value: &str| match parse(value.as_bytes(), 10_000) {
            Ranges::Several(parts) => parts,
            other => panic!("{value}: {other:?}"),
        };
        assert_eq!(several("bytes=5000-5999,0-9"), [5000..6000, 0..10]);
        assert_eq!(several("bytes=0-9,5000-5009,-10"), [0..10, 5000..5010, 9990..10_000]);
        assert_eq!(several("bytes=0-9,5000-5009,100-200,5005-6000"), [0..201, 5000..6001]);
        assert_eq!(several("bytes=1000-1009,0-9,1500-1509,500-1400,9000-"), [500..1510, 0..10, 9000..10_000]);
        // However they overlap, no octet is sent twice.
        let overlapping = (0..100).fold("bytes=".to_owned(), |list, at| format!("{list}{at}-,"));
        assert_eq!(parse(overlapping.as_bytes(), 10_000), Ranges::One(0..10_000));
    }

    /// Text that is near to what is read: much of it is good, and the rest is nearly so.
    fn near() -> impl Strategy<Value = String> {
        let number = prop_oneof![4 => (0_u64..2000).prop_map(|number| number.to_string()), 1 => "[0-9]{0,25}"];
        let spec = prop_oneof![8 => (number.clone(), number).prop_map(|(one, other)| format!("{one}-{other}")), 1 => "[-0-9a ,=]{0,8}"];
        proptest::collection::vec(spec, 0..12).prop_map(|specs| format!("bytes={}", specs.join(",")))
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_no_octet_is_sent_twice(value in near(), len in 0_u64..1500) {
            let parts = match parse(value.as_bytes(), len) {
                Ranges::Whole | Ranges::Unsatisfiable => Vec::new(),
                Ranges::One(part) => vec![part],
                Ranges::Several(parts) => {
                    prop_assert!(parts.len() > 1);
                    parts
                }
            };
            for (at, part) in parts.iter().enumerate() {
                prop_assert!(part.start < part.end && part.end <= len, "{value} of {len}: {part:?}");
                prop_assert!(parts[..at].iter().all(|other| !is_close(other, part)), "{value} of {len}: {parts:?}");
            }
        }

        #[test]
        fn any_octets_are_a_range_or_none(value in proptest::collection::vec(any::<u8>(), 0..40), len: u64) {
            let _ = parse(&value, len);
        }
    }
}
