//! Converts the events of a turn into one delivery for each affected member of this loop.
//!
//! The lines of a room are joined into one block that all its members share without copying. A member that must see
//! something else (it spoke, got a private line, joined or left) gets slices of the same block, with its private lines
//! in between. A turn therefore takes time linear in the number of members and events, and the lines of a room are not
//! copied per member, however many members speak.
//!
//! The unsent output of a member is bounded: for a member that is slower than its room, the oldest lines are skipped.

use bytes::{Bytes, BytesMut};

use super::input::{IAC, REPLY_BYTES};
use super::tables::{Event, MemberKey, RoomKey};
use crate::r#loop::{ConnId, Output};

/// Pieces up to this size are copied into the output of a member.
const COPY_BYTES_MAX: usize = 4 * 1024;

/// Slices of a block up to this size are copied if the block is at least four times as large, so that a few unsent
/// lines do not keep a large block in memory.
const SLICE_BYTES_MAX: usize = 16 * 1024;

/// The notice that takes the place of skipped lines, before and after their number. Members cannot send such a line.
const SKIPPED_START: &str = "* ";
const SKIPPED_END: &str = " lines skipped\n";

/// A message for a member: the lines of a turn, as reference-counted buffers that are written with one system call.
#[derive(Debug)]
pub struct Delivery {
    first: Bytes,
    rest: Vec<Bytes>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Lines,
    /// Lines after which the connection is closed.
    Last,
    /// No lines: the member is to be read again.
    Resume,
}

impl Delivery {
    fn one(first: Bytes) -> Self {
        Delivery { first, rest: Vec::new(), kind: Kind::Lines }
    }

    fn several(pieces: Vec<Bytes>) -> Self {
        let mut pieces = pieces.into_iter();
        Delivery { first: pieces.next().unwrap_or_default(), rest: pieces.collect(), kind: Kind::Lines }
    }

    /// Creates a delivery after which the connection is closed.
    fn last(pieces: Vec<Bytes>) -> Self {
        Delivery { kind: Kind::Last, ..Delivery::several(pieces) }
    }

