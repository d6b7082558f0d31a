//! `serverd chat`: rooms of people who type lines, in netcat, telnet or anything that sends lines over TCP.
//!
//! ```text
//! bytes -> line.rs -> text.rs -> command.rs        telnet, line ends, UTF-8, what is meant
//!                                    |
//!                          hub.rs, state.rs, room.rs   members, names, rooms; the order of everything; of all loops
//!                                    |
//!                                 desk.rs          what a turn brought, one letter for each member of this loop
//! ```
//!
//! Lines end in LF or CRLF; lines that are sent end in LF. Notices of the server begin with `* `, messages with
//! `[name] `. A line has at most 2,000 bytes; telnet negotiation in it is dropped.
//!
//! Text is UTF-8. What is not becomes U+FFFD, and control characters but TAB, separators of lines and paragraphs and
//! what turns the direction of writing are removed: nobody drives another's terminal. Names are the same when they
//! fold to the same (upper case, then lower case, each letter in full); they are not normalised, and since combining
//! accents are no letters, none can be spelt in two ways with them.
//!
//! Everything that happens has one place in one order, whatever loop it happens on. Each loop tells its members of a
//! turn once, at the turn's end. Arrivals, departures and renames of a room are told together, before the next message
//! in it or at the end of the turn, whichever comes first.

mod bucket;
mod command;
mod desk;
mod hub;
mod line;
mod room;
mod state;
mod text;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use self::bucket::{Bucket, MUTE, Verdict};
use self::command::Command;
use self::desk::Desk;
use self::hub::{Hub, Session};
use self::line::{LINE_BYTES_MAX, LineReader, Reading};
use self::room::Departure;
use self::state::{Event, MemberKey};
use crate::r#loop::{Accepted, App, Closed, ConnId, Ending, Flow, Phase, Remote, Wire};

/// Lines that are taken from one member before the others have their turn.
const LINES_PER_TURN: usize = 64;

/// What a chat grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Members of the chat, on all loops together. 10,000; who comes then is told that it is full.
    pub members_max: usize,
    /// Rooms, the lobby included. 1,000. A room is there as long as somebody is in it.
    pub rooms_max: usize,
    /// Lines a second and member, on average over a second. None: people do not type fast, and who pastes is welcome.
    pub rate: Option<u32>,
    /// Bytes that wait for a member who does not take them. 256 KiB, some thousand lines; over it the member is
    /// dropped as too slow, and the others go on.
    pub queue_bytes_max: usize,
    /// Lines of each room that are told to who comes. 20, a screen of them.
    pub history_lines: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { members_max: 10_000, rooms_max: 1000, rate: None, queue_bytes_max: 256 * 1024, history_lines: 20 }
    }
}

/// What a turn brings a member: shared bytes, sent with one call.
#[derive(Debug)]
pub struct Letter {
    first: Bytes,
    rest: Vec<Bytes>,
    last: bool,
}

impl Letter {
    fn one(first: Bytes) -> Self {
        Letter { first, rest: Vec::new(), last: false }
    }

    fn several(pieces: Vec<Bytes>) -> Self {
        let mut pieces = pieces.into_iter();
        Letter { first: pieces.next().unwrap_or_default(), rest: pieces.collect(), last: false }
    }

    /// After it the connection is closed.
    fn last(pieces: Vec<Bytes>) -> Self {
        Letter { last: true, ..Letter::several(pieces) }
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

/// One loop's part of a chat.
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
    hub: Arc<Hub>,
    number: usize,
    desk: Desk,
    events: Vec<Event>,
    rate: Option<u32>,
    queue_bytes_max: usize,
}

impl Chat {
    /// A chat on one loop.
    pub fn new(bounds: Bounds) -> Self {
        Self::part(&Arc::new(Hub::new(bounds, 1)), 0, bounds)
    }

    /// One chat on so many loops: a part for each of them.
    pub fn shared(bounds: Bounds, loops: usize) -> Vec<Self> {
        let hub = Arc::new(Hub::new(bounds, loops));
        (0..loops).map(|number| Self::part(&hub, number, bounds)).collect()
    }

    fn part(hub: &Arc<Hub>, number: usize, bounds: Bounds) -> Self {
        Chat {
            hub: Arc::clone(hub),
            number,
            desk: Desk::default(),
            events: Vec::new(),
            rate: bounds.rate,
            queue_bytes_max: bounds.queue_bytes_max,
        }
    }
}

/// A connection to a chat.
#[derive(Debug, Default)]
pub struct Caller {
    /// `None` once the chat has parted with it; the connection lasts until the last letter is sent.
    member: Option<MemberKey>,
    reader: LineReader,
    bucket: Bucket,
    slow: bool,
    /// There is input that was not looked at yet.
    behind: bool,
}

impl Caller {
    /// Does what a line asks for.
    fn heed(&mut self, line: &[u8], conn: ConnId, hub: &mut Session<'_>) {
        let Some(member) = self.member else { return };
        let line = text::clean(line);
        match Command::parse(&line) {
            Command::Nothing => {}
            Command::Say(words) => hub.say(member, words),
            Command::Help => hub.tell(member, command::HELP),
            Command::Nick(name) => hub.rename(member, name),
            Command::Who => hub.who(member),
            Command::Rooms => hub.rooms(member),
            Command::Join(room) => hub.go(member, conn, room),
            Command::Msg { to, text } => hub.whisper(member, to, text),
            Command::Me(action) => hub.act(member, action),
            Command::Usage(usage) => hub.tell(member, format!("* Use it so: {usage}\n")),
            Command::Unknown(word, nearest) => {
                let word: String = word.chars().take(text::NAME_CHARS_MAX).collect();
                let hint = nearest.map_or(String::new(), |name| format!("did you mean {name}? "));
                hub.tell(member, format!("* There is no command {word}; {hint}/help tells them all.\n"));
            }
            Command::Quit => {
                hub.tell(member, "* Goodbye.\n");
                hub.dismiss(member);
                self.member = None;
            }
        }
    }

