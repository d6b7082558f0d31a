//! The tables of a chat: members, names, rooms, and an inbox of events for each loop. A room holds its members, its
//! recent lines, and the changes to announce.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use super::input::Bounds;
use super::log::RoomLog;
use super::text::{self, LISTED_MAX, NameTable};
use crate::r#loop::ConnId;

/// Maximum size of a room's history in bytes. All members that join share one copy.
const HISTORY_BYTES_MAX: usize = 64 * 1024;

/// Number of bytes of undelivered events in the inbox of a loop at which the chat is congested: no further lines are
/// processed until that loop has emptied its inbox. Bounds the memory of a turn, whatever members send at once.
const INBOX_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that an event takes in an inbox, besides its text; an estimate.
const EVENT_BYTES: usize = 64;

/// The room that new members join. It always exists.
pub(super) const LOBBY: RoomKey = 0;

/// Index of a slot in the member table, reused after the member has left.
pub(super) type MemberKey = usize;

/// Index of a slot in the room table, reused after the room has been removed.
pub(super) type RoomKey = usize;

/// An event for a loop to deliver to its members.
#[derive(Debug)]
pub(super) enum Event {
    /// A member of this loop joined this room, and left the one it was in.
    Joined { member: MemberKey, conn: ConnId, room: RoomKey },
    /// A line for all members of the room except `except`.
    Line { room: RoomKey, except: Option<MemberKey>, text: Bytes },
    /// A line for one member.
    Private { to: MemberKey, text: Bytes },
    /// Flush the lines queued for the member, then close its connection.
    Leave { member: MemberKey },
    /// The member's connection has closed.
    Disconnected { member: MemberKey },
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) loop_index: usize,
    /// The connection on that loop. Shows whether a slot still belongs to the member that a connection knows.
    pub(super) conn: ConnId,
    pub(super) addr: Option<SocketAddr>,
    /// True if the console has muted the member.
    pub(super) muted: bool,
    pub(super) room: RoomKey,
    /// Position in the roster of the room.
    pub(super) roster_index: usize,
    /// Identifies the arrival in the current room; see [`RoomChanges::arrived`].
    pub(super) arrival_id: u64,
    /// True once the arrival has been announced to the room.
    pub(super) announced: bool,
}

/// The undelivered events of a loop.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) events: Vec<Event>,
    /// Memory of the events, including their text, as far as members can cause it.
    bytes: usize,
}

/// Members and rooms, with their indexes by name, and the inboxes.
pub(super) struct Tables {
    pub(super) bounds: Bounds,
    pub(super) members: Vec<Option<Member>>,
    pub(super) free_member_slots: Vec<MemberKey>,
    pub(super) names: NameTable,
    pub(super) rooms: Vec<Option<Room>>,
    pub(super) free_room_slots: Vec<RoomKey>,
    /// The keys of all rooms, the lobby first.
    pub(super) room_list: Vec<RoomKey>,
    pub(super) room_names: NameTable,
    /// Undelivered events of each loop.
    pub(super) inboxes: Vec<Inbox>,
    /// True if an inbox has reached [`INBOX_BYTES_MAX`].
    congested: bool,
    /// Rooms with unannounced changes; may contain duplicates.
    pub(super) pending_rooms: Vec<RoomKey>,
    pub(super) last_guest_number: u64,
    pub(super) last_arrival_id: u64,
    /// Addresses that may not connect, as [networks](crate::r#loop::network).
    pub(super) banned: HashSet<IpAddr>,
    pub(super) log: Option<RoomLog>,
}

/// Stores `item` in a free slot of `table`, or in a new one, and returns the slot.
pub(super) fn insert<T>(table: &mut Vec<Option<T>>, free: &mut Vec<usize>, item: T) -> usize {
    if let Some(key) = free.pop() {
        table[key] = Some(item);
        return key;
    }
    table.push(Some(item));
    table.len() - 1
}

impl Tables {
    pub(super) fn new(bounds: Bounds, loops: usize, log: Option<RoomLog>) -> Self {
        let mut room_names = NameTable::default();
        room_names.insert("lobby", LOBBY);
        Tables {
            bounds,
            members: Vec::new(),
            free_member_slots: Vec::new(),
            names: NameTable::default(),
            rooms: vec![Some(Room::new("lobby", loops))],
            free_room_slots: Vec::new(),
            room_list: vec![LOBBY],
            room_names,
            inboxes: (0..loops).map(|_| Inbox::default()).collect(),
            congested: false,
            pending_rooms: Vec::new(),
            last_guest_number: 0,
            last_arrival_id: 0,
            banned: HashSet::new(),
            log,
        }
    }

