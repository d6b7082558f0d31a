//! `serverd files`: serves a directory, with optional layers around it.

use std::io;
use std::path::{Path, PathBuf};

use super::run::{announce, http_server};
use super::{Config, StartError};
use crate::apps::Files;
use crate::apps::files::Options;
use crate::http1::Limits;
use crate::httpserver::{Handler, Pool, layers};

/// Threads that verify passwords: enough for the parallel connections of a browser, few enough to slow down guessing.
const AUTH_THREADS: usize = 2;

/// Queued password checks; beyond this, requests are rejected with 503.
const AUTH_QUEUE_MAX: usize = 64;

/// Response bodies compressed or queued for compression at a time; beyond this, responses are sent uncompressed.
const COMPRESSION_QUEUE_MAX: usize = 256;

/// Configuration of `serverd files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesConfig {
    /// The directory to serve.
    pub directory: PathBuf,
    /// Options for serving it.
    pub options: Options,
    /// Headers set on every response, replacing the server's own of the same names; see [`layers::set_headers`].
    pub headers: Vec<(String, String)>,
    /// Allows scripts of any origin to read the files (CORS).
    pub cors: bool,
    /// Users for Basic authentication: `NAME:HASH`, or `@FILE` for a file of such lines. Empty for public access.
    pub auth: Vec<String>,
    /// Compresses text responses on the fly.
    pub compress: bool,
    /// Limits on the size of requests.
    pub limits: Limits,
}

pub(super) fn run(mut config: Config, files_config: &FilesConfig) -> Result<(), StartError> {
    config.files_max = files_config.options.open_files_max;
    let shown = files_config.directory.display().to_string();
    if files_config.options.follow_symlinks {
        log::warn!("following symbolic links out of {shown}: everything they point to is served");
    }
    let files = Files::with_options(&files_config.directory, files_config.options.clone())
        .map_err(|error| StartError(format!("cannot serve {shown}: {error}; {}", advice(&shown))))?;
    files.check_spa_page().map_err(|error| {
        let page = files_config.options.spa.as_deref().unwrap_or_default();
        StartError(format!("--spa: cannot read {page} in {shown}: {error}; specify a file below the directory"))
    })?;
    let limits = files_config.limits.clone();
    let start = format!("serving {shown} on http");
    if files_config.is_plain() {
        let make = http_server(&config, limits, move |_| files.clone());
        return config.serve_with(make, |started| announce(&start, started, config.access_log.as_ref()));
    }
    let layers = files_config.layers()?;
    let make = http_server(&config, limits, move |_| layers.around(files.clone()));
    config.serve_with(make, |started| announce(&start, started, config.access_log.as_ref()))
}

/// Returns advice for an error message about a directory that cannot be served. Windows programs parse `\"` as a
/// quotation mark, so that `"C:\a b\"` yields an invalid name that contains the rest of the command line.
fn advice(directory: &str) -> &'static str {
    if cfg!(windows) && directory.contains('"') {
        "remove the backslash before the closing quotation mark"
    } else {
        "specify a readable directory"
    }
}

/// The layers around the file handler, prepared once for all workers.
struct Layers {
    headers: Vec<(String, String)>,
    cors: bool,
    auth: Option<(layers::Users, Pool)>,
    compress: Option<Pool>,
}

impl FilesConfig {
    fn is_plain(&self) -> bool {
        self.headers.is_empty() && !self.cors && self.auth.is_empty() && !self.compress
    }

    fn layers(&self) -> Result<Layers, StartError> {
        let pool = |threads, queued_max| {
            Pool::new(threads, queued_max).map_err(|error| StartError(format!("cannot start a thread: {error}")))
        };
        let auth = match self.users()? {
            Some(users) => Some((users, pool(AUTH_THREADS, AUTH_QUEUE_MAX)?)),
            None => None,
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let compress = if self.compress { Some(pool(cores, COMPRESSION_QUEUE_MAX)?) } else { None };
        Ok(Layers { headers: self.headers.clone(), cors: self.cors, auth, compress })
    }

    fn users(&self) -> Result<Option<layers::Users>, StartError> {
        if self.auth.is_empty() {
            return Ok(None);
        }
        let mut lines = String::new();
        for entry in &self.auth {
            match entry.strip_prefix('@') {
                Some(path) => lines += &read_users(Path::new(path))?,
                None => lines += entry,
            }
            lines.push('\n');
        }
        layers::Users::parse(&lines).map(Some).map_err(|error| StartError(format!("--auth: {error}")))
    }
}

fn read_users(path: &Path) -> Result<String, StartError> {
    let text = std::fs::read(path)
        .and_then(|bytes| decode(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not valid UTF-8")));
    text.map_err(|error| {
        StartError(format!("--auth: cannot read {}: {error}; create the file with htpasswd -cB", path.display()))
    })
}

/// Decodes a text file in UTF-8, or in an encoding common on Windows: UTF-8 with a byte order mark (editors) or UTF-16
/// (`serverd hash alice > users` in `PowerShell`).
fn decode(bytes: &[u8]) -> Option<String> {
    if let Some(pairs) = bytes.strip_prefix(b"\xff\xfe") {
        let (pairs, rest) = pairs.as_chunks();
        let units: Vec<u16> = pairs.iter().map(|&pair| u16::from_le_bytes(pair)).collect();
        return String::from_utf16(&units).ok().filter(|_| rest.is_empty());
    }
    String::from_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).to_vec()).ok()
}

impl Layers {
    /// Wraps the file handler in the layers, from the inside out: compression, authentication, CORS, headers. Responses
    /// to unauthenticated requests thus reveal nothing about the files, but do carry the CORS headers.
    fn around(&self, files: Files) -> Box<dyn Handler> {
        let mut handler: Box<dyn Handler> = Box::new(files);
        if let Some(pool) = &self.compress {
            handler = Box::new(layers::compress(handler, pool.clone()));
        }
        if let Some((users, pool)) = &self.auth {
            handler = Box::new(layers::basic(handler, "files", users.clone(), pool.clone()));
        }
        if self.cors {
            handler = Box::new(layers::cors(handler, "GET, HEAD"));
        }
        let list: Vec<(&str, &str)> = self.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        if !list.is_empty() {
            // Validated when the command line was parsed.
            handler = Box::new(layers::set_headers(handler, &list).expect("valid headers"));
        }
        handler
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_files_in_windows_encodings_are_accepted() {
        let line = "alic\u{e9}:$2b$\r\n";
        let utf16: Vec<u8> = line.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for bytes in
            [line.as_bytes().to_vec(), [b"\xef\xbb\xbf", line.as_bytes()].concat(), [&b"\xff\xfe"[..], &utf16].concat()]
        {
            assert_eq!(decode(&bytes).as_deref(), Some(line), "{bytes:?}");
        }
        assert_eq!(decode(b""), Some(String::new()));
        for bytes in [&b"alic\xe9:"[..], b"\xff\xfea", b"\xff\xfe\x00\xd8"] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_backslash_before_the_closing_quotation_mark_is_reported_on_windows() {
        assert_eq!(advice("C:\\a b\" --port 80").contains("remove the backslash"), cfg!(windows));
        assert!(advice("C:\\a b").contains("directory"));
    }
}
