//! Runs the built-in applications of the `serverd` command.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use super::chat::{self, ChatConfig};
use super::config::{Config, OnReload, StartError, Started};
use super::logging::{Logging, ProcessLog};
use crate::apps::{Echo, Files, Fixed, Whoami, files};
use crate::http1::Limits;
use crate::httpserver::{BufferLimit, Handler, HttpServer, Pool, Sink, Target, layers};

/// Threads that verify passwords: enough for the parallel connections of a browser, few enough to slow down guessing.
const AUTH_THREADS: usize = 2;

/// Queued password checks; beyond this, requests are rejected with 503.
const AUTH_QUEUE_MAX: usize = 64;

/// Response bodies compressed or queued for compression at a time; beyond this, responses are sent uncompressed.
const COMPRESSION_QUEUE_MAX: usize = 256;

/// Interval at which password files are checked for changes.
const AUTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Time without a change after which a password file that has changed is read.
const AUTH_SETTLE_TIME: Duration = Duration::from_millis(100);

/// A built-in application of the `serverd` command, with its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// HTTP server that returns the same text for every path.
    Http {
        /// The response text.
        body: String,
        /// Limits on the size of requests.
        limits: Limits,
    },
    /// HTTP server that echoes each request back to its sender.
    Whoami {
        /// Limits on the size of requests.
        limits: Limits,
    },
    /// HTTP server that serves the files of a directory.
    Files(Box<FilesConfig>),
    /// TCP echo server.
    Echo,
    /// TCP chat server with rooms.
    Chat(Box<ChatConfig>),
}

/// Runs a built-in application. Prints a line for each address to standard output once the server accepts connections,
/// before any line of an access log.
///
/// # Errors
/// Returns the errors of [`Config::serve`], and an error if the access log or the directory to serve cannot be opened.
pub fn run(config: &Config, command: &Command, logging: &Logging, log: &ProcessLog) -> Result<(), StartError> {
    let stdout = Sink::start("output", Target::Writer(Box::new(io::stdout())))
        .map_err(|error| StartError::from_io("cannot start a thread", &error))?;
    // Until the start line is printed.
    stdout.hold();
    let (mut config, stdout) = (config.clone(), Arc::new(stdout));
    if !matches!(command, Command::Echo | Command::Chat(_)) {
        config.access_log = logging.open(&stdout)?;
    }
    let access_log = config.access_log.clone();
    let outcome = run_command(config, command.clone(), &stdout);
    let deadline = log.end();
    stdout.flush_until(deadline);
    access_log.inspect(|log| log.flush_until(deadline));
    outcome
}

fn run_command(mut config: Config, command: Command, stdout: &Sink) -> Result<(), StartError> {
    match command {
        Command::Http { body, limits } => {
            // Leaked, since it lives as long as the process anyway; shared bytes would update a reference count with
            // every response.
            let text: &'static str = Box::leak(body.into_boxed_str());
            let make = http_server(&config, limits, move |_| Fixed::new(text));
            config.serve_unflushed(make, |started| announce("listening on http", &started, stdout))
        }
        Command::Whoami { limits } => {
            let body_bytes_max = limits.body_bytes_max;
            let make = http_server(&config, limits, move |worker| Whoami::new(worker, body_bytes_max));
            config.serve_unflushed(make, |started| announce("whoami on http", &started, stdout))
        }
        Command::Files(files_config) => run_files(config, &files_config, stdout),
        Command::Echo => {
            Echo::set_watermarks(&mut config.loop_limits);
            config.serve_unflushed(|_| Echo, |started| announce("echo on tcp", &started, stdout))
        }
        Command::Chat(chat_config) => {
            chat::run(&config, &chat_config, |started| announce("chat on tcp", started, stdout))
        }
    }
}

/// Returns a function that creates the HTTP server of a worker from the handler made by `make`.
fn http_server<H: Handler + 'static>(
    config: &Config,
    limits: Limits,
    make: impl Fn(usize) -> H + Send + Sync + 'static,
) -> impl Fn(usize) -> HttpServer<H> + Send + Sync + 'static {
    let (log, options) = (config.access_log.clone(), config.http.clone());
    let buffer_limit = BufferLimit::new(options.buffered_bytes_max);
    let idle = config.timeouts.idle.map(|idle| config.timeout.map_or(idle, |cap| cap.min(idle)));
    let idle = idle.filter(|_| options.keep_alive_header);
    move |worker| {
        HttpServer::with(make(worker))
            .limits(limits.clone())
            .access_log(log.as_ref())
            .buffer_limit(&buffer_limit)
            .keep_alive_header(idle)
            .requests_max(options.requests_max)
            .allow_hosts(&options.allowed_hosts)
    }
}

