//! `serverd files`: a directory, over HTTP.
//!
//! ```text
//! path.rs   the path of a request -> names below the root
//! root.rs   names -> open files; nothing leaves the root
//! media.rs  names -> media types
//! ```

mod media;
mod path;
mod root;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::StatusCode;

use self::path::Target;
use self::root::{Found, Root};
use crate::httpserver::{Handler, Intake, Request, RequestHead, Response};

/// What may be done with a file, for Allow.
const ALLOW: &str = "GET, HEAD, OPTIONS";

/// How a directory is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Files that stand for their directory, the first that there is. `index.html`.
    pub index: Vec<String>,
    /// Whether names that begin with a dot are served, and on Windows what has the attribute.
    pub hidden: bool,
    /// Whether symbolic links may lead out of the directory.
    pub follow_symlinks: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { index: vec!["index.html".into()], hidden: false, follow_symlinks: false }
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
#[derive(Clone)]
pub struct Files {
    root: Arc<Root>,
    options: Arc<Options>,
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
        Ok(Files { root: Arc::new(root), options: Arc::new(options) })
    }

    fn get(&mut self, head: &RequestHead<'_>) -> io::Result<Response> {
        let target = Target::parse(head.mounted_path(), self.options.hidden).ok_or(io::ErrorKind::NotFound)?;
        match self.root.find(&target.relative)? {
            Found::File if target.slash => Err(io::ErrorKind::NotFound.into()),
            Found::File => self.file(&target.relative),
            Found::Directory if target.slash => self.directory(&target),
            Found::Directory => Ok(redirect(head, &target)),
        }
    }

    fn directory(&mut self, target: &Target) -> io::Result<Response> {
        match self.index(&target.relative)? {
            Some(index) => self.file(&index),
            None => Err(io::ErrorKind::NotFound.into()),
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

    fn file(&mut self, relative: &Path) -> io::Result<Response> {
        let (file, metadata) = self.root.file(relative)?;
        let response = Response::reader(file).length(metadata.len());
        Ok(response.field("Content-Type", media::content_type(relative)).field("X-Content-Type-Options", "nosniff"))
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
            b"GET" | b"HEAD" => self.get(&request.head()).unwrap_or_else(|error| failure(request, &error)),
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
fn redirect(head: &RequestHead<'_>, target: &Target) -> Response {
    let mut location = format!("{}{}/", head.mount(), target.canonical());
    if let Some(query) = head.query() {
        location.push('?');
        location.push_str(query);
    }
    Response::new(StatusCode::MOVED_PERMANENTLY).field("Location", location)
}

/// Whether there is nothing that could be served.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, IsADirectory, NotADirectory, NotFound};
    // A link that leads out of the directory is refused by cap-std itself, so without a number of the system; one that
    // leads to itself by the system.
    let is_escape = error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none();
    matches!(error.kind(), NotFound | NotADirectory | IsADirectory | InvalidFilename) || is_escape || is_loop(error)
}

#[cfg(unix)]
fn is_loop(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(not(unix))]
fn is_loop(_: &io::Error) -> bool {
    false
}

fn failure(request: &Request<'_>, error: &io::Error) -> Response {
    if is_absence(error) {
        return StatusCode::NOT_FOUND.into();
    }
    if error.kind() == io::ErrorKind::PermissionDenied {
        return StatusCode::FORBIDDEN.into();
    }
    log::error!("cannot read {}: {error}", request.path());
    StatusCode::INTERNAL_SERVER_ERROR.into()
}
