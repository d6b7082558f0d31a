//! The text that members type: sanitizes lines, parses commands (lines that begin with a slash), and validates and
//! compares names.
//!
//! Names follow Unicode Technical Standard 39: they are normalized (NFKC), consist of characters of its identifier
//! profile, and are compared by their confusable skeletons, so that no two names look alike.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use unicode_security::GeneralSecurityProfile;
use unicode_security::confusable_detection::skeleton;
use unicode_security::general_security_profile::IdentifierType;

/// Maximum length of a name in characters.
pub(super) const NAME_CHARS_MAX: usize = 24;

/// Maximum number of names in a notice; the rest are only counted.
pub(super) const LISTED_MAX: usize = 20;

/// Maximum number of combining marks in succession (Unicode Technical Standard 39 section 5.4).
const MARKS_MAX: usize = 4;

/// Names that could be mistaken for something other than a member, besides the names of the commands.
const RESERVED_NAMES: [&str; 4] = ["server", "serverd", "system", "lobby"];

/// The output of `/help`.
pub(super) const HELP: &str = "\
* /nick NAME      change your name: 1 to 24 letters, digits, - and _
* /who            list the members of this room
* /rooms [PAGE]   list the rooms, 100 at a time
* /join ROOM      join a room, or create it
* /msg NAME text  send a private message
* /me action      describe what you are doing
* /quit           leave the chat
* To send a line that begins with /, type // instead.
";

/// The commands and their arguments.
const COMMANDS: [(&str, &str); 8] = [
    ("/help", ""),
    ("/nick", " NAME"),
    ("/who", ""),
    ("/rooms", " [PAGE]"),
    ("/join", " ROOM"),
    ("/msg", " NAME text"),
    ("/me", " action"),
    ("/quit", ""),
];

/// The commands that only the server's console has.
const CONSOLE_NAMES: [&str; 5] = ["kick", "ban", "unban", "mute", "unmute"];

