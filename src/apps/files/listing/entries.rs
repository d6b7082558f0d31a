//! The entries of a directory in compact form: a list of fixed-size records and a single buffer for all names.

use crate::r#loop::lock;
use std::cmp::Ordering;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

/// Maximum number of entries in a listing. A longer listing is truncated, and says so.
const ENTRIES_MAX: usize = 1_000_000;

/// Maximum memory of all in-flight listings together. Ten listings of 100,000 names use half of it.
const TOTAL_BYTES_MAX: usize = 128 << 20;

/// Maximum memory of one listing, so that a single one never exhausts the budget.
const LISTING_BYTES_MAX: usize = TOTAL_BYTES_MAX / 2;

/// Time that a client has to read its first listing text before its rate counts.
const GRACE: Duration = Duration::from_secs(5);

/// Read rate in bytes per second below which a listing gives way to another one that needs its memory.
const RATE_MIN: u64 = 64 * 1024;

/// The kind of an entry. Other file types are not served, and therefore not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// A directory entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: Kind,
    /// In bytes; meaningless for a directory.
    pub(super) size: u64,
    /// The mtime as a Unix time in seconds.
    pub(super) modified: i64,
}

struct Record {
    size: u64,
    modified: i64,
    name_start: u32,
    name_len: u16,
    kind: Kind,
}

/// The sort key of a listing. Directories always come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SortKey {
    Name,
    Size,
    Date,
}

/// The memory budget of all in-flight listings.
#[derive(Clone, Default)]
pub(super) struct Budget(Arc<Shared>);

#[derive(Default)]
struct Shared {
    bytes_used: AtomicUsize,
    sending: Mutex<Vec<Weak<Sending>>>,
}

/// A listing that is being sent. It is cancelled if the client reads slowly while the budget is exhausted.
pub(super) struct Sending {
    /// `None` once the listing is cancelled.
    entries: Mutex<Option<Entries>>,
    started: Instant,
    bytes_sent: AtomicU64,
}

impl Sending {
    /// Returns the entries, or `None` inside if the listing was cancelled.
    pub(super) fn entries(&self) -> MutexGuard<'_, Option<Entries>> {
        lock(&self.entries)
    }

    /// Records that the client has taken some text.
    pub(super) fn add_sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, SeqCst);
    }

    /// Returns the read rate of the client in bytes per second, or `None` while it is too early to judge.
    fn rate(&self) -> Option<u64> {
        let elapsed = self.started.elapsed();
        (elapsed >= GRACE).then(|| self.bytes_sent.load(SeqCst) / elapsed.as_secs().max(1))
    }
}

impl Budget {
    /// Cancels the listing that is read most slowly, if any is slow. Returns whether that freed memory.
    fn cancel_slowest(&self) -> bool {
        let sending: Vec<Arc<Sending>> = {
            let mut sending = lock(&self.0.sending);
            sending.retain(|listing| listing.strong_count() > 0);
            sending.iter().filter_map(Weak::upgrade).collect()
        };
        let rated = sending.iter().filter_map(|listing| Some((listing.rate()?, listing)));
        let slow = rated.filter(|(rate, listing)| *rate < RATE_MIN && listing.entries().is_some());
        let Some((_, slowest)) = slow.min_by_key(|(rate, _)| *rate) else { return false };
        let entries = slowest.entries().take();
        log::info!("cancelled the listing of a client that reads slowly, for lack of memory for another one");
        entries.is_some()
    }
}

/// All entries of a directory.
pub(super) struct Entries {
    names: Vec<u8>,
    records: Vec<Record>,
    budget: Budget,
    /// Bytes reserved from the budget.
    reserved: usize,
    pub(super) truncated: bool,
}

/// A limit that stops a listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LimitReached {
    /// The listing has reached its own maximum; the entries so far are listed.
    Truncated,
    /// The shared budget is exhausted (503).
    Busy,
}

impl Entries {
    pub(super) fn new(budget: Budget) -> Self {
        Entries { names: Vec::new(), records: Vec::new(), budget, reserved: 0, truncated: false }
    }