/// Prints a start line for each address, then releases the access log, which may also write to standard output.
fn announce(what: &str, started: &Started, stdout: &Sink) {
    let Started { local_addrs, backend, workers } = started;
    let plural = if *workers == 1 { "" } else { "s" };
    let line = |address| format!("serverd: {what}://{address} ({backend}, {workers} worker{plural})\n");
    stdout.release_after(&local_addrs.iter().map(line).collect::<String>());
    warn_if_root();
}

#[cfg(unix)]
fn warn_if_root() {
    if rustix::process::geteuid().is_root() {
        log::warn!(
            "running as root; start serverd as another user, which needs only the capability CAP_NET_BIND_SERVICE for \
             ports below 1024 (AmbientCapabilities= in systemd, or setcap)"
        );
    }
}

/// Does nothing: Windows has no root user.
#[cfg(not(unix))]
fn warn_if_root() {}

/// Configuration of `serverd files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesConfig {
    /// The directory to serve.
    pub directory: PathBuf,
    /// Options for serving it.
    pub options: files::Options,
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

fn run_files(mut config: Config, files_config: &FilesConfig, stdout: &Sink) -> Result<(), StartError> {
    config.files_max = files_config.options.open_files_max;
    let files = files_config.open()?;
    let (limits, start) =
        (files_config.limits.clone(), format!("serving {} on http", files_config.directory.display()));
    let reload = files.reloader();
    if files_config.is_plain() {
        config.on_reload = Some(OnReload::new(reload));
        let make = http_server(&config, limits, move |_| files.clone());
        return config.serve_unflushed(make, |started| announce(&start, &started, stdout));
    }
    let (layers, reload_users) = files_config.layers()?;
    config.on_reload = Some(OnReload::new(move || {
        reload();
        if let Some(reload_users) = &reload_users {
            reload_users();
        }
    }));
    let make = http_server(&config, limits, move |_| layers.around(files.clone()));
    config.serve_unflushed(make, |started| announce(&start, &started, stdout))
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
    auth: Option<(layers::UserStore, Pool)>,
    compress: Option<Pool>,
}

impl FilesConfig {
    /// Opens the directory, and checks that it and the page of a single-page app can be read.
    fn open(&self) -> Result<Files, StartError> {
        let shown = self.directory.display().to_string();
        if self.options.follow_symlinks {
            log::warn!("following symbolic links out of {shown}: everything they point to is served");
        }
        let cannot_serve =
            |error: io::Error| StartError::new(format!("cannot serve {shown}: {error}; {}", advice(&shown)));
        let files = Files::with_options(&self.directory, self.options.clone()).map_err(cannot_serve)?;
        // Opening a directory does not need the permission to search it.
        std::fs::metadata(self.directory.join(".")).map_err(cannot_serve)?;
        if self.options.listing {
            std::fs::read_dir(&self.directory).map_err(cannot_serve)?;
        }
        files.check_spa_page().map_err(|error| {
            let page = self.options.spa.as_deref().unwrap_or_default();
            StartError::new(format!(
                "--spa: cannot read {page} in {shown}: {error}; specify a file below the directory"
            ))
        })?;
        Ok(files)
    }

    fn is_plain(&self) -> bool {
        self.headers.is_empty() && !self.cors && self.auth.is_empty() && !self.compress
    }

    /// Prepares the layers. Also returns a function that reads the password files again, if there are any.
    fn layers(&self) -> Result<(Layers, Option<impl Fn() + Send + Sync + 'static>), StartError> {
        let pool = |threads, queued_max| {
            Pool::new(threads, queued_max).map_err(|error| StartError::new(format!("cannot start a thread: {error}")))
        };
        let (mut auth, mut reload_users) = (None, None);
        if !self.auth.is_empty() {
            let source = UserSource { entries: self.auth.clone() };
            let known = source.stamps();
            let users = source.read().map_err(|error| StartError::new(format!("--auth: {error}")))?;
            source.warn_about_files(&self.directory);
            let store = layers::UserStore::from(users);
            if source.files().next().is_some() {
                reload_users = Some(
                    source
                        .watch(store.clone(), known)
                        .map_err(|error| StartError::new(format!("cannot start a thread: {error}")))?,
                );
            }
            auth = Some((store, pool(AUTH_THREADS, AUTH_QUEUE_MAX)?));
        }
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let compress = if self.compress { Some(pool(cores, COMPRESSION_QUEUE_MAX)?) } else { None };
        Ok((Layers { headers: self.headers.clone(), cors: self.cors, auth, compress }, reload_users))
    }
}

