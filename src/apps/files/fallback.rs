//! Responses in place of a file that is missing or cannot be read: the page of the single-page app, the site's own error
//! pages, and built-in ones.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use sha2::{Digest, Sha256};

use super::cache::{Cache, Watch};
use super::cached_file::{CachedFile, LoadError, Loader, PAGE_BYTES_MAX};
use super::options::Options;
use super::path::last_segment;
use super::representation::{self, Representation};
use super::root::{is_escape, is_not_found, is_out_of_fds};
use crate::httpserver::{RequestHead, Response};

/// Maximum total size in bytes of the pages that are held in memory: more than all of them can have.
const PAGES_BYTES_MAX: usize = 4 << 20;

/// Maximum number of larger pages that are kept open.
const PAGES_OPEN_MAX: usize = 16;

/// Cache key of the page of the single-page app. That page may be one of the error pages as well, but with
/// precompressed siblings. NUL cannot occur in a path.
const SPA_KEY: &str = "\0spa";

/// Returns the request headers that the choice of an error response depends on.
pub(super) fn vary(options: &Options) -> &'static str {
    if options.spa.is_some() { "Accept, Sec-Fetch-Dest" } else { "Accept" }
}

/// The pages of a site that are sent in place of a missing file: the page of the single-page app, and the site's own
/// error pages. A page whose file becomes empty or unreadable is kept as it was.
pub(super) struct Pages {
    cache: Cache,
    /// Names of the pages that could not be read, each of which was logged.
    broken: Vec<String>,
}

impl Pages {
    pub(super) fn new(watch: Watch) -> Self {
        Pages { cache: Cache::new(PAGES_BYTES_MAX, PAGES_OPEN_MAX, watch), broken: Vec::new() }
    }

    /// Creates a copy for a look-up on another thread.
    pub(super) fn for_look_up(&self) -> Self {
        Pages { cache: self.cache.for_look_up(&self.cache.small_keys()), broken: self.broken.clone() }
    }

    /// Takes over the pages that a look-up on another thread, begun at `begun_at`, has loaded or validated.
    pub(super) fn absorb(&mut self, other: Pages, begun_at: u64, now: u64) {
        let keys = self.cache.small_keys();
        self.cache.absorb(other.cache, &keys, begun_at, now);
        self.broken = other.broken;
    }

    /// Makes the next request for each page load it again.
    pub(super) fn expire(&mut self) {
        self.cache.expire();
    }

    /// Drops all pages.
    pub(super) fn clear(&mut self) {
        self.cache.clear();
    }

    /// Closes all pages that are too large for the memory.
    pub(super) fn close_files(&mut self) {
        self.cache.close_files();
    }

    /// Responds with the page of the single-page app or the site's own error page, if there is one for this error.
    pub(super) fn respond(
        &mut self,
        head: &RequestHead<'_>,
        loader: &Loader<'_>,
        error: &io::Error,
    ) -> Result<Option<Response>, LoadError> {
        let loader = &Loader { memory_bytes_max: PAGE_BYTES_MAX, ..*loader };
        let status = status_for(error);
        if status == StatusCode::NOT_FOUND
            && let Some(page) = &loader.options.spa
            && is_page_request(head)
        {
            return self.spa_page(head, loader, page.into()).map(Some);
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
            match self.error_page(loader, name, status) {
                Err(LoadError::Io(_)) => {}
                outcome => return outcome.map(Some),
            }
        }
        Ok(None)
    }

    /// Responds with the page of the single-page app, whatever the request path.
    fn spa_page(
        &mut self,
        head: &RequestHead<'_>,
        loader: &Loader<'_>,
        relative: PathBuf,
    ) -> Result<Response, LoadError> {
        if self.cache.fresh(SPA_KEY.as_bytes(), loader.now).is_none() {
            self.load(loader, SPA_KEY, loader.identity(relative))?;
        }
        let response = self.cache.negotiate(head, loader, SPA_KEY)?;
        Ok(response.header("Vary", vary(loader.options)))
    }

    /// Responds with the site's own error page, such as `404.html` in the served directory.
    fn error_page(&mut self, loader: &Loader<'_>, name: &str, status: StatusCode) -> Result<Response, LoadError> {
        if self.cache.fresh(name.as_bytes(), loader.now).is_none() {
            self.load(loader, name, Representation::identity(name.into()))?;
        }
        let evicted = || LoadError::from(io::Error::from(io::ErrorKind::NotFound));
        let page = self.cache.get(name.as_bytes(), loader.now).ok_or_else(evicted)?;
        let response = page.respond_as_error(status).header("Vary", vary(loader.options));
        Ok(if status == StatusCode::SERVICE_UNAVAILABLE { response.header("Retry-After", "1") } else { response })
    }

