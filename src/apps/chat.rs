//! A line-based chat server with rooms, for netcat, telnet and other TCP clients (`serverd chat`).
//!
//! ```text
//! bytes -> input.rs -> text.rs         telnet, line endings, UTF-8, command parsing
//!                        |
//!                   commands.rs         password, budget, rate limit; executes the commands
//!                        |
//!               state.rs, tables.rs     members, names, rooms; one event order for all loops
//!                        |
//!                    fanout.rs          the events of a turn, as one delivery per member of this loop
//! ```
//!
//! Input lines end in CR LF, CR NUL, CR or LF, output lines in LF. Server notices begin with `* `, messages with
//! `[name] ` and actions (`/me`) with `- name `, so that no member can forge a notice. A line has at most 2,000 bytes.
//! Telnet negotiation is refused, AYT (Are You There) is answered.
//!
//! Text is UTF-8; invalid sequences are replaced with U+FFFD. Control characters other than TAB, line and paragraph
//! separators, and bidirectional formatting characters are removed, so that a member cannot send escape sequences to
//! another member's terminal. Names that look alike (Unicode Technical Standard 39) are the same name.
//!
//! Input is bounded by budgets of each member ([`Bounds::byte_budget`], [`Bounds::line_budget`]), output by skipping
//! the oldest lines ([`Bounds::queue_bytes_max`]), and the memory of a turn by a bound on the undelivered lines of all
//! members. A member that sends no line within [`Timeouts::silent`](crate::Timeouts::silent) is disconnected; after its
//! first line [`Timeouts::open`](crate::Timeouts::open) applies.
//!
//! All events of a chat have one total order, across all loops. Each loop sends every member at most one delivery per
//! turn, at the end of the turn. Arrivals, departures and renames in a room are combined into one notice, which is sent
//! before the next message in the room or at the end of the turn, whichever comes first.

mod commands;
mod fanout;
mod input;
mod log;
mod state;
mod tables;
mod text;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use bytes::Bytes;

pub use self::commands::{ChatConnection, Console};
pub use self::fanout::Delivery;
pub use self::input::{Bounds, Budget};
pub use self::log::{RoomLog, RoomLogEnd};

use self::commands::Stage;
use self::fanout::{Fanout, Kind};
use self::input::LineEvent;
use self::state::{ChatGuard, ChatState};
use self::tables::{Departure, Event};
use crate::r#loop::{Accepted, App, CloseInfo, CloseReason, ConnId, Flow, Phase, Remote, Wire};

/// Maximum number of lines processed for one member per turn, so that the loop also serves the others.
const LINES_PER_TURN: usize = 64;

/// The notice for a client whose address is banned.
const BANNED: &[u8] = b"* You are banned from this chat.\n";

/// The notice for a client that speaks HTTP.
const NO_HTTP: &[u8] = b"* This is a chat, not an HTTP server. Connect with nc or telnet.\n";

/// The options of a chat.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// The limits.
    pub bounds: Bounds,
    /// The password that a connection must send as its first line. It has three tries. Default: none.
    pub password: Option<String>,
    /// The message of the day, sent to each new member after the welcome, as notices. Default: none.
    pub motd: String,
    /// The log of the public lines. Default: none.
    pub log: Option<RoomLog>,
}

impl Options {
    optional_setters! {
        password: String,
        log: RoomLog,
    }

    setters! {
        bounds: Bounds,
        motd: String,
    }
}

/// The chat application of one loop. Instances created by [`Chat::shared`] or [`Chat::with_options`] form a single
/// chat.
///
/// # Examples
/// ```no_run
/// use std::time::Duration;
///
/// use serverd::apps::chat::{Bounds, Chat};
/// use serverd::LoopLimits;
/// use serverd::{SelectLoop, Timeouts};
///
/// let timeouts = Timeouts::default().silent(Duration::from_secs(600));
/// let mut chat = SelectLoop::with_limits(timeouts, LoopLimits::default(), Chat::new(Bounds::default()))?;
/// chat.listen(std::net::TcpListener::bind("127.0.0.1:8888")?)?;
/// chat.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Chat {
    state: Arc<ChatState>,
    loop_index: usize,
    fanout: Fanout,
    events: Vec<Event>,
    bounds: Bounds,
    password: Option<Arc<str>>,
    motd: Bytes,
    /// Set when the loop starts.
    remote: Option<Remote<Delivery>>,
}

impl Chat {
    /// Creates a chat that runs on one loop.
    pub fn new(bounds: Bounds) -> Self {
        Self::shared(bounds, 1).remove(0)
    }

    /// Creates a chat that spans `loops` event loops. Returns one `Chat` for each of them.
    pub fn shared(bounds: Bounds, loops: usize) -> Vec<Self> {
        Self::with_options(Options { bounds, ..Options::default() }, loops)
    }

