//! The handler: finds the file, listing, redirect or error for a request.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
#[cfg(feature = "testing")]
use std::time::Duration;

use http::StatusCode;

use super::cache::{self, Cache, CacheMetrics};
use super::cached_file::{LoadError, Loader, SMALL_BYTES_MAX};
use super::fallback::{Pages, error_response, is_unexpected, status_response, vary, wants_page};
use super::listing::{Lister, ListingFailed};
use super::look_ups::{InProgress, Waited, Waiting};
use super::options::Options;
use super::path::{Resolved, Target, last_segment};
use super::root::{Root, is_escape, is_out_of_fds};
use super::site::{Site, unix_time};
use crate::httpserver::{BodyMode, DetachedHead, Handler, Pool, QueuedResponder, Request, RequestHead, Response};
use crate::r#loop::lock;

/// The value of the Allow header.
const ALLOW: &str = "GET, HEAD, OPTIONS";

/// A static file server: a [`Handler`] that serves a directory, alone or mounted in a [`Router`](crate::Router).
///
/// Clones serve the same directory, each with its own file cache: use one per worker. If the directory is replaced, or
/// a symbolic link in its path is switched, the new one is served within a second or two. While there is none, the
/// response is 503. Files that are not requested for ten seconds are closed.
///
/// # Examples
/// ```no_run
/// use serverd::{Files, HttpServer, SelectLoop};
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:8888")?;
/// SelectLoop::new(listener, None, HttpServer::with(Files::new("public")?))?.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Files {
    site: Arc<Site>,
    /// The directory of this generation; `None` while it cannot be opened.
    root: Option<Arc<Root>>,
    generation: u64,
    cache: Cache,
    pages: Pages,
    lister: Arc<Lister>,
    waiting: Waiting,
    metrics: Option<Arc<CacheMetrics>>,
}

impl Clone for Files {
    fn clone(&self) -> Self {
        let (root, generation) = self.site.current();
        Files {
            site: Arc::clone(&self.site),
            root,
            generation,
            cache: self.cache.new_like(),
            pages: Pages::new(self.site.watcher()),
            lister: Arc::clone(&self.lister),
            waiting: Waiting::default(),
            metrics: None,
        }
    }
}

impl Files {
    /// Creates a file server for `directory` with the default [`Options`].
    ///
    /// # Errors
    /// Returns an error if the directory cannot be opened.
    pub fn new(directory: impl AsRef<Path>) -> io::Result<Self> {
        Files::with_options(directory, Options::default())
    }

    /// Creates a file server for `directory` with `options`.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be opened.
    pub fn with_options(directory: impl AsRef<Path>, mut options: Options) -> io::Result<Self> {
        for path in &mut options.private {
            *path = std::path::absolute(&path)?;
        }
        let site = Arc::new(Site::open(std::path::absolute(directory)?, Arc::new(options))?);
        let (root, generation) = site.current();
        let cache = Cache::new(site.options.cache_bytes_max, site.options.open_files_max, site.watcher());
        let pages = Pages::new(site.watcher());
        let (lister, waiting) = (Arc::default(), Waiting::default());
        Ok(Files { site, root, generation, cache, pages, lister, waiting, metrics: None })
    }

