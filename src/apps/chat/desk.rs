//! One loop's share of a chat: at the end of a turn, what happened becomes one letter for each member it concerns.
//!
//! The lines of a room are joined into one block, which all its members share. A member whose view of the turn differs
//! (it said something itself, got a private line, came or went) gets the same block in slices, with its own lines
//! between them. So a turn costs a step for each member and each event, and never a copy for each member, however
//! many of them speak.

use bytes::{Bytes, BytesMut};

use super::Letter;
use super::state::{Event, MemberKey, RoomKey};
use crate::r#loop::ConnId;

/// Pieces of one letter that are sent as they are; more are joined, so that one gathered write takes them all.
const PIECES_MAX: usize = 8;

/// A part of what a member gets in a turn.
#[derive(Debug)]
enum Piece {
    /// A stretch of a room's block.
    Shared { room: RoomKey, start: usize, end: usize },
    /// Its own.
    Own(Bytes),
}

/// What a member gets in a turn, where that is not just the block of its room.
#[derive(Debug, Default)]
struct View {
    pieces: Vec<Piece>,
    /// How far in the block of its room the member is.
    seen: usize,
}

#[derive(Debug)]
struct Seat {
    conn: ConnId,
    room: RoomKey,
    /// Where in the room's list.
    at: usize,
    view: Option<Box<View>>,
}

/// A room, as far as this loop goes.
#[derive(Debug, Default)]
struct Hall {
    members: Vec<MemberKey>,
    /// The lines of this turn.
    lines: Vec<Bytes>,
    len: usize,
    block: Bytes,
}

/// The members of one loop.
#[derive(Debug, Default)]
pub(super) struct Desk {
    seats: Vec<Option<Seat>>,
    halls: Vec<Hall>,
    /// Members with a view of their own, and rooms with lines, in this turn.
    apart: Vec<MemberKey>,
    loud: Vec<RoomKey>,
    /// Members who leave at the end of the turn.
    leaving: Vec<(ConnId, View)>,
}

impl Desk {
    /// Turns what happened into letters.
    pub(super) fn distribute(&mut self, events: &mut Vec<Event>, posts: &mut Vec<(ConnId, Letter)>) {
        for event in events.drain(..) {
            match event {
                Event::Enter { member, conn, room } => self.enter(member, conn, room),
                Event::Line { room, except, text } => self.line(room, except, text),
                Event::Private { to, text } => {
                    if let Some(view) = self.view(to) {
                        view.pieces.push(Piece::Own(text));
                    }
                }
                Event::Dismiss { member } => {
                    if let Some((conn, view)) = self.leave(member) {
                        self.leaving.push((conn, view));
                    }
                }
                Event::Gone { member } => drop(self.leave(member)),
            }
        }
        self.post(posts);
    }

    fn hall(&mut self, room: RoomKey) -> &mut Hall {
        if self.halls.len() <= room {
            self.halls.resize_with(room + 1, Hall::default);
        }
        &mut self.halls[room]
    }

    /// The member's own view, up to here.
    fn view(&mut self, member: MemberKey) -> Option<&mut View> {
        let seat = self.seats.get_mut(member)?.as_mut()?;
        if seat.view.is_none() {
            self.apart.push(member);
        }
        let view = seat.view.get_or_insert_default();
        catch_up(view, seat.room, self.halls[seat.room].len);
        Some(view)
    }

    fn enter(&mut self, member: MemberKey, conn: ConnId, room: RoomKey) {
        let len = self.hall(room).len;
        let mut view = match self.leave(member) {
            Some((_, view)) => view,
            None => View::default(),
        };
        view.seen = len;
        let at = self.halls[room].members.len();
        self.halls[room].members.push(member);
        if self.seats.len() <= member {
            self.seats.resize_with(member + 1, || None);
        }
        self.seats[member] = Some(Seat { conn, room, at, view: Some(Box::new(view)) });
        self.apart.push(member);
    }