    /// Adds an entry.
    pub(super) fn push(&mut self, entry: Entry<'_>) -> Result<(), LimitReached> {
        let (start, len) = (u32::try_from(self.names.len()), u16::try_from(entry.name.len()));
        let (Ok(name_start), Ok(name_len), true) = (start, len, self.records.len() < ENTRIES_MAX) else {
            self.truncated = true;
            return Err(LimitReached::Truncated);
        };
        self.names.extend_from_slice(entry.name);
        let Entry { kind, size, modified, .. } = entry;
        self.records.push(Record { size, modified, name_start, name_len, kind });
        let bytes = self.names.capacity() + self.records.capacity() * size_of::<Record>();
        if bytes > LISTING_BYTES_MAX {
            self.truncated = true;
            return Err(LimitReached::Truncated);
        }
        if bytes > self.reserved {
            self.budget.0.bytes_used.fetch_add(bytes - self.reserved, SeqCst);
            self.reserved = bytes;
            while self.budget.0.bytes_used.load(SeqCst) > TOTAL_BYTES_MAX {
                if !self.budget.cancel_slowest() {
                    return Err(LimitReached::Busy);
                }
            }
        }
        Ok(())
    }

    /// Begins to send the entries.
    pub(super) fn send(self) -> Arc<Sending> {
        let shared = Arc::clone(&self.budget.0);
        let (started, bytes_sent) = (Instant::now(), AtomicU64::new(0));
        let sending = Arc::new(Sending { entries: Mutex::new(Some(self)), started, bytes_sent });
        let mut all = lock(&shared.sending);
        all.retain(|listing| listing.strong_count() > 0);
        all.push(Arc::downgrade(&sending));
        sending
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<Entry<'_>> {
        self.records.get(index).map(|record| self.entry(record))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.records.iter().map(|record| self.entry(record))
    }

    fn entry(&self, record: &Record) -> Entry<'_> {
        Entry { name: name(&self.names, record), kind: record.kind, size: record.size, modified: record.modified }
    }

    /// Sorts directories first, then by `key`, then by name.
    pub(super) fn sort(&mut self, key: SortKey, descending: bool) {
        let names = &self.names;
        self.records.sort_unstable_by(|a, b| {
            let by_name = || compare_names(name(names, a), name(names, b));
            let order = match key {
                SortKey::Name => by_name(),
                // The size of a directory is meaningless.
                SortKey::Size if a.kind == Kind::Directory && b.kind == Kind::Directory => return by_name(),
                SortKey::Size => a.size.cmp(&b.size),
                SortKey::Date => a.modified.cmp(&b.modified),
            };
            let order = if descending { order.reverse() } else { order };
            let directories_first = (a.kind == Kind::File).cmp(&(b.kind == Kind::File));
            directories_first.then(order).then_with(by_name)
        });
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        self.budget.0.bytes_used.fetch_sub(self.reserved, SeqCst);
    }
}

fn name<'a>(names: &'a [u8], record: &Record) -> &'a [u8] {
    let start = record.name_start as usize;
    &names[start..start + usize::from(record.name_len)]
}