    /// Returns a function that makes this file server and its clones resolve the path of the directory again and
    /// compare every cached file with the file system. It returns at once and may be called on any thread, for example
    /// when a configuration is reloaded.
    pub fn reloader(&self) -> impl Fn() + Send + Sync + 'static {
        let site = Arc::clone(&self.site);
        move || site.reload()
    }

    /// Calls `hook` before each look-up in the file system and each listing of this file server and its clones, on the
    /// thread that makes it: for tests with a slow file system. A look-up counts as having taken the time that the hook
    /// returns, however long it took. Only the first hook is used.
    #[cfg(feature = "testing")]
    pub fn before_look_up(&self, hook: impl Fn() -> Duration + Send + Sync + 'static) {
        self.site.look_ups.set_hook(hook);
    }

    /// Checks that the page of the single-page app ([`Options::spa`]), if there is one, can be read.
    ///
    /// # Errors
    /// Returns the error of opening or reading it.
    pub fn check_spa_page(&self) -> io::Result<()> {
        match (&self.site.options.spa, &self.root) {
            (Some(page), Some(root)) => root.open_file(page.as_ref()).map(drop),
            _ => Ok(()),
        }
    }

    #[inline]
    fn respond<const COUNTED: bool>(&mut self, request: &Request<'_>) -> Response {
        match request.method_bytes() {
            b"GET" | b"HEAD" => self.get::<COUNTED>(&request.head()),
            method => method_response(method),
        }
    }

    /// Responds to GET or HEAD. The first lines are the fast path. `COUNTED`: there are metrics.
    #[inline]
    fn get<const COUNTED: bool>(&mut self, head: &RequestHead<'_>) -> Response {
        if let Some(file) = self.cache.fresh_small(head.path_below_mount_bytes(), head.unix_time())
            && !file.representation.varies()
        {
            if COUNTED && let Some(metrics) = &self.metrics {
                metrics.hits.add(1);
            }
            return file.respond(head);
        }
        self.get_outlined(head)
    }

    fn get_outlined(&mut self, head: &RequestHead<'_>) -> Response {
        let response = self.get_checked(head);
        if let Some(metrics) = &self.metrics {
            self.cache.publish(metrics);
        }
        response
    }

    /// Responds to a request that needs more than one look at the cache.
    fn get_checked(&mut self, head: &RequestHead<'_>) -> Response {
        if let Some(LookedUp(found)) = head.extension()
            && let Some(found) = lock(&found).take()
        {
            return self.absorb(head, found);
        }
        if let Some(file) = self.cache.fresh(head.path_below_mount_bytes(), head.unix_time())
            && !file.representation.varies()
        {
            let response = file.respond(head);
            self.cache.count_hit();
            return response;
        }
        if let Some(suspended) = self.site.refresh(head) {
            return suspended;
        }
        if self.generation != self.site.generation() {
            self.follow_site();
        }
        let Some(root) = self.root.clone().filter(|_| head.extension::<Refused>().is_none()) else {
            let response = status_response(StatusCode::SERVICE_UNAVAILABLE, wants_page(head));
            return response.header("Vary", vary(&self.site.options));
        };
        let failed: Option<ListingFailed> = head.extension();
        if failed.is_none()
            && let Some(target) = Target::parse(head.path_below_mount(), self.site.options.hidden)
            && let Some(response) = self.cache.fresh_response(head, &target.canonical())
        {
            return response;
        }
        let site = Arc::clone(&self.site);
        match site.look_ups.pool_if_slow() {
            Some(pool) => self.find_later(head, root, failed, pool),
            None => site.look_ups.measure(|| self.find(head, &root, failed)),
        }
    }

    /// Consults the file system, and responds.
    fn find(&mut self, head: &RequestHead<'_>, root: &Arc<Root>, failed: Option<ListingFailed>) -> Response {
        if let Some(ListingFailed(error)) = failed {
            return self.respond_to_error(head, root, &error);
        }
        let mut response = self.look_up(head, root);
        if matches!(&response, Err(LoadError::Io(error)) if is_out_of_fds(error)) {
            // Cached open files hold descriptors: close them and retry.
            self.cache.close_files();
            self.pages.close_files();
            response = self.look_up(head, root);
        }
        match response {
            Ok(response) => response,
            Err(LoadError::Cold(file)) => self.site.fill_page_cache(file),
            Err(LoadError::Io(error)) => self.respond_to_error(head, root, &error),
        }
    }

    /// Suspends a request until a thread of the pool has consulted the file system, or a look-up of the same path in
    /// progress has ended.
    fn find_later(
        &mut self,
        head: &RequestHead<'_>,
        root: Arc<Root>,
        failed: Option<ListingFailed>,
        pool: &Pool,
    ) -> Response {
        let (path, client) = (head.path_below_mount_bytes(), head.client());
        let (response, mut responder) = Response::suspend();
        let mut in_progress = None;
        // Without a cache, every request consults the file system after it has arrived.
        if self.site.options.cache_bytes_max > 0 && failed.is_none() {
            let waits = head.extension().map_or(0, |Waited(waits)| waits);
            responder = match self.waiting.join(path, client, responder, waits) {
                Ok(()) => return response,
                Err(responder) => responder,
            };
            in_progress = self.waiting.queue(path, client);
        }
        let files = Files {
            site: Arc::clone(&self.site),
            root: Some(Arc::clone(&root)),
            generation: self.generation,
            cache: self.cache.for_look_up(&self.cache_keys(head)),
            pages: self.pages.for_look_up(),
            lister: Arc::clone(&self.lister),
            waiting: Waiting::default(),
            metrics: None,
        };
        let queued = QueuedResponder::new(responder, |responder| responder.resume(Refused));
        let look_up = LookUp { files, root, head: head.detach(client), failed, queued, in_progress };
        pool.run_for(client, move || look_up.run());
        response
    }

    /// Returns the keys of the cached files that a request may be answered with.
    fn cache_keys(&self, head: &RequestHead<'_>) -> Vec<Box<[u8]>> {
        let target = Target::parse(head.path_below_mount(), self.site.options.hidden);
        target.map(|target| cache::keys(&target.canonical())).unwrap_or_default()
    }

    /// Takes over what another thread has found.
    fn absorb(&mut self, head: &RequestHead<'_>, found: Found) -> Response {
        let Found { response, files, begun_at } = found;
        if files.generation == self.generation {
            self.cache.absorb(files.cache, &self.cache_keys(head), begun_at, head.unix_time());
            self.pages.absorb(files.pages, begun_at, head.unix_time());
        }
        response
    }

    /// Drops what was cached before the directory was replaced or reloaded.
    fn follow_site(&mut self) {
        let (root, generation) = self.site.current();
        let is_same = matches!((&root, &self.root), (Some(new), Some(old)) if Arc::ptr_eq(new, old));
        (self.root, self.generation) = (root, generation);
        self.cache.clear();
        if is_same {
            self.pages.expire();
        } else {
            self.pages.clear();
        }
    }

    fn respond_to_error(&mut self, head: &RequestHead<'_>, root: &Root, error: &io::Error) -> Response {
        if is_escape(error) {
            let reason = "refused a symbolic link that leads out of the directory (see --follow-symlinks)";
            self.site.report(head.path(), &reason);
        } else if is_unexpected(error) {
            self.site.report(head.path(), error);
        }
        match self.pages.respond(head, &loader(&self.site, root, head), error) {
            Ok(Some(response)) => response,
            Err(LoadError::Cold(file)) => self.site.fill_page_cache(file),
            Ok(None) | Err(LoadError::Io(_)) => {
                error_response(head.path(), error, wants_page(head)).header("Vary", vary(&self.site.options))
            }
        }
    }

    /// Consults the file system, or chooses a representation.
    fn look_up(&mut self, head: &RequestHead<'_>, root: &Arc<Root>) -> Result<Response, LoadError> {
        let target = Target::parse(head.path_below_mount(), self.site.options.hidden)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let (path, loader) = (target.canonical(), loader(&self.site, root, head));
        // The cache may hold the path in its canonical spelling.
        if self.cache.fresh(path.as_bytes(), head.unix_time()).is_none() {
            match target.resolve(root, &self.site.options)? {
                Resolved::File(relative) => {
                    let representation = loader.identity(relative);
                    self.cache.load(&loader, path.as_bytes(), representation)?;
                    self.site.set_populated();
                }
                Resolved::Directory if self.site.options.listing => {
                    return Ok(self.lister.list(&self.site, root, head, target.relative)?);
                }
                Resolved::Directory => return Err(io::Error::from(io::ErrorKind::NotFound).into()),
                Resolved::Redirect => {
                    let location = format!("./{}/", last_segment(head.path()));
                    return Ok(redirect(head, StatusCode::MOVED_PERMANENTLY, location));
                }
                Resolved::CleanUrl(name) => {
                    return Ok(redirect(head, StatusCode::PERMANENT_REDIRECT, format!("./{name}")));
                }
            }
        }
        self.cache.negotiate(head, &loader, &path)
    }
}

