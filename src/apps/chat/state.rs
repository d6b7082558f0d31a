//! The tables of a chat: who is where under which name, and what is to be told to whom.

use std::collections::HashMap;

use bytes::Bytes;

use super::Bounds;
use super::room::{Departure, News, Room};
use super::text::{self, LISTED_MAX};
use crate::r#loop::ConnId;

/// Where everybody comes in; it is always there.
pub(super) const LOBBY: RoomKey = 0;

/// A member's place in the table. It is used again when the member is gone, but never for two at once.
pub(super) type MemberKey = usize;

/// A room's place in the table.
pub(super) type RoomKey = usize;

/// Something that happened, for the loop that has to tell it to its members.
#[derive(Debug)]
pub(super) enum Event {
    /// A member of this loop is in this room from now on, and in no other.
    Enter { member: MemberKey, conn: ConnId, room: RoomKey },
    /// To everybody in the room but one.
    Line { room: RoomKey, except: Option<MemberKey>, text: Bytes },
    /// To one member.
    Private { to: MemberKey, text: Bytes },
    /// The member gets what is due to it, and is closed.
    Dismiss { member: MemberKey },
    /// The member's connection is gone.
    Gone { member: MemberKey },
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) desk: usize,
    pub(super) room: RoomKey,
    pub(super) roster_at: usize,
    /// Of the arrival in the room, and whether the others were told.
    pub(super) stamp: u64,
    pub(super) announced: bool,
}

/// The tables.
pub(super) struct State {
    pub(super) bounds: Bounds,
    pub(super) members: Vec<Option<Member>>,
    pub(super) vacant_members: Vec<MemberKey>,
    pub(super) names: HashMap<String, MemberKey>,
    pub(super) rooms: Vec<Option<Room>>,
    pub(super) vacant_rooms: Vec<RoomKey>,
    pub(super) room_names: HashMap<String, RoomKey>,
    pub(super) inboxes: Vec<Vec<Event>>,
    /// Rooms with news.
    pub(super) newsy: Vec<RoomKey>,
    pub(super) guests: u64,
    pub(super) stamps: u64,
}

/// Puts something into the first vacant place of a table.
pub(super) fn place<T>(table: &mut Vec<Option<T>>, vacant: &mut Vec<usize>, item: T) -> usize {
    if let Some(key) = vacant.pop() {
        table[key] = Some(item);
        return key;
    }
    table.push(Some(item));
    table.len() - 1
}

impl State {
    pub(super) fn new(bounds: Bounds, loops: usize) -> Self {
        State {
            bounds,
            members: Vec::new(),
            vacant_members: Vec::new(),
            names: HashMap::new(),
            rooms: vec![Some(Room::new("lobby", loops))],
            vacant_rooms: Vec::new(),
            room_names: HashMap::from([("lobby".to_owned(), LOBBY)]),
            inboxes: (0..loops).map(|_| Vec::new()).collect(),
            newsy: Vec::new(),
            guests: 0,
            stamps: 0,
        }
    }

    pub(super) fn member(&self, key: MemberKey) -> &Member {
        self.members[key].as_ref().expect("a member is here until it is removed")
    }

    pub(super) fn room(&mut self, key: RoomKey) -> &mut Room {
        self.rooms[key].as_mut().expect("a room is here as long as somebody is in it")
    }

    pub(super) fn guest_name(&mut self) -> String {
        loop {
            self.guests += 1;
            let name = format!("guest{}", self.guests);
            if !self.names.contains_key(&name) {
                return name;
            }
        }
    }

    /// Makes a room.
    pub(super) fn open(&mut self, name: &str) -> RoomKey {
        let room = Room::new(name, self.inboxes.len());
        let key = place(&mut self.rooms, &mut self.vacant_rooms, room);
        self.room_names.insert(text::fold(name), key);
        key
    }

    /// The names of those in a room.
    pub(super) fn roster(&self, room: RoomKey, max: usize) -> String {
        let roster = self.rooms[room].as_ref().map_or(&[][..], |room| &room.roster);
        text::list(roster.iter().map(|&key| self.member(key).name.as_str()), roster.len(), max)
    }