    /// Creates a message that resumes reading from a member whose budget was used up.
    pub(super) fn resume() -> Self {
        Delivery { kind: Kind::Resume, ..Delivery::one(Bytes::new()) }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    fn len(&self) -> usize {
        self.pieces().map(Bytes::len).sum()
    }

    /// Appends the lines to the output of a member. If more than `bytes_max` bytes would wait there, the oldest lines
    /// that wait are skipped, down to half of `bytes_max`, and a notice takes their place.
    ///
    /// With an empty output, more lines may be appended: the socket may accept them at once.
    #[inline]
    pub(super) fn append_to(&self, output: &mut Output, bytes_max: usize) {
        if output.is_empty() || output.len() + self.len() <= bytes_max {
            self.pieces().for_each(|piece| append(output, piece));
        } else {
            let mut pieces = output.take_bytes();
            pieces.extend(self.pieces().cloned());
            for piece in skip_lines(pieces, bytes_max / 2) {
                append(output, &piece);
            }
        }
    }
}

/// Appends a piece to an output: copied if small, which costs less than a slice of its own.
#[inline]
fn append(output: &mut Output, piece: &Bytes) {
    if piece.len() <= COPY_BYTES_MAX { output.extend(piece) } else { output.share(piece) }
}

/// Removes the oldest lines until at most `bytes_max` bytes are left, and inserts a notice with their number. Keeps the
/// rest of a line whose beginning may have been sent, and replies to telnet requests: a client may wait for them.
fn skip_lines(pieces: Vec<Bytes>, bytes_max: usize) -> Vec<Bytes> {
    let mut excess = pieces.iter().map(Bytes::len).sum::<usize>().saturating_sub(bytes_max);
    let (mut kept, mut replies, mut count, mut in_first_line) = (Vec::new(), Vec::new(), 0, true);
    let mut rest = pieces.into_iter();
    for mut piece in rest.by_ref() {
        if in_first_line {
            let end = memchr::memchr(b'\n', &piece).map(|at| at + 1);
            in_first_line = end.is_none();
            kept.push(piece.split_to(end.unwrap_or(piece.len())));
        }
        while excess > 0 && !piece.is_empty() {
            let end = memchr::memchr(b'\n', &piece).map_or(piece.len(), |at| at + 1);
            let line = piece.split_to(end);
            excess = excess.saturating_sub(end);
            let (before, text) = split_replies(&line);
            replies.extend_from_slice(before);
            count += lines_skipped(text);
        }
        if excess == 0 {
            kept.push(Bytes::from(replies));
            kept.push(Bytes::from(format!("{SKIPPED_START}{count}{SKIPPED_END}")));
            kept.push(piece);
            kept.extend(rest);
            return kept;
        }
    }
    kept.push(Bytes::from(replies));
    kept.push(Bytes::from(format!("{SKIPPED_START}{count}{SKIPPED_END}")));
    kept
}

/// Splits off the telnet replies before a line.
fn split_replies(line: &[u8]) -> (&[u8], &[u8]) {
    let replies = line.chunks(REPLY_BYTES).take_while(|bytes| bytes[0] == IAC).map(<[u8]>::len).sum();
    line.split_at(replies)
}

/// Returns the number of lines that the member misses if `line` is skipped: those of an earlier notice, or one.
fn lines_skipped(line: &[u8]) -> u64 {
    if line.is_empty() {
        return 0;
    }
    let number = line.strip_prefix(SKIPPED_START.as_bytes()).and_then(|line| line.strip_suffix(SKIPPED_END.as_bytes()));
    number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(1)
}

/// A piece of the output of a member in a turn.
#[derive(Debug)]
enum Piece {
    /// A range of a room's block.
    Shared { room: RoomKey, start: usize, end: usize },
    /// Lines for this member only.
    Private(Bytes),
}

/// The output of a member in a turn, if it differs from the block of its room.
#[derive(Debug, Default)]
struct MemberView {
    pieces: Vec<Piece>,
    /// End of the part of the room's block that `pieces` covers or skips.
    seen: usize,
}

#[derive(Debug)]
struct LocalMember {
    conn: ConnId,
    room: RoomKey,
    /// Position in the member list of the room.
    index: usize,
    /// `None` unless the output of this turn diverges from the block of the room.
    view: Option<Box<MemberView>>,
}

/// The part of a room that is on this loop.
#[derive(Debug, Default)]
struct LocalRoom {
    members: Vec<MemberKey>,
    /// The lines of this turn.
    lines: Vec<Bytes>,
    /// Total length of `lines`.
    len: usize,
    /// The lines, joined at the end of the turn.
    block: Bytes,
}

/// The members of one loop.
#[derive(Debug, Default)]
pub(super) struct Fanout {
    members: Vec<Option<LocalMember>>,
    rooms: Vec<LocalRoom>,
    /// Members with their own view in this turn; may contain duplicates.
    diverged: Vec<MemberKey>,
    /// Rooms with lines in this turn.
    active_rooms: Vec<RoomKey>,
    /// Members who leave at the end of the turn.
    leaving: Vec<(ConnId, MemberView)>,
}

impl Fanout {
    /// Converts the events of a turn into deliveries.
    pub(super) fn distribute(&mut self, events: &mut Vec<Event>, messages: &mut Vec<(ConnId, Delivery)>) {
        for event in events.drain(..) {
            match event {
                Event::Joined { member, conn, room } => self.join_room(member, conn, room),
                Event::Line { room, except, text } => self.push_line(room, except, text),
                Event::Private { to, text } => {
                    if let Some(view) = self.view(to) {
                        view.pieces.push(Piece::Private(text));
                    }
                }
                Event::Leave { member } => {
                    if let Some((conn, view)) = self.leave(member) {
                        self.leaving.push((conn, view));
                    }
                }
                Event::Disconnected { member } => drop(self.leave(member)),
            }
        }
        self.flush(messages);
    }

    fn local_room(&mut self, room: RoomKey) -> &mut LocalRoom {
        if self.rooms.len() <= room {
            self.rooms.resize_with(room + 1, LocalRoom::default);
        }
        &mut self.rooms[room]
    }

    /// Returns the member's own view, including all lines of its room so far. Creates it if necessary.
    fn view(&mut self, member: MemberKey) -> Option<&mut MemberView> {
        let local_member = self.members.get_mut(member)?.as_mut()?;
        if local_member.view.is_none() {
            self.diverged.push(member);
        }
        let view = local_member.view.get_or_insert_default();
        catch_up(view, local_member.room, self.rooms[local_member.room].len);
        Some(view)
    }

