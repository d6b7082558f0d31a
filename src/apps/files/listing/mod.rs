//! Directory listings, read and sorted on a thread pool and streamed to the client with back-pressure.
//!
//! An in-flight listing holds its names and a record of 24 bytes per entry until the last entry is rendered. All
//! listings share a memory budget. The text is rendered in chunks, on demand.

mod entries;
mod page;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;

use cap_std::fs::Metadata;
use http::StatusCode;

use self::entries::{Budget, Entries, Entry, Kind, LimitReached, Sending};
use self::page::{Format, View};
use super::fallback::status_response;
use super::root::Root;
use super::site::Site;
use crate::httpserver::{Pool, QueuedResponder, RequestHead, Response};

/// Number of threads that read directories. They are started for the first listing.
const THREADS: usize = 2;

/// Maximum number of listings that wait for a thread.
const QUEUED_MAX: usize = 64;

/// Approximate size of a chunk of text: about a hundred entries.
const CHUNK_BYTES: usize = 16 * 1024;

/// A listing of up to about this size is rendered at once and sent with a Content-Length. A longer one is streamed.
const BUFFERED_BYTES_MAX: usize = 64 * 1024;

/// The thread pool and the memory budget, shared by all workers.
#[derive(Default)]
pub(super) struct Lister {
    pool: OnceLock<Option<Pool>>,
    budget: Budget,
}

impl Lister {
    fn pool(&self) -> Option<&Pool> {
        let start = || {
            Pool::new(THREADS, QUEUED_MAX)
                .inspect_err(|error| log::error!("cannot start the directory listing threads: {error}"))
                .ok()
        };
        self.pool.get_or_init(start).as_ref()
    }

    /// Responds with a listing of a directory. If that fails, the handler is called again, with [`ListingFailed`].
    pub(super) fn list(
        &self,
        site: &Arc<Site>,
        root: &Arc<Root>,
        head: &RequestHead<'_>,
        relative: PathBuf,
    ) -> Result<Response, io::Error> {
        let pool = self.pool().ok_or_else(|| io::Error::other("no threads to read directories"))?;
        let segments = relative.iter().map(|name| name.as_encoded_bytes().to_vec()).collect();
        let view = View::new(head, root.name().as_encoded_bytes().to_vec(), segments);
        let (site, root, entries) = (Arc::clone(site), Arc::clone(root), Entries::new(self.budget.clone()));
        let (response, responder) = Response::suspend();
        let queued = QueuedResponder::new(responder, |responder| {
            responder.resume(ListingFailed(Arc::new(io::ErrorKind::ResourceBusy.into())));
        });
        let work = move || {
            let Some(responder) = queued.start() else { return };
            match read(&site, &root, &relative, &view, entries) {
                Ok(entries) => responder
                    .respond(ListingWriter { view, listing: entries.send(), next_index: 0, done: false }.response()),
                Err(error) => responder.resume(ListingFailed(Arc::new(error))),
            }
        };
        // Clients take turns, so that many listings of one do not lock out the others.
        pool.run_for(head.client(), work);
        Ok(response)
    }
}

/// Attached to a request whose listing could not be read.
#[derive(Clone)]
pub(super) struct ListingFailed(pub(super) Arc<io::Error>);

/// Reads and sorts the entries of a directory.
fn read(site: &Site, root: &Root, relative: &Path, view: &View, mut entries: Entries) -> io::Result<Entries> {
    let (mut limit_reached, mut is_empty) = (None, true);
    site.look_ups.call_hook();
    let outcome = root.read_dir(relative, |name, metadata| {
        is_empty = false;
        if view.matches(name.as_encoded_bytes()) {
            limit_reached = entries.push(entry(name, metadata)).err();
        }
        if limit_reached.is_some() { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(()) }
    });
    let is_root = relative.as_os_str().is_empty();
    match outcome {
        // The root was removed; the site will notice.
        Err(error) if is_root && error.kind() == io::ErrorKind::NotFound => {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Err(error) if limit_reached != Some(LimitReached::Truncated) => return Err(error),
        _ if is_root && is_empty && site.is_rebuilt(root) => return Err(io::ErrorKind::ResourceBusy.into()),
        _ if !is_empty => site.set_populated(),
        _ => {}
    }
    entries.sort(view.key, view.descending);
    Ok(entries)
}

fn entry<'a>(name: &'a OsStr, metadata: &Metadata) -> Entry<'a> {
    let kind = if metadata.is_dir() { Kind::Directory } else { Kind::File };
    let modified = metadata.modified().ok().map(|time| match time.into_std().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    });
    Entry { name: name.as_encoded_bytes(), kind, size: metadata.len(), modified: modified.unwrap_or(0) }
}

/// Renders a listing, chunk by chunk.
struct ListingWriter {
    view: View,
    listing: Arc<Sending>,
    next_index: usize,
    done: bool,
}

impl ListingWriter {
    fn response(mut self) -> Response {
        let format = self.view.format;
        let mut buffered = String::new();
        while !self.done && buffered.len() < BUFFERED_BYTES_MAX {
            // Cannot be cancelled this early.
            if self.push_chunk(&mut buffered).is_err() {
                return status_response(StatusCode::SERVICE_UNAVAILABLE, false);
            }
        }
        let response = if self.done {
            Response::new(StatusCode::OK).body(buffered)
        } else {
            Response::try_stream(std::iter::once(Ok(buffered)).chain(self))
        };
        let response = response
            .header("Cache-Control", "no-cache")
            .header("Vary", "Accept")
            .header("X-Content-Type-Options", "nosniff");
        match format {
            Format::Html => {
                let policy = page::POLICY.as_str();
                response.content_type("text/html; charset=utf-8").header("Content-Security-Policy", policy)
            }
            Format::Json => response.content_type("application/json"),
        }
    }

    /// Appends the next chunk. Fails if the listing was cancelled.
    fn push_chunk(&mut self, out: &mut String) -> io::Result<()> {
        let guard = self.listing.entries();
        let cancelled = || io::Error::other("the client read a listing slowly while memory was short");
        let entries = guard.as_ref().ok_or_else(cancelled)?;
        let (start, html) = (out.len(), self.view.format == Format::Html);
        if self.next_index == 0 {
            if html {
                page::push_start(out, &self.view, entries);
            } else {
                out.push('[');
            }
        }
        while let Some(entry) = entries.get(self.next_index) {
            if html {
                page::push_entry(out, &self.view, entry);
            } else {
                page::push_json_entry(out, self.next_index, entry);
            }
            self.next_index += 1;
            if out.len() - start >= CHUNK_BYTES {
                return Ok(());
            }
        }
        if html {
            page::push_end(out, &self.view, entries);
        } else {
            out.push_str("]\n");
        }
        self.done = true;
        Ok(())
    }
}

impl Iterator for ListingWriter {
    type Item = io::Result<String>;

    fn next(&mut self) -> Option<io::Result<String>> {
        if self.done {
            return None;
        }
        let mut chunk = String::with_capacity(CHUNK_BYTES + 1024);
        let outcome = self.push_chunk(&mut chunk);
        self.listing.add_sent(chunk.len());
        self.done |= outcome.is_err();
        Some(outcome.map(|()| chunk))
    }
}