    /// Caches a page. If its file has become empty or cannot be read any more, keeps the cached one; an error page
    /// whose file was removed is gone.
    fn load(&mut self, loader: &Loader<'_>, key: &str, representation: Representation) -> Result<(), LoadError> {
        let mut cached = self.cache.take(key.as_bytes());
        let had_content = cached.as_ref().is_some_and(|page| !page.is_empty());
        let problem = match CachedFile::reload(cached.as_mut(), loader, representation) {
            Ok(None) => None,
            Ok(Some(page)) if page.is_empty() && had_content => Some(io::Error::other("it is empty")),
            Ok(Some(page)) => {
                cached = Some(page);
                None
            }
            Err(LoadError::Io(error)) if key != SPA_KEY && error.kind() == io::ErrorKind::NotFound => {
                self.broken.retain(|name| name != key);
                return Err(error.into());
            }
            Err(LoadError::Io(error)) => Some(error),
            Err(cold) => {
                if let Some(page) = cached {
                    self.cache.put(loader, key.as_bytes(), page);
                }
                return Err(cold);
            }
        };
        match &problem {
            Some(problem) => self.report(loader, key, problem, cached.is_some()),
            None => self.broken.retain(|name| name != key),
        }
        match (cached, problem) {
            (Some(mut page), _) => {
                page.set_validated(loader);
                self.cache.put(loader, key.as_bytes(), page);
                Ok(())
            }
            (None, problem) => Err(problem.unwrap_or_else(|| io::ErrorKind::NotFound.into()).into()),
        }
    }

    /// Logs that a page cannot be read, once until it can be read again.
    fn report(&mut self, loader: &Loader<'_>, key: &str, problem: &io::Error, is_kept: bool) {
        if self.broken.iter().any(|name| name == key) {
            return;
        }
        self.broken.push(key.to_owned());
        let advice = if is_escape(problem) { " (see --follow-symlinks)" } else { "" };
        let outcome = if is_kept { "; the previous one is served" } else { "" };
        match &loader.options.spa {
            Some(page) if key == SPA_KEY => {
                log::error!("cannot read the --spa page {page}: {problem}{advice}{outcome}");
            }
            _ => log::error!("cannot read the error page {key}: {problem}{advice}{outcome}"),
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
    let is_resource = || representation::is_resource(last_segment(head.path()).as_ref());
    head.names_media_type("text/html") || !is_api_request() && !is_resource()
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

/// Returns whether an error concerns the operator: the server may not read a file, or reading it fails.
pub(super) fn is_unexpected(error: &io::Error) -> bool {
    matches!(status_for(error), StatusCode::FORBIDDEN | StatusCode::INTERNAL_SERVER_ERROR)
}

/// Returns whether the client is a browser that will show the response as a page.
pub(super) fn wants_page(head: &RequestHead<'_>) -> bool {
    head.names_media_type("text/html")
}

/// Logs an error that is the server's own, and responds with its status.
pub(super) fn error_response(path: &str, error: &io::Error, page: bool) -> Response {
    let status = status_for(error);
    if status == StatusCode::INTERNAL_SERVER_ERROR || is_out_of_fds(error) {
        log::error!("cannot read {path}: {error}");
    }
    status_response(status, page)
}

/// Responds with an error: as a page, or as a line of text.
pub(super) fn status_response(status: StatusCode, page: bool) -> Response {
    let response = if page { error_page(status) } else { status.into() };
    if status == StatusCode::SERVICE_UNAVAILABLE { response.header("Retry-After", "1") } else { response }
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{margin:0;min-height:100vh;display:grid;place-content:center;text-align:center;padding:1.5rem;\
box-sizing:border-box;background:#f6f7f9;color:#1d232b;\
font:16px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Noto Sans\",sans-serif}\
b{font-size:4rem;line-height:1;color:#66707d}h1{margin:.5rem 0;font-size:1.35rem}p{margin:0;color:#66707d}\
@media(prefers-color-scheme:dark){body{background:#12151a;color:#e3e7ed}b,p{color:#939eac}}";

/// The Content-Security-Policy of an error page: nothing but its own style sheet.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'")
});

fn error_page(status: StatusCode) -> Response {
    let reason = status.canonical_reason().unwrap_or("Error");
    let advice = match status {
        StatusCode::NOT_FOUND => "There is no page at this address.",
        StatusCode::FORBIDDEN => "The server is not allowed to read this file.",
        StatusCode::SERVICE_UNAVAILABLE => "The page is not available at the moment. Please try again shortly.",
        _ => "The server could not read this file.",
    };
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n");
    let _ = write!(page, "<title>{reason}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>");
    let _ = write!(page, "<b>{}</b><h1>{reason}</h1><p>{advice}</p></main>\n</body>\n</html>\n", status.as_u16());
    let response = Response::new(status).content_type("text/html; charset=utf-8").body(page);
    response.header("Content-Security-Policy", POLICY.as_str()).header("X-Content-Type-Options", "nosniff")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_concern_the_operator_are_told_apart() {
        use io::ErrorKind::{NotADirectory, NotFound, Other, PermissionDenied, ResourceBusy};
        // Without an error number, it is a refused symbolic link, which is logged in its own words.
        for kind in [NotFound, NotADirectory, ResourceBusy, PermissionDenied] {
            assert!(!is_unexpected(&kind.into()), "{kind:?}");
        }
        assert!(is_unexpected(&Other.into()));
        #[cfg(unix)]
        for errno in [rustix::io::Errno::ACCESS, rustix::io::Errno::PERM, rustix::io::Errno::IO] {
            assert!(is_unexpected(&errno.into()), "{errno}");
        }
    }
}