    /// Creates a chat with options that spans `loops` event loops. Returns one `Chat` for each of them.
    pub fn with_options(options: Options, loops: usize) -> Vec<Self> {
        let Options { bounds, password, motd, log } = options;
        let state = Arc::new(ChatState::new(bounds, loops, log));
        let (password, motd) = (password.map(Arc::<str>::from), notices(&motd));
        let on_loop = |loop_index| Chat {
            state: Arc::clone(&state),
            loop_index,
            fanout: Fanout::default(),
            events: Vec::new(),
            bounds,
            password: password.clone(),
            motd: motd.clone(),
            remote: None,
        };
        (0..loops).map(on_loop).collect()
    }

    /// Returns a console that administers the chat from any thread.
    pub fn console(&self) -> Console {
        Console::new(&self.state)
    }

    fn lock(&self) -> ChatGuard<'_> {
        self.state.lock(self.loop_index)
    }

    /// Processes a line of a connection, or the event that a line was too long.
    fn process(
        &self,
        connection: &mut ChatConnection,
        event: &LineEvent<'_>,
        wire: &mut Wire<'_, Delivery>,
        chat: &mut ChatGuard<'_>,
    ) {
        match (connection.stage, &self.password) {
            (Stage::Login { tries_left }, Some(password)) => {
                connection.stage = match commands::check_password(event, password, tries_left, wire.output()) {
                    Stage::Admitted => self.admit(wire, chat),
                    stage => stage,
                }
            }
            (Stage::Member(member), _) if chat.is_member(member, wire.id()) => {
                connection.process(member, event, wire, self.bounds.rate, chat);
            }
            // The console has removed the member; the last delivery is on its way.
            (Stage::Member(_), _) => connection.stage = Stage::Left,
            _ => {}
        }
    }

    /// Makes a connection a member.
    fn admit(&self, wire: &mut Wire<'_, Delivery>, chat: &mut ChatGuard<'_>) -> Stage {
        if let Some(member) = chat.join(wire.id(), wire.addrs().source_addr(), &self.motd) {
            return Stage::Member(member);
        }
        wire.output().extend(b"* The chat is full; try again later.\n");
        Stage::Refused
    }

    /// Resumes a connection after `delay`, when its budget has recovered.
    fn hold(&self, id: ConnId, delay: std::time::Duration) {
        if let Some(remote) = &self.remote {
            remote.send_later(delay, id, Delivery::resume());
        }
    }
}

/// Formats text as notices, one per line.
fn notices(text: &str) -> Bytes {
    let lines = text.lines().map(|line| text::sanitize(line.as_bytes()));
    lines.flat_map(|line| ["* ".into(), line, "\n".into()]).collect::<String>().into()
}

/// Takes the address of a client from the PROXY header, which follows the opening of the connection.
fn identify(connection: &mut ChatConnection, wire: &mut Wire<'_, Delivery>, chat: &mut ChatGuard<'_>) {
    let Some(source) = wire.addrs().proxied().and_then(|proxied| proxied.source) else { return };
    if chat.is_banned(source.ip()) {
        refuse(connection, wire, chat, BANNED);
    } else if let Stage::Member(member) = connection.stage
        && chat.is_member(member, wire.id())
    {
        chat.set_addr(member, source);
    }
}

/// Refuses a client, which may be a member already.
fn refuse(connection: &mut ChatConnection, wire: &mut Wire<'_, Delivery>, chat: &mut ChatGuard<'_>, notice: &[u8]) {
    leave(connection, wire.id(), chat);
    wire.output().extend(notice);
    connection.stage = Stage::Refused;
}

/// Ends the membership of a connection, unless the console has done so.
fn leave(connection: &ChatConnection, id: ConnId, chat: &mut ChatGuard<'_>) {
    if let Stage::Member(member) = connection.stage
        && chat.is_member(member, id)
    {
        chat.leave(member);
    }
}

impl App for Chat {
    type State = ChatConnection;
    type Message = Delivery;

    fn start(&mut self, remote: Remote<Delivery>) {
        self.state.attach(self.loop_index, remote.clone());
        self.remote = Some(remote);
    }

    fn open(&mut self, accepted: &Accepted<'_>, wire: &mut Wire<'_, Delivery>) -> (ChatConnection, Flow) {
        let mut chat = self.lock();
        let stage = if accepted.peer_addr().is_some_and(|addr| chat.is_banned(addr.ip())) {
            wire.output().extend(BANNED);
            Stage::Refused
        } else if self.password.is_some() {
            wire.output().extend(b"* This chat has a password. Enter it:\n");
            Stage::Login { tries_left: commands::PASSWORD_TRIES }
        } else {
            self.admit(wire, &mut chat)
        };
        let connection = ChatConnection::new(stage);
        let flow = connection.flow();
        (connection, flow)
    }

