//! State shared by all loops of a chat. Its lock puts all events into one total order.
//!
//! An operation holds the lock briefly and pushes the resulting events into the inbox of each loop with an affected
//! member, in the same order in every inbox. A loop empties its inbox at the end of its turn. However many events
//! arrive in between, it is woken at most once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;

use super::room::Departure;
use super::tables::{self, Event, LOBBY, Member, MemberKey, Tables};
use super::text;
use super::{Bounds, Delivery};
use crate::r#loop::{ConnId, Remote};

/// Maximum number of members or rooms listed in a reply; the rest are only counted.
const REPLY_LISTED_MAX: usize = 100;

/// The state of one chat, shared by its loops.
pub(super) struct ChatState {
    tables: Mutex<Tables>,
    /// For each loop, true if its inbox holds events. Lets [`collect`](Self::collect) skip the lock.
    inbox_ready: Vec<AtomicBool>,
    /// For each loop, the handle that wakes it.
    remotes: Vec<OnceLock<Remote<Delivery>>>,
    /// True if any room has changes that have not been announced.
    rooms_pending: AtomicBool,
}

impl ChatState {
    pub(super) fn new(bounds: Bounds, loops: usize) -> Self {
        ChatState {
            tables: Mutex::new(Tables::new(bounds, loops)),
            inbox_ready: (0..loops).map(|_| AtomicBool::new(false)).collect(),
            remotes: (0..loops).map(|_| OnceLock::new()).collect(),
            rooms_pending: AtomicBool::new(false),
        }
    }

    /// Sets the handle that wakes loop `loop_index`.
    pub(super) fn attach(&self, loop_index: usize, remote: Remote<Delivery>) {
        // Never set twice: each loop starts only once.
        let _ = self.remotes[loop_index].set(remote);
    }

    /// Locks the chat on behalf of loop `loop_index`.
    pub(super) fn lock(&self, loop_index: usize) -> ChatGuard<'_> {
        // Ignore poisoning: a panic in one method of `ChatGuard` must not take down the whole chat.
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        ChatGuard { chat: self, loop_index, tables: Some(tables) }
    }

    /// Announces pending room changes, then moves the events for loop `loop_index` into `into`. Does not lock if
    /// there is nothing to do.
    pub(super) fn collect(&self, loop_index: usize, into: &mut Vec<Event>) {
        if !self.inbox_ready[loop_index].load(Ordering::Acquire) && !self.rooms_pending.load(Ordering::Acquire) {
            return;
        }
        let mut guard = self.lock(loop_index);
        let tables = guard.tables();
        for room in std::mem::take(&mut tables.pending_rooms) {
            tables.announce(room);
        }
        std::mem::swap(into, &mut tables.inboxes[loop_index]);
        self.inbox_ready[loop_index].store(false, Ordering::Release);
    }
}

/// The locked chat. Dropping it releases the lock and wakes the loops that have new events.
pub(super) struct ChatGuard<'a> {
    chat: &'a ChatState,
    loop_index: usize,
    tables: Option<MutexGuard<'a, Tables>>,
}

impl Drop for ChatGuard<'_> {
    fn drop(&mut self) {
        let Some(tables) = self.tables.take() else { return };
        let mut wake = Vec::new();
        for (loop_index, inbox) in tables.inboxes.iter().enumerate() {
            // The current loop needs no wake-up: it collects its events at the end of this turn.
            if !inbox.is_empty()
                && !self.chat.inbox_ready[loop_index].swap(true, Ordering::AcqRel)
                && loop_index != self.loop_index
            {
                wake.push(loop_index);
            }
        }
        self.chat.rooms_pending.store(!tables.pending_rooms.is_empty(), Ordering::Release);
        drop(tables);
        wake.into_iter().filter_map(|loop_index| self.chat.remotes[loop_index].get()).for_each(Remote::wake);
    }
}