/// The values of `--auth`: users, and files of users.
struct UserSource {
    entries: Vec<String>,
}

/// Metadata by which a change of a file is noticed.
type Stamp = Option<(Option<SystemTime>, u64, (u64, i64, i64))>;

impl UserSource {
    fn files(&self) -> impl Iterator<Item = &Path> {
        self.entries.iter().filter_map(|entry| entry.strip_prefix('@')).map(Path::new)
    }

    /// Reads and parses all users. The error names the file or the user.
    fn read(&self) -> Result<layers::Users, String> {
        let mut lines = String::new();
        for entry in &self.entries {
            match entry.strip_prefix('@') {
                Some(path) => lines += &read_users(Path::new(path))?,
                None => lines += entry,
            }
            lines.push('\n');
        }
        layers::Users::parse(&lines)
    }

    fn stamps(&self) -> Vec<Stamp> {
        let stamp = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok(), metadata.len(), inode(&metadata)))
        };
        self.files().map(stamp).collect()
    }

    /// Starts a thread that replaces the users when a file changes. Returns a function that makes it read the files
    /// again at once. Until all files can be read, the previous users stay in force.
    fn watch(self, store: layers::UserStore, mut known: Vec<Stamp>) -> io::Result<impl Fn() + Send + Sync + 'static> {
        let requested = Arc::new(AtomicBool::new(false));
        let is_requested = Arc::clone(&requested);
        let work = move || loop {
            thread::park_timeout(AUTH_CHECK_INTERVAL);
            let stamps = self.stamps();
            if !is_requested.swap(false, Ordering::SeqCst) {
                if stamps == known {
                    continue;
                }
                // A file that is still being written may lack users.
                thread::sleep(AUTH_SETTLE_TIME);
                if self.stamps() != stamps {
                    continue;
                }
            }
            known = stamps;
            match self.read() {
                Ok(users) => {
                    store.replace(users);
                    log::info!("--auth: read the users again");
                }
                Err(error) => log::error!("--auth: {error}; the previous users stay in force"),
            }
        };
        let thread = thread::Builder::new().name("users".into()).spawn(work)?.thread().clone();
        let thread = Mutex::new(thread);
        Ok(move || {
            requested.store(true, Ordering::SeqCst);
            thread.lock().unwrap_or_else(PoisonError::into_inner).unpark();
        })
    }

    /// Warns about files that all users of the system can read, and about those in the served directory, which are not
    /// served.
    fn warn_about_files(&self, directory: &Path) {
        for path in self.files() {
            let shown = path.display();
            if std::fs::metadata(path).is_ok_and(|metadata| is_readable_by_all(&metadata)) {
                log::warn!("--auth: {shown} can be read by all users of this system; use chmod o-r");
            }
            let paths = (path.canonicalize(), directory.canonicalize());
            if matches!(paths, (Ok(path), Ok(directory)) if path.starts_with(&directory)) {
                log::warn!("--auth: {shown} is in the served directory; it is not served, but move it elsewhere");
            }
        }
    }
}

#[cfg(unix)]
fn inode(metadata: &std::fs::Metadata) -> (u64, i64, i64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> (u64, i64, i64) {
    (0, 0, 0)
}

#[cfg(unix)]
fn is_readable_by_all(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::mode(metadata) & 0o004 != 0
}

#[cfg(not(unix))]
fn is_readable_by_all(_: &std::fs::Metadata) -> bool {
    false
}

fn read_users(path: &Path) -> Result<String, String> {
    let text = std::fs::read(path)
        .and_then(|bytes| decode(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not valid UTF-8")));
    text.map_err(|error| format!("cannot read {}: {error}; create the file with htpasswd -cB", path.display()))
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
