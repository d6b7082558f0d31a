//! Executes what is typed: [`ChatConnection`] for a member, within its budget and its rate limit, and [`Console`] for
//! the operator of the server.

use std::net::IpAddr;
use std::sync::Arc;

use super::fanout::Delivery;
use super::input::{Budgets, Decision, LINE_BYTES_MAX, LineEvent, LineReader, MUTE_TIME, RateLimiter};
use super::state::{ChatGuard, ChatState};
use super::tables::MemberKey;
use super::text::{self, Command, HELP};
use crate::r#loop::{Flow, Output, Phase, Wire};

/// Number of attempts that a connection has to enter the password.
pub(super) const PASSWORD_TRIES: u8 = 3;

/// Maximum number of members listed by `/who`.
const LISTED_MAX: usize = 1000;

/// The output of `/help` at the console.
const CONSOLE_HELP: &str = "\
TEXT                 send a notice to all members
/who                 list the members with their addresses
/kick NAME           disconnect a member
/mute NAME           stop a member from speaking; /unmute NAME ends that
/ban ADDRESS|NAME    refuse connections from an address (IPv6: its /64); /unban ADDRESS ends that
";

/// The stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The next line is the password.
    Login {
        tries_left: u8,
    },
    /// The password was correct.
    Admitted,
    Member(MemberKey),
    /// No longer a member; the connection stays open until the last delivery has been sent.
    Left,
    /// To be closed after its output.
    Refused,
}

/// The state of one chat connection.
#[derive(Debug)]
pub struct ChatConnection {
    pub(super) stage: Stage,
    pub(super) reader: LineReader,
    limiter: RateLimiter,
    pub(super) budgets: Budgets,
    /// True while the member is not read because its budget is used up.
    pub(super) held: bool,
    /// True if there is input that has not been processed yet.
    pub(super) input_pending: bool,
    pub(super) has_sent_line: bool,
}

impl ChatConnection {
    pub(super) fn new(stage: Stage) -> Self {
        ChatConnection {
            stage,
            reader: LineReader::default(),
            limiter: RateLimiter::default(),
            budgets: Budgets::default(),
            held: false,
            input_pending: false,
            has_sent_line: false,
        }
    }

    /// Returns whether no further input is processed.
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.stage, Stage::Left | Stage::Refused)
    }

    pub(super) fn flow(&self) -> Flow {
        let phase = if self.has_sent_line { Phase::Unlimited } else { Phase::AwaitingFirstByte };
        match self.stage {
            Stage::Refused => Flow::Close,
            Stage::Left => Flow::Pause,
            _ if self.held => Flow::Pause,
            _ if self.input_pending => Flow::Yield(phase),
            _ => Flow::Read(phase),
        }
    }

    /// Handles a line of a member, unless it has exceeded the rate limit.
    pub(super) fn process(
        &mut self,
        member: MemberKey,
        event: &LineEvent<'_>,
        wire: &Wire<'_, Delivery>,
        rate: Option<u32>,
        chat: &mut ChatGuard<'_>,
    ) {
        let decision = rate.map_or(Decision::Allowed, |rate| self.limiter.check(wire.now(), rate));
        match (decision, event) {
            (Decision::Allowed, LineEvent::Line(line)) => self.execute(member, line, wire, chat),
            (Decision::Allowed, _) => {
                chat.notify(member, format!("* Line too long (more than {LINE_BYTES_MAX} bytes); not delivered.\n"));
            }
            (Decision::Exceeded, _) => {
                let rate = rate.unwrap_or_default();
                let mute = MUTE_TIME.as_secs();
                chat.notify(member, format!("* Rate limit of {rate} lines per second exceeded; muted for {mute} s.\n"));
            }
            (Decision::Muted, _) => {}
        }
    }

    /// Executes the command in a line, or sends the line as a message.
    fn execute(&mut self, member: MemberKey, line: &[u8], wire: &Wire<'_, Delivery>, chat: &mut ChatGuard<'_>) {
        let line = text::sanitize(line);
        match Command::parse(&line) {
            Command::Empty => {}
            Command::Say(text) => chat.say(member, text),
            Command::Help => chat.notify(member, HELP),
            Command::Nick(name) => chat.rename(member, name),
            Command::Who => chat.list_members(member),
            Command::Rooms(page) => chat.list_rooms(member, page),
            Command::Join(room) => chat.join_room(member, wire.id(), room),
            Command::Msg { to, text } => chat.whisper(member, to, text),
            Command::Me(action) => chat.emote(member, action),
            Command::Usage(usage) => chat.notify(member, format!("* Usage: {usage}\n")),
            Command::Unknown(word, nearest) => {
                let word: String = word.chars().take(text::NAME_CHARS_MAX).collect();
                let hint = nearest.map_or(".".into(), |name| format!("; did you mean {name}?"));
                chat.notify(member, format!("* Unknown command {word}{hint} Type /help for a list.\n"));
            }
            Command::Quit => {
                chat.notify(member, "* Goodbye.\n");
                chat.leave(member);
                self.stage = Stage::Left;
            }
        }
    }
}

/// Compares a line with the password. Returns the next stage. Empty lines are ignored.
pub(super) fn check_password(event: &LineEvent<'_>, password: &str, tries_left: u8, output: &mut Output) -> Stage {
    match event {
        LineEvent::Line(line) if line.is_empty() => return Stage::Login { tries_left },
        LineEvent::Line(line) if is_equal(line, password.as_bytes()) => return Stage::Admitted,
        _ if tries_left > 1 => output.extend(b"* Wrong password; try again:\n"),
        _ => {
            output.extend(b"* Wrong password. Goodbye.\n");
            return Stage::Refused;
        }
    }
    Stage::Login { tries_left: tries_left - 1 }
}

/// Compares in a time that depends only on the lengths.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

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

    /// Executes a line: a command (`/help` lists them), or a notice to all members. Returns the reply, which consists
    /// of lines, or is empty.
    pub fn execute(&self, line: &str) -> String {
        let line = text::sanitize(line.as_bytes());
        let line = line.trim();
        let (word, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let mut chat = self.state.lock_from_outside();
        match (word, argument) {
            ("", _) => String::new(),
            ("/help", _) => CONSOLE_HELP.to_owned(),
            ("/who", _) => chat.describe_members(LISTED_MAX),
            ("/kick" | "/mute" | "/unmute", "") => format!("usage: {word} NAME; see /help\n"),
            ("/ban", "") => "usage: /ban ADDRESS|NAME; see /help\n".into(),
            ("/unban", "") => "usage: /unban ADDRESS; see /help\n".into(),
            ("/kick", name) => reply(chat.kick(name), "disconnected", name),
            ("/mute", name) => reply(chat.set_muted(name, true), "muted", name),
            ("/unmute", name) => reply(chat.set_muted(name, false), "unmuted", name),
            ("/ban", whom) => ban(&mut chat, whom),
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
}

/// Bans an address, or that of a member.
fn ban(chat: &mut ChatGuard<'_>, whom: &str) -> String {
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

fn reply(found: bool, done: &str, name: &str) -> String {
    if found { format!("{done} {name}\n") } else { "no such member\n".into() }
}
