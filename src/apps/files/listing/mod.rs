//! Directory listings, read and sorted on a thread pool and streamed to the client with back-pressure.
//!
//! An in-flight listing holds its names and a record of 24 bytes per entry until the last entry is rendered. All
//! listings share a memory budget. The text is rendered in chunks, on demand.

mod entries;
mod icons;
mod json;
mod page;
mod text;
mod view;

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;

use cap_std::fs::Metadata;
use http::StatusCode;

use self::entries::{Budget, Entries, Entry, Kind, LimitReached};
use self::view::{Format, View};
use super::{Files, error_response};
use crate::httpserver::{Pool, RequestHead, Response};

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
}

impl Files {
    /// Responds with a listing of a directory.
    pub(super) fn list(&self, head: &RequestHead<'_>, relative: PathBuf) -> Response {
        let Some(pool) = self.lister.pool() else { return StatusCode::INTERNAL_SERVER_ERROR.into() };
        let segments = relative.iter().map(|name| name.as_encoded_bytes().to_vec()).collect();
        let view = View::new(head, segments);
        let (root, mut entries) = (Arc::clone(&self.root), Entries::new(self.lister.budget.clone()));
        let work = move || {
            let mut limit_reached = None;
            let outcome = root.read_dir(&relative, |name, metadata| {
                limit_reached = entries.push(entry(name, metadata)).err();
                if limit_reached.is_some() { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(()) }
            });
            if limit_reached != Some(LimitReached::Truncated) {
                outcome?;
            }
            entries.sort(view.key, view.descending);
            Ok(ListingWriter { view, entries, next_index: 0, done: false }.response())
        };
        let path = head.path().to_owned();
        pool.offload(work, move |outcome: io::Result<Response>| {
            outcome.unwrap_or_else(|error| error_response(&path, &error))
        })
    }
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
    entries: Entries,
    next_index: usize,
    done: bool,
}

impl ListingWriter {
    fn response(mut self) -> Response {
        let format = self.view.format;
        let mut buffered = String::new();
        while !self.done && buffered.len() < BUFFERED_BYTES_MAX {
            self.push_chunk(&mut buffered);
        }
        let response = if self.done {
            Response::new(StatusCode::OK).body(buffered)
        } else {
            Response::stream(std::iter::once(buffered).chain(self))
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

    fn push_chunk(&mut self, out: &mut String) {
        let (html, start) = (self.view.format == Format::Html, out.len());
        if self.next_index == 0 {
            if html {
                page::push_start(out, &self.view, &self.entries);
            } else {
                out.push('[');
            }
        }
        while let Some(entry) = self.entries.get(self.next_index) {
            if html {
                page::push_entry(out, &self.view, entry);
            } else {
                json::push_entry(out, self.next_index, entry);
            }
            self.next_index += 1;
            if out.len() - start >= CHUNK_BYTES {
                return;
            }
        }
        if html {
            page::push_end(out, &self.entries);
        } else {
            out.push_str("]\n");
        }
        self.done = true;
    }
}

impl Iterator for ListingWriter {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.done {
            return None;
        }
        let mut chunk = String::with_capacity(CHUNK_BYTES + 1024);
        self.push_chunk(&mut chunk);
        Some(chunk)
    }
}
