//! What a worker remembers of files, within bounds: the small ones themselves, of the large ones open descriptors.
//!
//! The key is the path of a request as it came, in its one plain spelling (see `path`), so that a file that is asked
//! for again is found without as much as decoding its name. Who writes the path otherwise is served all the same, by a
//! second look.

use lru::LruCache;

use super::entry::Entry;

/// What an entry costs besides its content: itself, and its places in the maps.
const OVERHEAD_BYTES: usize = 512;

/// Entries by the paths of requests; who was not asked for the longest goes first.
pub(super) struct Cache {
    small: LruCache<Box<[u8]>, Entry>,
    open: LruCache<Box<[u8]>, Entry>,
    bytes: usize,
    bytes_max: usize,
    open_max: usize,
}

impl Cache {
    pub(super) fn new(bytes_max: usize, open_max: usize) -> Self {
        Cache { small: LruCache::unbounded(), open: LruCache::unbounded(), bytes: 0, bytes_max, open_max }
    }

    /// An empty one with the same bounds.
    pub(super) fn like(&self) -> Self {
        Cache::new(self.bytes_max, self.open_max)
    }

    /// One that was compared with its file in this second.
    #[inline]
    pub(super) fn fresh(&mut self, path: &[u8], now: u64) -> Option<&Entry> {
        let entry = match self.small.get(path) {
            Some(entry) => entry,
            None => self.open.get(path)?,
        };
        (entry.checked == now).then_some(entry)
    }

    /// Gives one back, to be compared or replaced.
    pub(super) fn take(&mut self, path: &[u8]) -> Option<Entry> {
        if let Some(entry) = self.small.pop(path) {
            self.bytes -= cost(path, &entry);
            return Some(entry);
        }
        self.open.pop(path)
    }

    /// Remembers a file, at the expense of others. The last one is remembered whatever the bounds are.
    pub(super) fn put(&mut self, path: &[u8], entry: Entry) {
        drop(self.take(path));
        if entry.is_open() {
            self.open.put(path.into(), entry);
            while self.open.len() > self.open_max.max(1) {
                self.open.pop_lru();
            }
            return;
        }
        self.bytes += cost(path, &entry);
        self.small.put(path.into(), entry);
        while self.bytes > self.bytes_max && self.small.len() > 1 {
            let Some((path, entry)) = self.small.pop_lru() else { break };
            self.bytes -= cost(&path, &entry);
        }
    }

    /// Closes all descriptors that nobody reads from.
    pub(super) fn close_files(&mut self) {
        self.open.clear();
    }
}

fn cost(path: &[u8], entry: &Entry) -> usize {
    OVERHEAD_BYTES + path.len() + entry.bytes()
}
