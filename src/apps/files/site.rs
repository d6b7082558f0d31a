//! The served directory over time: its path is resolved again once a second, and files that are not used are closed.
//!
//! Deployments replace the directory (`rm -rf dist && build`) or switch a symbolic link (`current -> releases/42`), and
//! the handle would keep the old one. All workers share one `Site`. Operations that may block, such as opening a
//! directory on a network file system, are done by other threads, which are started when they are first needed:
//!
//! - one thread resolves the path, and closes the files that the workers no longer use;
//! - a pool reads small files that are not in the page cache;
//! - another pool makes the look-ups of a slow file system, see `look_ups`.
//!
//! A worker keeps its handle of the directory, and its cache, until the generation of the site differs from its own.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::StatusCode;

use super::cache::{OpenFiles, Watch};
use super::cached_file::read_into_page_cache;
use super::conditions::History;
use super::fallback::status_response;
use super::look_ups::{LookUps, Suspended};
use super::options::Options;
use super::root::{Root, is_out_of_fds};
use crate::httpserver::{Pool, RequestHead, Response};
use crate::r#loop::lock;

/// Interval at which the files that are not used are closed.
const CLOSE_INTERVAL: Duration = Duration::from_secs(1);

/// Threads that read small files into the page cache.
const READERS: usize = 4;

/// Maximum number of files that wait to be read; further requests are rejected with 503.
const READS_QUEUED_MAX: usize = 1024;

/// Number of refused links that are remembered, so that each is logged once.
const REPORTED_MAX: usize = 64;

/// Minimum time between two such lines: the log of the process drops lines that are repeated within a second.
const REPORT_INTERVAL: Duration = Duration::from_millis(1100);

/// Time after its last change during which an empty root counts as being rebuilt, if it had entries before.
const REBUILD_TIME: Duration = Duration::from_secs(60);

/// A directory and its path, shared by all workers.
pub(super) struct Site {
    /// The absolute path of the directory.
    path: PathBuf,
    pub(super) options: Arc<Options>,
    root: Mutex<Option<Arc<Root>>>,
    /// Incremented with every change of `root`, and when the caches must be dropped.
    generation: AtomicU64,
    check: Mutex<Check>,
    tasks: OnceLock<Option<mpsc::Sender<Task>>>,
    readers: OnceLock<Option<Pool>>,
    pub(super) look_ups: LookUps,
    pub(super) history: History,
    /// True once anything in the directory was served.
    was_populated: AtomicBool,
    reported: Mutex<Reported>,
}

/// The paths that could not be served and were logged.
#[derive(Default)]
struct Reported {
    paths: VecDeque<String>,
    last: Option<Instant>,
}

/// The state of resolving the path again.
struct Check {
    /// Time of the last check, as a Unix time in seconds.
    checked_at: u64,
    is_running: bool,
    /// Requests that wait for the result.
    waiting: Suspended<()>,
}

/// Work for the thread of a site.
enum Task {
    /// Resolve the path again. The workers drop their caches if `reload` is set, even if the directory is the same.
    Resolve { site: Arc<Site>, now: u64, reload: bool },
    /// Close the files that are not used, until none is left.
    Watch(Weak<OpenFiles>),
}

/// Attached to a request that was suspended until the path was resolved.
#[derive(Clone)]
struct Resolved;

/// Attached to a request that was suspended until a file was in the page cache.
#[derive(Clone)]
struct PageCacheFilled;

pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Site {
    /// Opens the directory at an absolute path.
    pub(super) fn open(path: PathBuf, options: Arc<Options>) -> io::Result<Self> {
        let root = Root::open(&path, &options)?;
        Ok(Site {
            path,
            options,
            root: Mutex::new(Some(Arc::new(root))),
            generation: AtomicU64::new(1),
            check: Mutex::new(Check { checked_at: unix_time(), is_running: false, waiting: Suspended::default() }),
            tasks: OnceLock::new(),
            readers: OnceLock::new(),
            look_ups: LookUps::default(),
            history: History::default(),
            was_populated: AtomicBool::new(false),
            reported: Mutex::default(),
        })
    }

    /// Returns the current generation.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns the directory, and the generation it belongs to. `None` while it cannot be opened.
    pub(super) fn current(&self) -> (Option<Arc<Root>>, u64) {
        let root = lock(&self.root);
        (root.clone(), self.generation())
    }

    /// Resolves the path again if that was not done within the current second, on another thread. Returns the response
    /// that suspends the request until it is done, for the request that starts it, and for all if the last check is
    /// older than a second; others are served from the directory as it was then.
    pub(super) fn refresh(self: &Arc<Self>, head: &RequestHead<'_>) -> Option<Response> {
        let now = head.unix_time();
        let mut check = lock(&self.check);
        // The clock of a loop turn may be a second behind that of another worker.
        if matches!(check.checked_at.wrapping_sub(now), 0 | 1) || head.extension::<Resolved>().is_some() {
            return None;
        }
        let starts = !check.is_running;
        if starts && !self.resolve_later(&mut check, now, false) {
            return None;
        }
        if !starts && now.abs_diff(check.checked_at) <= 1 {
            return None;
        }
        let (response, responder) = Response::suspend();
        check.waiting.push(responder, ());
        Some(response)
    }

    /// Resolves the path again, and makes the workers compare all files with the file system.
    pub(super) fn reload(self: &Arc<Self>) {
        let mut check = lock(&self.check);
        self.resolve_later(&mut check, unix_time(), true);
    }

    fn resolve_later(self: &Arc<Self>, check: &mut Check, now: u64, reload: bool) -> bool {
        let sent = self.send(Task::Resolve { site: Arc::clone(self), now, reload });
        check.is_running |= sent;
        // Without the thread, the directory stays as it is.
        check.checked_at = if sent { check.checked_at } else { now };
        sent
    }

    /// Returns a function that makes the thread close the files that a worker no longer uses.
    pub(super) fn watcher(self: &Arc<Self>) -> Watch {
        let site = Arc::downgrade(self);
        Arc::new(move |files| {
            if let Some(site) = site.upgrade() {
                site.send(Task::Watch(Arc::downgrade(files)));
            }
        })
    }

    /// Sends a task to the thread. Returns false if the thread could not be started.
    fn send(&self, task: Task) -> bool {
        let start = || {
            let (send, receive) = mpsc::channel();
            let started = thread::Builder::new().name("files".into()).spawn(move || run_tasks(&receive));
            started
                .inspect_err(|error| log::error!("cannot start the thread that checks the directory: {error}"))
                .ok()?;
            Some(send)
        };
        self.tasks.get_or_init(start).as_ref().is_some_and(|tasks| tasks.send(task).is_ok())
    }

    /// Opens the directory, and replaces the handle if it is another one.
    fn resolve(&self, now: u64, reload: bool) {
        let opened = Root::open(&self.path, &self.options);
        let mut root = lock(&self.root);
        let shown = self.path.display();
        let replaced = match (opened, &*root) {
            (Ok(new), Some(old)) if new.is_same(old) => None,
            (Ok(new), _) => {
                log::info!("{shown} was replaced; serving the new directory");
                Some(Some(Arc::new(new)))
            }
            // This says nothing about the directory.
            (Err(error), _) if is_out_of_fds(&error) => None,
            (Err(error), Some(_)) => {
                log::warn!("cannot open {shown}: {error}; responding 503 until the directory is back");
                Some(None)
            }
            (Err(_), None) => None,
        };
        if replaced.is_some() || reload {
            self.generation.fetch_add(1, Ordering::Release);
        }
        let old = replaced.map(|new| std::mem::replace(&mut *root, new));
        drop(root);
        drop(old);
        let mut check = lock(&self.check);
        (check.checked_at, check.is_running) = (now, false);
        let waiting = std::mem::take(&mut check.waiting);
        drop(check);
        for (responder, ()) in waiting.into_iter() {
            responder.resume(Resolved);
        }
    }

    /// Returns whether the request was suspended by [`Site::fill_page_cache`] before, or may read from disk anyway.
    pub(super) fn page_cache_is_filled(head: &RequestHead<'_>) -> bool {
        head.extension::<PageCacheFilled>().is_some()
    }

    /// Allows the look-up of a request to read from disk.
    pub(super) fn allow_reading(head: &RequestHead<'_>) {
        head.insert(PageCacheFilled);
    }

    /// Reads the beginning of a file into the page cache on another thread. Returns the response that suspends the
    /// request until that is done.
    pub(super) fn fill_page_cache(&self, file: File) -> Response {
        let start = || {
            Pool::new(READERS, READS_QUEUED_MAX)
                .inspect_err(|error| log::error!("cannot start the threads that read files: {error}"))
                .ok()
        };
        let (response, responder) = Response::suspend();
        let read = move || {
            if !responder.is_closed() {
                read_into_page_cache(&file);
                responder.resume(PageCacheFilled);
            }
        };
        let queued = self.readers.get_or_init(start).as_ref().map(|pool| pool.run(read));
        if matches!(queued, Some(Ok(()))) {
            return response;
        }
        // Before the work, so that its responder finds the exchange closed.
        drop(response);
        status_response(StatusCode::SERVICE_UNAVAILABLE, false)
    }

    /// Records that a file or an entry of the directory was served.
    pub(super) fn set_populated(&self) {
        self.was_populated.store(true, Ordering::Relaxed);
    }

    /// Returns whether the root, which is empty now, is probably being rebuilt: a deployment empties it before it fills
    /// it again, and an empty listing in between would look like success.
    pub(super) fn is_rebuilt(&self, root: &Root) -> bool {
        let modified = root.metadata(Path::new("")).and_then(|metadata| metadata.modified());
        self.was_populated.load(Ordering::Relaxed)
            && modified.is_ok_and(|time| time.into_std().elapsed().map_or(true, |age| age < REBUILD_TIME))
    }

    /// Logs why a path could not be served, once per path. If several are requested at a time, the others are logged when
    /// they are requested again.
    pub(super) fn report(&self, path: &str, reason: &dyn fmt::Display) {
        let (mut reported, now) = (lock(&self.reported), Instant::now());
        let is_too_early = reported.last.is_some_and(|last| now.duration_since(last) < REPORT_INTERVAL);
        if is_too_early || reported.paths.iter().any(|known| known == path) {
            return;
        }
        if reported.paths.len() == REPORTED_MAX {
            reported.paths.pop_front();
        }
        reported.paths.push_back(path.to_owned());
        reported.last = Some(now);
        drop(reported);
        log::warn!("{path}: {reason}");
    }
}

/// Main loop of the thread of a site; ends when the site is dropped.
fn run_tasks(tasks: &mpsc::Receiver<Task>) {
    let mut watched: Vec<Weak<OpenFiles>> = Vec::new();
    let mut close_at = Instant::now();
    loop {
        let task = if watched.is_empty() {
            tasks.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        } else {
            tasks.recv_timeout(close_at.saturating_duration_since(Instant::now()))
        };
        match task {
            Ok(Task::Resolve { site, now, reload }) => site.resolve(now, reload),
            Ok(Task::Watch(files)) => {
                if watched.is_empty() {
                    close_at = Instant::now() + CLOSE_INTERVAL;
                }
                watched.push(files);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        if Instant::now() >= close_at {
            watched.retain(|files| files.upgrade().is_some_and(|files| files.close_unused(unix_time())));
            close_at = Instant::now() + CLOSE_INTERVAL;
        }
    }
}
