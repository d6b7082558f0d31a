//! What is in a directory, in little memory: one list of numbers, and one of all names.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Names of one directory; what is beyond is left out, and said to be.
const ENTRIES_MAX: usize = 1_000_000;

/// Memory of all listings that are under way together: ten of 100,000 names take half of it.
const BYTES_MAX: usize = 128 << 20;

/// Memory of one listing, so that it never fails for want of what it takes itself.
const OWN_BYTES_MAX: usize = BYTES_MAX / 2;

/// What a name stands for. Nothing else is served, so nothing else is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// One name and what it stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: Kind,
    /// Octets; of a directory it means nothing.
    pub(super) size: u64,
    /// The last change, in seconds since 1970.
    pub(super) modified: i64,
}

struct Record {
    size: u64,
    modified: i64,
    name_start: u32,
    name_len: u16,
    kind: Kind,
}

/// By what a listing is sorted. Directories come first whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Name,
    Size,
    Date,
}

/// The memory that listings under way have in common.
#[derive(Clone, Default)]
pub(super) struct Budget(Arc<AtomicUsize>);

/// All names of a directory.
pub(super) struct Entries {
    names: Vec<u8>,
    records: Vec<Record>,
    budget: Budget,
    /// What was taken from the budget.
    taken: usize,
    pub(super) cut: bool,
}

/// There is no memory for a listing now, or no room for more of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// More names than a listing may have; those that are there are listed.
    Cut,
    /// Other listings have all the memory.
    Busy,
}

impl Entries {
    pub(super) fn new(budget: Budget) -> Self {
        Entries { names: Vec::new(), records: Vec::new(), budget, taken: 0, cut: false }
    }

    /// Adds a name.
    pub(super) fn push(&mut self, entry: Entry<'_>) -> Result<(), Full> {
        let (start, len) = (u32::try_from(self.names.len()), u16::try_from(entry.name.len()));
        let (Ok(name_start), Ok(name_len), true) = (start, len, self.records.len() < ENTRIES_MAX) else {
            self.cut = true;
            return Err(Full::Cut);
        };
        self.names.extend_from_slice(entry.name);
        let Entry { kind, size, modified, .. } = entry;
        self.records.push(Record { size, modified, name_start, name_len, kind });
        let bytes = self.names.capacity() + self.records.capacity() * size_of::<Record>();
        if bytes > OWN_BYTES_MAX {
            self.cut = true;
            return Err(Full::Cut);
        }
        if bytes > self.taken {
            let total = self.budget.0.fetch_add(bytes - self.taken, SeqCst) + bytes - self.taken;
            self.taken = bytes;
            if total > BYTES_MAX {
                return Err(Full::Busy);
            }
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn get(&self, at: usize) -> Option<Entry<'_>> {
        self.records.get(at).map(|record| self.entry(record))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.records.iter().map(|record| self.entry(record))
    }

    fn entry(&self, record: &Record) -> Entry<'_> {
        Entry { name: name(&self.names, record), kind: record.kind, size: record.size, modified: record.modified }
    }

    /// Directories first, and within each kind by the key; names decide among equals.
    pub(super) fn sort(&mut self, key: Key, descending: bool) {
        let names = &self.names;
        self.records.sort_unstable_by(|one, other| {
            let by_name = || compare_names(name(names, one), name(names, other));
            let order = match key {
                Key::Name => by_name(),
                // Directories have no size of their own.
                Key::Size if one.kind == Kind::Directory && other.kind == Kind::Directory => return by_name(),
                Key::Size => one.size.cmp(&other.size),
                Key::Date => one.modified.cmp(&other.modified),
            };
            let order = if descending { order.reverse() } else { order };
            let directories_first = (one.kind == Kind::File).cmp(&(other.kind == Kind::File));
            directories_first.then(order).then_with(by_name)
        });
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.taken, SeqCst);
    }
}

fn name<'a>(names: &'a [u8], record: &Record) -> &'a [u8] {
    let start = record.name_start as usize;
    &names[start..start + usize::from(record.name_len)]
}

/// As people expect it: without regard to the case of ASCII letters, and numbers by their value (`file9` before
/// `file10`); what is equal so far by its octets.
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

/// The digits at the front without leading zeros, and what follows.
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
    fn directories_come_first_whatever_the_order_is() {
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
            (Key::Name, false, ["a", "z", "007", "B9", "b9", "b10"]),
            (Key::Name, true, ["z", "a", "b10", "b9", "B9", "007"]),
            (Key::Size, false, ["a", "z", "b10", "007", "B9", "b9"]),
            (Key::Size, true, ["a", "z", "B9", "b9", "007", "b10"]),
            (Key::Date, false, ["a", "z", "B9", "b9", "b10", "007"]),
            (Key::Date, true, ["z", "a", "007", "b10", "b9", "B9"]),
        ] {
            all.sort(key, descending);
            assert_eq!(names(&all), expected, "{key:?} {descending}");
        }
    }

    #[test]
    fn numbers_are_compared_by_value_and_letters_without_case() {
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
    fn memory_is_given_back_and_bounded_for_all_together() {
        let budget = Budget::default();
        let name = [b'x'; 200];
        let entry = Entry { name: &name, kind: Kind::File, size: 0, modified: 0 };
        let fill = || {
            let mut entries = Entries::new(budget.clone());
            let refused = (0..ENTRIES_MAX).find_map(|_| entries.push(entry).err());
            (entries, refused)
        };
        let filled: Vec<(Entries, Option<Full>)> = (0..10).map(|_| fill()).collect();
        assert_eq!(filled[0].1, Some(Full::Cut), "one alone is cut");
        assert!(filled[0].0.cut && filled[0].0.len() > 100_000);
        assert_eq!(filled[9].1, Some(Full::Busy));
        drop(filled);
        assert_eq!(budget.0.load(SeqCst), 0);
        assert_eq!(Entries::new(budget).push(entry), Ok(()));
    }
}