    /// Whom somebody who comes into a room finds there, for a sentence.
    pub(super) fn others(&mut self, room: RoomKey) -> String {
        match self.room(room).roster.len() {
            0 => "nobody but you".into(),
            count => format!("{} ({} with you)", self.roster(room, LISTED_MAX), count + 1),
        }
    }

    pub(super) fn tell(&mut self, to: MemberKey, text: impl Into<Bytes>) {
        let desk = self.member(to).desk;
        self.inboxes[desk].push(Event::Private { to, text: text.into() });
    }

    /// Tells a member what was said last in its room.
    pub(super) fn recall(&mut self, key: MemberKey) {
        let room = self.member(key).room;
        let history = self.room(room).history();
        if !history.is_empty() {
            self.tell(key, history);
        }
    }

    pub(super) fn speak(&mut self, key: MemberKey, line: String) {
        let room = self.member(key).room;
        let line = Bytes::from(line);
        let history = self.bounds.history_lines;
        // What happened before is told before.
        self.announce(room);
        self.room(room).remember(&line, history);
        self.post(room, Some(key), &line);
    }

    /// To every loop with somebody in the room.
    pub(super) fn post(&mut self, room: RoomKey, except: Option<MemberKey>, text: &Bytes) {
        let Some(population) = self.rooms[room].as_ref().map(|room| &room.population) else { return };
        for (inbox, &count) in self.inboxes.iter_mut().zip(population) {
            if count > 0 {
                inbox.push(Event::Line { room, except, text: text.clone() });
            }
        }
    }

    /// Tells a room what is new in it, if anything.
    pub(super) fn announce(&mut self, key: RoomKey) {
        let Some(room) = self.rooms[key].as_mut() else { return };
        let news: News = std::mem::take(&mut room.news);
        let is_here = |member: &Member, stamp| member.room == key && member.stamp == stamp;
        let arrived: Vec<MemberKey> = news
            .arrived
            .iter()
            .filter(|&&(member, stamp)| self.members[member].as_ref().is_some_and(|member| is_here(member, stamp)))
            .map(|&(member, _)| member)
            .collect();
        for &member in &arrived {
            self.members[member].as_mut().expect("is here").announced = true;
        }
        let names: Vec<&str> = arrived.iter().map(|&member| self.member(member).name.as_str()).collect();
        if let Some(line) = news.line(&names) {
            self.post(key, news.subject(), &line.into());
        }
    }

    /// Puts a member into a room.
    pub(super) fn settle(&mut self, key: MemberKey, conn: ConnId, to: RoomKey) {
        self.stamps += 1;
        let stamp = self.stamps;
        let room = self.rooms[to].as_mut().expect("a room is here as long as somebody goes there");
        let member = self.members[key].as_mut().expect("a member");
        (member.room, member.roster_at, member.stamp, member.announced) = (to, room.roster.len(), stamp, false);
        room.roster.push(key);
        room.population[member.desk] += 1;
        room.note_arrival(key, stamp);
        self.newsy.push(to);
        self.inboxes[member.desk].push(Event::Enter { member: key, conn, room: to });
    }

    /// Takes a member out of its room; a room that nobody is in any more goes, with what was said in it.
    pub(super) fn unsettle(&mut self, key: MemberKey, why: Departure) {
        let Member { name, desk, room: from, roster_at, announced, .. } = self.member(key);
        let (name, desk, from, at, announced) = (name.clone(), *desk, *from, *roster_at, *announced);
        let room = self.rooms[from].as_mut().expect("a room is here as long as somebody is in it");
        room.roster.swap_remove(at);
        room.population[desk] -= 1;
        if let Some(&moved) = room.roster.get(at) {
            self.members[moved].as_mut().expect("a member").roster_at = at;
        }
        if room.roster.is_empty() && from != LOBBY {
            let folded = text::fold(&room.name);
            self.room_names.remove(&folded);
            self.rooms[from] = None;
            self.vacant_rooms.push(from);
        } else if announced {
            room.note_departure(key, &name, why);
            self.newsy.push(from);
        }
    }

    pub(super) fn remove(&mut self, key: MemberKey, why: Departure, event: impl FnOnce(MemberKey) -> Event) {
        self.unsettle(key, why);
        if let Some(member) = self.members[key].take() {
            self.names.remove(&text::fold(&member.name));
            self.vacant_members.push(key);
            self.inboxes[member.desk].push(event(key));
        }
    }
}