/// Decodes a line: replaces invalid UTF-8 with U+FFFD, and removes characters that could control a terminal or change
/// the order of the text.
pub(super) fn sanitize(line: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(line);
    if text.chars().all(is_allowed) {
        return text;
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

/// Normalizes a member or room name and checks it: 1 to 24 letters and digits of any script, `-` and `_`, at least one
/// of them a letter or digit. Returns `None` if it is invalid.
///
/// Letters must be in the identifier profile of Unicode Technical Standard 39, which excludes invisible and obsolete
/// ones, or belong to a script of limited use, such as Cherokee. Combining marks of a script, such as vowel signs, are
/// letters; general combining accents are accepted only where normalization composes them with a letter.
pub(super) fn parse_name(text: &str) -> Option<String> {
    // Normalization may lengthen the text, and does not shorten it below a third.
    if text.chars().nth(3 * NAME_CHARS_MAX).is_some() {
        return None;
    }
    let name: String = text.nfkc().collect();
    let is_valid = name.chars().nth(NAME_CHARS_MAX).is_none()
        && name.chars().all(is_name_char)
        && name.chars().any(|c| c.is_alphanumeric() && !is_combining_mark(c))
        && !name.starts_with(is_combining_mark)
        && !name
            .chars()
            .collect::<Vec<_>>()
            .windows(MARKS_MAX + 1)
            .any(|part| part.iter().all(|&c| is_combining_mark(c)));
    is_valid.then_some(name)
}

fn is_name_char(c: char) -> bool {
    let in_profile =
        || c.identifier_allowed() || GeneralSecurityProfile::identifier_type(c) == Some(IdentifierType::Limited_Use);
    match c {
        '-' | '_' => true,
        '\u{300}'..='\u{36f}' => false,
        _ => (c.is_alphanumeric() || is_combining_mark(c)) && in_profile(),
    }
}

/// Returns whether a valid name is, or looks like, a command or a name that members must not have.
pub(super) fn is_reserved(name: &str) -> bool {
    static RESERVED: OnceLock<HashSet<String>> = OnceLock::new();
    let reserved = RESERVED.get_or_init(|| RESERVED_NAMES.into_iter().chain(command_names()).flat_map(keys).collect());
    keys(name).iter().any(|key| reserved.contains(key))
}

/// Folds the case of a name for comparison: upper case, then lower case, character by character, so that `Straße`
/// equals `STRASSE` and a final sigma equals a sigma.
pub(super) fn fold(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfkc().collect()
}

/// Returns the keys of a name: two names that share one look alike. Letters may look alike in the given case (I and l)
/// or only in lower case.
fn keys(name: &str) -> [String; 2] {
    let visible = |name: &str| fold(&skeleton(name).collect::<String>());
    [visible(name), visible(&fold(name))]
}

/// Values by name. Names that look alike are the same name; see [`keys`].
#[derive(Debug, Default)]
pub(super) struct NameTable {
    values: HashMap<String, usize>,
}

impl NameTable {
    /// Returns the values of the names that look like `name`. There are at most two of them.
    pub(super) fn find(&self, name: &str) -> impl Iterator<Item = usize> {
        keys(name).into_iter().filter_map(|key| self.values.get(&key).copied())
    }

    /// Adds a name. No name that looks like it may be in the table, except that of the same value.
    pub(super) fn insert(&mut self, name: &str, value: usize) {
        for key in keys(name) {
            self.values.insert(key, value);
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        for key in keys(name) {
            self.values.remove(&key);
        }
    }
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

/// A parsed line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    /// Only whitespace.
    Empty,
    /// A message to the room.
    Say(&'a str),
    Help,
    Nick(&'a str),
    Who,
    /// List this page of the rooms, counted from 1.
    Rooms(usize),
    Join(&'a str),
    Msg {
        to: &'a str,
        text: &'a str,
    },
    Me(&'a str),
    Quit,
    /// Missing or extra arguments; holds the correct syntax.
    Usage(String),
    /// An unknown command, and the most similar known one.
    Unknown(&'a str, Option<&'static str>),
}

impl<'a> Command<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        if line.trim().is_empty() {
            return Command::Empty;
        }
        match line.strip_prefix('/') {
            None => return Command::Say(line),
            Some(rest) if rest.starts_with('/') => return Command::Say(rest),
            Some(_) => {}
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let single = (!rest.is_empty() && !rest.contains(char::is_whitespace)).then_some(rest);
        let known = COMMANDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
        let Some(&(name, arguments)) = known else { return Command::Unknown(word, nearest(word)) };
        let parsed = match name {
            "/help" => Some(Command::Help),
            "/who" => Some(Command::Who),
            "/rooms" if rest.is_empty() => Some(Command::Rooms(1)),
            "/rooms" => rest.parse().ok().filter(|&page| page > 0).map(Command::Rooms),
            "/quit" => Some(Command::Quit),
            "/nick" => single.map(Command::Nick),
            "/join" => single.map(Command::Join),
            "/me" => (!rest.is_empty()).then_some(Command::Me(rest)),
            _ => rest.split_once(char::is_whitespace).map(|(to, text)| Command::Msg { to, text: text.trim() }),
        };
        parsed.unwrap_or_else(|| Command::Usage(format!("{name}{arguments}")))
    }
}

/// Returns the names of the commands of members and of the server's console, without the slash.
fn command_names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, _)| &name[1..]).chain(CONSOLE_NAMES)
}

/// Returns the command that shares the longest prefix with `word`, if it is longer than the slash.
fn nearest(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let shared = |name: &str| name.bytes().zip(word.bytes()).take_while(|(known, typed)| known == typed).count();
    // `max_by_key` returns the last maximum; reversed, the first command wins a tie.
    let best = COMMANDS.iter().rev().map(|(name, _)| *name).max_by_key(|name| shared(name))?;
    (shared(best) > 1).then_some(best)
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
        for name in [
            "a",
            "Anna-Lena_2",
            "\u{4e2d}\u{6587}",
            "\u{5d0}\u{5d1}",
            "\u{fc}ber",
            "हिन्दी",
            "ไทย",
            "김철수",
            "أحمد",
            "தமிழ்",
            "မြန်မာ",
            "አማርኛ",
            "ქართული",
            "ᏣᎳᎩ",
            "ߒߞߏ",
            "中文",
            &"\u{e9}".repeat(24),
        ] {
            assert_eq!(parse_name(name).as_deref(), Some(name));
        }
        let marks = format!("\u{915}{}", "\u{94d}".repeat(5));
        for name in [
            "",
            "a b",
            "a.b",
            "/a",
            "*",
            "-_",
            "a\u{202e}",
            "x\u{301}",
            "\u{1f600}",
            "\u{3164}",
            "Anna\u{115f}",
            "\u{ffa0}b",
            "\u{1160}",
            "a\u{200d}b",
            "a\u{ad}b",
            "\u{94d}\u{915}",
            &marks,
            &"x".repeat(25),
            &"x".repeat(2000),
        ] {
            assert_eq!(parse_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn names_are_normalized() {
        for (text, name) in [("e\u{301}", "\u{e9}"), ("\u{ff21}\u{ff4e}\u{ff4e}a", "Anna"), ("\u{1d400}nna", "Anna")] {
            assert_eq!(parse_name(text).as_deref(), Some(name));
        }
    }

    #[test]
    fn names_that_look_alike_are_the_same_name() {
        let looks_alike = |name: &str, other: &str| {
            let mut table = NameTable::default();
            table.insert(name, 7);
            table.find(other).next() == Some(7)
        };
        for (a, b) in [
            ("ANNA", "anna"),
            ("stra\u{df}e", "STRASSE"),
            ("\u{39f}\u{3a3}", "\u{3bf}\u{3c2}"),
            ("Anna", "\u{410}nna"),
            ("Anna", "Ann\u{430}"),
            ("Anna", "\u{391}nna"),
            ("Alice", "AIice"),
            ("Bob", "B0b"),
            ("guest1", "guestI"),
            ("\u{410}\u{43d}\u{43d}\u{430}", "\u{410}\u{41d}\u{41d}\u{410}"),
        ] {
            assert!(looks_alike(a, b) && looks_alike(b, a), "{a} {b}");
        }
        for (a, b) in [("anna", "hanna"), ("Anna", "Anne"), ("Anna", "Анна"), ("Anna", "Άννα"), ("guest1", "guest2")]
        {
            assert!(!looks_alike(a, b) && !looks_alike(b, a), "{a} {b}");
        }
    }

    #[test]
    fn commands_and_look_alikes_of_the_server_are_reserved() {
        for name in ["server", "SERVER", "\u{455}erver", "Lobby", "lobbу", "help", "Kick", "system"] {
            assert!(is_reserved(name), "{name}");
        }
        assert!(!is_reserved("Anna") && !is_reserved("observer"));
    }

    #[test]
    fn a_list_names_twenty_and_counts_the_rest() {
        let names = |count: usize| list((0..count).map(|number| format!("n{number}")), count, LISTED_MAX);
        assert_eq!(names(0), "");
        assert_eq!(names(2), "n0, n1");
        assert!(names(20).ends_with(", n19"));
        assert!(names(1000).ends_with(", n19 and 980 more"));
    }

    #[test]
    fn lines_are_messages_unless_they_begin_with_a_slash() {
        for (line, command) in [
            ("  \t", Command::Empty),
            ("hello /who", Command::Say("hello /who")),
            (" /who", Command::Say(" /who")),
            ("//who", Command::Say("/who")),
            ("/who", Command::Who),
            ("/WHO now", Command::Who),
            ("/nick  bob ", Command::Nick("bob")),
            ("/me  waves twice ", Command::Me("waves twice")),
            ("/msg bob  good day", Command::Msg { to: "bob", text: "good day" }),
            ("/join tea", Command::Join("tea")),
            ("/rooms", Command::Rooms(1)),
            ("/rooms 12", Command::Rooms(12)),
            ("/quit", Command::Quit),
        ] {
            assert_eq!(Command::parse(line), command, "{line}");
        }
    }

    #[test]
    fn missing_arguments_and_unknown_commands_get_a_hint() {
        for (line, usage) in [
            ("/nick", "/nick NAME"),
            ("/nick a b", "/nick NAME"),
            ("/join", "/join ROOM"),
            ("/msg bob", "/msg NAME text"),
            ("/me", "/me action"),
            ("/rooms 0", "/rooms [PAGE]"),
            ("/rooms x", "/rooms [PAGE]"),
        ] {
            assert_eq!(Command::parse(line), Command::Usage(usage.into()), "{line}");
        }
        assert_eq!(Command::parse("/nik x"), Command::Unknown("/nik", Some("/nick")));
        assert_eq!(Command::parse("/Whois"), Command::Unknown("/Whois", Some("/who")));
        assert_eq!(Command::parse("/xyz"), Command::Unknown("/xyz", None));
        assert_eq!(Command::parse("/"), Command::Unknown("/", None));
    }

    #[test]
    fn the_help_lists_every_command() {
        for (name, arguments) in COMMANDS.iter().filter(|(name, _)| *name != "/help") {
            assert!(HELP.contains(&format!("* {name}{arguments} ")), "{name}");
        }
    }
}
