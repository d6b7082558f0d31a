//! The tables of a chat: members, names, rooms, and an inbox of events for each loop.

use std::collections::HashMap;

use bytes::Bytes;

use super::Bounds;
use super::room::{Departure, Room, RoomChanges};
use super::text::{self, LISTED_MAX};
use crate::r#loop::ConnId;

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
    pub(super) room: RoomKey,
    /// Position in the roster of the room.
    pub(super) roster_index: usize,
    /// Identifies the arrival in the current room; see [`RoomChanges::arrived`].
    pub(super) arrival_id: u64,
    /// True once the arrival has been announced to the room.
    pub(super) announced: bool,
}

/// Members and rooms, with their indexes by name, and the inboxes.
pub(super) struct Tables {
    pub(super) bounds: Bounds,
    pub(super) members: Vec<Option<Member>>,
    pub(super) free_member_slots: Vec<MemberKey>,
    /// Members by folded name.
    pub(super) names: HashMap<String, MemberKey>,
    pub(super) rooms: Vec<Option<Room>>,
    pub(super) free_room_slots: Vec<RoomKey>,
    /// Rooms by folded name.
    pub(super) room_names: HashMap<String, RoomKey>,
    /// Undelivered events of each loop.
    pub(super) inboxes: Vec<Vec<Event>>,
    /// Rooms with unannounced changes; may contain duplicates.
    pub(super) pending_rooms: Vec<RoomKey>,
    pub(super) last_guest_number: u64,
    pub(super) last_arrival_id: u64,
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
    pub(super) fn new(bounds: Bounds, loops: usize) -> Self {
        Tables {
            bounds,
            members: Vec::new(),
            free_member_slots: Vec::new(),
            names: HashMap::new(),
            rooms: vec![Some(Room::new("lobby", loops))],
            free_room_slots: Vec::new(),
            room_names: HashMap::from([("lobby".to_owned(), LOBBY)]),
            inboxes: (0..loops).map(|_| Vec::new()).collect(),
            pending_rooms: Vec::new(),
            last_guest_number: 0,
            last_arrival_id: 0,
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
            if !self.names.contains_key(&name) {
                return name;
            }
        }
    }

    /// Creates a room.
    pub(super) fn create_room(&mut self, name: &str) -> RoomKey {
        let room = Room::new(name, self.inboxes.len());
        let key = insert(&mut self.rooms, &mut self.free_room_slots, room);
        self.room_names.insert(text::fold(name), key);
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
        let loop_index = self.member(to).loop_index;
        self.inboxes[loop_index].push(Event::Private { to, text: text.into() });
    }

    /// Sends a member the recent lines of its room.
    pub(super) fn send_history(&mut self, key: MemberKey) {
        let room = self.member(key).room;
        let history = self.room(room).history();
        if !history.is_empty() {
            self.notify(key, history);
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

    /// Queues a line for each loop that has a member in the room.
    pub(super) fn broadcast(&mut self, room: RoomKey, except: Option<MemberKey>, text: &Bytes) {
        let Some(members_per_loop) = self.rooms[room].as_ref().map(|room| &room.members_per_loop) else { return };
        for (inbox, &count) in self.inboxes.iter_mut().zip(members_per_loop) {
            if count > 0 {
                inbox.push(Event::Line { room, except, text: text.clone() });
            }
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
        self.inboxes[member.loop_index].push(Event::Joined { member: key, conn, room: to });
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
            let folded = text::fold(&room.name);
            self.room_names.remove(&folded);
            self.rooms[from] = None;
            self.free_room_slots.push(from);
        } else if announced {
            room.record_departure(key, &name, reason);
            self.pending_rooms.push(from);
        }
    }

    /// Removes a member from the chat, and queues `event` for its loop.
    pub(super) fn remove(&mut self, key: MemberKey, reason: Departure, event: impl FnOnce(MemberKey) -> Event) {
        self.remove_from_room(key, reason);
        if let Some(member) = self.members[key].take() {
            self.names.remove(&text::fold(&member.name));
            self.free_member_slots.push(key);
            self.inboxes[member.loop_index].push(event(key));
        }
    }
}
