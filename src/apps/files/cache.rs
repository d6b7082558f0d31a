//! A per-worker LRU cache of files, bounded in size: the content of small files, open descriptors of large ones.
//!
//! The key is the canonical spelling of the request path (see `path`), so a repeated request is served on the fast
//! path, without decoding the path. Other spellings of a path are canonicalized and looked up again.
//!
//! The metrics of the cache are for other threads. Only the worker updates them.

use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use lru::LruCache;

use super::cached_file::{CachedFile, LoadError, Loader};
use super::representation::Representation;
use crate::httpserver::{RequestHead, Response};
use crate::r#loop::lock;
use crate::r#loop::metrics::Counter;

/// Estimated memory use of an entry besides its content, for the struct and the map nodes.
const OVERHEAD_BYTES: usize = 512;

/// Time in seconds after which a file that is not requested is closed.
const IDLE_SECONDS: u64 = 10;

/// Cached files by request path, evicted in LRU order.
pub(super) struct Cache {
    small: LruCache<Box<[u8]>, CachedFile>,
    open: Arc<OpenFiles>,
    bytes: usize,
    bytes_max: usize,
    open_max: usize,
    watch: Watch,
    counts: Counts,
}

/// Makes another thread close the files that are not used: see [`OpenFiles::close_unused`].
pub(super) type Watch = Arc<dyn Fn(&Arc<OpenFiles>) + Send + Sync>;

/// A file found in the cache.
pub(super) enum Found<'a> {
    Small(&'a CachedFile),
    Open(Arc<CachedFile>),
}

impl Deref for Found<'_> {
    type Target = CachedFile;

    fn deref(&self) -> &CachedFile {
        match self {
            Found::Small(file) => file,
            Found::Open(file) => file,
        }
    }
}

impl Cache {
    pub(super) fn new(bytes_max: usize, open_max: usize, watch: Watch) -> Self {
        let (small, open, counts) = (LruCache::unbounded(), Arc::default(), Counts::default());
        Cache { small, open, bytes: 0, bytes_max, open_max, watch, counts }
    }

    /// Creates an empty cache with the same limits.
    pub(super) fn new_like(&self) -> Self {
        Cache::new(self.bytes_max, self.open_max, Arc::clone(&self.watch))
    }

    /// Creates a cache for a look-up on another thread, with the open files of this one and copies of the small files
    /// with these keys, which have to be validated again.
    pub(super) fn for_look_up(&self, keys: &[Box<[u8]>]) -> Self {
        let mut cache = Cache { open: Arc::clone(&self.open), ..self.new_like() };
        for key in keys {
            if let Some(file) = self.small.peek(key) {
                cache.put_small(key, file.stale_copy());
            }
        }
        cache
    }

    /// Returns the keys of all small files.
    pub(super) fn small_keys(&self) -> Vec<Box<[u8]>> {
        self.small.iter().map(|(key, _)| key.clone()).collect()
    }

    /// Takes over the small files that a look-up on another thread, begun at `begun_at`, has loaded or validated. Drops
    /// those of `keys` that it has dropped, as their files are too large now, or gone. Files that were validated later
    /// stay.
    pub(super) fn absorb(&mut self, other: Cache, keys: &[Box<[u8]>], begun_at: u64, now: u64) {
        self.counts.add_look_ups(&other.counts);
        for key in keys {
            let is_dropped = !other.small.contains(key);
            if is_dropped && self.small.peek(key).is_some_and(|file| !file.is_validated_since(begun_at)) {
                self.take_small(key);
            }
        }
        for (key, mut file) in other.small {
            let is_newer = self.small.peek(&key).is_none_or(|known| !known.is_validated_after(begun_at));
            if is_newer && file.is_validated_since(begun_at) {
                file.extend_validity(now);
                drop(self.take(&key));
                self.put_small(&key, file);
            }
        }
    }

    /// Responds with the file at `path`, or with its precompressed sibling, if both were validated within the current
    /// second.
    pub(super) fn fresh_response(&mut self, head: &RequestHead<'_>, path: &str) -> Option<Response> {
        let now = head.unix_time();
        let file = self.fresh(path.as_bytes(), now)?;
        let response = match file.for_client(head) {
            None => file.respond(head),
            Some(representation) => {
                let key = sibling_key(path, &representation);
                self.fresh(key.as_bytes(), now)?.respond(head)
            }
        };
        self.count_hit();
        Some(response)
    }

    /// Counts a request answered without consulting the file system.
    pub(super) fn count_hit(&mut self) {
        self.counts.hits += 1;
    }

    /// Begins to publish metrics.
    #[cfg(feature = "cli")]
    pub(super) fn begin_metrics(&self, metrics: &CacheMetrics) {
        metrics.begin(self.bytes_max, &self.open.metrics);
    }

    /// Publishes what was counted since the last call.
    pub(super) fn publish(&mut self, metrics: &CacheMetrics) {
        metrics.publish(&std::mem::take(&mut self.counts), self.bytes, self.small.len());
    }

