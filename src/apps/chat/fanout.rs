//! Converts the events of a turn into one delivery for each affected member of this loop.
//!
//! The lines of a room are joined into one block that all its members share without copying. A member that must see
//! something else (it spoke, got a private line, joined or left) gets slices of the same block, with its private lines
//! in between. A turn therefore takes time linear in the number of members and events, and the lines of a room are not
//! copied per member, however many members speak.

use bytes::{Bytes, BytesMut};

use super::Delivery;
use super::tables::{Event, MemberKey, RoomKey};
use crate::r#loop::ConnId;

/// Maximum number of pieces in a delivery; more are joined, so that one vectored write sends them all.
const PIECES_MAX: usize = 8;

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

    /// Resolves a view to its bytes.
    fn pieces(&self, view: MemberView) -> Vec<Bytes> {
        let bytes = view.pieces.into_iter().map(|piece| match piece {
            Piece::Shared { room, start, end } => self.rooms[room].block.slice(start..end),
            Piece::Private(bytes) => bytes,
        });
        let mut pieces: Vec<Bytes> = bytes.collect();
        if pieces.len() > PIECES_MAX {
            pieces = vec![join(&mut pieces)];
        }
        pieces
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
            if delivery.is_last() {
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
    fn many_pieces_are_joined_into_one() {
        let mut fanout = Fanout::default();
        turn(&mut fanout, vec![joined(0, 0), joined(1, 0)], 2);
        let mut events: Vec<Event> = (0..100).flat_map(|_| [line(0, Some(0), "x"), line(0, Some(1), "y")]).collect();
        let mut messages = Vec::new();
        fanout.distribute(&mut events, &mut messages);
        for (_, delivery) in messages {
            assert_eq!(delivery.pieces().count(), 1);
            assert_eq!(delivery.len(), 100);
        }
    }
}
