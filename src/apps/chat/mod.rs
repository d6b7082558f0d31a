//! A line-based chat server with rooms, for netcat, telnet and other TCP clients (`serverd chat`).
//!
//! ```text
//! bytes -> line.rs -> text.rs -> command.rs       telnet, line endings, UTF-8, command parsing
//!                                    |
//!            chat_state.rs, tables.rs, room.rs    members, names, rooms; one event order for all loops
//!                                    |
//!                                fanout.rs        the events of a turn, as one delivery per member of this loop
//! ```
//!
//! Input lines end in LF or CRLF, output lines in LF. Server notices begin with `* `, messages with `[name] `. A line
//! has at most 2,000 bytes. Telnet negotiation is dropped.
//!
//! Text is UTF-8; invalid sequences are replaced with U+FFFD. Control characters other than TAB, line and paragraph
//! separators, and bidirectional formatting characters are removed, so that a member cannot send escape sequences to
//! another member's terminal. Names are compared after full case folding (upper case, then lower case). They are not
//! normalized; combining accents are not allowed in names, so no name can be spelled in two ways.
//!
//! All events of a chat have one total order, across all loops. Each loop sends every member at most one delivery per
//! turn, at the end of the turn. Arrivals, departures and renames in a room are combined into one notice, which is sent
//! before the next message in the room or at the end of the turn, whichever comes first.

mod chat_state;
mod command;
mod fanout;
mod line;
mod rate_limit;
mod room;
mod tables;
mod text;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use self::chat_state::{ChatGuard, ChatState};
use self::command::Command;
use self::fanout::Fanout;
use self::line::{LINE_BYTES_MAX, LineEvent, LineReader};
use self::rate_limit::{Decision, MUTE_TIME, RateLimiter};
use self::room::Departure;
use self::tables::{Event, MemberKey};
use crate::r#loop::{Accepted, App, CloseInfo, CloseReason, ConnId, Flow, Phase, Remote, Wire};

/// Maximum number of lines processed for one member per turn, so that the loop also serves the others.
const LINES_PER_TURN: usize = 64;

/// The limits of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bounds {
    /// Maximum number of members on all loops together. Further connections get a notice and are closed. Default:
    /// 10,000.
    pub members_max: usize,
    /// Maximum number of rooms, including the lobby. Rooms other than the lobby are removed when the last member
    /// leaves. Default: 1,000.
    pub rooms_max: usize,
    /// Rate limit in lines per second per member, measured over one second. A member that exceeds it is muted for 3 s.
    /// Default: no limit, so that long text can be pasted.
    pub rate: Option<u32>,
    /// Maximum number of unsent bytes queued for a member. A slow client that would exceed it is disconnected, without
    /// delaying the other members. Default: 256 KiB, a few thousand lines.
    pub queue_bytes_max: usize,
    /// Number of recent lines sent to a member who joins a room. Default: 20, about a screenful.
    pub history_lines: usize,
}

impl Bounds {
    optional_setters! {
        rate: u32,
    }

    setters! {
        members_max: usize,
        rooms_max: usize,
        queue_bytes_max: usize,
        history_lines: usize,
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { members_max: 10_000, rooms_max: 1000, rate: None, queue_bytes_max: 256 * 1024, history_lines: 20 }
    }
}

/// The lines that one member receives in a turn: reference-counted buffers, written with one system call.
#[derive(Debug)]
pub struct Delivery {
    first: Bytes,
    rest: Vec<Bytes>,
    last: bool,
}

impl Delivery {
    fn one(first: Bytes) -> Self {
        Delivery { first, rest: Vec::new(), last: false }
    }

    fn several(pieces: Vec<Bytes>) -> Self {
        let mut pieces = pieces.into_iter();
        Delivery { first: pieces.next().unwrap_or_default(), rest: pieces.collect(), last: false }
    }

    /// Creates a delivery after which the connection is closed.
    fn last(pieces: Vec<Bytes>) -> Self {
        Delivery { last: true, ..Delivery::several(pieces) }
    }

    fn is_last(&self) -> bool {
        self.last
    }

    fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    fn len(&self) -> usize {
        self.pieces().map(Bytes::len).sum()
    }
}

/// The chat application of one loop. Instances created by [`Chat::shared`] form a single chat.
///
/// # Examples
/// ```no_run
/// use serverd::apps::chat::{Bounds, Chat};
/// use serverd::{Poller, SelectLoop};
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:8888")?;
/// SelectLoop::new(listener, None, Chat::new(Bounds::default()))?.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Chat {
    state: Arc<ChatState>,
    loop_index: usize,
    fanout: Fanout,
    events: Vec<Event>,
    rate: Option<u32>,
    queue_bytes_max: usize,
}

impl Chat {
    /// Creates a chat that runs on one loop.
    pub fn new(bounds: Bounds) -> Self {
        Self::on_loop(&Arc::new(ChatState::new(bounds, 1)), 0, bounds)
    }

    /// Creates a chat that spans `loops` event loops. Returns one `Chat` for each of them.
    pub fn shared(bounds: Bounds, loops: usize) -> Vec<Self> {
        let state = Arc::new(ChatState::new(bounds, loops));
        (0..loops).map(|loop_index| Self::on_loop(&state, loop_index, bounds)).collect()
    }

    fn on_loop(state: &Arc<ChatState>, loop_index: usize, bounds: Bounds) -> Self {
        Chat {
            state: Arc::clone(state),
            loop_index,
            fanout: Fanout::default(),
            events: Vec::new(),
            rate: bounds.rate,
            queue_bytes_max: bounds.queue_bytes_max,
        }
    }
}

