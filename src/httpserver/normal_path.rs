//! The one spelling of a path by which routes are matched.
//!
//! A path can be spelled in many ways: `/~anna`, `/%7Eanna` and `//~anna` name the same thing (RFC 3986 section 6.2.2).
//! Here they become one: runs of slashes count as one, as with nginx's `merge_slashes`, what may stand in a segment as it
//! is does so, and all else is percent-encoded with capital digits. Two paths have the same spelling where their
//! segments, decoded once, are the same, which is how `Files` reads them too: so nothing behind one mount can be had by
//! another. A slash that is percent-encoded stays so, since it separates nothing.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What stands for itself in a segment (RFC 3986 section 3.3: pchar, without what is percent-encoded).
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        plain[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+,;=:@";
    let mut index = 0;
    while index < others.len() {
        plain[others[index] as usize] = true;
        index += 1;
    }
    plain
};

/// An octet of a path, and how it is to be spelled.
enum Octet {
    Plain(u8),
    Encoded(u8),
}

/// The first octet and how much spells it: repeated slashes, three characters of percent-encoding, or one character.
fn first(path: &[u8]) -> Option<(Octet, usize)> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (byte, len) = match *path {
        [] => return None,
        [b'/', ..] => {
            let end = path.iter().position(|&byte| byte != b'/').unwrap_or(path.len());
            return Some((Octet::Plain(b'/'), end));
        }
        [b'%', high, low, ..] => match (digit(high), digit(low)) {
            (Some(high), Some(low)) => (high << 4 | low, 3),
            // Stands for itself, as it does for `percent_encoding`.
            _ => (b'%', 1),
        },
        [byte, ..] => (byte, 1),
    };
    Some((if PLAIN[usize::from(byte)] { Octet::Plain(byte) } else { Octet::Encoded(byte) }, len))
}

/// Appends an octet of a segment, percent-encoded where it cannot stand as it is.
pub(crate) fn push_octet(path: &mut String, byte: u8) {
    if PLAIN[usize::from(byte)] {
        path.push(char::from(byte));
    } else {
        let _ = write!(path, "%{byte:02X}");
    }
}

/// Almost every path is: one look at each octet, and nothing is allocated.
#[inline]
fn is_normal(path: &[u8]) -> bool {
    let mut after_slash = false;
    path.iter().all(|&byte| {
        let is_slash = byte == b'/';
        let good = PLAIN[usize::from(byte)] || is_slash && !after_slash;
        after_slash = is_slash;
        good
    })
}

/// The path in its one spelling.
#[inline]
pub(super) fn normal(path: &str) -> Cow<'_, str> {
    if is_normal(path.as_bytes()) { Cow::Borrowed(path) } else { Cow::Owned(spell(path)) }
}

#[cold]
fn spell(path: &str) -> String {
    let (mut rest, mut normal) = (path.as_bytes(), String::with_capacity(path.len()));
    while let Some((octet, len)) = first(rest) {
        match octet {
            Octet::Plain(byte) => normal.push(char::from(byte)),
            Octet::Encoded(byte) => push_octet(&mut normal, byte),
        }
        rest = &rest[len..];
    }
    normal
}

/// How much of the path, as it came, spells so much of the normal one.
pub(super) fn len_as_it_came(path: &str, normal_len: usize) -> usize {
    let (mut at, mut normal) = (0, 0);
    while normal < normal_len
        && let Some((octet, len)) = first(&path.as_bytes()[at..])
    {
        at += len;
        normal += if matches!(octet, Octet::Plain(_)) { 1 } else { 3 };
    }
    at
}

/// A pattern whose text is spelled as that of normal paths is; its named parts stay as they are.
pub(super) fn normal_pattern(pattern: &str) -> String {
    let (mut rest, mut normal_pattern) = (pattern, String::with_capacity(pattern.len()));
    while let Some(brace) = rest.find(['{', '}']) {
        let (text, braces) = rest.split_at(brace);
        normal_pattern.push_str(&normal(text));
        let len = match braces.as_bytes() {
            [b'{', b'{', ..] | [b'}', b'}', ..] => 2,
            // What is malformed is left as it is, to be refused.
            _ => braces.find('}').map_or(braces.len(), |end| end + 1),
        };
        let (part, behind) = braces.split_at(len);
        normal_pattern.push_str(match part {
            "{{" => "%7B",
            "}}" => "%7D",
            part => part,
        });
        rest = behind;
    }
    normal_pattern.push_str(&normal(rest));
    normal_pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_spelling() {
        for (path, expected) in [
            ("", ""),
            ("/", "/"),
            ("*", "*"),
            ("/a/b.txt", "/a/b.txt"),
            ("//a///b//", "/a/b/"),
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
    fn the_front_of_a_path_is_found_as_it_came() {
        for (path, front, as_it_came) in [
            ("/a/b", "", ""),
            ("/a/b", "/a", "/a"),
            ("//a//b", "/a", "//a"),
            ("/%61%20/b", "/a%20", "/%61%20"),
            ("/{//b", "/%7B", "/{"),
            ("/a", "/abc", "/a"),
        ] {
            assert_eq!(&path[..len_as_it_came(path, front.len())], as_it_came, "{path}");
        }
    }

    #[test]
    fn the_text_of_a_pattern_is_spelled_as_paths_are() {
        for (pattern, expected) in [
            ("/users/{id}", "/users/{id}"),
            ("/%7euser//{n%61me}/{*b|c}", "/~user/{n%61me}/{*b|c}"),
            ("/{{x}}/{a}", "/%7Bx%7D/{a}"),
            ("/{a", "/{a"),
            ("/a}", "/a}"),
        ] {
            assert_eq!(normal_pattern(pattern), expected);
        }
    }
}