    /// Returns a small file if it was validated within the current second. This is the fast path.
    #[inline]
    pub(super) fn fresh_small(&mut self, path: &[u8], now: u64) -> Option<&CachedFile> {
        self.small.get(path).filter(|file| file.validated_at == now)
    }

    /// Returns a file that was validated within the current second.
    pub(super) fn fresh(&mut self, path: &[u8], now: u64) -> Option<Found<'_>> {
        self.get(path, now).filter(|file| file.validated_at == now)
    }

    /// Returns a file, however long ago it was validated.
    pub(super) fn get(&mut self, path: &[u8], now: u64) -> Option<Found<'_>> {
        match self.small.get(path) {
            Some(file) => Some(Found::Small(file)),
            None => self.open.get(path, now).map(Found::Open),
        }
    }

    /// Removes and returns a cached file, for revalidation or replacement.
    pub(super) fn take(&mut self, path: &[u8]) -> Option<CachedFile> {
        if let Some(file) = self.take_small(path) {
            return Some(file);
        }
        // The thread that closes idle files may hold another reference for a moment; the file is then opened again.
        self.open.take(path).and_then(|file| Arc::try_unwrap(file).ok())
    }

    fn take_small(&mut self, path: &[u8]) -> Option<CachedFile> {
        let file = self.small.pop(path)?;
        self.bytes -= cost(path, &file);
        Some(file)
    }

    /// Caches a file: reuses the cached one if it is still current, and loads the file otherwise.
    pub(super) fn load(
        &mut self,
        loader: &Loader<'_>,
        path: &[u8],
        representation: Representation,
    ) -> Result<(), LoadError> {
        let mut cached = self.take(path);
        let new = CachedFile::reload(cached.as_mut(), loader, representation)?;
        match new {
            Some(_) => self.counts.misses += 1,
            None => self.counts.revalidated += 1,
        }
        if let Some(file) = new.or(cached) {
            self.put(loader, path, file);
        }
        Ok(())
    }

    /// Responds with the cached file at `path`, or with the precompressed sibling that the client prefers.
    pub(super) fn negotiate(
        &mut self,
        head: &RequestHead<'_>,
        loader: &Loader<'_>,
        path: &str,
    ) -> Result<Response, LoadError> {
        let now = loader.now;
        let evicted = || LoadError::from(io::Error::from(io::ErrorKind::NotFound));
        let file = self.get(path.as_bytes(), now).ok_or_else(evicted)?;
        let Some(representation) = file.for_client(head) else { return Ok(file.respond(head)) };
        let key = sibling_key(path, &representation);
        if let Some(sibling) = self.fresh(key.as_bytes(), now) {
            return Ok(sibling.respond(head));
        }
        let sent = match self.load(loader, key.as_bytes(), representation) {
            Ok(()) => key.as_str(),
            Err(LoadError::Io(error)) => {
                log::debug!("cannot read precompressed sibling of {path}: {error}; sending the file uncompressed");
                path
            }
            Err(cold) => return Err(cold),
        };
        Ok(self.get(sent.as_bytes(), now).ok_or_else(evicted)?.respond(head))
    }

    /// Inserts a file, evicting others as needed. The most recent file is kept even if it exceeds the limits.
    pub(super) fn put(&mut self, loader: &Loader<'_>, path: &[u8], file: CachedFile) {
        drop(self.take(path));
        if file.is_open() {
            if self.open.put(path, file, loader.now, self.open_max.max(1)) {
                (self.watch)(&self.open);
            }
            return;
        }
        self.put_small(path, file);
    }

    fn put_small(&mut self, path: &[u8], file: CachedFile) {
        self.bytes += cost(path, &file);
        self.small.put(path.into(), file);
        while self.bytes > self.bytes_max && self.small.len() > 1 {
            let Some((path, file)) = self.small.pop_lru() else { break };
            self.bytes -= cost(&path, &file);
            self.counts.evictions += 1;
        }
    }

    /// Drops all open files. Descriptors in use by in-flight responses are closed when those responses end.
    pub(super) fn close_files(&mut self) {
        self.open.clear();
    }

    /// Makes the next request for each file load it again, even if its metadata does not change.
    pub(super) fn expire(&mut self) {
        for (_, file) in &mut self.small {
            file.expire();
        }
        self.close_files();
    }

    /// Drops all files.
    pub(super) fn clear(&mut self) {
        self.small.clear();
        self.bytes = 0;
        self.close_files();
    }
}

/// Returns the keys of a file and its precompressed siblings, the file last, so that it is evicted last.
pub(super) fn keys(path: &str) -> Vec<Box<[u8]>> {
    let siblings = Representation::coding_names().map(|coding| format!("{path}\0{coding}"));
    siblings.chain([path.to_owned()]).map(|key| key.into_bytes().into()).collect()
}

/// Returns the key of a precompressed sibling. NUL cannot occur in a path, so the key is unique.
fn sibling_key(path: &str, sibling: &Representation) -> String {
    format!("{path}\0{}", sibling.coding_name())
}

