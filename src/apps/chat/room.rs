//! A room: who is in it, what was said last, and what is to be announced.

use std::collections::VecDeque;

use bytes::Bytes;

use super::state::MemberKey;
use super::text::{self, LISTED_MAX};

/// What a room remembers at most, in bytes: everybody who comes gets a copy.
const HISTORY_BYTES_MAX: usize = 64 * 1024;

/// Why somebody is not in a room any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    Left,
    TimedOut,
    TooSlow,
    /// To another room.
    For(String),
}

/// Arrivals, departures and renames since the last announcement.
#[derive(Debug, Default)]
pub(super) struct News {
    /// With the stamp of each arrival: who left and came back is another arrival.
    pub(super) arrived: Vec<(MemberKey, u64)>,
    departed: Vec<(String, Departure)>,
    renamed: Vec<String>,
    /// Whom it is about, as long as that is one alone.
    subject: Option<MemberKey>,
    several: bool,
}

impl News {
    fn concern(&mut self, member: MemberKey) {
        self.several |= self.subject.is_some_and(|known| known != member);
        self.subject = Some(member);
    }

    /// Whom it need not be told, because it is about nobody else.
    pub(super) fn subject(&self) -> Option<MemberKey> {
        if self.several { None } else { self.subject }
    }

    /// One line, given the names of those who arrived and are still here; `None` when nothing is new.
    pub(super) fn line(&self, arrived: &[&str]) -> Option<String> {
        let mut parts = Vec::new();
        if !arrived.is_empty() {
            parts.push(text::list(arrived, arrived.len(), LISTED_MAX) + " joined");
        }
        for (why, words) in [
            (Departure::Left, " left"),
            (Departure::TimedOut, " left (timed out)"),
            (Departure::TooSlow, " left (too slow)"),
        ] {
            let gone = self.departed.iter().filter(|(_, own)| *own == why);
            let names: Vec<&str> = gone.map(|(name, _)| name.as_str()).collect();
            if !names.is_empty() {
                parts.push(text::list(&names, names.len(), LISTED_MAX) + words);
            }
        }
        let moves = self.departed.iter().filter_map(|(name, why)| match why {
            Departure::For(room) => Some(format!("{name} left for {room}")),
            _ => None,
        });
        for changes in [moves.collect(), self.renamed.clone()] {
            if !changes.is_empty() {
                parts.push(text::list(&changes, changes.len(), LISTED_MAX));
            }
        }
        (!parts.is_empty()).then(|| format!("* {}\n", parts.join("; ")))
    }
}

/// A room.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) name: String,
    pub(super) roster: Vec<MemberKey>,
    /// How many of them each loop holds.
    pub(super) population: Vec<usize>,
    pub(super) news: News,
    history: VecDeque<Bytes>,
    history_bytes: usize,
}

impl Room {
    pub(super) fn new(name: &str, loops: usize) -> Self {
        Room {
            name: name.to_owned(),
            roster: Vec::new(),
            population: vec![0; loops],
            news: News::default(),
            history: VecDeque::new(),
            history_bytes: 0,
        }
    }

    /// Remembers a line that was said, and forgets the oldest of more than `max`, or of too many bytes.
    pub(super) fn remember(&mut self, line: &Bytes, max: usize) {
        self.history.push_back(line.clone());
        self.history_bytes += line.len();
        while self.history.len() > max || self.history_bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = self.history.pop_front() else { return };
            self.history_bytes -= oldest.len();
        }
    }

    /// The lines that are remembered, in one piece.
    pub(super) fn history(&self) -> Bytes {
        let mut all = Vec::with_capacity(self.history_bytes);
        self.history.iter().for_each(|line| all.extend_from_slice(line));
        all.into()
    }

    pub(super) fn note_arrival(&mut self, member: MemberKey, stamp: u64) {
        self.news.concern(member);
        self.news.arrived.push((member, stamp));
    }

    pub(super) fn note_departure(&mut self, member: MemberKey, name: &str, why: Departure) {
        self.news.concern(member);
        self.news.departed.push((name.to_owned(), why));
    }

    pub(super) fn note_rename(&mut self, member: MemberKey, old: &str, new: &str) {
        self.news.concern(member);
        self.news.renamed.push(format!("{old} is now {new}"));
    }
}