/// Compares names in natural order: ASCII case is ignored, and runs of digits compare by value (`file9` before
/// `file10`). Ties are broken by comparing bytes.
fn compare_names(one: &[u8], other: &[u8]) -> Ordering {
    let (mut left, mut right) = (one, other);
    loop {
        let order = match (left, right) {
            ([], []) => return one.cmp(other),
            ([], _) => Ordering::Less,
            (_, []) => Ordering::Greater,
            ([a, ..], [b, ..]) if a.is_ascii_digit() && b.is_ascii_digit() => {
                let (number, rest) = split_number(left);
                let (other_number, other_rest) = split_number(right);
                (left, right) = (rest, other_rest);
                number.len().cmp(&other_number.len()).then_with(|| number.cmp(other_number))
            }
            ([a, rest @ ..], [b, other_rest @ ..]) => {
                (left, right) = (rest, other_rest);
                a.to_ascii_lowercase().cmp(&b.to_ascii_lowercase())
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Splits off the leading number. Returns its digits without leading zeros, and the rest.
fn split_number(text: &[u8]) -> (&[u8], &[u8]) {
    let len = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(len);
    let zeros = digits.iter().take_while(|&&byte| byte == b'0').count();
    (&digits[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &[(&str, Kind, u64, i64)]) -> Entries {
        let mut entries = Entries::new(Budget::default());
        for &(name, kind, size, modified) in list {
            entries.push(Entry { name: name.as_bytes(), kind, size, modified }).unwrap();
        }
        entries
    }

    fn names(entries: &Entries) -> Vec<String> {
        entries.iter().map(|entry| String::from_utf8_lossy(entry.name).into_owned()).collect()
    }

    #[test]
    fn directories_come_first_in_every_order() {
        use Kind::{Directory, File};
        let mut all = entries(&[
            ("b10", File, 5, 3),
            ("B9", File, 7, 1),
            ("b9", File, 7, 2),
            ("z", Directory, 0, 9),
            ("a", Directory, 1, 8),
            ("007", File, 6, 4),
        ]);
        for (key, descending, expected) in [
            (SortKey::Name, false, ["a", "z", "007", "B9", "b9", "b10"]),
            (SortKey::Name, true, ["z", "a", "b10", "b9", "B9", "007"]),
            (SortKey::Size, false, ["a", "z", "b10", "007", "B9", "b9"]),
            (SortKey::Size, true, ["a", "z", "B9", "b9", "007", "b10"]),
            (SortKey::Date, false, ["a", "z", "B9", "b9", "b10", "007"]),
            (SortKey::Date, true, ["z", "a", "007", "b10", "b9", "B9"]),
        ] {
            all.sort(key, descending);
            assert_eq!(names(&all), expected, "{key:?} {descending}");
        }
    }

    #[test]
    fn names_compare_naturally_and_ignore_ascii_case() {
        for (one, other) in
            [("a2", "a10"), ("A", "b"), ("a", "B"), ("a", "aa"), ("a01", "a2"), ("a1", "a1b"), ("x 9 y", "x 10 a")]
        {
            assert_eq!(compare_names(one.as_bytes(), other.as_bytes()), Ordering::Less, "{one} {other}");
            assert_eq!(compare_names(other.as_bytes(), one.as_bytes()), Ordering::Greater, "{other} {one}");
        }
        assert_ne!(compare_names(b"a01", b"a1"), Ordering::Equal);
        assert_eq!(compare_names(b"a1", b"a1"), Ordering::Equal);
    }

    #[test]
    fn memory_is_bounded_across_listings_and_released() {
        let budget = Budget::default();
        let name = [b'x'; 200];
        let entry = Entry { name: &name, kind: Kind::File, size: 0, modified: 0 };
        let fill = || {
            let mut entries = Entries::new(budget.clone());
            let limit_reached = (0..ENTRIES_MAX).find_map(|_| entries.push(entry).err());
            (entries, limit_reached)
        };
        let filled: Vec<(Entries, Option<LimitReached>)> = (0..10).map(|_| fill()).collect();
        assert_eq!(filled[0].1, Some(LimitReached::Truncated), "a single listing is truncated");
        assert!(filled[0].0.truncated && filled[0].0.len() > 100_000);
        assert_eq!(filled[9].1, Some(LimitReached::Busy));
        drop(filled);
        assert_eq!(budget.0.bytes_used.load(SeqCst), 0);
        assert_eq!(Entries::new(budget).push(entry), Ok(()));
    }
    #[test]
    fn a_slow_reader_gives_way_when_the_budget_is_exhausted() {
        let budget = Budget::default();
        let name = [b'x'; 255];
        let entry = Entry { name: &name, kind: Kind::File, size: 0, modified: 0 };
        let fill = || {
            let mut entries = Entries::new(budget.clone());
            let limit_reached = (0..130_000).find_map(|_| entries.push(entry).err());
            (entries, limit_reached)
        };
        let long_ago = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let send = |bytes_per_second: u64| {
            let (entries, limit_reached) = fill();
            assert_eq!(limit_reached, None);
            // As by `Entries::send`, a minute ago.
            let entries = Mutex::new(Some(entries));
            let bytes_sent = AtomicU64::new(bytes_per_second * 60);
            let sending = Arc::new(Sending { entries, started: long_ago, bytes_sent });
            lock(&budget.0.sending).push(Arc::downgrade(&sending));
            sending
        };
        let [slow, fast, slowest] = [1000, 10 * RATE_MIN, 10].map(send);
        let (first, limit_reached) = fill();
        assert_eq!(limit_reached, None, "the slowest has given way");
        assert!(slowest.entries().is_none() && slow.entries().is_some() && fast.entries().is_some());
        let (second, limit_reached) = fill();
        assert!(limit_reached.is_none() && slow.entries().is_none() && fast.entries().is_some());
        assert_eq!(fill().1, Some(LimitReached::Busy), "a fast reader is not cancelled");
        drop((first, second, fast, slow, slowest));
        assert_eq!(budget.0.bytes_used.load(SeqCst), 0);
    }
}
