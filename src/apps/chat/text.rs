//! What a line may show, and what a name may be.

/// Letters of a name at most.
pub(super) const NAME_CHARS_MAX: usize = 24;

/// Names that a list shows before it only counts.
pub(super) const LISTED_MAX: usize = 20;

/// The text of a line: invalid UTF-8 becomes U+FFFD, and what could drive a terminal or hide the order of the letters
/// is removed.
pub(super) fn clean(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    if text.chars().all(is_harmless) {
        return text.into_owned();
    }
    text.chars().filter(|&letter| is_harmless(letter)).collect()
}

/// No control character but TAB (C0, DEL and C1), no separator of lines or paragraphs, nothing that turns the
/// direction of writing (Unicode Standard Annex 9).
fn is_harmless(letter: char) -> bool {
    match letter {
        '\t' => true,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        _ => !letter.is_control(),
    }
}

/// Whether this may name a person or a room: 1 to 24 letters, digits, `-` and `_` of any script.
pub(super) fn is_name(text: &str) -> bool {
    let count = text.chars().take(NAME_CHARS_MAX + 1).count();
    (1..=NAME_CHARS_MAX).contains(&count)
        && text.chars().all(|letter| letter.is_alphanumeric() || letter == '-' || letter == '_')
}

/// Names that fold to the same are the same name: upper case, then lower case, letter by letter, so that `Straße` is
/// `STRASSE` and a final sigma is a sigma. Names are not normalised otherwise; the combining accents that could spell
/// one name in two ways are no letters.
pub(super) fn fold(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// A list of `count` names: the first `max` of them, and how many more there are.
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
    fn nothing_drives_a_terminal() {
        for (bytes, text) in [
            (&b"a\tb c"[..], "a\tb c"),
            (b"a\x1b[2Jb\x07\x00\x7f\rc", "a[2Jbc"),
            ("a\u{9b}2Jb\u{85}".as_bytes(), "a2Jb"),
            ("a\u{202e}b\u{2066}c\u{200f}d\u{61c}e\u{2028}f".as_bytes(), "abcdef"),
            (b"a\xffb\xc3", "a\u{fffd}b\u{fffd}"),
            (b"\xe2\x82", "\u{fffd}"),
            ("\u{fc}\u{5d0}\u{1f468}\u{200d}\u{1f469}".as_bytes(), "\u{fc}\u{5d0}\u{1f468}\u{200d}\u{1f469}"),
        ] {
            assert_eq!(clean(bytes), text);
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
    fn names_are_the_same_whatever_their_case() {
        for (one, other) in [("ANNA", "anna"), ("stra\u{df}e", "STRASSE"), ("\u{39f}\u{3a3}", "\u{3bf}\u{3c2}")] {
            assert_eq!(fold(one), fold(other));
        }
        assert_ne!(fold("anna"), fold("hanna"));
    }

    #[test]
    fn a_list_shows_twenty_names_and_counts_the_rest() {
        let names = |count: usize| list((0..count).map(|number| format!("n{number}")), count, LISTED_MAX);
        assert_eq!(names(0), "");
        assert_eq!(names(2), "n0, n1");
        assert!(names(20).ends_with(", n19"));
        assert!(names(1000).ends_with(", n19 and 980 more"));
    }
}
