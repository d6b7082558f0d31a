//! The handler: finds the file, listing, redirect or error for a request.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::StatusCode;

use super::cache::Cache;
use super::cached_file::{CachedFile, LoadError, Loader, Representation};
use super::errors::{error_response, is_escape, is_not_found, is_out_of_fds, status_for, status_response, wants_page};
use super::listing::Lister;
use super::media;
use super::options::Options;
use super::path::{self, Target};
use super::precompressed::Precompressed;
use super::root::{FileKind, Root};
use super::site::Site;
use crate::httpserver::{BodyMode, Handler, Request, RequestHead, Response};

/// The value of the Allow header.
const ALLOW: &str = "GET, HEAD, OPTIONS";

/// Extension that is omitted with [`Options::clean_urls`].
const PAGE_EXTENSION: &str = ".html";

/// Cache key of the single-page app page. A key of its own, as the page may be kept after its file was removed. NUL
/// cannot occur in a path.
const SPA_PAGE_KEY: &str = "\0spa";

/// A static file server: a [`Handler`] that serves a directory, alone or mounted in a [`Router`](crate::Router).
///
/// Clones serve the same directory, each with its own file cache: use one per worker. If the directory is replaced, or a
/// symbolic link in its path is switched, the new one is served within a second or two. While there is none, the
/// response is 503. Files that are not requested for ten seconds are closed.
///
/// # Examples
/// ```no_run
/// use serverd::{Files, HttpServer, Poller, SelectLoop};
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
    options: Arc<Options>,
    cache: Cache,
    lister: Arc<Lister>,
    /// True if the page of the single-page app could not be read, and that was logged.
    spa_page_is_broken: bool,
}

impl Clone for Files {
    fn clone(&self) -> Self {
        let (root, generation) = self.site.current();
        Files {
            site: Arc::clone(&self.site),
            root,
            generation,
            options: Arc::clone(&self.options),
            cache: self.cache.new_like(),
            lister: Arc::clone(&self.lister),
            spa_page_is_broken: false,
        }
    }
}

