//! Sanitizes lines, and validates and compares names.

/// Maximum length of a name in characters.
pub(super) const NAME_CHARS_MAX: usize = 24;

/// Maximum number of names in a notice; the rest are only counted.
pub(super) const LISTED_MAX: usize = 20;

/// Decodes a line: replaces invalid UTF-8 with U+FFFD, and removes characters that could control a terminal or change
/// the order of the text.
pub(super) fn sanitize(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    if text.chars().all(is_allowed) {
        return text.into_owned();
    }
    text.chars().filter(|&c| is_allowed(c)).collect()
}

/// Returns `false` for control characters (C0, DEL and C1) other than TAB, for line and paragraph separators, and for
/// bidirectional formatting characters (Unicode Standard Annex 9).
fn is_allowed(c: char) -> bool {
    match c {
        '\t' => true,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        _ => !c.is_control(),
    }
}

/// Returns whether `text` is a valid member or room name: 1 to 24 letters and digits of any script, `-` and `_`.
pub(super) fn is_name(text: &str) -> bool {
    let count = text.chars().take(NAME_CHARS_MAX + 1).count();
    (1..=NAME_CHARS_MAX).contains(&count) && text.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
}

/// Folds the case of a name for comparison: upper case, then lower case, character by character, so that `Straße`
/// equals `STRASSE` and a final sigma equals a sigma. Names are not normalized otherwise: combining accents, with which
/// a name could be spelled in two ways, are not allowed.
pub(super) fn fold(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// Joins the first `max` of `count` names with commas, and appends the number of remaining ones.
pub(super) fn list<T: AsRef<str>>(names: impl IntoIterator<Item = T>, count: usize, max: usize) -> String {
    let mut list = String::new();
    for (position, name) in names.into_iter().take(max).enumerate() {
        if position > 0 {
            list.push_str(", ");
        }
        list.push_str(name.as_ref());
    }
    if count > max {
        list = format!("{list} and {} more", count - max);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_control_characters_are_removed() {
        for (bytes, text) in [
            (&b"a\tb c"[..], "a\tb c"),
            (b"a\x1b[2Jb\x07\x00\x7f\rc", "a[2Jbc"),
            ("a\u{9b}2Jb\u{85}".as_bytes(), "a2Jb"),
            ("a\u{202e}b\u{2066}c\u{200f}d\u{61c}e\u{2028}f".as_bytes(), "abcdef"),
            (b"a\xffb\xc3", "a\u{fffd}b\u{fffd}"),
            (b"\xe2\x82", "\u{fffd}"),
            ("\u{fc}\u{5d0}\u{1f468}\u{200d}\u{1f469}".as_bytes(), "\u{fc}\u{5d0}\u{1f468}\u{200d}\u{1f469}"),
        ] {
            assert_eq!(sanitize(bytes), text);
        }
    }

    #[test]
    fn names_are_letters_and_digits_of_any_script() {
        for name in ["a", "Anna-Lena_2", "\u{4e2d}\u{6587}", "\u{5d0}\u{5d1}", "\u{fc}ber", &"\u{e9}".repeat(24)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "a b", "a.b", "/a", "*", "a\u{202e}", "e\u{301}", "\u{1f600}", &"x".repeat(25)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn names_are_compared_case_insensitively() {
        for (a, b) in [("ANNA", "anna"), ("stra\u{df}e", "STRASSE"), ("\u{39f}\u{3a3}", "\u{3bf}\u{3c2}")] {
            assert_eq!(fold(a), fold(b));
        }
        assert_ne!(fold("anna"), fold("hanna"));
    }

    #[test]
    fn a_list_names_twenty_and_counts_the_rest() {
        let names = |count: usize| list((0..count).map(|number| format!("n{number}")), count, LISTED_MAX);
        assert_eq!(names(0), "");
        assert_eq!(names(2), "n0, n1");
        assert!(names(20).ends_with(", n19"));
        assert!(names(1000).ends_with(", n19 and 980 more"));
    }
}
