//! The state of one chat connection: whether it is a member, its partial line, its budget and its rate limit.

use super::command::{self, Command};
use super::fanout::Delivery;
use super::limits::{Budgets, Decision, MUTE_TIME, RateLimiter};
use super::line::{LINE_BYTES_MAX, LineEvent, LineReader};
use super::state::ChatGuard;
use super::tables::MemberKey;
use super::text;
use crate::r#loop::{Flow, Output, Phase, Wire};

/// Number of times that a connection may try the password.
pub(super) const PASSWORD_TRIES: u8 = 3;

/// The stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The next line is the password.
    Login {
        tries_left: u8,
    },
    /// The password was right.
    Admitted,
    Member(MemberKey),
    /// No member any more; the connection stays open until the last delivery has been sent.
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
            Command::Help => chat.notify(member, command::HELP),
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