    fn receive(&mut self, connection: &mut ChatConnection, wire: &mut Wire<'_, Delivery>) -> Flow {
        let (mut input, now) = (wire.input(), wire.now());
        let (mut chat, mut lines_left) = (None, LINES_PER_TURN);
        let mut is_stopped = self.state.is_congested();
        while !input.is_empty() && !is_stopped && lines_left > 0 {
            if let Some(delay) = connection.budgets.hold_time(&self.bounds, now) {
                connection.held = true;
                self.hold(wire.id(), delay);
                break;
            }
            let before = input.len();
            let event = connection.reader.next(&mut input);
            connection.budgets.add(&self.bounds, now, before - input.len(), usize::from(event.is_some()));
            match event {
                None => break,
                Some(LineEvent::Refuse(reply)) => wire.output().extend(&reply),
                Some(LineEvent::AreYouThere) => wire.output().extend(b"* Yes, the chat is here.\n"),
                Some(event) => {
                    let chat = chat.get_or_insert_with(|| self.state.lock(self.loop_index));
                    if !connection.has_sent_line {
                        identify(connection, wire, chat);
                        // A web page can make a browser send a request here. Its headers, such as cookies, and the lines
                        // of its body must not become messages.
                        if connection.reader.is_http(&event) {
                            refuse(connection, wire, chat, NO_HTTP);
                        }
                    }
                    connection.has_sent_line = true;
                    wire.restart_timer();
                    self.process(connection, &event, wire, chat);
                    is_stopped = chat.is_congested() || connection.is_finished();
                }
            }
            lines_left -= 1;
        }
        connection.input_pending = !input.is_empty();
        wire.consume(wire.input().len() - input.len());
        if wire.ended() && !connection.input_pending && matches!(connection.stage, Stage::Member(_)) {
            leave(connection, wire.id(), chat.get_or_insert_with(|| self.state.lock(self.loop_index)));
            connection.stage = Stage::Left;
        }
        connection.flow()
    }

    fn message(&mut self, connection: &mut ChatConnection, delivery: Delivery, wire: &mut Wire<'_, Delivery>) -> Flow {
        delivery.append_to(wire.output(), self.bounds.queue_bytes_max);
        match delivery.kind() {
            Kind::Lines => connection.flow(),
            Kind::Last => {
                connection.stage = Stage::Left;
                Flow::Close
            }
            Kind::Resume => {
                connection.held = false;
                connection.flow()
            }
        }
    }

    fn output_drained(&mut self, connection: &mut ChatConnection, _: &mut Wire<'_, Delivery>) -> Flow {
        connection.flow()
    }

    fn timer(&mut self, connection: &mut ChatConnection, _: Phase, wire: &mut Wire<'_, Delivery>) -> Flow {
        let notice: &[u8] = if connection.has_sent_line {
            b"* Disconnected: idle too long.\n"
        } else {
            b"* Disconnected: no line received for too long.\n"
        };
        wire.output().extend(notice);
        Flow::Close
    }

    fn drain(&mut self, connection: &mut ChatConnection, wire: &mut Wire<'_, Delivery>) -> Flow {
        const GOODBYE: &str = "* The server is shutting down. Goodbye.\n";
        match connection.stage {
            Stage::Member(member) => {
                let mut chat = self.lock();
                if chat.is_member(member, wire.id()) {
                    chat.notify(member, GOODBYE);
                    chat.leave_silently(member);
                }
                connection.stage = Stage::Left;
                // The last delivery follows at the end of the turn and closes the connection.
                Flow::Pause
            }
            Stage::Left => Flow::Pause,
            Stage::Login { .. } | Stage::Admitted | Stage::Refused => {
                wire.output().extend(GOODBYE.as_bytes());
                Flow::Close
            }
        }
    }

    fn closed(&mut self, id: ConnId, connection: ChatConnection, info: CloseInfo) {
        let Stage::Member(member) = connection.stage else { return };
        let departure = match info.reason {
            CloseReason::TooSlow => Departure::TooSlow,
            CloseReason::Timeout(_) => Departure::TimedOut,
            // TCP keep-alive got no reply from the client.
            CloseReason::Error(error) if error.kind() == io::ErrorKind::TimedOut => Departure::TimedOut,
            _ => Departure::Left,
        };
        let mut chat = self.lock();
        if chat.is_member(member, id) {
            chat.disconnect(member, departure);
        }
    }

    fn end_of_turn(&mut self, messages: &mut Vec<(ConnId, Delivery)>) {
        self.state.collect(self.loop_index, &mut self.events);
        if !self.events.is_empty() {
            self.fanout.distribute(&mut self.events, messages);
        }
    }
}
