//! `serverd files`: a static file server.
//!
//! ```text
//! path.rs             request path -> path relative to the root
//! root.rs             relative path -> open file; confines every lookup to the root
//! cached_file.rs      open file -> response
//!   validators.rs       ETag and Last-Modified
//!   media.rs            Content-Type
//!   conditions.rs       preconditions (If-Match, If-None-Match ...)
//!   ranges.rs           Range
//!   multipart.rs        several ranges in one response
//!   small_file.rs       small files held in memory
//!   precompressed.rs    precompressed siblings (.br, .zst, .gz)
//!   cache_control.rs    Cache-Control
//! cache.rs            LRU cache: request path -> file
//! fallback.rs         single-page app fallback and custom error pages
//! listing/            directory listings
//! ```

mod cache;
mod cache_control;
mod cached_file;
mod conditions;
mod fallback;
mod listing;
mod media;
mod multipart;
mod path;
mod precompressed;
mod ranges;
mod root;
mod small_file;
mod validators;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::StatusCode;

use self::cache::Cache;
pub use self::cache_control::CacheControl;
use self::cached_file::{CachedFile, Representation};
use self::listing::Lister;
use self::path::Target;
use self::precompressed::Precompressed;
use self::root::{FileKind, Root};
use crate::httpserver::{BodyMode, Handler, Request, RequestHead, Response};

/// The value of the Allow header.
const ALLOW: &str = "GET, HEAD, OPTIONS";

/// Options for serving a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "independent options")]
#[non_exhaustive]
pub struct Options {
    /// Index files, in order of preference. Default: `index.html`.
    pub index: Vec<String>,
    /// Serves hidden files: names that begin with a dot and, on Windows, files with the hidden attribute. Default:
    /// false.
    pub hidden: bool,
    /// Follows symbolic links that lead out of the directory. Default: false.
    pub follow_symlinks: bool,
    /// Lists directories that have no index file: as HTML, or as JSON if requested by Accept or `?format=json`.
    /// Default: true.
    pub listing: bool,
    /// The file to serve for page requests (`Accept: text/html`) that match no file, for single-page apps: a path
    /// relative to the directory. Default: none.
    pub spa: Option<String>,
    /// The Cache-Control policy. Default: `no-cache`.
    pub cache_control: CacheControl,
    /// Serves `app.js.br`, `app.js.zst` or `app.js.gz` in place of `app.js` to clients that accept the coding. Default:
    /// true.
    pub precompressed: bool,
    /// Maximum total size in bytes of the small files (up to 32 KiB each) that each worker holds in memory. Default:
    /// 16 MiB.
    pub cache_bytes_max: usize,
    /// Maximum number of larger files that each worker keeps open. Default: 256.
    pub open_files_max: usize,
}

impl Options {
    optional_setters! {
        spa: String,
    }

    setters! {
        index: Vec<String>,
        hidden: bool,
        follow_symlinks: bool,
        listing: bool,
        cache_control: CacheControl,
        precompressed: bool,
        cache_bytes_max: usize,
        open_files_max: usize,
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            index: vec!["index.html".into()],
            hidden: false,
            follow_symlinks: false,
            listing: true,
            spa: None,
            cache_control: CacheControl::default(),
            precompressed: true,
            cache_bytes_max: 16 << 20,
            open_files_max: 256,
        }
    }
}

/// A static file server: a [`Handler`] that serves a directory, alone or mounted in a [`Router`](crate::Router).
///
/// Clones serve the same directory, each with its own file cache: use one per worker.
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
    root: Arc<Root>,
    options: Arc<Options>,
    cache: Cache,
    lister: Arc<Lister>,
}

