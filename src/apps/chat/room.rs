//! A room: its members, its recent lines, and the changes to announce.

use std::collections::VecDeque;

use bytes::Bytes;

use super::tables::MemberKey;
use super::text::{self, LISTED_MAX};

/// Maximum size of a room's history in bytes; bounds the copy that each new member receives.
const HISTORY_BYTES_MAX: usize = 64 * 1024;

/// The reason why a member left a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    Left,
    TimedOut,
    TooSlow,
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
    history: VecDeque<Bytes>,
    history_bytes: usize,
}

impl Room {
    pub(super) fn new(name: &str, loops: usize) -> Self {
        Room {
            name: name.to_owned(),
            roster: Vec::new(),
            members_per_loop: vec![0; loops],
            changes: RoomChanges::default(),
            history: VecDeque::new(),
            history_bytes: 0,
        }
    }

    /// Appends a line to the history, then drops the oldest lines beyond `max` lines or [`HISTORY_BYTES_MAX`].
    pub(super) fn push_history(&mut self, line: &Bytes, max: usize) {
        self.history.push_back(line.clone());
        self.history_bytes += line.len();
        while self.history.len() > max || self.history_bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = self.history.pop_front() else { return };
            self.history_bytes -= oldest.len();
        }
    }

    /// Returns the lines of the history as one block.
    pub(super) fn history(&self) -> Bytes {
        let mut all = Vec::with_capacity(self.history_bytes);
        self.history.iter().for_each(|line| all.extend_from_slice(line));
        all.into()
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
