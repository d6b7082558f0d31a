//! The responses to challenges of an ACME certificate authority (RFC 8555 section 8.3), which a client such as certbot
//! or lego has written below a directory.

use std::io;
use std::path::{Path, PathBuf};

use http::StatusCode;

use super::files::{Files, Options};
use crate::httpserver::{BodyMode, Handler, Request, RequestHead, Response};

/// The path of all challenges, in URLs and below the directory.
const PREFIX: &str = "/.well-known/acme-challenge/";

/// Maximum number of open files per worker.
pub(crate) const OPEN_FILES_MAX: usize = 8;

/// Serves challenges over plain HTTP, and passes all other requests to another handler. A challenge that does not exist
/// is answered with 404.
pub(crate) struct AcmeChallenges<H> {
    files: Files,
    inner: H,
}

impl AcmeChallenges<()> {
    /// Opens the directory in which the ACME client creates `.well-known/acme-challenge`.
    /// Does not serve the files `private`.
    pub(crate) fn open(directory: &Path, private: Vec<PathBuf>) -> io::Result<Files> {
        let options = Options::default()
            .private(private)
            .index(Vec::new())
            .hidden(true)
            .listing(false)
            .precompressed(false)
            // Challenges are requested a few times and then removed.
            .cache_bytes_max(0)
            .open_files_max(OPEN_FILES_MAX);
        Files::with_options(directory, options)
    }
}

impl<H> AcmeChallenges<H> {
    pub(crate) fn new(files: Files, inner: H) -> Self {
        AcmeChallenges { files, inner }
    }
}

impl<H: Handler> Handler for AcmeChallenges<H> {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        match token(head) {
            None => self.inner.head(head),
            Some(token) if is_valid(token) => self.files.head(head).map(without_redirect),
            Some(_) => BodyMode::Reject(not_found()),
        }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        match token(request) {
            None => self.inner.call(request),
            Some(token) if is_valid(token) => self.files.call(request).map(without_redirect),
            Some(_) => not_found(),
        }
    }
}

/// Returns the last part of the path if the request is for a challenge.
fn token<'a>(head: &RequestHead<'a>) -> Option<&'a str> {
    head.path().strip_prefix(PREFIX).filter(|_| !head.is_secure())
}

/// Returns whether the token consists of base64url digits (RFC 8555 section 8.3), so that the path leads to no other
/// directory.
fn is_valid(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Replaces the redirect of a directory: authorities follow it, but there is no challenge.
fn without_redirect(response: Response) -> Response {
    if response.status() == StatusCode::NOT_MODIFIED || !response.status().is_redirection() {
        response
    } else {
        not_found()
    }
}

fn not_found() -> Response {
    Response::error(StatusCode::NOT_FOUND, "no such challenge\n")
}
