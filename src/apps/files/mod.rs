//! `serverd files`: a directory, over HTTP.
//!
//! ```text
//! path.rs        the path of a request -> names below the root
//! root.rs        names -> open files; nothing leaves the root
//! entry.rs       an open file -> answers
//!   validators.rs  its tag and its date
//!   media.rs       its type
//!   conditions.rs  what a request wants to know of them first
//!   ranges.rs      what parts it wants
//!   multipart.rs   several of them in one answer
//!   small.rs       what is kept in memory
//!   variants.rs    the same content in other codings
//!   caching.rs     how long it may be kept
//! cache.rs       paths -> files that were asked for before
//! instead.rs     what is answered where nothing is there
//! listing/       what is in a directory
//! ```

mod cache;
mod caching;
mod conditions;
mod entry;
mod instead;
mod listing;
mod media;
mod multipart;
mod path;
mod ranges;
mod root;
mod small;
mod validators;
mod variants;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::StatusCode;

use self::cache::Cache;
pub use self::caching::Caching;
use self::entry::{Entry, Form};
use self::listing::Lister;
use self::path::Target;
use self::root::{Found, Root};
use self::variants::Variants;
use crate::httpserver::{Handler, Intake, Request, RequestHead, Response};

/// What may be done with a file, for Allow.
const ALLOW: &str = "GET, HEAD, OPTIONS";

/// How a directory is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a wish, and none depends on another")]
pub struct Options {
    /// Files that stand for their directory, the first that there is. `index.html`.
    pub index: Vec<String>,
    /// Whether names that begin with a dot are served, and on Windows what has the attribute.
    pub hidden: bool,
    /// Whether symbolic links may lead out of the directory.
    pub follow_symlinks: bool,
    /// Whether a directory that no file stands for is listed: as a page, or as JSON where Accept or `?format=json` asks
    /// for that. Yes.
    pub listing: bool,
    /// The file, by its path below the directory, that is sent where a browser goes to a page that is not there: for
    /// programs that make their pages in the browser.
    pub spa: Option<String>,
    /// What Cache-Control says.
    pub caching: Caching,
    /// Whether `app.js.br`, `app.js.zst` or `app.js.gz` is sent in place of `app.js` to who takes that. Yes.
    pub precompressed: bool,
    /// Bytes of small files, those up to 32 KiB, that each worker keeps in memory. 16 MiB.
    pub cache_bytes_max: usize,
    /// Larger files that each worker keeps open. 256.
    pub open_files_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            index: vec!["index.html".into()],
            hidden: false,
            follow_symlinks: false,
            listing: true,
            spa: None,
            caching: Caching::default(),
            precompressed: true,
            cache_bytes_max: 16 << 20,
            open_files_max: 256,
        }
    }
}

/// Serves a directory: a [`Handler`], alone or mounted in a [`Router`](crate::Router). A clone serves the same directory,
/// and has what it remembers of files to itself: one for each worker.
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
        Files { root, options, cache: self.cache.like(), lister }
    }
}

/// What there is for a path.
enum Resolved {
    /// A file, by its name below the root.
    File(PathBuf),
    /// A directory that no file stands for.
    Directory,
    /// A directory whose path lacks its slash.
    Redirect,
}

impl Files {
    /// Serves a directory as is usual: see [`Options`].
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn new(directory: impl AsRef<Path>) -> io::Result<Self> {
        Files::with(directory, Options::default())
    }

