//! The console of a chat, through which its operator speaks to all members and removes some of them.

use std::net::IpAddr;
use std::sync::Arc;

use super::state::ChatState;
use super::text;

/// Maximum number of members listed by `/who`.
const LISTED_MAX: usize = 1000;

const HELP: &str = "\
TEXT                 send a notice to all members
/who                 list the members with their addresses
/kick NAME           disconnect a member
/mute NAME           stop a member from speaking; /unmute NAME ends that
/ban ADDRESS|NAME    refuse connections from an address (IPv6: its /64); /unban ADDRESS ends that
";

/// Administers a chat from any thread.
///
/// # Examples
/// ```
/// use serverd::apps::chat::{Bounds, Chat};
///
/// let chat = Chat::new(Bounds::default());
/// let console = chat.console();
/// assert_eq!(console.execute("/ban 192.0.2.7"), "banned 192.0.2.7; disconnected 0 members\n");
/// assert_eq!(console.execute("/kick Eve"), "no such member\n");
/// ```
#[derive(Clone)]
pub struct Console {
    state: Arc<ChatState>,
}

impl Console {
    pub(super) fn new(state: &Arc<ChatState>) -> Self {
        Console { state: Arc::clone(state) }
    }

    /// Executes a line: a command (`/help` lists them), or a notice to all members. Returns the reply, which consists of
    /// lines, or is empty.
    pub fn execute(&self, line: &str) -> String {
        let line = text::sanitize(line.as_bytes());
        let line = line.trim();
        let (word, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let mut chat = self.state.lock_from_outside();
        match (word, argument) {
            ("", _) => String::new(),
            ("/help", _) => HELP.to_owned(),
            ("/who", _) => chat.describe_members(LISTED_MAX),
            ("/kick" | "/mute" | "/unmute" | "/ban" | "/unban", "") => format!("usage: {word} NAME; see /help\n"),
            ("/kick", name) => reply(chat.kick(name), "disconnected", name),
            ("/mute", name) => reply(chat.set_muted(name, true), "muted", name),
            ("/unmute", name) => reply(chat.set_muted(name, false), "unmuted", name),
            ("/ban", whom) => {
                drop(chat);
                self.ban(whom)
            }
            ("/unban", addr) => match addr.parse() {
                Ok(addr) if chat.unban(addr) => format!("unbanned {addr}\n"),
                Ok(addr) => format!("{addr} is not banned\n"),
                Err(_) => "usage: /unban ADDRESS\n".into(),
            },
            _ if word.starts_with('/') => "unknown command; see /help\n".into(),
            _ => {
                chat.announce_to_all(line);
                String::new()
            }
        }
    }

    /// Bans an address, or that of a member.
    fn ban(&self, whom: &str) -> String {
        let mut chat = self.state.lock_from_outside();
        let addr: IpAddr = match whom.parse() {
            Ok(addr) => addr,
            Err(_) => match chat.member_addr(whom) {
                Some(Some(addr)) => addr.ip(),
                Some(None) => return reply(chat.kick(whom), "unknown address; disconnected", whom),
                None => return "no such member\n".into(),
            },
        };
        match chat.ban(addr) {
            Some(count) => format!("banned {addr}; disconnected {count} members\n"),
            None => "too many addresses are banned; /unban some\n".into(),
        }
    }
}

fn reply(found: bool, done: &str, name: &str) -> String {
    if found { format!("{done} {name}\n") } else { "no such member\n".into() }
}
