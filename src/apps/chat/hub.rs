//! What the loops of one chat do together, and the one order of everything that happens.
//!
//! Whoever does something takes a short lock, and what comes of it is put into the inbox of every loop that has a
//! member it concerns, in the same order in each. A loop empties its inbox at the end of its turn; it is woken at
//! most once for what came since.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;

use super::room::Departure;
use super::state::{self, Event, LOBBY, Member, MemberKey, State};
use super::text;
use super::{Bounds, Letter};
use crate::r#loop::{ConnId, Remote};

/// Names or rooms that an answer lists before it only counts.
const ANSWER_LISTED_MAX: usize = 100;

/// One chat.
pub(super) struct Hub {
    state: Mutex<State>,
    /// For each loop: whether its inbox holds something, and how to wake it.
    mail: Vec<AtomicBool>,
    remotes: Vec<OnceLock<Remote<Letter>>>,
    /// Whether a room has news.
    news: AtomicBool,
}

impl Hub {
    pub(super) fn new(bounds: Bounds, loops: usize) -> Self {
        Hub {
            state: Mutex::new(State::new(bounds, loops)),
            mail: (0..loops).map(|_| AtomicBool::new(false)).collect(),
            remotes: (0..loops).map(|_| OnceLock::new()).collect(),
            news: AtomicBool::new(false),
        }
    }

    /// How the loop at this desk is woken.
    pub(super) fn attach(&self, desk: usize, remote: Remote<Letter>) {
        // A loop starts once.
        let _ = self.remotes[desk].set(remote);
    }

    /// Takes the lock, for the loop at this desk.
    pub(super) fn enter(&self, desk: usize) -> Session<'_> {
        // A poisoned lock means that a method below panicked; what it left is used on, as any other state.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Session { hub: self, desk, state: Some(state) }
    }

    /// Announces what is new, and takes what came for the loop at this desk. Without a lock when there is nothing.
    pub(super) fn collect(&self, desk: usize, into: &mut Vec<Event>) {
        if !self.mail[desk].load(Ordering::Acquire) && !self.news.load(Ordering::Acquire) {
            return;
        }
        let mut session = self.enter(desk);
        let state = session.state();
        for room in std::mem::take(&mut state.newsy) {
            state.announce(room);
        }
        std::mem::swap(into, &mut state.inboxes[desk]);
        self.mail[desk].store(false, Ordering::Release);
    }
}

/// The chat, locked. When it is let go, the loops that something came for are woken.
pub(super) struct Session<'a> {
    hub: &'a Hub,
    desk: usize,
    state: Option<MutexGuard<'a, State>>,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let Some(state) = self.state.take() else { return };
        let mut wake = Vec::new();
        for (desk, inbox) in state.inboxes.iter().enumerate() {
            // The own loop looks at the end of this turn.
            if !inbox.is_empty() && !self.hub.mail[desk].swap(true, Ordering::AcqRel) && desk != self.desk {
                wake.push(desk);
            }
        }
        self.hub.news.store(!state.newsy.is_empty(), Ordering::Release);
        drop(state);
        wake.into_iter().filter_map(|desk| self.hub.remotes[desk].get()).for_each(Remote::wake);
    }
}