    /// Returns whether no further lines are to be processed before the end of the turn, because too much is waiting to
    /// be delivered.
    pub(super) fn is_congested(&self) -> bool {
        self.congested
    }

    /// Adds an event to the inbox of a loop; `bytes` is the memory it takes besides [`EVENT_BYTES`].
    fn push_event(&mut self, loop_index: usize, event: Event, bytes: usize) {
        let inbox = &mut self.inboxes[loop_index];
        inbox.bytes += EVENT_BYTES + bytes;
        self.congested |= inbox.bytes >= INBOX_BYTES_MAX;
        inbox.events.push(event);
    }

    /// Moves the events of a loop into `into`, which is empty.
    pub(super) fn take_events(&mut self, loop_index: usize, into: &mut Vec<Event>) {
        let inbox = &mut self.inboxes[loop_index];
        std::mem::swap(into, &mut inbox.events);
        inbox.bytes = 0;
        if self.congested {
            self.congested = self.inboxes.iter().any(|inbox| inbox.bytes >= INBOX_BYTES_MAX);
        }
    }

    pub(super) fn member(&self, key: MemberKey) -> &Member {
        self.members[key].as_ref().expect("keys of removed members are not used")
    }

    pub(super) fn room(&mut self, key: RoomKey) -> &mut Room {
        self.rooms[key].as_mut().expect("a room with members exists")
    }

    /// Returns an unused guest name.
    pub(super) fn guest_name(&mut self) -> String {
        loop {
            self.last_guest_number += 1;
            let name = format!("guest{}", self.last_guest_number);
            if self.names.find(&name).next().is_none() {
                return name;
            }
        }
    }

    /// Creates a room.
    pub(super) fn create_room(&mut self, name: &str) -> RoomKey {
        let room = Room { list_index: self.room_list.len(), ..Room::new(name, self.inboxes.len()) };
        let key = insert(&mut self.rooms, &mut self.free_room_slots, room);
        self.room_list.push(key);
        self.room_names.insert(name, key);
        key
    }

    /// Returns the names of the members of a room, at most `max` of them.
    pub(super) fn member_names(&self, room: RoomKey, max: usize) -> String {
        let roster = self.rooms[room].as_ref().map_or(&[][..], |room| &room.roster);
        text::list(roster.iter().map(|&key| self.member(key).name.as_str()), roster.len(), max)
    }

    /// Describes the members of a room for a member who is about to join it.
    pub(super) fn describe_others(&mut self, room: RoomKey) -> String {
        match self.room(room).roster.len() {
            0 => "only you".into(),
            count => format!("{} ({} including you)", self.member_names(room, LISTED_MAX), count + 1),
        }
    }

    /// Queues a line for one member.
    pub(super) fn notify(&mut self, to: MemberKey, text: impl Into<Bytes>) {
        let (loop_index, text) = (self.member(to).loop_index, text.into());
        let bytes = text.len();
        self.push_event(loop_index, Event::Private { to, text }, bytes);
    }

    /// Sends a member the recent lines of its room.
    pub(super) fn send_history(&mut self, key: MemberKey) {
        let Member { room, loop_index, .. } = *self.member(key);
        let (history, is_new) = self.room(room).history();
        if !history.is_empty() {
            let bytes = if is_new { history.len() } else { 0 };
            self.push_event(loop_index, Event::Private { to: key, text: history }, bytes);
        }
    }

    /// Sends a line from a member to the other members of its room, and adds it to the history.
    pub(super) fn publish(&mut self, key: MemberKey, line: String) {
        let room = self.member(key).room;
        let line = Bytes::from(line);
        let history = self.bounds.history_lines;
        // Earlier arrivals and departures must be announced before the line.
        self.announce(room);
        self.room(room).push_history(&line, history);
        self.broadcast(room, Some(key), &line);
    }