/// The result of resolving a path.
enum Resolved {
    /// A file, as a path relative to the root.
    File(PathBuf),
    /// A directory without an index file.
    Directory,
    /// A directory requested without its trailing slash.
    Redirect,
    /// A page requested with its extension, which is redirected to this name in the same directory.
    CleanUrl(String),
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
        let options = Arc::new(options);
        let site = Arc::new(Site::open(std::path::absolute(directory)?, Arc::clone(&options))?);
        let (root, generation) = site.current();
        let cache = Cache::new(options.cache_bytes_max, options.open_files_max);
        Ok(Files { site, root, generation, options, cache, lister: Arc::default(), spa_page_is_broken: false })
    }

    /// Returns a function that makes this file server and its clones resolve the path of the directory again and compare
    /// every cached file with the file system. It returns at once and may be called on any thread, for example when a
    /// configuration is reloaded.
    pub fn reloader(&self) -> impl Fn() + Send + Sync + 'static {
        let site = Arc::clone(&self.site);
        move || site.reload()
    }

    /// Checks that the page of the single-page app ([`Options::spa`]), if there is one, can be read.
    ///
    /// # Errors
    /// Returns the error of opening or reading it.
    pub fn check_spa_page(&self) -> io::Result<()> {
        match (&self.options.spa, &self.root) {
            (Some(page), Some(root)) => root.open_file(page.as_ref()).map(drop),
            _ => Ok(()),
        }
    }

    /// Responds to GET or HEAD. The first lines are the fast path.
    #[inline]
    fn get(&mut self, head: &RequestHead<'_>) -> Response {
        if let Some(file) = self.cache.fresh_small(head.path_below_mount_bytes(), head.unix_time())
            && !file.representation.varies()
        {
            return file.respond(head);
        }
        self.get_outlined(head)
    }

    fn get_outlined(&mut self, head: &RequestHead<'_>) -> Response {
        if let Some(file) = self.cache.fresh(head.path_below_mount_bytes(), head.unix_time())
            && !file.representation.varies()
        {
            return file.respond(head);
        }
        if let Some(suspended) = self.site.refresh(head) {
            return suspended;
        }
        if self.generation != self.site.generation() {
            (self.root, self.generation) = self.site.current();
            self.cache.clear();
        }
        let Some(root) = self.root.clone() else {
            return status_response(StatusCode::SERVICE_UNAVAILABLE, wants_page(head)).header("Vary", self.vary());
        };
        let mut response = self.look_up(head, &root);
        if matches!(&response, Err(LoadError::Io(error)) if is_out_of_fds(error)) {
            // Cached open files hold descriptors: close them and retry.
            self.cache.close_files();
            response = self.look_up(head, &root);
        }
        let error = match response {
            Ok(response) => return response,
            Err(LoadError::Cold(file)) => return self.site.fill_page_cache(file),
            Err(LoadError::Io(error)) => error,
        };
        if is_escape(&error) {
            self.site.report_escape(head.path());
        }
        match self.fallback(head, &root, &error) {
            Ok(Some(response)) => response,
            Ok(None) => error_response(head.path(), &error, wants_page(head)).header("Vary", self.vary()),
            Err(LoadError::Cold(file)) => self.site.fill_page_cache(file),
            Err(LoadError::Io(error)) => error_response(head.path(), &error, wants_page(head)),
        }
    }

    /// Consults the file system, or chooses a representation.
    fn look_up(&mut self, head: &RequestHead<'_>, root: &Arc<Root>) -> Result<Response, LoadError> {
        let target = Target::parse(head.path_below_mount(), self.options.hidden)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let path = target.canonical();
        // The cache may hold the path in its canonical spelling.
        if self.cache.fresh(path.as_bytes(), head.unix_time()).is_none() {
            match self.resolve(root, &target)? {
                Resolved::File(relative) => {
                    let representation = self.identity(root, relative);
                    self.load_cached(head, root, path.as_bytes(), representation)?;
                    self.site.set_populated();
                }
                Resolved::Directory if self.options.listing => {
                    return Ok(self.lister.list(&self.site, root, head, target.relative));
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
        self.negotiate(head, root, &path)
    }

    /// Responds with the cached file at `path`, or with the precompressed sibling that the client prefers.
    fn negotiate(&mut self, head: &RequestHead<'_>, root: &Root, path: &str) -> Result<Response, LoadError> {
        let now = head.unix_time();
        let evicted = || LoadError::from(io::Error::from(io::ErrorKind::NotFound));
        let file = self.cache.get(path.as_bytes(), now).ok_or_else(evicted)?;
        let Some(representation) = file.for_client(head) else { return Ok(file.respond(head)) };
        // NUL cannot occur in a path, so this key is unique.
        let key = format!("{path}\0{}", representation.coding_name());
        if self.cache.fresh(key.as_bytes(), now).is_none() {
            match self.load_cached(head, root, key.as_bytes(), representation) {
                Ok(()) => {}
                Err(LoadError::Io(error)) => {
                    log::debug!("cannot read precompressed sibling of {path}: {error}; sending the file uncompressed");
                    return Ok(self.cache.get(path.as_bytes(), now).ok_or_else(evicted)?.respond(head));
                }
                Err(cold) => return Err(cold),
            }
        }
        Ok(self.cache.get(key.as_bytes(), now).ok_or_else(evicted)?.respond(head))
    }

    /// Returns the identity representation of a file.
    fn identity(&self, root: &Root, relative: PathBuf) -> Representation {
        let precompressed =
            if self.options.precompressed { Precompressed::find(root, &relative) } else { Precompressed::default() };
        Representation::identity(relative, precompressed)
    }

    fn resolve(&self, root: &Root, target: &Target) -> io::Result<Resolved> {
        if self.options.clean_urls && !target.slash {
            return self.resolve_clean_url(root, target);
        }
        match root.kind(&target.relative)? {
            FileKind::File if target.slash => Err(io::ErrorKind::NotFound.into()),
            FileKind::File => Ok(Resolved::File(target.relative.clone())),
            FileKind::Directory if target.slash => {
                Ok(self.index(root, &target.relative)?.map_or(Resolved::Directory, Resolved::File))
            }
            FileKind::Directory => Ok(Resolved::Redirect),
        }
    }

    /// Resolves a path without a trailing slash: to the file of this name, its page `NAME.html`, or the directory, in
    /// this order.
    fn resolve_clean_url(&self, root: &Root, target: &Target) -> io::Result<Resolved> {
        let exact = root.kind(&target.relative);
        if let Ok(FileKind::File) = exact {
            let clean = self.clean_name(root, &target.relative);
            return Ok(clean.map_or_else(|| Resolved::File(target.relative.clone()), Resolved::CleanUrl));
        }
        if target.relative.file_name().is_some() {
            let mut page = target.relative.clone().into_os_string();
            page.push(PAGE_EXTENSION);
            if let Ok(FileKind::File) = root.kind(page.as_ref()) {
                return Ok(Resolved::File(page.into()));
            }
        }
        exact.map(|_| Resolved::Redirect)
    }

    /// Returns the name of a page without its extension, unless it would lead to another file; empty for an index file.
    fn clean_name(&self, root: &Root, relative: &Path) -> Option<String> {
        let name = relative.file_name()?.to_str()?;
        let stem = name.strip_suffix(PAGE_EXTENSION).filter(|stem| !stem.is_empty())?;
        if self.index(root, relative.parent()?).ok()?.is_some_and(|index| index == relative) {
            return Some(String::new());
        }
        let is_taken = matches!(root.kind(&relative.with_file_name(stem)), Ok(FileKind::File));
        let clean = path::canonical(Path::new(stem));
        (!is_taken).then(|| clean.trim_start_matches('/').to_owned())
    }

    /// Returns the first index file that exists in `directory`.
    fn index(&self, root: &Root, directory: &Path) -> io::Result<Option<PathBuf>> {
        for name in &self.options.index {
            let index = directory.join(name);
            match root.kind(&index) {
                Ok(FileKind::File) => return Ok(Some(index)),
                Ok(FileKind::Directory) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Returns the request headers that the choice of an error response depends on.
    fn vary(&self) -> &'static str {
        if self.options.spa.is_some() { "Accept, Sec-Fetch-Dest" } else { "Accept" }
    }

    fn loader<'a>(&'a self, head: &RequestHead<'_>, root: &'a Root) -> Loader<'a> {
        let may_block = Site::page_cache_is_filled(head);
        Loader { root, options: &self.options, history: &self.site.history, now: head.unix_time(), may_block }
    }

    /// Caches a file: reuses the cached one if it is still current, and loads the file otherwise.
    fn load_cached(
        &mut self,
        head: &RequestHead<'_>,
        root: &Root,
        key: &[u8],
        representation: Representation,
    ) -> Result<(), LoadError> {
        let mut stale = self.cache.take(key);
        let loader = self.loader(head, root);
        let is_current = stale.as_mut().is_some_and(|stale| stale.revalidate(&loader, &representation));
        let file = match stale {
            Some(file) if is_current => file,
            _ => CachedFile::load(&loader, representation)?,
        };
        self.put(head, key, file);
        Ok(())
    }

    fn put(&mut self, head: &RequestHead<'_>, key: &[u8], file: CachedFile) {
        if let Some(files) = self.cache.put(key, file, head.unix_time()) {
            self.site.watch(files);
        }
    }

    /// Responds with the page of the single-page app or a custom error page, if there is one for this error.
    fn fallback(
        &mut self,
        head: &RequestHead<'_>,
        root: &Root,
        error: &io::Error,
    ) -> Result<Option<Response>, LoadError> {
        let status = status_for(error);
        if status == StatusCode::NOT_FOUND
            && let Some(page) = self.options.spa.clone()
            && is_page_request(head)
        {
            return self.spa_page(head, root, page.into()).map(Some);
        }
        // Missing scripts and API calls get the plain error.
        if !wants_page(head) {
            return Ok(None);
        }
        let names: &[&str] = match status {
            StatusCode::NOT_FOUND => &["404.html"],
            StatusCode::FORBIDDEN => &["403.html"],
            StatusCode::INTERNAL_SERVER_ERROR => &["500.html", "50x.html"],
            StatusCode::SERVICE_UNAVAILABLE => &["503.html", "50x.html"],
            _ => &[],
        };
        for name in names {
            match self.error_page(head, root, name, status) {
                Err(LoadError::Io(_)) => {}
                outcome => return outcome.map(Some),
            }
        }
        Ok(None)
    }

    /// Responds with a custom error page, such as `404.html` in the served directory.
    fn error_page(
        &mut self,
        head: &RequestHead<'_>,
        root: &Root,
        name: &str,
        status: StatusCode,
    ) -> Result<Response, LoadError> {
        // A separate cache key: without precompressed siblings, the representation differs from that at the path of
        // the page. NUL cannot occur in a path.
        let (key, now) = (format!("\0{name}").into_bytes(), head.unix_time());
        if self.cache.fresh(&key, now).is_none() {
            self.load_cached(head, root, &key, Representation::identity(name.into(), Precompressed::default()))?;
        }
        let vary = self.vary();
        let page = self.cache.get(&key, now).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let response = page.respond_as_error(status).header("Vary", vary);
        Ok(if status == StatusCode::SERVICE_UNAVAILABLE { response.header("Retry-After", "1") } else { response })
    }

    /// Responds with the single-page app page, whatever the request path.
    fn spa_page(&mut self, head: &RequestHead<'_>, root: &Root, relative: PathBuf) -> Result<Response, LoadError> {
        if self.cache.fresh(SPA_PAGE_KEY.as_bytes(), head.unix_time()).is_none() {
            let representation = self.identity(root, relative);
            self.load_spa_page(head, root, SPA_PAGE_KEY.as_bytes(), representation)?;
        }
        self.negotiate(head, root, SPA_PAGE_KEY).map(|response| response.header("Vary", self.vary()))
    }

    /// Caches the single-page app page. If the file has become empty or cannot be read any more, keeps the cached page.
    fn load_spa_page(
        &mut self,
        head: &RequestHead<'_>,
        root: &Root,
        key: &[u8],
        representation: Representation,
    ) -> Result<(), LoadError> {
        let stale = self.cache.take(key);
        let loader = self.loader(head, root);
        let Some(mut previous) = stale else {
            let page = CachedFile::load(&loader, representation);
            if let Err(LoadError::Io(error)) = &page {
                self.report_spa_page(&error.to_string());
            }
            let page = page?;
            self.spa_page_is_broken = false;
            self.put(head, key, page);
            return Ok(());
        };
        let problem = if previous.revalidate(&loader, &representation) {
            None
        } else {
            match CachedFile::load(&loader, representation) {
                Ok(page) if page.is_empty() => Some("it is empty".to_owned()),
                Ok(page) => {
                    previous = page;
                    self.spa_page_is_broken = false;
                    None
                }
                Err(LoadError::Io(error)) => Some(error.to_string()),
                Err(cold) => {
                    self.put(head, key, previous);
                    return Err(cold);
                }
            }
        };
        if let Some(problem) = problem {
            previous.set_validated(&self.loader(head, root));
            self.report_spa_page(&format!("{problem}; the previous one is served"));
        }
        self.put(head, key, previous);
        Ok(())
    }

    /// Logs that the single-page app page cannot be read, once until it can be read again.
    fn report_spa_page(&mut self, problem: &str) {
        if !std::mem::replace(&mut self.spa_page_is_broken, true) {
            log::error!("cannot read the --spa page: {problem}");
        }
    }
}

/// Returns whether a request is for a page rather than for a resource of a page or an API. Link previews, monitors and
/// crawlers accept anything; browsers name `text/html`, and newer ones send Sec-Fetch-Dest.
fn is_page_request(head: &RequestHead<'_>) -> bool {
    let destination = head.header("sec-fetch-dest").unwrap_or(b"document");
    if ![&b"document"[..], b"iframe", b"frame"].contains(&destination) || head.weight_of("text/html") == 0 {
        return false;
    }
    let is_api_request = || head.names_media_type("application/json");
    let is_resource = || media::is_resource(last_segment(head.path()).as_ref());
    head.names_media_type("text/html") || !is_api_request() && !is_resource()
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
        match request.method_bytes() {
            b"GET" | b"HEAD" => self.get(&request.head()),
            method => method_response(method),
        }
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
/// query. The reference begins with `./`, so that a colon does not end a scheme and a slash does not begin a host.
fn redirect(head: &RequestHead<'_>, status: StatusCode, mut location: String) -> Response {
    if let Some(query) = head.query() {
        location.push('?');
        location.push_str(query);
    }
    Response::new(status).header("Location", location)
}

/// Returns the last segment of a path in its canonical spelling.
fn last_segment(path: &str) -> String {
    path::canonical_segment(path.rsplit('/').next().unwrap_or_default())
}