    /// Does what was read, unless the member is faster than it may be.
    fn take(&mut self, reading: &Reading, wire: &Wire<'_, Letter>, rate: Option<u32>, hub: &mut Session<'_>) {
        let Some(member) = self.member else { return };
        let verdict = rate.map_or(Verdict::Heard, |rate| self.bucket.admit(wire.now(), rate));
        match (verdict, reading) {
            (Verdict::Heard, Reading::Line(line)) => self.heed(line, wire.id(), hub),
            (Verdict::Heard, Reading::TooLong) => {
                hub.tell(member, format!("* A line has at most {LINE_BYTES_MAX} bytes; this one was not delivered.\n"));
            }
            (Verdict::Over, _) => {
                let rate = rate.unwrap_or_default();
                let mute = MUTE.as_secs();
                let text = format!(
                    "* Too fast: at most {rate} lines a second. What you write in the next {mute} s is not delivered.\n"
                );
                hub.tell(member, text);
            }
            (Verdict::Muted, _) => {}
        }
    }

    fn flow(&self) -> Flow {
        match self.member {
            None => Flow::Pause,
            Some(_) if self.behind => Flow::Yield(Phase::Open),
            Some(_) => Flow::Read(Phase::Open),
        }
    }
}

impl App for Chat {
    type State = Caller;
    type Letter = Letter;

    fn start(&mut self, remote: Remote<Letter>) {
        self.hub.attach(self.number, remote);
    }

    fn open(&mut self, _: &Accepted<'_>, wire: &mut Wire<'_, Letter>) -> (Caller, Flow) {
        let member = self.hub.enter(self.number).join(wire.id());
        let caller = Caller { member, ..Caller::default() };
        if member.is_some() {
            return (caller, Flow::Read(Phase::Open));
        }
        wire.output().extend(b"* The chat is full; come back later.\n");
        (caller, Flow::Close)
    }

    fn receive(&mut self, caller: &mut Caller, wire: &mut Wire<'_, Letter>) -> Flow {
        let mut input = wire.input();
        let mut hub = None;
        let mut left = LINES_PER_TURN;
        while left > 0
            && let Some(reading) = caller.reader.next(&mut input)
        {
            let hub = hub.get_or_insert_with(|| self.hub.enter(self.number));
            caller.take(&reading, wire, self.rate, hub);
            wire.restart_clock();
            left -= 1;
        }
        caller.behind = !input.is_empty();
        wire.consume(wire.input().len() - input.len());
        if wire.ended()
            && !caller.behind
            && let Some(member) = caller.member.take()
        {
            hub.get_or_insert_with(|| self.hub.enter(self.number)).dismiss(member);
        }
        caller.flow()
    }

    fn letter(&mut self, caller: &mut Caller, letter: Letter, wire: &mut Wire<'_, Letter>) -> Flow {
        let waiting = wire.output().len();
        // What one turn brings may be more than that; then the socket shows whether the member takes it.
        if waiting > 0 && waiting + letter.len() > self.queue_bytes_max {
            caller.slow = true;
            return Flow::Abort;
        }
        for piece in letter.pieces() {
            wire.output().share(piece);
        }
        if letter.is_last() { Flow::Close } else { caller.flow() }
    }

    fn drained(&mut self, caller: &mut Caller, _: &mut Wire<'_, Letter>) -> Flow {
        caller.flow()
    }

    fn timer(&mut self, _: &mut Caller, _: Phase, wire: &mut Wire<'_, Letter>) -> Flow {
        wire.output().extend(b"* You said nothing for too long. Goodbye.\n");
        Flow::Close
    }

    fn drain(&mut self, caller: &mut Caller, _: &mut Wire<'_, Letter>) -> Flow {
        if let Some(member) = caller.member.take() {
            let mut hub = self.hub.enter(self.number);
            hub.tell(member, "* The server is going down. Goodbye.\n");
            hub.dismiss_silently(member);
        }
        // The last letter comes at the end of the turn.
        Flow::Pause
    }

    fn closed(&mut self, _: ConnId, caller: Caller, ending: Ending) {
        let Some(member) = caller.member else { return };
        let why = match ending.reason {
            _ if caller.slow => Departure::TooSlow,
            Closed::TooSlow => Departure::TooSlow,
            Closed::Timeout(_) => Departure::TimedOut,
            // The keep-alive of the system found nobody there.
            Closed::Error(error) if error.kind() == io::ErrorKind::TimedOut => Departure::TimedOut,
            _ => Departure::Left,
        };
        self.hub.enter(self.number).lose(member, why);
    }

    fn end_of_turn(&mut self, posts: &mut Vec<(ConnId, Letter)>) {
        self.hub.collect(self.number, &mut self.events);
        if !self.events.is_empty() {
            self.desk.distribute(&mut self.events, posts);
        }
    }
}
