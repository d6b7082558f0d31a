//! Path normalization: routes are matched against normalized paths.
//!
//! `/~anna`, `/%7Eanna` and `//~anna` are equivalent (RFC 3986 section 6.2.2). Normalization merges slashes, like
//! nginx's `merge_slashes`, removes `.` segments, decodes percent-encoded characters that are allowed literally in a
//! segment, and percent-encodes all others with upper-case digits. Two paths have the same normal form if and only if
//! their segments other than `.`, decoded once, are equal. `Files` interprets paths in the same way, so nothing below one
//! mount is reachable through another. A percent-encoded slash stays encoded, since it is not a separator. A `..` segment
//! is left as it is: clients resolve it, and `Files` rejects it.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters allowed literally in a segment (RFC 3986 section 3.3: pchar without pct-encoded).
const LITERAL: [bool; 256] = {
    let mut literal = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        literal[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let punctuation = b"-._~!$&'()*+,;=:@";
    let mut index = 0;
    while index < punctuation.len() {
        literal[punctuation[index] as usize] = true;
        index += 1;
    }
    literal
};

/// A decoded byte of a path, and how it is written in the normal form.
enum PathByte {
    Literal(u8),
    Encoded(u8),
}

/// Returns the length of a `.` segment at the beginning of a path, literal or percent-encoded: 1, 3 or, if there is none,
/// 0.
fn dot_segment_len(path: &[u8]) -> usize {
    let len = match path {
        [b'.', ..] => 1,
        [b'%', b'2', b'e' | b'E', ..] => 3,
        _ => return 0,
    };
    if matches!(path.get(len), None | Some(b'/')) { len } else { 0 }
}

/// Returns the length of a separator at the beginning of a path: slashes, and the `.` segments that follow one.
fn separator_len(path: &[u8]) -> usize {
    let mut at = 0;
    while path.get(at) == Some(&b'/') {
        at += 1;
        at += dot_segment_len(&path[at..]);
    }
    at
}

/// Decodes the first byte. Also returns the length of its encoding: a separator, three characters (%XX) or one.
fn first_byte(path: &[u8]) -> Option<(PathByte, usize)> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (byte, len) = match *path {
        [] => return None,
        [b'/', ..] => return Some((PathByte::Literal(b'/'), separator_len(path))),
        [b'%', high, low, ..] => match (digit(high), digit(low)) {
            (Some(high), Some(low)) => (high << 4 | low, 3),
            // Not an escape sequence: a literal percent sign, as in the `percent_encoding` crate.
            _ => (b'%', 1),
        },
        [byte, ..] => (byte, 1),
    };
    Some((if LITERAL[usize::from(byte)] { PathByte::Literal(byte) } else { PathByte::Encoded(byte) }, len))
}

/// Appends a byte of a segment, percent-encoded unless it is allowed literally.
pub(crate) fn push_byte(path: &mut String, byte: u8) {
    if LITERAL[usize::from(byte)] {
        path.push(char::from(byte));
    } else {
        let _ = write!(path, "%{byte:02X}");
    }
}

/// Returns whether the path is already normalized. This is the fast path: one table lookup per byte, no allocation.
#[inline]
fn is_normal(path: &[u8]) -> bool {
    let (mut after_slash, mut after_dot) = (false, false);
    let is_normal = path.iter().all(|&byte| {
        let is_slash = byte == b'/';
        let is_normal = LITERAL[usize::from(byte)] || is_slash && !after_slash && !after_dot;
        // The byte is the only one of its segment so far.
        after_dot = byte == b'.' && after_slash;
        after_slash = is_slash;
        is_normal
    });
    is_normal && !after_dot
}

/// Returns the normalized path, borrowed if it is already normalized.
#[inline]
pub(super) fn normal(path: &str) -> Cow<'_, str> {
    if is_normal(path.as_bytes()) { Cow::Borrowed(path) } else { Cow::Owned(normalize(path)) }
}

#[cold]
fn normalize(path: &str) -> String {
    let (mut rest, mut normal) = (path.as_bytes(), String::with_capacity(path.len()));
    while let Some((byte, len)) = first_byte(rest) {
        match byte {
            PathByte::Literal(byte) => normal.push(char::from(byte)),
            PathByte::Encoded(byte) => push_byte(&mut normal, byte),
        }
        rest = &rest[len..];
    }
    normal
}

