//! Metrics of the file cache of one worker, for other threads. Only the worker updates them.

use std::sync::{Arc, OnceLock};

use crate::r#loop::metrics::Counter;

/// How a cache was used since its counts were last published.
#[derive(Default)]
pub(super) struct Counts {
    /// Requests answered without consulting the file system.
    pub(super) hits: u64,
    /// Files that were in the cache, and had not changed in the file system.
    pub(super) revalidated: u64,
    /// Files that were loaded.
    pub(super) misses: u64,
    /// Files removed to make room for others.
    pub(super) evictions: u64,
}

impl Counts {
    /// Adds the look-ups of another cache. Its evictions do not count, as it was a temporary copy.
    pub(super) fn add_look_ups(&mut self, other: &Counts) {
        self.hits += other.hits;
        self.revalidated += other.revalidated;
        self.misses += other.misses;
    }
}

/// The metrics of the file cache of one worker.
#[derive(Debug, Default)]
pub(crate) struct CacheMetrics {
    pub(crate) hits: Counter,
    pub(crate) revalidated: Counter,
    pub(crate) misses: Counter,
    pub(crate) evictions: Counter,
    /// Estimated memory use of the small files, and its maximum.
    pub(crate) bytes: Counter,
    pub(crate) bytes_max: Counter,
    /// Number of small files, which are held in memory.
    pub(crate) files: Counter,
    /// Number of large files, which are held open. Another thread closes them.
    open_files: OnceLock<Arc<Counter>>,
}

impl CacheMetrics {
    /// Sets what does not change.
    pub(super) fn begin(&self, bytes_max: usize, open_files: &Arc<Counter>) {
        self.bytes_max.set(bytes_max as u64);
        // The metrics belong to one cache only.
        let _ = self.open_files.set(Arc::clone(open_files));
    }

    /// Adds counts, and sets the size of the cache.
    pub(super) fn publish(&self, counts: &Counts, bytes: usize, files: usize) {
        self.hits.add(counts.hits);
        self.revalidated.add(counts.revalidated);
        self.misses.add(counts.misses);
        self.evictions.add(counts.evictions);
        self.bytes.set(bytes as u64);
        self.files.set(files as u64);
    }

    /// Returns the number of large files, which are held open.
    pub(crate) fn open_files(&self) -> u64 {
        self.open_files.get().map_or(0, |count| count.get())
    }
}
