//! Parses chat commands: lines that begin with a slash.

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
pub(super) fn names() -> impl Iterator<Item = &'static str> {
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