fn cost(path: &[u8], file: &CachedFile) -> usize {
    OVERHEAD_BYTES + path.len() + file.bytes()
}

/// The open files of one worker. Another thread closes those that are not used, even if the worker is idle.
#[derive(Default)]
pub(super) struct OpenFiles {
    state: Mutex<State>,
    metrics: Arc<OpenFilesMetrics>,
}

struct State {
    files: LruCache<Box<[u8]>, Open>,
    /// True while another thread calls [`OpenFiles::close_unused`] regularly.
    watched: bool,
}

impl Default for State {
    fn default() -> Self {
        State { files: LruCache::unbounded(), watched: false }
    }
}

struct Open {
    file: Arc<CachedFile>,
    /// Time of the last request, as a Unix time in seconds.
    used_at: u64,
}

impl OpenFiles {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn get(&self, path: &[u8], now: u64) -> Option<Arc<CachedFile>> {
        let mut state = self.lock();
        let open = state.files.get_mut(path)?;
        open.used_at = now;
        Some(Arc::clone(&open.file))
    }

    /// Inserts a file. Returns whether the files were not watched before.
    fn put(&self, path: &[u8], file: CachedFile, now: u64, open_max: usize) -> bool {
        let mut state = self.lock();
        let replaced = state.files.put(path.into(), Open { file: Arc::new(file), used_at: now });
        let excess = state.files.len().saturating_sub(open_max);
        let evicted: Vec<_> = (0..excess).filter_map(|_| state.files.pop_lru()).collect();
        self.metrics.evictions.add(evicted.len() as u64);
        self.update_count(&state);
        let is_new = !std::mem::replace(&mut state.watched, true);
        drop(state);
        // Closing a file may block.
        drop((replaced, evicted));
        is_new
    }

    /// Removes and returns a file.
    fn take(&self, path: &[u8]) -> Option<Arc<CachedFile>> {
        let mut state = self.lock();
        let open = state.files.pop(path)?;
        self.update_count(&state);
        Some(open.file)
    }

    /// Removes all files.
    fn clear(&self) {
        let mut state = self.lock();
        let files = std::mem::replace(&mut state.files, LruCache::unbounded());
        self.update_count(&state);
        drop(state);
        // Closing a file may block.
        drop(files);
    }

    fn update_count(&self, state: &State) {
        self.metrics.count.set(state.files.len() as u64);
    }

    /// Closes the files that have not been requested for ten seconds, and those that were deleted or replaced. Returns
    /// false if no file is left; the caller need not call this again then.
    ///
    /// The system calls, which may block on a network file system, are made without holding the lock.
    pub(super) fn close_unused(&self, now: u64) -> bool {
        let is_idle = |used_at: u64| now.abs_diff(used_at) >= IDLE_SECONDS;
        let mut files = Vec::new();
        for (path, open) in &self.lock().files {
            files.push((path.clone(), Arc::clone(&open.file), open.used_at));
        }
        for (path, file, used_at) in files {
            let is_deleted = file.is_deleted();
            if !is_deleted && !is_idle(used_at) {
                continue;
            }
            let mut state = self.lock();
            let is_unused = |open: &Open| Arc::ptr_eq(&open.file, &file) && (is_deleted || is_idle(open.used_at));
            let closed = if state.files.peek(&path).is_some_and(is_unused) { state.files.pop(&path) } else { None };
            self.update_count(&state);
            drop(state);
            // Closing a file may block as well.
            drop((closed, file));
        }
        let mut state = self.lock();
        state.watched = !state.files.is_empty();
        state.watched
    }
}

/// How a cache was used since its counts were last published.
#[derive(Default)]
struct Counts {
    /// Requests answered without consulting the file system.
    hits: u64,
    /// Files that were in the cache, and had not changed in the file system.
    revalidated: u64,
    /// Files that were loaded.
    misses: u64,
    /// Small files removed to make room for others.
    evictions: u64,
}

/// The open files, which all look-ups of a worker share. Changed only while they are locked.
#[derive(Debug, Default)]
struct OpenFilesMetrics {
    count: Counter,
    evictions: Counter,
}

impl Counts {
    /// Adds the look-ups of another cache. The small files that it has removed were temporary copies.
    fn add_look_ups(&mut self, other: &Counts) {
        self.hits += other.hits;
        self.revalidated += other.revalidated;
        self.misses += other.misses;
    }
}

/// The metrics of the file cache of one worker.
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command publishes metrics"))]
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

#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command publishes metrics"))]
impl CacheMetrics {
    /// Sets what does not change.
    fn begin(&self, bytes_max: usize, open_files: &Arc<OpenFilesMetrics>) {
        self.bytes_max.set(bytes_max as u64);
        // The metrics belong to one cache only.
        let _ = self.open_files.set(Arc::clone(open_files));
    }

    /// Adds counts, and sets the size of the cache.
    fn publish(&self, counts: &Counts, bytes: usize, files: usize) {
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