/// Attached to a request for which another thread has consulted the file system.
#[derive(Clone)]
struct LookedUp(Arc<Mutex<Option<Found>>>);

struct Found {
    response: Response,
    /// The file server of the other thread, with the files that it has loaded or validated since `begun_at`.
    files: Files,
    begun_at: u64,
}

/// Attached to a request that was suspended, but whose look-up is dropped because too many are queued.
#[derive(Clone)]
struct Refused;

/// A look-up on another thread.
struct LookUp {
    files: Files,
    root: Arc<Root>,
    head: DetachedHead,
    failed: Option<ListingFailed>,
    queued: QueuedResponder,
    in_progress: Option<InProgress>,
}

impl LookUp {
    fn run(self) {
        let LookUp { mut files, root, head, failed, queued, in_progress } = self;
        let Some(responder) = queued.start() else { return };
        if let Some(in_progress) = &in_progress {
            in_progress.begin();
        }
        let begun_at = unix_time();
        let site = Arc::clone(&files.site);
        let find = |head: &RequestHead<'_>| {
            Site::allow_reading(head);
            site.look_ups.measure(|| files.find(head, &root, failed))
        };
        let response = head.with(begun_at, find);
        responder.resume(LookedUp(Arc::new(Mutex::new(Some(Found { response, files, begun_at })))));
        // Resumes the other requests after the one whose worker puts the file into its cache.
        drop(in_progress);
    }
}

