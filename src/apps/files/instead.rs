//! What is answered where a file is not there, or cannot be read: the page of a program that makes its own paths, or the
//! site's own page for the error.

use std::io;
use std::path::PathBuf;

use http::StatusCode;

use super::entry::Form;
use super::variants::Variants;
use super::{Files, path, status};
use crate::httpserver::{RequestHead, Response};

impl Files {
    /// Whether the page that stands for all can be read, where one is asked for.
    pub(crate) fn check_page(&self) -> io::Result<()> {
        self.options.spa.as_ref().map_or(Ok(()), |page| self.root.file(page.as_ref()).map(drop))
    }

    /// Gives the error back where there is nothing better.
    pub(super) fn instead(&mut self, head: &RequestHead<'_>, error: io::Error) -> io::Result<Response> {
        // Who does not ask for a page is a program, or a page that misses a part of itself.
        if !head.names_media_type("text/html") {
            return Err(error);
        }
        let status = status(&error);
        if status == StatusCode::NOT_FOUND
            && let Some(page) = self.options.spa.clone()
        {
            return self
                .page(head, page.into())
                .inspect_err(|error| log::error!("cannot read the page that stands for all: {error}"));
        }
        self.own_page(head, status).ok_or(error)
    }

    /// `404.html` and the like, from the directory that is served.
    fn own_page(&mut self, head: &RequestHead<'_>, status: StatusCode) -> Option<Response> {
        let name = match status {
            StatusCode::NOT_FOUND => "404.html",
            StatusCode::FORBIDDEN => "403.html",
            StatusCode::INTERNAL_SERVER_ERROR => "500.html",
            _ => return None,
        };
        // A key of its own, since what is told of the file differs. No path has a NUL in it.
        let (key, now) = (format!("\0{name}").into_bytes(), head.wall());
        if self.cache.fresh(&key, now).is_none() {
            let (known, form) = (self.cache.take(&key), Form::plain(name.into(), Variants::default()));
            self.remember(&key, form, known, now).ok()?;
        }
        self.cache.fresh(&key, now).map(|entry| entry.respond_with(status))
    }

    /// A page by its name, whatever path was asked for.
    fn page(&mut self, head: &RequestHead<'_>, relative: PathBuf) -> io::Result<Response> {
        let (path, now) = (path::canonical(&relative), head.wall());
        if self.cache.fresh(path.as_bytes(), now).is_none() {
            let (known, form) = (self.cache.take(path.as_bytes()), self.plain(relative));
            self.remember(path.as_bytes(), form, known, now)?;
        }
        self.choose(head, &path)
    }
}
