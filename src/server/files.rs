//! `serverd files`: a directory, and what is laid around it.

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
    /// Fields of every answer, in place of the server's own by the same names.
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
        .map_err(|error| Failure(format!("cannot serve {shown}: {error}; name a directory that can be read")))?;
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
    std::fs::read_to_string(path)
        .map_err(|error| Failure(format!("--auth: cannot read {}: {error}; htpasswd -cB makes one", path.display())))
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