impl Session<'_> {
    fn state(&mut self) -> &mut State {
        self.state.as_mut().expect("held until the drop")
    }

    /// Lets somebody in; `None` when the chat is full.
    pub(super) fn join(&mut self, conn: ConnId) -> Option<MemberKey> {
        let desk = self.desk;
        let state = self.state();
        if state.members.len() - state.vacant_members.len() >= state.bounds.members_max {
            return None;
        }
        let name = state.guest_name();
        let member = Member { name: name.clone(), desk, room: LOBBY, roster_at: 0, stamp: 0, announced: false };
        let key = state::place(&mut state.members, &mut state.vacant_members, member);
        state.names.insert(text::fold(&name), key);
        let others = state.others(LOBBY);
        state.settle(key, conn, LOBBY);
        state.tell(key, format!("* Welcome, {name}! In lobby: {others}. Type /help for the commands.\n"));
        state.recall(key);
        Some(key)
    }

    /// A message to everybody else in the room.
    pub(super) fn say(&mut self, key: MemberKey, words: &str) {
        let state = self.state();
        let line = format!("[{}] {words}\n", state.member(key).name);
        state.speak(key, line);
    }

    /// What somebody does, told to everybody else in the room.
    pub(super) fn act(&mut self, key: MemberKey, action: &str) {
        let state = self.state();
        let line = format!("* {} {action}\n", state.member(key).name);
        state.speak(key, line);
    }

    /// Tells one member something.
    pub(super) fn tell(&mut self, key: MemberKey, text: impl Into<Bytes>) {
        self.state().tell(key, text);
    }

    /// Gives a member another name.
    pub(super) fn rename(&mut self, key: MemberKey, new: &str) {
        let state = self.state();
        if !text::is_name(new) {
            return state.tell(key, "* A name has 1 to 24 letters, digits, - or _.\n");
        }
        let folded = text::fold(new);
        if state.names.get(&folded).is_some_and(|&owner| owner != key) {
            return state.tell(key, format!("* The name {new} is taken.\n"));
        }
        let member = state.members[key].as_mut().expect("a member");
        let old = std::mem::replace(&mut member.name, new.to_owned());
        let (room, announced) = (member.room, member.announced);
        state.names.remove(&text::fold(&old));
        state.names.insert(folded, key);
        state.tell(key, format!("* You are now {new}.\n"));
        if announced && old != new {
            state.room(room).note_rename(key, &old, new);
            state.newsy.push(room);
        }
    }

    /// Tells a member who is in the room.
    pub(super) fn who(&mut self, key: MemberKey) {
        let state = self.state();
        let room = state.member(key).room;
        let (name, count) = (state.room(room).name.clone(), state.room(room).roster.len());
        let list = state.roster(room, ANSWER_LISTED_MAX);
        state.tell(key, format!("* In {name}: {list} ({count})\n"));
    }

    /// Tells a member which rooms there are.
    pub(super) fn rooms(&mut self, key: MemberKey) {
        let state = self.state();
        let rooms: Vec<String> =
            state.rooms.iter().flatten().map(|room| format!("{} ({})", room.name, room.roster.len())).collect();
        let list = text::list(&rooms, rooms.len(), ANSWER_LISTED_MAX);
        state.tell(key, format!("* Rooms: {list}\n"));
    }

    /// Takes a member to another room, which is made when there is none of that name.
    pub(super) fn go(&mut self, key: MemberKey, conn: ConnId, name: &str) {
        let state = self.state();
        if !text::is_name(name) {
            return state.tell(key, "* The name of a room has 1 to 24 letters, digits, - or _.\n");
        }
        let known = state.room_names.get(&text::fold(name)).copied();
        if known == Some(state.member(key).room) {
            return state.tell(key, format!("* You are in {name} already.\n"));
        }
        if known.is_none() && state.room_names.len() >= state.bounds.rooms_max {
            return state.tell(key, "* There are as many rooms as there may be; /rooms tells them.\n");
        }
        let room = known.unwrap_or_else(|| state.open(name));
        let name = state.room(room).name.clone();
        state.unsettle(key, Departure::For(name.clone()));
        let others = state.others(room);
        state.settle(key, conn, room);
        state.tell(key, format!("* You are now in {name}: {others}.\n"));
        state.recall(key);
    }

    /// A message to one member, whatever room it is in.
    pub(super) fn whisper(&mut self, key: MemberKey, to: &str, words: &str) {
        let state = self.state();
        let known = if text::is_name(to) { state.names.get(&text::fold(to)).copied() } else { None };
        match known {
            None => state.tell(key, "* Nobody has that name; /who tells who is here.\n"),
            Some(other) => {
                let names = (&state.member(key).name, &state.member(other).name);
                let line = Bytes::from(format!("[{} -> {}] {words}\n", names.0, names.1));
                state.tell(key, line.clone());
                if other != key {
                    state.tell(other, line);
                }
            }
        }
    }

    /// A member leaves by its own will, or is made to: it gets what is due to it, and is closed.
    pub(super) fn dismiss(&mut self, key: MemberKey) {
        self.state().remove(key, Departure::Left, |member| Event::Dismiss { member });
    }

    /// A member leaves with everybody else: nobody is told.
    pub(super) fn dismiss_silently(&mut self, key: MemberKey) {
        let state = self.state();
        state.members[key].as_mut().expect("a member").announced = false;
        state.remove(key, Departure::Left, |member| Event::Dismiss { member });
    }

    /// A member's connection is gone.
    pub(super) fn lose(&mut self, key: MemberKey, why: Departure) {
        self.state().remove(key, why, |member| Event::Gone { member });
    }
}
