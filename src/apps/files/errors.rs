//! Responses for files that are missing or unreadable: the single-page app fallback, or a custom error page.

use std::io;
use std::path::PathBuf;

use http::StatusCode;

use super::cached_file::Representation;
use super::precompressed::Precompressed;
use super::{Files, path, status_for};
use crate::httpserver::{RequestHead, Response};

impl Files {
    /// Checks that the page of the single-page app ([`Options::spa`](super::Options::spa)), if there is one, can be read.
    ///
    /// # Errors
    /// Returns the error of opening or reading it.
    pub fn check_spa_page(&self) -> io::Result<()> {
        self.options.spa.as_ref().map_or(Ok(()), |page| self.root.open_file(page.as_ref()).map(drop))
    }

    /// Responds with the fallback for `error`; returns `error` if there is none.
    pub(super) fn fallback(&mut self, head: &RequestHead<'_>, error: io::Error) -> io::Result<Response> {
        // Only page requests (Accept: text/html) get a fallback; missing scripts and API calls get the plain error.
        if !head.names_media_type("text/html") {
            return Err(error);
        }
        let status = status_for(&error);
        if status == StatusCode::NOT_FOUND
            && let Some(page) = self.options.spa.clone()
        {
            return self
                .spa_page(head, page.into())
                .inspect_err(|error| log::error!("cannot read the --spa page: {error}"));
        }
        self.error_page(head, status).ok_or(error)
    }

    /// Responds with a custom error page, such as `404.html` in the served directory.
    fn error_page(&mut self, head: &RequestHead<'_>, status: StatusCode) -> Option<Response> {
        let name = match status {
            StatusCode::NOT_FOUND => "404.html",
            StatusCode::FORBIDDEN => "403.html",
            StatusCode::INTERNAL_SERVER_ERROR => "500.html",
            _ => return None,
        };
        // A separate cache key: without precompressed siblings, the representation differs from that at the path of
        // the page. NUL cannot occur in a path.
        let (key, now) = (format!("\0{name}").into_bytes(), head.unix_time());
        if self.cache.fresh(&key, now).is_none() {
            let (stale, representation) =
                (self.cache.take(&key), Representation::identity(name.into(), Precompressed::default()));
            self.load_cached(&key, representation, stale, now).ok()?;
        }
        self.cache.fresh(&key, now).map(|entry| entry.respond_as_error(status))
    }

    /// Responds with the single-page app page, whatever the request path.
    fn spa_page(&mut self, head: &RequestHead<'_>, relative: PathBuf) -> io::Result<Response> {
        let (path, now) = (path::canonical(&relative), head.unix_time());
        if self.cache.fresh(path.as_bytes(), now).is_none() {
            let (stale, representation) = (self.cache.take(path.as_bytes()), self.identity(relative));
            self.load_cached(path.as_bytes(), representation, stale, now)?;
        }
        self.negotiate(head, &path)
    }
}