impl Clone for Files {
    fn clone(&self) -> Self {
        let (root, options, lister) = (Arc::clone(&self.root), Arc::clone(&self.options), Arc::clone(&self.lister));
        Files { root, options, cache: self.cache.new_like(), lister }
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
    pub fn with_options(directory: impl AsRef<Path>, options: Options) -> io::Result<Self> {
        let root = Root::open(directory.as_ref(), options.follow_symlinks, options.hidden)?;
        let cache = Cache::new(options.cache_bytes_max, options.open_files_max);
        Ok(Files { root: Arc::new(root), options: Arc::new(options), cache, lister: Arc::default() })
    }

    /// Responds to GET or HEAD.
    #[inline]
    fn get(&mut self, head: &RequestHead<'_>) -> Response {
        if let Some(entry) = self.cache.fresh(head.path_below_mount_bytes(), head.unix_time())
            && !entry.representation.varies()
        {
            return entry.respond(head);
        }
        let mut response = self.look_up(head);
        if response.as_ref().is_err_and(is_out_of_fds) {
            // Cached open files hold descriptors: close them and retry.
            self.cache.close_files();
            response = self.look_up(head);
        }
        // The fallback depends on whether the client asked for HTML.
        response.unwrap_or_else(|error| {
            let response = self.fallback(head, error).unwrap_or_else(|error| error_response(head.path(), &error));
            response.header("Vary", "Accept")
        })
    }

    /// The slow path of [`get`](Self::get): consults the file system, or chooses a representation.
    fn look_up(&mut self, head: &RequestHead<'_>) -> io::Result<Response> {
        let target = Target::parse(head.path_below_mount(), self.options.hidden).ok_or(io::ErrorKind::NotFound)?;
        let path = target.canonical();
        // The cache may hold the path in its canonical spelling.
        if self.cache.fresh(path.as_bytes(), head.unix_time()).is_none() {
            let stale = self.cache.take(path.as_bytes());
            match self.resolve(&target)? {
                Resolved::File(relative) => {
                    let representation = self.identity(relative);
                    self.load_cached(path.as_bytes(), representation, stale, head.unix_time())?;
                }
                Resolved::Directory if self.options.listing => return Ok(self.list(head, target.relative)),
                Resolved::Directory => return Err(io::ErrorKind::NotFound.into()),
                Resolved::Redirect => return Ok(redirect_to_directory(head, &path)),
            }
        }
        self.negotiate(head, &path)
    }

    /// Responds with the cached file at `path`, or with the precompressed sibling that the client prefers.
    fn negotiate(&mut self, head: &RequestHead<'_>, path: &str) -> io::Result<Response> {
        let now = head.unix_time();
        let entry = self.cache.fresh(path.as_bytes(), now).ok_or(io::ErrorKind::NotFound)?;
        let Some(representation) = entry.representation.for_client(head) else { return Ok(entry.respond(head)) };
        // NUL cannot occur in a path, so this key is unique.
        let key = format!("{path}\0{}", representation.coding_name());
        if self.cache.fresh(key.as_bytes(), now).is_none() {
            let stale = self.cache.take(key.as_bytes());
            if let Err(error) = self.load_cached(key.as_bytes(), representation, stale, now) {
                log::debug!("cannot read precompressed sibling of {path}: {error}; sending the file uncompressed");
            }
        }
        let identity_key = path.as_bytes();
        let key = if self.cache.fresh(key.as_bytes(), now).is_some() { key.as_bytes() } else { identity_key };
        Ok(self.cache.fresh(key, now).ok_or(io::ErrorKind::NotFound)?.respond(head))
    }

    /// Returns the identity representation of a file.
    fn identity(&self, relative: PathBuf) -> Representation {
        let precompressed = if self.options.precompressed {
            Precompressed::find(&self.root, &relative)
        } else {
            Precompressed::default()
        };
        Representation::identity(relative, precompressed)
    }

    fn resolve(&self, target: &Target) -> io::Result<Resolved> {
        match self.root.kind(&target.relative)? {
            FileKind::File if target.slash => Err(io::ErrorKind::NotFound.into()),
            FileKind::File => Ok(Resolved::File(target.relative.clone())),
            FileKind::Directory if target.slash => {
                Ok(self.index(&target.relative)?.map_or(Resolved::Directory, Resolved::File))
            }
            FileKind::Directory => Ok(Resolved::Redirect),
        }
    }

    /// Returns the first index file that exists in `directory`.
    fn index(&self, directory: &Path) -> io::Result<Option<PathBuf>> {
        for name in &self.options.index {
            let index = directory.join(name);
            match self.root.kind(&index) {
                Ok(FileKind::File) => return Ok(Some(index)),
                Ok(FileKind::Directory) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Caches a file: reuses `stale` if it is still current, and loads the file otherwise.
    fn load_cached(
        &mut self,
        path: &[u8],
        representation: Representation,
        stale: Option<CachedFile>,
        now: u64,
    ) -> io::Result<()> {
        let entry = match stale {
            Some(mut stale) if stale.is_current(&self.root, &representation) => {
                stale.validated_at = now;
                stale
            }
            _ => CachedFile::load(&self.root, representation, now, &self.options.cache_control)?,
        };
        self.cache.put(path, entry);
        Ok(())
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

/// Redirects to the path of a directory with a trailing slash; without it, relative links in the index would break.
/// Uses the canonical path, which begins with a single slash: a Location of `//host` would lead to another server.
fn redirect_to_directory(head: &RequestHead<'_>, path: &str) -> Response {
    let mut location = format!("{}{path}/", head.mount());
    if let Some(query) = head.query() {
        location.push('?');
        location.push_str(query);
    }
    Response::new(StatusCode::MOVED_PERMANENTLY).header("Location", location)
}

/// Returns whether an error means that the file does not exist, or must appear not to exist.
fn is_not_found(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound};
    // A symlink out of the directory is rejected by cap-std itself, so the error has no errno; a symlink loop is
    // rejected by the kernel. Where cap-std resolves symlinks itself, EINVAL means that one was replaced by a file or
    // directory during the lookup.
    let is_escape = error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none();
    matches!(error.kind(), NotFound | NotADirectory | IsADirectory | InvalidFilename | InvalidInput)
        || is_escape
        || is_loop(error)
}

#[cfg(unix)]
fn is_loop(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(not(unix))]
fn is_loop(_: &io::Error) -> bool {
    false
}

/// Returns whether an error means that the process or the system is out of file descriptors.
#[cfg(unix)]
fn is_out_of_fds(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(not(unix))]
fn is_out_of_fds(_: &io::Error) -> bool {
    false
}

/// Returns the status code for an I/O error.
fn status_for(error: &io::Error) -> StatusCode {
    match error.kind() {
        _ if is_not_found(error) => StatusCode::NOT_FOUND,
        io::ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        io::ErrorKind::ResourceBusy => StatusCode::SERVICE_UNAVAILABLE,
        _ if is_out_of_fds(error) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn error_response(path: &str, error: &io::Error) -> Response {
    let status = status_for(error);
    if status.is_server_error() {
        log::error!("cannot read {path}: {error}");
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return Response::from(StatusCode::SERVICE_UNAVAILABLE).header("Retry-After", "1");
    }
    status.into()
}
