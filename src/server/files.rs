//! `serverd files`: a directory, and what is laid around it.

use std::io;
use std::path::{Path, PathBuf};

use super::command::{announce, http};
use super::{Config, Failure};
use crate::apps::Files;
use crate::apps::files::Options;
use crate::http1::Limits;
use crate::httpserver::{Handler, Pool, layers};

/// Threads that check passwords: enough to let a browser's connections in, and few, since guesses shall be slow.
const CHECKING_THREADS: usize = 2;

/// Checks that wait for them; more are told to come back.
const CHECKS_MAX: usize = 64;

/// Bodies that are being compressed, or wait for it, before others go out as they are.
const COMPRESSING_MAX: usize = 256;

/// What is served, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Which directory.
    pub directory: PathBuf,
    /// How it is served.
    pub options: Options,
    /// Fields of every answer of the files, in place of the server's own by the same names; see [`layers`].
    pub headers: Vec<(String, String)>,
    /// Whether scripts of every origin may read it.
    pub cors: bool,
    /// Who may see it, if not everybody: lines of `NAME:HASH`, or `@FILE` for a file of these.
    pub auth: Vec<String>,
    /// Whether text is compressed while it is sent.
    pub compress: bool,
    /// What a request may cost.
    pub limits: Limits,
}

pub(super) fn run(mut config: Config, site: &Site) -> Result<(), Failure> {
    config.files_max = site.options.open_files_max;
    let shown = site.directory.display().to_string();
    if site.options.follow_symlinks {
        log::warn!("symbolic links may lead out of {shown}: everything they point to is served");
    }
    let files = Files::with(&site.directory, site.options.clone())
        .map_err(|error| Failure(format!("cannot serve {shown}: {error}; {}", advice(&shown))))?;
    files.check_page().map_err(|error| {
        let page = site.options.spa.as_deref().unwrap_or_default();
        Failure(format!("--spa: cannot read {page} in {shown}: {error}; name a file below the directory"))
    })?;
    let limits = site.limits.clone();
    let start = format!("files of {shown} on http");
    if site.is_plain() {
        let make = http(&config, limits, move |_| files.clone());
        return config.serve_and(make, |started| announce(&start, started, config.access_log.as_ref()));
    }
    let layers = site.layers()?;
    let make = http(&config, limits, move |_| layers.around(files.clone()));
    config.serve_and(make, |started| announce(&start, started, config.access_log.as_ref()))
}

/// What to do about a directory that cannot be served. A program of Windows reads `\"` as a quotation mark, so that
/// `"C:\a b\"` names what cannot be there, and takes the rest of the line in.
fn advice(directory: &str) -> &'static str {
    if cfg!(windows) && directory.contains('"') {
        "leave out the backslash before the closing quotation mark"
    } else {
        "name a directory that can be read"
    }
}

/// What is laid around the files, ready to be used by each worker.
struct Layers {
    headers: Vec<(String, String)>,
    cors: bool,
    auth: Option<(layers::Users, Pool)>,
    compress: Option<Pool>,
}

impl Site {
    fn is_plain(&self) -> bool {
        self.headers.is_empty() && !self.cors && self.auth.is_empty() && !self.compress
    }

    fn layers(&self) -> Result<Layers, Failure> {
        let pool = |threads, queued_max| {
            Pool::new(threads, queued_max).map_err(|error| Failure(format!("cannot start a thread: {error}")))
        };
        let auth = match self.users()? {
            Some(users) => Some((users, pool(CHECKING_THREADS, CHECKS_MAX)?)),
            None => None,
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let compress = if self.compress { Some(pool(cores, COMPRESSING_MAX)?) } else { None };
        Ok(Layers { headers: self.headers.clone(), cors: self.cors, auth, compress })
    }

    fn users(&self) -> Result<Option<layers::Users>, Failure> {
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
        layers::Users::parse(&lines).map(Some).map_err(|error| Failure(format!("--auth: {error}")))
    }
}

fn read_users(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read(path).and_then(|octets| {
        text(&octets).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8"))
    });
    text.map_err(|error| Failure(format!("--auth: cannot read {}: {error}; htpasswd -cB makes one", path.display())))
}

/// Text as it is in files: UTF-8, and also what Windows makes, which is UTF-8 behind a byte order mark, by editors, and
/// UTF-16, by `serverd hash alice > users` in its `PowerShell`.
fn text(octets: &[u8]) -> Option<String> {
    if let Some(pairs) = octets.strip_prefix(b"\xff\xfe") {
        let (pairs, rest) = pairs.as_chunks();
        let units: Vec<u16> = pairs.iter().map(|&pair| u16::from_le_bytes(pair)).collect();
        return String::from_utf16(&units).ok().filter(|_| rest.is_empty());
    }
    String::from_utf8(octets.strip_prefix(b"\xef\xbb\xbf").unwrap_or(octets).to_vec()).ok()
}

impl Layers {
    /// From the inside: content is compressed, then the fields are set; who may not see it learns nothing of it, but that
    /// much in any origin.
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
            // The command line has checked them.
            let set = layers::set_fields(handler, &list).expect("fields that may be sent");
            handler = Box::new(set);
        }
        handler
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_users_is_read_as_windows_writes_it_too() {
        let line = "alic\u{e9}:$2b$\r\n";
        let utf16: Vec<u8> = line.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for octets in
            [line.as_bytes().to_vec(), [b"\xef\xbb\xbf", line.as_bytes()].concat(), [&b"\xff\xfe"[..], &utf16].concat()]
        {
            assert_eq!(text(&octets).as_deref(), Some(line), "{octets:?}");
        }
        assert_eq!(text(b""), Some(String::new()));
        for octets in [&b"alic\xe9:"[..], b"\xff\xfea", b"\xff\xfe\x00\xd8"] {
            assert_eq!(text(octets), None, "{octets:?}");
        }
    }

    #[test]
    fn a_backslash_before_a_quotation_mark_is_told_of_on_windows() {
        assert_eq!(advice("C:\\a b\" --port 80").contains("leave out the backslash"), cfg!(windows));
        assert!(advice("C:\\a b").contains("a directory"));
    }
}