impl Handler for Files {
    /// Rejects unsupported methods on the head alone, without waiting for the body.
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        match head.method_bytes() {
            b"GET" | b"HEAD" | b"OPTIONS" => BodyMode::Discard,
            method => BodyMode::Reject(method_response(method)),
        }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        self.respond::<false>(request)
    }
}

/// A file server with metrics of its cache. A type of its own, so that requests to others do not look for metrics.
#[cfg(feature = "cli")]
pub(crate) struct CountedFiles(Files);

#[cfg(feature = "cli")]
impl CountedFiles {
    pub(crate) fn new(mut files: Files, metrics: &Arc<CacheMetrics>) -> Self {
        files.cache.begin_metrics(metrics);
        files.metrics = Some(Arc::clone(metrics));
        CountedFiles(files)
    }
}

#[cfg(feature = "cli")]
impl Handler for CountedFiles {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        self.0.head(head)
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        self.0.respond::<true>(request)
    }
}

/// Returns the parameters for loading the file of a request.
fn loader<'a>(site: &'a Site, root: &'a Root, head: &RequestHead<'_>) -> Loader<'a> {
    Loader {
        root,
        options: &site.options,
        history: &site.history,
        now: head.unix_time(),
        memory_bytes_max: SMALL_BYTES_MAX,
        may_block: Site::page_cache_is_filled(head),
    }
}

fn method_response(method: &[u8]) -> Response {
    match method {
        b"OPTIONS" => Response::new(StatusCode::NO_CONTENT).header("Allow", ALLOW),
        b"POST" | b"PUT" | b"PATCH" | b"DELETE" | b"TRACE" | b"CONNECT" => {
            let text = "read-only: method not allowed\n";
            Response::error(StatusCode::METHOD_NOT_ALLOWED, text).header("Allow", ALLOW)
        }
        _ => Response::error(StatusCode::NOT_IMPLEMENTED, "method not implemented\n"),
    }
}

/// Redirects to a relative reference, which is right behind a proxy that changes the prefix of the path, and keeps the
/// query. The reference begins with `./`, so that a colon is not taken for the end of a scheme, nor a slash for the
/// beginning of a host.
fn redirect(head: &RequestHead<'_>, status: StatusCode, mut location: String) -> Response {
    if let Some(query) = head.query() {
        location.push('?');
        location.push_str(query);
    }
    Response::new(status).header("Location", location)
}