    /// Takes a member off its seat, with what it is still to get.
    fn leave(&mut self, member: MemberKey) -> Option<(ConnId, View)> {
        self.view(member)?;
        let seat = self.seats[member].take()?;
        let members = &mut self.halls[seat.room].members;
        members.swap_remove(seat.at);
        if let Some(&moved) = members.get(seat.at)
            && let Some(moved) = self.seats[moved].as_mut()
        {
            moved.at = seat.at;
        }
        Some((seat.conn, *seat.view?))
    }

    fn line(&mut self, room: RoomKey, except: Option<MemberKey>, text: Bytes) {
        let excepted = except.filter(|&member| self.sits_in(member, room));
        if let Some(member) = excepted {
            self.view(member);
        }
        let hall = self.hall(room);
        let was_quiet = hall.lines.is_empty();
        hall.len += text.len();
        hall.lines.push(text);
        let len = hall.len;
        if was_quiet {
            self.loud.push(room);
        }
        // Its own line is passed over.
        if let Some(view) = excepted.and_then(|member| self.seats[member].as_mut()?.view.as_mut()) {
            view.seen = len;
        }
    }

    fn sits_in(&self, member: MemberKey, room: RoomKey) -> bool {
        self.seats.get(member).and_then(Option::as_ref).is_some_and(|seat| seat.room == room)
    }

    fn post(&mut self, posts: &mut Vec<(ConnId, Letter)>) {
        for &room in &self.loud {
            let hall = &mut self.halls[room];
            hall.block = join(&mut hall.lines);
            for &member in &hall.members {
                if let Some(Seat { conn, view: None, .. }) = &self.seats[member] {
                    posts.push((*conn, Letter::one(hall.block.clone())));
                }
            }
        }
        for (conn, view) in std::mem::take(&mut self.leaving) {
            posts.push((conn, Letter::last(self.pieces(view))));
        }
        for member in std::mem::take(&mut self.apart) {
            let Some(seat) = self.seats[member].as_mut() else { continue };
            // Who came and went in one turn may stand here twice.
            let Some(mut view) = seat.view.take() else { continue };
            let conn = seat.conn;
            catch_up(&mut view, seat.room, self.halls[seat.room].len);
            let pieces = self.pieces(*view);
            if !pieces.is_empty() {
                posts.push((conn, Letter::several(pieces)));
            }
        }
        for room in self.loud.drain(..) {
            let hall = &mut self.halls[room];
            hall.block = Bytes::new();
            hall.len = 0;
        }
    }

    /// The bytes of a view.
    fn pieces(&self, view: View) -> Vec<Bytes> {
        let bytes = view.pieces.into_iter().map(|piece| match piece {
            Piece::Shared { room, start, end } => self.halls[room].block.slice(start..end),
            Piece::Own(bytes) => bytes,
        });
        let mut pieces: Vec<Bytes> = bytes.collect();
        if pieces.len() > PIECES_MAX {
            pieces = vec![join(&mut pieces)];
        }
        pieces
    }
}

/// Adds what the room heard since.
fn catch_up(view: &mut View, room: RoomKey, len: usize) {
    if view.seen < len {
        view.pieces.push(Piece::Shared { room, start: view.seen, end: len });
        view.seen = len;
    }
}

