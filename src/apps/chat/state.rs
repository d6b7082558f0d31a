//! State shared by all loops of a chat. Its lock puts all events into one total order.
//!
//! An operation holds the lock briefly and pushes the resulting events into the inbox of each loop with an affected
//! member, in the same order in every inbox. A loop empties its inbox at the end of its turn. However many events
//! arrive in between, it is woken at most once.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use bytes::Bytes;

use super::fanout::Delivery;
use super::input::Bounds;
use super::log::RoomLog;
use super::tables::{self, Departure, Event, LOBBY, Member, MemberKey, Tables};
use super::text;
use crate::r#loop::{ConnId, Remote, lock, network};

/// Maximum number of members or rooms listed in a reply; the rest are only counted.
const REPLY_LISTED_MAX: usize = 100;

/// Maximum number of banned addresses.
const BANNED_MAX: usize = 10_000;

/// The state of one chat, shared by its loops.
pub(super) struct ChatState {
    tables: Mutex<Tables>,
    /// For each loop, true if its inbox holds events. Lets [`collect`](Self::collect) skip the lock.
    inbox_ready: Vec<AtomicBool>,
    /// For each loop, the handle that wakes it.
    remotes: Vec<OnceLock<Remote<Delivery>>>,
    /// True if any room has changes that have not been announced.
    rooms_pending: AtomicBool,
    /// True if no further lines are to be processed in this turn.
    congested: AtomicBool,
}

impl ChatState {
    pub(super) fn new(bounds: Bounds, loops: usize, log: Option<RoomLog>) -> Self {
        ChatState {
            tables: Mutex::new(Tables::new(bounds, loops, log)),
            inbox_ready: (0..loops).map(|_| AtomicBool::new(false)).collect(),
            remotes: (0..loops).map(|_| OnceLock::new()).collect(),
            rooms_pending: AtomicBool::new(false),
            congested: AtomicBool::new(false),
        }
    }

    /// Sets the handle that wakes loop `loop_index`.
    pub(super) fn attach(&self, loop_index: usize, remote: Remote<Delivery>) {
        // Never set twice: each loop starts only once.
        let _ = self.remotes[loop_index].set(remote);
    }

    /// Returns whether no further lines are to be processed in this turn, because too much is waiting to be delivered.
    pub(super) fn is_congested(&self) -> bool {
        self.congested.load(Ordering::Acquire)
    }

    /// Locks the chat on behalf of a thread that is not a loop's.
    pub(super) fn lock_from_outside(&self) -> ChatGuard<'_> {
        self.lock(usize::MAX)
    }

    /// Locks the chat on behalf of loop `loop_index`.
    pub(super) fn lock(&self, loop_index: usize) -> ChatGuard<'_> {
        // Ignore poisoning: a panic in one method of `ChatGuard` must not take down the whole chat.
        let tables = lock(&self.tables);
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
        tables.take_events(loop_index, into);
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
            if !inbox.events.is_empty()
                && !self.chat.inbox_ready[loop_index].swap(true, Ordering::AcqRel)
                && loop_index != self.loop_index
            {
                wake.push(loop_index);
            }
        }
        self.chat.congested.store(tables.is_congested(), Ordering::Release);
        self.chat.rooms_pending.store(!tables.pending_rooms.is_empty(), Ordering::Release);
        drop(tables);
        wake.into_iter().filter_map(|loop_index| self.chat.remotes[loop_index].get()).for_each(Remote::wake);
    }
}