    /// Queues a line for each loop that has a member in the room, and logs it.
    pub(super) fn broadcast(&mut self, room: RoomKey, except: Option<MemberKey>, text: &Bytes) {
        let Some(members_per_loop) = self.rooms[room].as_ref().map(|room| &room.members_per_loop) else { return };
        for (inbox, &count) in self.inboxes.iter_mut().zip(members_per_loop) {
            if count > 0 {
                inbox.bytes += EVENT_BYTES + text.len();
                self.congested |= inbox.bytes >= INBOX_BYTES_MAX;
                inbox.events.push(Event::Line { room, except, text: text.clone() });
            }
        }
        if let (Some(log), Some(room)) = (&self.log, &self.rooms[room]) {
            log.write(&room.name, text);
        }
    }

    /// Announces the pending arrivals, departures and renames of a room, if there are any.
    pub(super) fn announce(&mut self, key: RoomKey) {
        let Some(room) = self.rooms[key].as_mut() else { return };
        let changes: RoomChanges = std::mem::take(&mut room.changes);
        let is_here = |member: &Member, arrival_id| member.room == key && member.arrival_id == arrival_id;
        let arrived: Vec<MemberKey> = changes
            .arrived
            .iter()
            .filter(|&&(member, arrival_id)| {
                self.members[member].as_ref().is_some_and(|member| is_here(member, arrival_id))
            })
            .map(|&(member, _)| member)
            .collect();
        for &member in &arrived {
            self.members[member].as_mut().expect("the member is in the room").announced = true;
        }
        let names: Vec<&str> = arrived.iter().map(|&member| self.member(member).name.as_str()).collect();
        if let Some(line) = changes.notice(&names) {
            self.broadcast(key, changes.sole_subject(), &line.into());
        }
    }

    /// Adds a member to a room.
    pub(super) fn add_to_room(&mut self, key: MemberKey, conn: ConnId, to: RoomKey) {
        self.last_arrival_id += 1;
        let arrival_id = self.last_arrival_id;
        let room = self.rooms[to].as_mut().expect("the room exists");
        let member = self.members[key].as_mut().expect("the member exists");
        (member.room, member.roster_index, member.arrival_id, member.announced) =
            (to, room.roster.len(), arrival_id, false);
        room.roster.push(key);
        room.members_per_loop[member.loop_index] += 1;
        room.record_arrival(key, arrival_id);
        self.pending_rooms.push(to);
        let loop_index = member.loop_index;
        self.push_event(loop_index, Event::Joined { member: key, conn, room: to }, 0);
    }

    /// Removes a member from its room. An empty room is removed along with its history, except for the lobby.
    pub(super) fn remove_from_room(&mut self, key: MemberKey, reason: Departure) {
        let Member { name, loop_index, room: from, roster_index, announced, .. } = self.member(key);
        let (name, loop_index, from, at, announced) = (name.clone(), *loop_index, *from, *roster_index, *announced);
        let room = self.rooms[from].as_mut().expect("a room with members exists");
        room.roster.swap_remove(at);
        room.members_per_loop[loop_index] -= 1;
        if let Some(&moved) = room.roster.get(at) {
            self.members[moved].as_mut().expect("the member exists").roster_index = at;
        }
        if room.roster.is_empty() && from != LOBBY {
            let (name, at) = (std::mem::take(&mut room.name), room.list_index);
            self.room_names.remove(&name);
            self.rooms[from] = None;
            self.free_room_slots.push(from);
            self.room_list.swap_remove(at);
            if let Some(&moved) = self.room_list.get(at) {
                self.room(moved).list_index = at;
            }
        } else if announced {
            room.record_departure(key, &name, reason);
            self.pending_rooms.push(from);
        }
    }

    /// Removes a member from the chat, and queues `event` for its loop.
    pub(super) fn remove(&mut self, key: MemberKey, reason: Departure, event: impl FnOnce(MemberKey) -> Event) {
        self.remove_from_room(key, reason);
        if let Some(member) = self.members[key].take() {
            self.names.remove(&member.name);
            self.free_member_slots.push(key);
            // Not counted: each member causes one such event only, and the loop may have ended.
            self.inboxes[member.loop_index].events.push(event(key));
        }
    }
}

/// The reason why a member left a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    Left,
    TimedOut,
    TooSlow,
    Kicked,
    /// Joined the named room.
    MovedTo(String),
}

/// Arrivals, departures and renames since the last announcement.
#[derive(Debug, Default)]
pub(super) struct RoomChanges {
    /// Members with the id of their arrival: leaving and coming back counts as a new arrival.
    pub(super) arrived: Vec<(MemberKey, u64)>,
    departed: Vec<(String, Departure)>,
    renamed: Vec<String>,
    /// The member that the last change is about. All changes are about it, unless `several_subjects`.
    subject: Option<MemberKey>,
    several_subjects: bool,
}