/// The state of one chat connection.
#[derive(Debug, Default)]
pub struct ChatConnection {
    /// `None` once the member has left; the connection stays open until the last delivery has been sent.
    member: Option<MemberKey>,
    reader: LineReader,
    limiter: RateLimiter,
    /// True if the connection was aborted because its queue was full.
    slow: bool,
    /// True if there is input that has not been processed yet.
    input_pending: bool,
}

impl ChatConnection {
    /// Executes the command in a line, or sends the line as a message.
    fn execute(&mut self, line: &[u8], conn: ConnId, chat: &mut ChatGuard<'_>) {
        let Some(member) = self.member else { return };
        let line = text::sanitize(line);
        match Command::parse(&line) {
            Command::Empty => {}
            Command::Say(text) => chat.say(member, text),
            Command::Help => chat.notify(member, command::HELP),
            Command::Nick(name) => chat.rename(member, name),
            Command::Who => chat.list_members(member),
            Command::Rooms => chat.list_rooms(member),
            Command::Join(room) => chat.join_room(member, conn, room),
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
                self.member = None;
            }
        }
    }

    /// Handles a line, unless the member has exceeded the rate limit.
    fn process(&mut self, event: &LineEvent, wire: &Wire<'_, Delivery>, rate: Option<u32>, chat: &mut ChatGuard<'_>) {
        let Some(member) = self.member else { return };
        let decision = rate.map_or(Decision::Allowed, |rate| self.limiter.check(wire.now(), rate));
        match (decision, event) {
            (Decision::Allowed, LineEvent::Line(line)) => self.execute(line, wire.id(), chat),
            (Decision::Allowed, LineEvent::TooLong) => {
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

    fn flow(&self) -> Flow {
        match self.member {
            None => Flow::Pause,
            Some(_) if self.input_pending => Flow::Yield(Phase::Unlimited),
            Some(_) => Flow::Read(Phase::Unlimited),
        }
    }
}

impl App for Chat {
    type State = ChatConnection;
    type Message = Delivery;

    fn start(&mut self, remote: Remote<Delivery>) {
        self.state.attach(self.loop_index, remote);
    }

    fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, Delivery>) -> (ChatConnection, Flow) {
        let member = self.state.lock(self.loop_index).join(wire.id());
        let connection = ChatConnection { member, ..ChatConnection::default() };
        if member.is_some() {
            return (connection, Flow::Read(Phase::Unlimited));
        }
        wire.output().extend(b"* The chat is full; try again later.\n");
        (connection, Flow::Close)
    }

    fn receive(&mut self, connection: &mut ChatConnection, wire: &mut Wire<'_, Delivery>) -> Flow {
        let mut input = wire.input();
        let mut chat = None;
        let mut lines_left = LINES_PER_TURN;
        while lines_left > 0
            && let Some(event) = connection.reader.next(&mut input)
        {
            let chat = chat.get_or_insert_with(|| self.state.lock(self.loop_index));
            connection.process(&event, wire, self.rate, chat);
            wire.restart_timer();
            lines_left -= 1;
        }
        connection.input_pending = !input.is_empty();
        wire.consume(wire.input().len() - input.len());
        if wire.ended()
            && !connection.input_pending
            && let Some(member) = connection.member.take()
        {
            chat.get_or_insert_with(|| self.state.lock(self.loop_index)).leave(member);
        }
        connection.flow()
    }

    fn message(&mut self, connection: &mut ChatConnection, delivery: Delivery, wire: &mut Wire<'_, Delivery>) -> Flow {
        let queued = wire.output().len();
        // With an empty queue, a delivery may exceed the limit: the socket may accept it at once.
        if queued > 0 && queued + delivery.len() > self.queue_bytes_max {
            connection.slow = true;
            return Flow::Abort;
        }
        for piece in delivery.pieces() {
            wire.output().share(piece);
        }
        if delivery.is_last() { Flow::Close } else { connection.flow() }
    }

    fn output_drained(&mut self, connection: &mut ChatConnection, _: &mut Wire<'_, Delivery>) -> Flow {
        connection.flow()
    }

    fn timer(&mut self, _: &mut ChatConnection, _: Phase, wire: &mut Wire<'_, Delivery>) -> Flow {
        wire.output().extend(b"* Disconnected: idle too long.\n");
        Flow::Close
    }

    fn drain(&mut self, connection: &mut ChatConnection, _: &mut Wire<'_, Delivery>) -> Flow {
        if let Some(member) = connection.member.take() {
            let mut chat = self.state.lock(self.loop_index);
            chat.notify(member, "* The server is shutting down. Goodbye.\n");
            chat.leave_silently(member);
        }
        // The last delivery follows at the end of the turn and closes the connection.
        Flow::Pause
    }

    fn closed(&mut self, _: ConnId, connection: ChatConnection, info: CloseInfo) {
        let Some(member) = connection.member else { return };
        let departure = match info.reason {
            _ if connection.slow => Departure::TooSlow,
            CloseReason::TooSlow => Departure::TooSlow,
            CloseReason::Timeout(_) => Departure::TimedOut,
            // TCP keep-alive got no reply from the client.
            CloseReason::Error(error) if error.kind() == io::ErrorKind::TimedOut => Departure::TimedOut,
            _ => Departure::Left,
        };
        self.state.lock(self.loop_index).disconnect(member, departure);
    }

    fn end_of_turn(&mut self, messages: &mut Vec<(ConnId, Delivery)>) {
        self.state.collect(self.loop_index, &mut self.events);
        if !self.events.is_empty() {
            self.fanout.distribute(&mut self.events, messages);
        }
    }
}