/// Returns the length of the prefix of the raw path that corresponds to the first `normal_len` bytes of its normal
/// form.
pub(super) fn raw_prefix_len(path: &str, normal_len: usize) -> usize {
    let (mut at, mut normal) = (0, 0);
    while normal < normal_len
        && let Some((byte, len)) = first_byte(&path.as_bytes()[at..])
    {
        at += len;
        normal += if matches!(byte, PathByte::Literal(_)) { 1 } else { 3 };
    }
    at
}

/// Normalizes the literal text of a pattern and leaves its parameters unchanged.
pub(super) fn normal_pattern(pattern: &str) -> String {
    let (mut rest, mut normal_pattern) = (pattern, String::with_capacity(pattern.len()));
    while let Some(brace) = rest.find(['{', '}']) {
        let (text, braces) = rest.split_at(brace);
        // A dot before a brace is not a whole segment: `/.{name}`.
        let (text, dot) = text.strip_suffix("/.").map_or((text, ""), |text| (text, "/."));
        normal_pattern.push_str(&normal(text));
        normal_pattern.push_str(dot);
        let len = match braces.as_bytes() {
            [b'{', b'{', ..] | [b'}', b'}', ..] => 2,
            // A malformed parameter is left unchanged; the router rejects it.
            _ => braces.find('}').map_or(braces.len(), |end| end + 1),
        };
        let (part, after) = braces.split_at(len);
        normal_pattern.push_str(match part {
            "{{" => "%7B",
            "}}" => "%7D",
            part => part,
        });
        rest = after;
    }
    normal_pattern.push_str(&normal(rest));
    normal_pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_paths_have_one_normal_form() {
        for (path, expected) in [
            ("", ""),
            ("/", "/"),
            ("*", "*"),
            ("/a/b.txt", "/a/b.txt"),
            ("//a///b//", "/a/b/"),
            ("/.", "/"),
            ("/./a/././b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/%2e/./%2E//b/%2e", "/a/b/"),
            ("//.//a", "/a"),
            ("/.a/b./.../..", "/.a/b./.../.."),
            ("/%2ea/.%2e/a.", "/.a/../a."),
            (".", "."),
            ("/%70riv%61te/%7e%2D%40%3a", "/private/~-@:"),
            ("/%252e%2f%2F%c3%a9|{}", "/%252e%2F%2F%C3%A9%7C%7B%7D"),
            ("/%2570", "/%2570"),
            ("/%zz%4%", "/%25zz%254%25"),
            ("/caf\u{e9} x", "/caf%C3%A9%20x"),
        ] {
            assert_eq!(normal(path), expected, "{path}");
            assert_eq!(normal(expected), expected, "{path}");
        }
        assert!(matches!(normal("/a/~b/@:;=?"), Cow::Owned(_)));
        assert!(matches!(normal("/a/~b/@:;="), Cow::Borrowed(_)));
    }

    #[test]
    fn a_normalized_prefix_is_mapped_to_its_raw_length() {
        for (path, prefix, raw_prefix) in [
            ("/a/b", "", ""),
            ("/a/b", "/a", "/a"),
            ("//a//b", "/a", "//a"),
            ("/%61%20/b", "/a%20", "/%61%20"),
            ("/{//b", "/%7B", "/{"),
            ("/./a/./b", "/a", "/./a"),
            ("//.//%2e/a", "/a", "//.//%2e/a"),
            ("/a/.", "/a", "/a"),
            ("/a", "/abc", "/a"),
        ] {
            assert_eq!(&path[..raw_prefix_len(path, prefix.len())], raw_prefix, "{path}");
        }
    }

    #[test]
    fn the_literal_text_of_a_pattern_is_normalized() {
        for (pattern, expected) in [
            ("/users/{id}", "/users/{id}"),
            ("/%7euser//{n%61me}/{*b|c}", "/~user/{n%61me}/{*b|c}"),
            ("/{{x}}/{a}", "/%7Bx%7D/{a}"),
            ("/./a/{b}/.", "/a/{b}/"),
            ("/.{a}/./b", "/.{a}/b"),
            ("/a./{b}", "/a./{b}"),
            ("/{a", "/{a"),
            ("/a}", "/a}"),
        ] {
            assert_eq!(normal_pattern(pattern), expected);
        }
    }
}
