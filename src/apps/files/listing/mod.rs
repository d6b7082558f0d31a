//! Listings of directories: read and sorted on a thread of their own, written as fast as the client takes them.
//!
//! What is held for one is its names and some numbers, 24 octets each, until the last is written; all listings under
//! way share a budget. The text is made in pieces.

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

use self::entries::{Budget, Entries, Entry, Full, Kind};
use self::view::{Format, View};
use super::{Files, failure};
use crate::httpserver::{Pool, RequestHead, Response};

/// Threads that read directories; there are none before the first listing.
const THREADS: usize = 2;

/// Listings that wait for them.
const QUEUED_MAX: usize = 64;

/// A piece of the text: some hundred names.
const PIECE_BYTES: usize = 16 * 1024;

/// A text up to here is made at once, and has a length.
const WHOLE_BYTES: usize = 64 * 1024;

/// What all listings of a directory have in common, those of all workers.
#[derive(Default)]
pub(super) struct Lister {
    pool: OnceLock<Option<Pool>>,
    budget: Budget,
}

impl Lister {
    fn pool(&self) -> Option<&Pool> {
        let start = || Pool::new(THREADS, QUEUED_MAX).inspect_err(|error| log::error!("cannot list: {error}")).ok();
        self.pool.get_or_init(start).as_ref()
    }
}

impl Files {
    /// The answer with what is in a directory.
    pub(super) fn list(&self, head: &RequestHead<'_>, relative: PathBuf) -> Response {
        let Some(pool) = self.lister.pool() else { return StatusCode::INTERNAL_SERVER_ERROR.into() };
        let segments = relative.iter().map(|name| name.as_encoded_bytes().to_vec()).collect();
        let view = View::new(head, segments);
        let (root, mut entries) = (Arc::clone(&self.root), Entries::new(self.lister.budget.clone()));
        let work = move || {
            let mut full = None;
            let outcome = root.list(&relative, |name, metadata| {
                full = entries.push(entry(name, metadata)).err();
                if full.is_some() { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(()) }
            });
            if full != Some(Full::Cut) {
                outcome?;
            }
            entries.sort(view.key, view.descending);
            Ok(Writer { view, entries, at: 0, done: false }.response())
        };
        let path = head.path().to_owned();
        pool.offload(work, move |outcome: io::Result<Response>| outcome.unwrap_or_else(|error| failure(&path, &error)))
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

/// The text of a listing, piece by piece.
struct Writer {
    view: View,
    entries: Entries,
    at: usize,
    done: bool,
}

impl Writer {
    fn response(mut self) -> Response {
        let format = self.view.format;
        let mut whole = String::new();
        while !self.done && whole.len() < WHOLE_BYTES {
            self.push_piece(&mut whole);
        }
        let response = if self.done {
            Response::new(StatusCode::OK).body(whole)
        } else {
            Response::stream(std::iter::once(whole).chain(self))
        };
        let response = response
            .field("Cache-Control", "no-cache")
            .field("Vary", "Accept")
            .field("X-Content-Type-Options", "nosniff");
        match format {
            Format::Html => {
                let policy = page::POLICY.as_str();
                response.content_type("text/html; charset=utf-8").field("Content-Security-Policy", policy)
            }
            Format::Json => response.content_type("application/json"),
        }
    }

    fn push_piece(&mut self, out: &mut String) {
        let (html, start) = (self.view.format == Format::Html, out.len());
        if self.at == 0 {
            if html {
                page::push_start(out, &self.view, &self.entries);
            } else {
                out.push('[');
            }
        }
        while let Some(entry) = self.entries.get(self.at) {
            if html {
                page::push_entry(out, &self.view, entry);
            } else {
                json::push_entry(out, self.at, entry);
            }
            self.at += 1;
            if out.len() - start >= PIECE_BYTES {
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

impl Iterator for Writer {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.done {
            return None;
        }
        let mut piece = String::with_capacity(PIECE_BYTES + 1024);
        self.push_piece(&mut piece);
        Some(piece)
    }
}