impl RoomChanges {
    fn add_subject(&mut self, member: MemberKey) {
        self.several_subjects |= self.subject.is_some_and(|known| known != member);
        self.subject = Some(member);
    }

    /// Returns the member that all changes are about, if there is only one. It does not need the notice itself.
    pub(super) fn sole_subject(&self) -> Option<MemberKey> {
        if self.several_subjects { None } else { self.subject }
    }

    /// Formats the changes as one line. `arrived` holds the names of the new members who are still in the room.
    /// Returns `None` if there are no changes.
    pub(super) fn notice(&self, arrived: &[&str]) -> Option<String> {
        let mut parts = Vec::new();
        if !arrived.is_empty() {
            parts.push(text::list(arrived, arrived.len(), LISTED_MAX) + " joined");
        }
        for (reason, phrase) in [
            (Departure::Left, " left"),
            (Departure::TimedOut, " left (timed out)"),
            (Departure::TooSlow, " left (too slow)"),
            (Departure::Kicked, " left (kicked)"),
        ] {
            let departed = self.departed.iter().filter(|(_, departure)| *departure == reason);
            let names: Vec<&str> = departed.map(|(name, _)| name.as_str()).collect();
            if !names.is_empty() {
                parts.push(text::list(&names, names.len(), LISTED_MAX) + phrase);
            }
        }
        let moves = self.departed.iter().filter_map(|(name, departure)| match departure {
            Departure::MovedTo(room) => Some(format!("{name} moved to {room}")),
            _ => None,
        });
        for phrases in [moves.collect(), self.renamed.clone()] {
            if !phrases.is_empty() {
                parts.push(text::list(&phrases, phrases.len(), LISTED_MAX));
            }
        }
        (!parts.is_empty()).then(|| format!("* {}\n", parts.join("; ")))
    }
}

/// A chat room.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) name: String,
    /// The members, in no particular order.
    pub(super) roster: Vec<MemberKey>,
    /// Number of members on each loop.
    pub(super) members_per_loop: Vec<usize>,
    pub(super) changes: RoomChanges,
    /// Position in the list of rooms.
    list_index: usize,
    history: VecDeque<Bytes>,
    history_bytes: usize,
    /// The history as one block; empty unless a member has joined since the last line.
    history_block: Bytes,
}

impl Room {
    pub(super) fn new(name: &str, loops: usize) -> Self {
        Room {
            name: name.to_owned(),
            roster: Vec::new(),
            members_per_loop: vec![0; loops],
            changes: RoomChanges::default(),
            list_index: 0,
            history: VecDeque::new(),
            history_bytes: 0,
            history_block: Bytes::new(),
        }
    }

    /// Appends a line to the history, then drops the oldest lines beyond `max` lines or [`HISTORY_BYTES_MAX`].
    pub(super) fn push_history(&mut self, line: &Bytes, max: usize) {
        self.history_block = Bytes::new();
        self.history.push_back(line.clone());
        self.history_bytes += line.len();
        while self.history.len() > max || self.history_bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = self.history.pop_front() else { return };
            self.history_bytes -= oldest.len();
        }
    }

    /// Returns the lines of the history as one block, which is shared by all callers until the next line, and whether
    /// this call has created it.
    pub(super) fn history(&mut self) -> (Bytes, bool) {
        let is_new = self.history_block.is_empty() && !self.history.is_empty();
        if is_new {
            let mut block = Vec::with_capacity(self.history_bytes);
            self.history.iter().for_each(|line| block.extend_from_slice(line));
            self.history_block = block.into();
        }
        (self.history_block.clone(), is_new)
    }

    pub(super) fn record_arrival(&mut self, member: MemberKey, arrival_id: u64) {
        self.changes.add_subject(member);
        self.changes.arrived.push((member, arrival_id));
    }

    pub(super) fn record_departure(&mut self, member: MemberKey, name: &str, reason: Departure) {
        self.changes.add_subject(member);
        self.changes.departed.push((name.to_owned(), reason));
    }

    pub(super) fn record_rename(&mut self, member: MemberKey, old: &str, new: &str) {
        self.changes.add_subject(member);
        self.changes.renamed.push(format!("{old} is now {new}"));
    }
}
