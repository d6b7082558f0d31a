//! What a person asks for: a line that begins with a slash.

/// What `/help` tells.
pub(super) const HELP: &str = "\
* /nick NAME      take another name: 1 to 24 letters, digits, - and _
* /who            who is in this room
* /rooms          which rooms there are
* /join ROOM      go to another room, or make it
* /msg NAME text  say something to one person only
* /me action      say what you do
* /quit           leave
* A line that begins with // is said with one slash.
";

/// The commands, with what follows them.
const COMMANDS: [(&str, &str); 8] = [
    ("/help", ""),
    ("/nick", " NAME"),
    ("/who", ""),
    ("/rooms", ""),
    ("/join", " ROOM"),
    ("/msg", " NAME text"),
    ("/me", " action"),
    ("/quit", ""),
];

/// A line as it is meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    /// Nothing but white space.
    Nothing,
    /// To be said.
    Say(&'a str),
    Help,
    Nick(&'a str),
    Who,
    Rooms,
    Join(&'a str),
    Msg {
        to: &'a str,
        text: &'a str,
    },
    Me(&'a str),
    Quit,
    /// Something is missing or too much: how the command is used.
    Usage(String),
    /// No command; the one that may have been meant.
    Unknown(&'a str, Option<&'static str>),
}

impl<'a> Command<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        if line.trim().is_empty() {
            return Command::Nothing;
        }
        match line.strip_prefix('/') {
            None => return Command::Say(line),
            Some(rest) if rest.starts_with('/') => return Command::Say(rest),
            Some(_) => {}
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let one = (!rest.is_empty() && !rest.contains(char::is_whitespace)).then_some(rest);
        let known = COMMANDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
        let Some(&(name, arguments)) = known else { return Command::Unknown(word, nearest(word)) };
        let parsed = match name {
            "/help" => Some(Command::Help),
            "/who" => Some(Command::Who),
            "/rooms" => Some(Command::Rooms),
            "/quit" => Some(Command::Quit),
            "/nick" => one.map(Command::Nick),
            "/join" => one.map(Command::Join),
            "/me" => (!rest.is_empty()).then_some(Command::Me(rest)),
            _ => rest.split_once(char::is_whitespace).map(|(to, text)| Command::Msg { to, text: text.trim() }),
        };
        parsed.unwrap_or_else(|| Command::Usage(format!("{name}{arguments}")))
    }
}

/// The command that shares the longest beginning with `word`, if more than the slash.
fn nearest(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let shared = |name: &str| name.bytes().zip(word.bytes()).take_while(|(own, typed)| own == typed).count();
    // Of equals the first one.
    let best = COMMANDS.iter().rev().map(|(name, _)| *name).max_by_key(|name| shared(name))?;
    (shared(best) > 1).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_said_unless_they_begin_with_a_slash() {
        for (line, command) in [
            ("  \t", Command::Nothing),
            ("hello /who", Command::Say("hello /who")),
            (" /who", Command::Say(" /who")),
            ("//who", Command::Say("/who")),
            ("/who", Command::Who),
            ("/WHO now", Command::Who),
            ("/nick  bob ", Command::Nick("bob")),
            ("/me  waves twice ", Command::Me("waves twice")),
            ("/msg bob  good day", Command::Msg { to: "bob", text: "good day" }),
            ("/join tea", Command::Join("tea")),
            ("/quit", Command::Quit),
        ] {
            assert_eq!(Command::parse(line), command, "{line}");
        }
    }

    #[test]
    fn what_is_missing_or_unknown_is_told_with_a_hint() {
        for (line, usage) in [
            ("/nick", "/nick NAME"),
            ("/nick a b", "/nick NAME"),
            ("/join", "/join ROOM"),
            ("/msg bob", "/msg NAME text"),
            ("/me", "/me action"),
        ] {
            assert_eq!(Command::parse(line), Command::Usage(usage.into()), "{line}");
        }
        assert_eq!(Command::parse("/nik x"), Command::Unknown("/nik", Some("/nick")));
        assert_eq!(Command::parse("/Whois"), Command::Unknown("/Whois", Some("/who")));
        assert_eq!(Command::parse("/xyz"), Command::Unknown("/xyz", None));
        assert_eq!(Command::parse("/"), Command::Unknown("/", None));
    }

    #[test]
    fn the_help_names_every_command() {
        for (name, arguments) in COMMANDS.iter().filter(|(name, _)| *name != "/help") {
            assert!(HELP.contains(&format!("* {name}{arguments} ")), "{name}");
        }
    }
}
