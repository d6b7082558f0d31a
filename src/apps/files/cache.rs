//! A per-worker LRU cache of files, bounded in size: the content of small files, open descriptors of large ones.
//!
//! The key is the canonical spelling of the request path (see `path`), so a repeated request is served on the fast
//! path, without decoding the path. Other spellings of a path are canonicalized and looked up again.

use lru::LruCache;

use super::cached_file::CachedFile;

/// Estimated memory use of an entry besides its content, for the struct and the map nodes.
const OVERHEAD_BYTES: usize = 512;

/// Cached files by request path, evicted in LRU order.
pub(super) struct Cache {
    small: LruCache<Box<[u8]>, CachedFile>,
    open: LruCache<Box<[u8]>, CachedFile>,
    bytes: usize,
    bytes_max: usize,
    open_max: usize,
}

impl Cache {
    pub(super) fn new(bytes_max: usize, open_max: usize) -> Self {
        Cache { small: LruCache::unbounded(), open: LruCache::unbounded(), bytes: 0, bytes_max, open_max }
    }

    /// Creates an empty cache with the same limits.
    pub(super) fn new_like(&self) -> Self {
        Cache::new(self.bytes_max, self.open_max)
    }

    /// Returns the cached file if it was validated within the current second.
    #[inline]
    pub(super) fn fresh(&mut self, path: &[u8], now: u64) -> Option<&CachedFile> {
        let entry = match self.small.get(path) {
            Some(entry) => entry,
            None => self.open.get(path)?,
        };
        (entry.validated_at == now).then_some(entry)
    }

    /// Removes and returns a cached file, for revalidation or replacement.
    pub(super) fn take(&mut self, path: &[u8]) -> Option<CachedFile> {
        if let Some(entry) = self.small.pop(path) {
            self.bytes -= cost(path, &entry);
            return Some(entry);
        }
        self.open.pop(path)
    }

    /// Inserts a file, evicting others as needed. The most recent file is kept even if it exceeds the limits.
    pub(super) fn put(&mut self, path: &[u8], entry: CachedFile) {
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

    /// Drops all open files. Descriptors in use by in-flight responses are closed when those responses end.
    pub(super) fn close_files(&mut self) {
        self.open.clear();
    }
}

fn cost(path: &[u8], entry: &CachedFile) -> usize {
    OVERHEAD_BYTES + path.len() + entry.bytes()
}