/// Several pieces as one.
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

    fn enter(member: MemberKey, room: RoomKey) -> Event {
        Event::Enter { member, conn: conn(member), room }
    }

    fn line(room: RoomKey, except: Option<MemberKey>, text: &'static str) -> Event {
        Event::Line { room, except, text: Bytes::from_static(text.as_bytes()) }
    }

    fn private(to: MemberKey, text: &'static str) -> Event {
        Event::Private { to, text: Bytes::from_static(text.as_bytes()) }
    }

    /// What each of the first `count` members gets in a turn; `!` stands behind a last letter.
    fn turn(desk: &mut Desk, mut events: Vec<Event>, count: usize) -> Vec<String> {
        let mut posts = Vec::new();
        desk.distribute(&mut events, &mut posts);
        let mut texts = vec![String::new(); count];
        for (to, letter) in posts {
            let member = (0..count).find(|&member| conn(member) == to).unwrap();
            assert!(texts[member].is_empty(), "two letters in one turn");
            texts[member] = letter.pieces().map(|piece| String::from_utf8_lossy(piece)).collect();
            if letter.is_last() {
                texts[member].push('!');
            }
        }
        texts
    }

    #[test]
    fn a_line_is_shared_by_all_but_its_sender() {
        let mut desk = Desk::default();
        assert_eq!(turn(&mut desk, (0..3).map(|member| enter(member, 0)).collect(), 3), ["", "", ""]);
        assert_eq!(turn(&mut desk, vec![line(0, Some(1), "a")], 3), ["a", "", "a"]);
        let several = vec![line(0, Some(0), "a"), line(0, Some(1), "b"), line(0, Some(0), "c"), line(0, None, "d")];
        assert_eq!(turn(&mut desk, several, 3), ["bd", "acd", "abcd"]);
        assert_eq!(turn(&mut desk, vec![], 3), ["", "", ""]);
        let mut posts = Vec::new();
        let text = Bytes::from("shared".to_owned());
        desk.distribute(&mut vec![Event::Line { room: 0, except: None, text: text.clone() }], &mut posts);
        assert!(posts.iter().all(|(_, letter)| letter.pieces().all(|piece| piece.as_ptr() == text.as_ptr())));
        assert_eq!(posts.len(), 3);
    }

    #[test]
    fn a_member_gets_private_lines_in_their_place_and_nothing_from_before_it_came() {
        let mut desk = Desk::default();
        turn(&mut desk, vec![enter(0, 0)], 1);
        let events = vec![line(0, None, "a"), private(0, "x"), enter(1, 0), private(1, "y"), line(0, None, "b")];
        assert_eq!(turn(&mut desk, events, 2), ["axb", "yb"]);
    }

    #[test]
    fn who_changes_rooms_hears_the_one_up_to_there_and_the_other_from_there() {
        let mut desk = Desk::default();
        turn(&mut desk, vec![enter(0, 0), enter(1, 1), enter(2, 0)], 3);
        let events = vec![
            line(0, None, "a"),
            line(1, None, "b"),
            enter(0, 1),
            line(0, None, "c"),
            line(1, None, "d"),
            enter(0, 0),
            line(0, None, "e"),
        ];
        assert_eq!(turn(&mut desk, events, 3), ["ade", "bd", "ace"]);
        assert_eq!(turn(&mut desk, vec![line(1, None, "f"), line(0, None, "g")], 3), ["g", "f", "g"]);
    }

    #[test]
    fn who_is_dismissed_gets_what_is_due_and_who_is_gone_gets_nothing() {
        let mut desk = Desk::default();
        turn(&mut desk, (0..4).map(|member| enter(member, 0)).collect(), 4);
        let events = vec![
            line(0, None, "a"),
            private(0, "bye"),
            Event::Dismiss { member: 0 },
            Event::Gone { member: 1 },
            line(0, None, "b"),
            // The place of the first is taken by another, on another connection.
            Event::Enter { member: 0, conn: conn(4), room: 0 },
            line(0, Some(0), "c"),
        ];
        assert_eq!(turn(&mut desk, events, 5), ["abye!", "", "abc", "abc", ""]);
        assert_eq!(turn(&mut desk, vec![line(0, None, "d")], 5), ["", "", "d", "d", "d"]);
    }

    #[test]
    fn a_letter_of_many_pieces_is_joined() {
        let mut desk = Desk::default();
        turn(&mut desk, vec![enter(0, 0), enter(1, 0)], 2);
        let mut events: Vec<Event> = (0..100).flat_map(|_| [line(0, Some(0), "x"), line(0, Some(1), "y")]).collect();
        let mut posts = Vec::new();
        desk.distribute(&mut events, &mut posts);
        for (_, letter) in posts {
            assert_eq!(letter.pieces().count(), 1);
            assert_eq!(letter.len(), 100);
        }
    }
}