    fn join_room(&mut self, member: MemberKey, conn: ConnId, room: RoomKey) {
        let len = self.local_room(room).len;
        let mut view = match self.leave(member) {
            Some((_, view)) => view,
            None => MemberView::default(),
        };
        view.seen = len;
        let index = self.rooms[room].members.len();
        self.rooms[room].members.push(member);
        if self.members.len() <= member {
            self.members.resize_with(member + 1, || None);
        }
        self.members[member] = Some(LocalMember { conn, room, index, view: Some(Box::new(view)) });
        self.diverged.push(member);
    }

    /// Removes a member. Returns its connection and the output it has not received yet.
    fn leave(&mut self, member: MemberKey) -> Option<(ConnId, MemberView)> {
        self.view(member)?;
        let local_member = self.members[member].take()?;
        let members = &mut self.rooms[local_member.room].members;
        members.swap_remove(local_member.index);
        if let Some(&moved) = members.get(local_member.index)
            && let Some(moved) = self.members[moved].as_mut()
        {
            moved.index = local_member.index;
        }
        Some((local_member.conn, *local_member.view?))
    }

    fn push_line(&mut self, room: RoomKey, except: Option<MemberKey>, text: Bytes) {
        let excepted = except.filter(|&member| self.is_in_room(member, room));
        if let Some(member) = excepted {
            self.view(member);
        }
        let local_room = self.local_room(room);
        let was_inactive = local_room.lines.is_empty();
        local_room.len += text.len();
        local_room.lines.push(text);
        let len = local_room.len;
        if was_inactive {
            self.active_rooms.push(room);
        }
        // Skip the line in the sender's view.
        if let Some(view) = excepted.and_then(|member| self.members[member].as_mut()?.view.as_mut()) {
            view.seen = len;
        }
    }

    fn is_in_room(&self, member: MemberKey, room: RoomKey) -> bool {
        self.members.get(member).and_then(Option::as_ref).is_some_and(|local_member| local_member.room == room)
    }

    /// Appends the deliveries of this turn to `messages`, and resets the state of the turn.
    fn flush(&mut self, messages: &mut Vec<(ConnId, Delivery)>) {
        for &room in &self.active_rooms {
            let local_room = &mut self.rooms[room];
            local_room.block = join(&mut local_room.lines);
            for &member in &local_room.members {
                if let Some(LocalMember { conn, view: None, .. }) = &self.members[member] {
                    messages.push((*conn, Delivery::one(local_room.block.clone())));
                }
            }
        }
        for (conn, view) in std::mem::take(&mut self.leaving) {
            messages.push((conn, Delivery::last(self.pieces(view))));
        }
        for member in std::mem::take(&mut self.diverged) {
            let Some(local_member) = self.members[member].as_mut() else { continue };
            // Already sent: a duplicate entry of a member that moved or was replaced in this turn.
            let Some(mut view) = local_member.view.take() else { continue };
            let conn = local_member.conn;
            catch_up(&mut view, local_member.room, self.rooms[local_member.room].len);
            let pieces = self.pieces(*view);
            if !pieces.is_empty() {
                messages.push((conn, Delivery::several(pieces)));
            }
        }
        for room in self.active_rooms.drain(..) {
            let local_room = &mut self.rooms[room];
            local_room.block = Bytes::new();
            local_room.len = 0;
        }
    }