impl ChatGuard<'_> {
    fn tables(&mut self) -> &mut Tables {
        self.tables.as_mut().expect("the lock is held until drop")
    }

    /// Returns whether the connection of this loop is the member `key`, which the console may have removed.
    pub(super) fn is_member(&mut self, key: MemberKey, conn: ConnId) -> bool {
        let loop_index = self.loop_index;
        let member = self.tables().members.get(key).and_then(Option::as_ref);
        member.is_some_and(|member| member.conn == conn && member.loop_index == loop_index)
    }

    /// Returns whether no further lines are to be processed in this turn.
    pub(super) fn is_congested(&mut self) -> bool {
        self.tables().is_congested()
    }

    /// Returns whether connections from this address are refused.
    pub(super) fn is_banned(&mut self, addr: IpAddr) -> bool {
        let banned = &self.tables().banned;
        !banned.is_empty() && banned.contains(&network(addr))
    }

    /// Replaces the address of a member, which may have been that of a proxy.
    pub(super) fn set_addr(&mut self, key: MemberKey, addr: SocketAddr) {
        if let Some(member) = self.tables().members.get_mut(key).and_then(Option::as_mut) {
            member.addr = Some(addr);
        }
    }

    /// Adds a member to the lobby, and sends it a welcome followed by `motd`. Returns `None` if the chat is full.
    pub(super) fn join(&mut self, conn: ConnId, addr: Option<SocketAddr>, motd: &Bytes) -> Option<MemberKey> {
        let loop_index = self.loop_index;
        let tables = self.tables();
        if tables.members.len() - tables.free_member_slots.len() >= tables.bounds.members_max {
            return None;
        }
        let name = tables.guest_name();
        let member = Member {
            name: name.clone(),
            loop_index,
            conn,
            addr,
            muted: false,
            room: LOBBY,
            roster_index: 0,
            arrival_id: 0,
            announced: false,
        };
        let key = tables::insert(&mut tables.members, &mut tables.free_member_slots, member);
        tables.names.insert(&name, key);
        let others = tables.describe_others(LOBBY);
        tables.add_to_room(key, conn, LOBBY);
        tables.notify(key, format!("* Welcome, {name}! In lobby: {others}. Type /help for a list of commands.\n"));
        if !motd.is_empty() {
            tables.notify(key, motd.clone());
        }
        tables.send_history(key);
        Some(key)
    }

    /// Returns whether the member may speak; if the console has muted it, sends it a notice.
    fn may_speak(&mut self, key: MemberKey) -> bool {
        let tables = self.tables();
        let muted = tables.member(key).muted;
        if muted {
            tables.notify(key, "* You are muted.\n");
        }
        !muted
    }

    /// Sends a message to the other members of the room.
    pub(super) fn say(&mut self, key: MemberKey, message: &str) {
        if self.may_speak(key) {
            let tables = self.tables();
            let line = format!("[{}] {message}\n", tables.member(key).name);
            tables.publish(key, line);
        }
    }

    /// Sends an action (`/me`) to the other members of the room. The line begins differently from a notice of the
    /// server, which no member can send.
    pub(super) fn emote(&mut self, key: MemberKey, action: &str) {
        if self.may_speak(key) {
            let tables = self.tables();
            let line = format!("- {} {action}\n", tables.member(key).name);
            tables.publish(key, line);
        }
    }

    /// Sends text to one member.
    pub(super) fn notify(&mut self, key: MemberKey, text: impl Into<Bytes>) {
        self.tables().notify(key, text);
    }

    /// Changes the name of a member.
    pub(super) fn rename(&mut self, key: MemberKey, new: &str) {
        if !self.may_speak(key) {
            return;
        }
        let tables = self.tables();
        let Some(new) = text::parse_name(new) else {
            return tables.notify(key, "* Invalid name: use 1 to 24 letters, digits, - or _.\n");
        };
        if text::is_reserved(&new) {
            return tables.notify(key, format!("* The name {new} is reserved.\n"));
        }
        if tables.names.find(&new).any(|owner| owner != key) {
            return tables.notify(key, format!("* The name {new} is taken.\n"));
        }
        let member = tables.members[key].as_mut().expect("the member exists");
        let old = std::mem::replace(&mut member.name, new.clone());
        let (room, announced) = (member.room, member.announced);
        tables.names.remove(&old);
        tables.names.insert(&new, key);
        tables.notify(key, format!("* You are now {new}.\n"));
        if announced && old != new {
            tables.room(room).record_rename(key, &old, &new);
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

    /// Sends a member a page of the list of rooms, counted from 1.
    pub(super) fn list_rooms(&mut self, key: MemberKey, page: usize) {
        let tables = self.tables();
        let count = tables.room_list.len();
        let start = (page - 1).saturating_mul(REPLY_LISTED_MAX);
        if start >= count {
            let pages = count.div_ceil(REPLY_LISTED_MAX);
            return tables.notify(key, format!("* The last page of rooms is {pages}.\n"));
        }
        let mut line = String::from(if page == 1 { "* Rooms: " } else { "* More rooms: " });
        let end = count.min(start + REPLY_LISTED_MAX);
        for &room in &tables.room_list[start..end] {
            let Some(room) = &tables.rooms[room] else { continue };
            let separator = if line.ends_with(": ") { "" } else { ", " };
            // Writing to a string does not fail.
            let _ = write!(line, "{separator}{} ({})", room.name, room.roster.len());
        }
        if end < count {
            let _ = write!(line, " and {} more; see /rooms {}", count - end, page + 1);
        }
        line.push('\n');
        tables.notify(key, line);
    }

    /// Moves a member to another room, creating the room if it does not exist.
    pub(super) fn join_room(&mut self, key: MemberKey, conn: ConnId, name: &str) {
        let tables = self.tables();
        let Some(name) = text::parse_name(name) else {
            return tables.notify(key, "* Invalid room name: use 1 to 24 letters, digits, - or _.\n");
        };
        // A name that looks like that of a room leads to that room.
        let known = tables.room_names.find(&name).next();
        if known == Some(tables.member(key).room) {
            return tables.notify(key, format!("* You are already in {name}.\n"));
        }
        if known.is_none() && tables.room_list.len() >= tables.bounds.rooms_max {
            return tables.notify(key, "* Room limit reached; type /rooms for a list.\n");
        }
        let room = known.unwrap_or_else(|| tables.create_room(&name));
        let name = tables.room(room).name.clone();
        tables.remove_from_room(key, Departure::MovedTo(name.clone()));
        let others = tables.describe_others(room);
        tables.add_to_room(key, conn, room);
        tables.notify(key, format!("* You are now in {name}: {others}.\n"));
        tables.send_history(key);
    }

    /// Returns the member with this name, ignoring case. A member whose name merely looks like it does not count.
    fn find_member(&mut self, name: &str) -> Option<MemberKey> {
        let name = text::parse_name(name)?;
        let (tables, folded) = (self.tables(), text::fold(&name));
        tables.names.find(&name).find(|&key| text::fold(&tables.member(key).name) == folded)
    }

    /// Sends a private message to a member in any room.
    pub(super) fn whisper(&mut self, key: MemberKey, to: &str, message: &str) {
        if !self.may_speak(key) {
            return;
        }
        let known = self.find_member(to);
        let tables = self.tables();
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

    /// Sends a notice to all members.
    pub(super) fn announce_to_all(&mut self, notice: &str) {
        let tables = self.tables();
        let line = Bytes::from(format!("* Server: {notice}\n"));
        for room in tables.room_list.clone() {
            tables.announce(room);
            tables.broadcast(room, None, &line);
        }
    }

    /// Describes up to `max` members, one per line: name, room, address and whether the member is muted.
    pub(super) fn describe_members(&mut self, max: usize) -> String {
        let tables = self.tables();
        let count = tables.members.len() - tables.free_member_slots.len();
        let mut lines = format!("{count} members\n");
        for member in tables.members.iter().flatten().take(max) {
            let room = tables.rooms[member.room].as_ref().map_or("", |room| &room.name);
            let addr = member.addr.map_or_else(|| "-".to_owned(), |addr| addr.to_string());
            let _ =
                writeln!(lines, "{} in {room} from {addr}{}", member.name, if member.muted { ", muted" } else { "" });
        }
        lines
    }

    /// Returns the address of a member, if it is known, or `None` if there is no such member.
    #[allow(clippy::option_option, reason = "there may be no such member, or one without an address")]
    pub(super) fn member_addr(&mut self, name: &str) -> Option<Option<SocketAddr>> {
        let key = self.find_member(name)?;
        Some(self.tables().member(key).addr)
    }

    /// Removes a member by name, with a notice. Returns whether there is such a member.
    pub(super) fn kick(&mut self, name: &str) -> bool {
        let key = self.find_member(name);
        if let Some(key) = key {
            self.kick_member(key, "* You were removed by the server.\n");
        }
        key.is_some()
    }

    fn kick_member(&mut self, key: MemberKey, notice: &'static str) {
        let tables = self.tables();
        tables.notify(key, notice);
        tables.remove(key, Departure::Kicked, |member| Event::Leave { member });
    }

    /// Mutes or unmutes a member. Returns whether there is such a member.
    pub(super) fn set_muted(&mut self, name: &str, muted: bool) -> bool {
        let Some(key) = self.find_member(name) else { return false };
        let tables = self.tables();
        if let Some(member) = tables.members[key].as_mut() {
            member.muted = muted;
        }
        tables.notify(key, if muted { "* The server has muted you.\n" } else { "* You are no longer muted.\n" });
        true
    }

    /// Bans the [`network`] of an address, whose owner can use any address in it, and removes its members. Returns
    /// their number, or `None` if there are too many bans.
    pub(super) fn ban(&mut self, addr: IpAddr) -> Option<usize> {
        let (tables, banned) = (self.tables(), network(addr));
        if tables.banned.len() >= BANNED_MAX && !tables.banned.contains(&banned) {
            return None;
        }
        tables.banned.insert(banned);
        let is_banned = |member: &Member| member.addr.is_some_and(|addr| network(addr.ip()) == banned);
        let members = tables.members.iter().enumerate();
        let keys: Vec<MemberKey> =
            members.filter(|(_, member)| member.as_ref().is_some_and(is_banned)).map(|(key, _)| key).collect();
        for &key in &keys {
            self.kick_member(key, "* You were banned by the server.\n");
        }
        Some(keys.len())
    }

    /// Ends a ban. Returns whether there was one.
    pub(super) fn unban(&mut self, addr: IpAddr) -> bool {
        self.tables().banned.remove(&network(addr))
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