    /// Serves a directory.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn with(directory: impl AsRef<Path>, options: Options) -> io::Result<Self> {
        let root = Root::open(directory.as_ref(), options.follow_symlinks, options.hidden)?;
        let cache = Cache::new(options.cache_bytes_max, options.open_files_max);
        Ok(Files { root: Arc::new(root), options: Arc::new(options), cache, lister: Arc::default() })
    }

    /// The answer to GET or HEAD.
    #[inline]
    fn get(&mut self, head: &RequestHead<'_>) -> Response {
        if let Some(entry) = self.cache.fresh(head.mounted_octets(), head.wall())
            && !entry.form.varies()
        {
            return entry.respond(head);
        }
        let mut answer = self.look_up(head);
        if answer.as_ref().is_err_and(is_exhaustion) {
            // Files that are kept open in case are given up for those that are asked for.
            self.cache.close_files();
            answer = self.look_up(head);
        }
        // What is told of a file that is not there depends on whether a page was asked for.
        answer.unwrap_or_else(|error| {
            let answer = self.instead(head, error).unwrap_or_else(|error| failure(head.path(), &error));
            answer.field("Vary", "Accept")
        })
    }

    /// The answer where the directory has to be asked, or there is a choice.
    fn look_up(&mut self, head: &RequestHead<'_>) -> io::Result<Response> {
        let target = Target::parse(head.mounted_path(), self.options.hidden).ok_or(io::ErrorKind::NotFound)?;
        let path = target.canonical();
        // The same path in another spelling may be there.
        if self.cache.fresh(path.as_bytes(), head.wall()).is_none() {
            let known = self.cache.take(path.as_bytes());
            match self.resolve(&target)? {
                Resolved::File(relative) => {
                    let form = self.plain(relative);
                    self.remember(path.as_bytes(), form, known, head.wall())?;
                }
                Resolved::Directory if self.options.listing => return Ok(self.list(head, target.relative)),
                Resolved::Directory => return Err(io::ErrorKind::NotFound.into()),
                Resolved::Redirect => return Ok(redirect(head, &path)),
            }
        }
        self.choose(head, &path)
    }

    /// The answer with the file of a path, or with one that holds the same in a coding that the client prefers.
    fn choose(&mut self, head: &RequestHead<'_>, path: &str) -> io::Result<Response> {
        let now = head.wall();
        let entry = self.cache.fresh(path.as_bytes(), now).ok_or(io::ErrorKind::NotFound)?;
        let Some(form) = entry.form.for_client(head) else { return Ok(entry.respond(head)) };
        // NUL stands in no path.
        let key = format!("{path}\0{}", form.name());
        if self.cache.fresh(key.as_bytes(), now).is_none() {
            let known = self.cache.take(key.as_bytes());
            if let Err(error) = self.remember(key.as_bytes(), form, known, now) {
                log::debug!("{path} is sent as it is: {error}");
            }
        }
        let plain = path.as_bytes();
        let key = if self.cache.fresh(key.as_bytes(), now).is_some() { key.as_bytes() } else { plain };
        Ok(self.cache.fresh(key, now).ok_or(io::ErrorKind::NotFound)?.respond(head))
    }

    /// A file as it is.
    fn plain(&self, relative: PathBuf) -> Form {
        let variants =
            if self.options.precompressed { Variants::find(&self.root, &relative) } else { Variants::default() };
        Form::plain(relative, variants)
    }

    fn resolve(&self, target: &Target) -> io::Result<Resolved> {
        match self.root.find(&target.relative)? {
            Found::File if target.slash => Err(io::ErrorKind::NotFound.into()),
            Found::File => Ok(Resolved::File(target.relative.clone())),
            Found::Directory if target.slash => {
                Ok(self.index(&target.relative)?.map_or(Resolved::Directory, Resolved::File))
            }
            Found::Directory => Ok(Resolved::Redirect),
        }
    }

    /// The file that stands for a directory.
    fn index(&self, directory: &Path) -> io::Result<Option<PathBuf>> {
        for name in &self.options.index {
            let index = directory.join(name);
            match self.root.find(&index) {
                Ok(Found::File) => return Ok(Some(index)),
                Ok(Found::Directory) => {}
                Err(error) if is_absence(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Remembers a file: what is known of it if that still holds, else what is read anew.
    fn remember(&mut self, path: &[u8], form: Form, known: Option<Entry>, now: u64) -> io::Result<()> {
        let entry = match known {
            Some(mut known) if known.is_current(&self.root, &form) => {
                known.checked = now;
                known
            }
            _ => Entry::load(&self.root, form, now, &self.options.caching)?,
        };
        self.cache.put(path, entry);
        Ok(())
    }
}

impl Handler for Files {
    /// The body of a request that will be refused is not waited for.
    fn head(&mut self, head: &RequestHead<'_>) -> Intake {
        match head.method_bytes() {
            b"GET" | b"HEAD" | b"OPTIONS" => Intake::Default,
            method => Intake::Refuse(other_method(method)),
        }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        match request.method_bytes() {
            b"GET" | b"HEAD" => self.get(&request.head()),
            method => other_method(method),
        }
    }
}

fn other_method(method: &[u8]) -> Response {
    match method {
        b"OPTIONS" => Response::new(StatusCode::NO_CONTENT).field("Allow", ALLOW),
        b"POST" | b"PUT" | b"PATCH" | b"DELETE" | b"TRACE" | b"CONNECT" => {
            let text = "files are only read here\n";
            Response::error(StatusCode::METHOD_NOT_ALLOWED, text).field("Allow", ALLOW)
        }
        _ => Response::error(StatusCode::NOT_IMPLEMENTED, "this method is not known here\n"),
    }
}

/// To the path of a directory, which ends with a slash, or the links in its index would mislead. The path is written
/// anew, with one slash in front: `//host` would be the address of another server.
fn redirect(head: &RequestHead<'_>, path: &str) -> Response {
    let mut location = format!("{}{path}/", head.mount());
    if let Some(query) = head.query() {
        location.push('?');
        location.push_str(query);
    }
    Response::new(StatusCode::MOVED_PERMANENTLY).field("Location", location)
}

/// Whether there is nothing that could be served.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound};
    // A link that leads out of the directory is refused by cap-std itself, so without a number of the system; one that
    // leads to itself by the system. Where cap-std reads links itself, EINVAL is one that has become something else.
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

/// Whether the system, or the process, has no descriptors left.
#[cfg(unix)]
fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(not(unix))]
fn is_exhaustion(_: &io::Error) -> bool {
    false
}

/// The status that tells of an error.
fn status(error: &io::Error) -> StatusCode {
    match error.kind() {
        _ if is_absence(error) => StatusCode::NOT_FOUND,
        io::ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        io::ErrorKind::ResourceBusy => StatusCode::SERVICE_UNAVAILABLE,
        _ if is_exhaustion(error) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn failure(path: &str, error: &io::Error) -> Response {
    let status = status(error);
    if status.is_server_error() {
        log::error!("cannot read {path}: {error}");
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return Response::from(StatusCode::SERVICE_UNAVAILABLE).field("Retry-After", "1");
    }
    status.into()
}
