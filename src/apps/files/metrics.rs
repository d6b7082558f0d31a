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
    /// Small files removed to make room for others.
    pub(super) evictions: u64,
}

/// The open files, which all look-ups of a worker share. Changed only while they are locked.
#[derive(Debug, Default)]
pub(super) struct OpenFilesMetrics {
    pub(super) count: Counter,
    pub(super) evictions: Counter,
}

impl Counts {
    /// Adds the look-ups of another cache. The small files that it has removed were temporary copies.
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
    /// Small files removed to make room for others.
    evictions: Counter,
    /// Estimated memory use of the small files, and its maximum.
    pub(crate) bytes: Counter,
    pub(crate) bytes_max: Counter,
    /// Number of small files, which are held in memory.
    pub(crate) files: Counter,
    /// The large files, which are held open.
    open_files: OnceLock<Arc<OpenFilesMetrics>>,
}

impl CacheMetrics {
    /// Sets what does not change.
    pub(super) fn begin(&self, bytes_max: usize, open_files: &Arc<OpenFilesMetrics>) {
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
        self.open_files.get().map_or(0, |open_files| open_files.count.get())
    }

    /// Returns the number of files removed to make room for others.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.get() + self.open_files.get().map_or(0, |open_files| open_files.evictions.get())
    }
}