    /// Resolves a view to its bytes. Adjacent private lines are joined, blocks are shared.
    fn pieces(&self, view: MemberView) -> Vec<Bytes> {
        let (mut pieces, mut private) = (Vec::new(), Vec::new());
        for piece in view.pieces {
            match piece {
                Piece::Shared { room, start, end } => {
                    flush_private(&mut private, &mut pieces);
                    pieces.push(slice(&self.rooms[room].block, start, end));
                }
                Piece::Private(bytes) if bytes.len() > COPY_BYTES_MAX => {
                    flush_private(&mut private, &mut pieces);
                    pieces.push(bytes);
                }
                Piece::Private(bytes) => private.push(bytes),
            }
        }
        flush_private(&mut private, &mut pieces);
        pieces
    }
}

fn flush_private(private: &mut Vec<Bytes>, pieces: &mut Vec<Bytes>) {
    if !private.is_empty() {
        pieces.push(join(private));
    }
}

fn slice(block: &Bytes, start: usize, end: usize) -> Bytes {
    let len = end - start;
    if len <= SLICE_BYTES_MAX && len <= block.len() / 4 {
        Bytes::copy_from_slice(&block[start..end])
    } else {
        block.slice(start..end)
    }
}

/// Extends a view with the room's lines up to `len`.
fn catch_up(view: &mut MemberView, room: RoomKey, len: usize) {
    if view.seen < len {
        view.pieces.push(Piece::Shared { room, start: view.seen, end: len });
        view.seen = len;
    }
}

/// Concatenates pieces, without a copy if there is only one.
fn join(pieces: &mut Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.pop().unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.drain(..).for_each(|piece| all.extend_from_slice(&piece));
    all.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(member: MemberKey) -> ConnId {
        ConnId::detached(u32::try_from(member).unwrap())
    }

    fn joined(member: MemberKey, room: RoomKey) -> Event {
        Event::Joined { member, conn: conn(member), room }
    }

    fn line(room: RoomKey, except: Option<MemberKey>, text: &'static str) -> Event {
        Event::Line { room, except, text: Bytes::from_static(text.as_bytes()) }
    }

    fn private(to: MemberKey, text: &'static str) -> Event {
        Event::Private { to, text: Bytes::from_static(text.as_bytes()) }
    }

    /// Returns the output of the first `count` members in a turn; a trailing `!` marks a last delivery.
    fn turn(fanout: &mut Fanout, mut events: Vec<Event>, count: usize) -> Vec<String> {
        let mut messages = Vec::new();
        fanout.distribute(&mut events, &mut messages);
        let mut texts = vec![String::new(); count];
        for (to, delivery) in messages {
            let member = (0..count).find(|&member| conn(member) == to).unwrap();
            assert!(texts[member].is_empty(), "two deliveries in one turn");
            texts[member] = delivery.pieces().map(|piece| String::from_utf8_lossy(piece)).collect();
            if delivery.kind() == Kind::Last {
                texts[member].push('!');
            }
        }
        texts
    }

    #[test]
    fn a_line_is_shared_by_all_members_but_its_sender() {
        let mut fanout = Fanout::default();
        assert_eq!(turn(&mut fanout, (0..3).map(|member| joined(member, 0)).collect(), 3), ["", "", ""]);
        assert_eq!(turn(&mut fanout, vec![line(0, Some(1), "a")], 3), ["a", "", "a"]);
        let several = vec![line(0, Some(0), "a"), line(0, Some(1), "b"), line(0, Some(0), "c"), line(0, None, "d")];
        assert_eq!(turn(&mut fanout, several, 3), ["bd", "acd", "abcd"]);
        assert_eq!(turn(&mut fanout, vec![], 3), ["", "", ""]);
        let mut messages = Vec::new();
        let text = Bytes::from("shared".to_owned());
        fanout.distribute(&mut vec![Event::Line { room: 0, except: None, text: text.clone() }], &mut messages);
        assert!(messages.iter().all(|(_, delivery)| delivery.pieces().all(|piece| piece.as_ptr() == text.as_ptr())));
        assert_eq!(messages.len(), 3);
    }

    #[test]
    fn private_lines_keep_their_order_and_new_members_miss_earlier_lines() {
        let mut fanout = Fanout::default();
        turn(&mut fanout, vec![joined(0, 0)], 1);
        let events = vec![line(0, None, "a"), private(0, "x"), joined(1, 0), private(1, "y"), line(0, None, "b")];
        assert_eq!(turn(&mut fanout, events, 2), ["axb", "yb"]);
    }

    #[test]
    fn a_member_that_changes_rooms_gets_the_lines_of_each_while_in_it() {
        let mut fanout = Fanout::default();
        turn(&mut fanout, vec![joined(0, 0), joined(1, 1), joined(2, 0)], 3);
        let events = vec![
            line(0, None, "a"),
            line(1, None, "b"),
            joined(0, 1),
            line(0, None, "c"),
            line(1, None, "d"),
            joined(0, 0),
            line(0, None, "e"),
        ];
        assert_eq!(turn(&mut fanout, events, 3), ["ade", "bd", "ace"]);
        assert_eq!(turn(&mut fanout, vec![line(1, None, "f"), line(0, None, "g")], 3), ["g", "f", "g"]);
    }

    #[test]
    fn a_leaving_member_gets_its_queued_lines_and_a_disconnected_one_gets_nothing() {
        let mut fanout = Fanout::default();
        turn(&mut fanout, (0..4).map(|member| joined(member, 0)).collect(), 4);
        let events = vec![
            line(0, None, "a"),
            private(0, "bye"),
            Event::Leave { member: 0 },
            Event::Disconnected { member: 1 },
            line(0, None, "b"),
            // Another connection reuses the slot of the first member.
            Event::Joined { member: 0, conn: conn(4), room: 0 },
            line(0, Some(0), "c"),
        ];
        assert_eq!(turn(&mut fanout, events, 5), ["abye!", "", "abc", "abc", ""]);
        assert_eq!(turn(&mut fanout, vec![line(0, None, "d")], 5), ["", "", "d", "d", "d"]);
    }

    #[test]
    fn private_lines_are_joined_and_blocks_are_shared() {
        let mut fanout = Fanout::default();
        turn(&mut fanout, vec![joined(0, 0), joined(1, 0)], 2);
        let text = Bytes::from("x".repeat(100_000));
        let mut events = vec![Event::Line { room: 0, except: None, text }];
        events.extend((0..100).map(|_| private(0, "y")));
        events.push(line(0, Some(0), "z"));
        events.push(line(0, None, "a"));
        let mut messages = Vec::new();
        fanout.distribute(&mut events, &mut messages);
        let blocks: Vec<_> = messages.iter().map(|(_, delivery)| delivery.first.as_ptr()).collect();
        assert_eq!(blocks[0], blocks[1], "the block is copied");
        let lens = |at: usize| messages[at].1.pieces().map(Bytes::len).collect::<Vec<_>>();
        assert_eq!((lens(0), lens(1)), (vec![100_002], vec![100_000, 100, 1]));
    }

    /// Appends `text` to `output`, at most `bytes_max` bytes of which may be unsent.
    fn append_text(output: &mut Output, text: &str, bytes_max: usize) {
        Delivery::one(Bytes::from(text.to_owned())).append_to(output, bytes_max);
    }

    #[test]
    fn the_oldest_lines_are_skipped_and_counted() {
        let (mut output, mut expected) = (Output::new(), 0);
        for number in 0..10_000 {
            append_text(&mut output, &format!("line {number:04}\n"), 1000);
            assert!(output.len() <= 1000);
            let text = String::from_utf8(output.to_vec()).unwrap();
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines[0], "line 0000");
            if number >= 100 {
                let skipped: usize = lines[1].split(' ').nth(1).unwrap().parse().unwrap();
                assert_eq!(lines[1], format!("* {skipped} lines skipped"));
                assert_eq!(lines[2], format!("line {:04}", skipped + 1));
                assert_eq!(lines.len() - 2 + skipped, number);
                expected = skipped;
            }
            assert_eq!(*lines.last().unwrap(), format!("line {number:04}"));
        }
        assert!(expected > 9_900);
    }

    #[test]
    fn the_rest_of_a_line_and_telnet_replies_are_not_skipped() {
        let mut output = Output::new();
        append_text(&mut output, "second half\n", 100);
        output.extend(&[IAC, 252, 6]);
        append_text(&mut output, &"one\n".repeat(10), 100);
        output.extend(&[IAC, 252, 24]);
        append_text(&mut output, &"two\n".repeat(20), 100);
        let expected =
            [&b"second half\n\xff\xfc\x06\xff\xfc\x18* 21 lines skipped\n"[..], &b"two\n".repeat(9)].concat();
        assert_eq!(output.to_vec().escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    #[test]
    fn an_empty_output_takes_more_than_the_bound_and_a_line_longer_than_it_is_skipped() {
        let mut output = Output::new();
        append_text(&mut output, &"x".repeat(500), 100);
        append_text(&mut output, "\n", 1000);
        append_text(&mut output, &("y".repeat(500) + "\n"), 100);
        append_text(&mut output, "z\n", 100);
        let text = String::from_utf8(output.to_vec()).unwrap();
        assert_eq!(text[500..], *"\n* 2 lines skipped\n");
    }
}