impl ChatGuard<'_> {
    fn tables(&mut self) -> &mut Tables {
        self.tables.as_mut().expect("the lock is held until drop")
    }

    /// Adds a member to the lobby. Returns `None` if the chat is full.
    pub(super) fn join(&mut self, conn: ConnId) -> Option<MemberKey> {
        let loop_index = self.loop_index;
        let tables = self.tables();
        if tables.members.len() - tables.free_member_slots.len() >= tables.bounds.members_max {
            return None;
        }
        let name = tables.guest_name();
        let member =
            Member { name: name.clone(), loop_index, room: LOBBY, roster_index: 0, arrival_id: 0, announced: false };
        let key = tables::insert(&mut tables.members, &mut tables.free_member_slots, member);
        tables.names.insert(text::fold(&name), key);
        let others = tables.describe_others(LOBBY);
        tables.add_to_room(key, conn, LOBBY);
        tables.notify(key, format!("* Welcome, {name}! In lobby: {others}. Type /help for a list of commands.\n"));
        tables.send_history(key);
        Some(key)
    }

    /// Sends a message to the other members of the room.
    pub(super) fn say(&mut self, key: MemberKey, message: &str) {
        let tables = self.tables();
        let line = format!("[{}] {message}\n", tables.member(key).name);
        tables.publish(key, line);
    }

    /// Sends an action (`/me`) to the other members of the room.
    pub(super) fn emote(&mut self, key: MemberKey, action: &str) {
        let tables = self.tables();
        let line = format!("* {} {action}\n", tables.member(key).name);
        tables.publish(key, line);
    }

    /// Sends text to one member.
    pub(super) fn notify(&mut self, key: MemberKey, text: impl Into<Bytes>) {
        self.tables().notify(key, text);
    }

    /// Changes the name of a member.
    pub(super) fn rename(&mut self, key: MemberKey, new: &str) {
        let tables = self.tables();
        if !text::is_name(new) {
            return tables.notify(key, "* Invalid name: use 1 to 24 letters, digits, - or _.\n");
        }
        let folded = text::fold(new);
        if tables.names.get(&folded).is_some_and(|&owner| owner != key) {
            return tables.notify(key, format!("* The name {new} is taken.\n"));
        }
        let member = tables.members[key].as_mut().expect("the member exists");
        let old = std::mem::replace(&mut member.name, new.to_owned());
        let (room, announced) = (member.room, member.announced);
        tables.names.remove(&text::fold(&old));
        tables.names.insert(folded, key);
        tables.notify(key, format!("* You are now {new}.\n"));
        if announced && old != new {
            tables.room(room).record_rename(key, &old, new);
            tables.pending_rooms.push(room);
        }
    }

    /// Sends a member the list of members in its room.
    pub(super) fn list_members(&mut self, key: MemberKey) {
        let tables = self.tables();
        let room = tables.member(key).room;
        let (name, count) = (tables.room(room).name.clone(), tables.room(room).roster.len());
        let list = tables.member_names(room, REPLY_LISTED_MAX);
        tables.notify(key, format!("* In {name}: {list} ({count})\n"));
    }

    /// Sends a member the list of rooms.
    pub(super) fn list_rooms(&mut self, key: MemberKey) {
        let tables = self.tables();
        let rooms: Vec<String> =
            tables.rooms.iter().flatten().map(|room| format!("{} ({})", room.name, room.roster.len())).collect();
        let list = text::list(&rooms, rooms.len(), REPLY_LISTED_MAX);
        tables.notify(key, format!("* Rooms: {list}\n"));
    }

    /// Moves a member to another room, creating the room if it does not exist.
    pub(super) fn join_room(&mut self, key: MemberKey, conn: ConnId, name: &str) {
        let tables = self.tables();
        if !text::is_name(name) {
            return tables.notify(key, "* Invalid room name: use 1 to 24 letters, digits, - or _.\n");
        }
        let known = tables.room_names.get(&text::fold(name)).copied();
        if known == Some(tables.member(key).room) {
            return tables.notify(key, format!("* You are already in {name}.\n"));
        }
        if known.is_none() && tables.room_names.len() >= tables.bounds.rooms_max {
            return tables.notify(key, "* Room limit reached; type /rooms for a list.\n");
        }
        let room = known.unwrap_or_else(|| tables.create_room(name));
        let name = tables.room(room).name.clone();
        tables.remove_from_room(key, Departure::MovedTo(name.clone()));
        let others = tables.describe_others(room);
        tables.add_to_room(key, conn, room);
        tables.notify(key, format!("* You are now in {name}: {others}.\n"));
        tables.send_history(key);
    }

    /// Sends a private message to a member in any room.
    pub(super) fn whisper(&mut self, key: MemberKey, to: &str, message: &str) {
        let tables = self.tables();
        let known = if text::is_name(to) { tables.names.get(&text::fold(to)).copied() } else { None };
        match known {
            None => tables.notify(key, "* No such user; type /who to see who is here.\n"),
            Some(other) => {
                let (from, to) = (&tables.member(key).name, &tables.member(other).name);
                let line = Bytes::from(format!("[{from} -> {to}] {message}\n"));
                tables.notify(key, line.clone());
                if other != key {
                    tables.notify(other, line);
                }
            }
        }
    }

    /// Removes a member. Its connection is closed once the lines queued for it have been sent.
    pub(super) fn leave(&mut self, key: MemberKey) {
        self.tables().remove(key, Departure::Left, |member| Event::Leave { member });
    }

    /// Removes a member without announcing it, for a shutdown, when all members leave.
    pub(super) fn leave_silently(&mut self, key: MemberKey) {
        let tables = self.tables();
        tables.members[key].as_mut().expect("the member exists").announced = false;
        tables.remove(key, Departure::Left, |member| Event::Leave { member });
    }

    /// Removes a member whose connection has closed.
    pub(super) fn disconnect(&mut self, key: MemberKey, reason: Departure) {
        self.tables().remove(key, reason, |member| Event::Disconnected { member });
    }
}
