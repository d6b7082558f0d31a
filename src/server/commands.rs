//! Runs the built-in applications of the `serverd` command: reads the files that they need, and the terminal of a
//! chat's operator.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use super::config::{Config, OnReload, ReadyCheck, Started, worker_count};
use super::logging::{Logging, ProcessLog};
use super::private_keys;
use super::start_error::StartError;
use super::worker_loop::{AnyHandler, Other, Plain, PlainOrOther, Worker, is_plain, worker_loops};
use crate::apps::chat::{Bounds, Console, Options, RoomLog};
use crate::apps::files::CountedFiles;
use crate::apps::{ACME_OPEN_FILES_MAX, AcmeChallenges, Chat, Echo, Files, Fixed, Whoami, files};
use crate::http1::Limits;
use crate::httpserver::layers::AuthMetrics;
use crate::httpserver::{BufferLimit, Handler, HttpServer, Metrics, Pool, Sink, Target, layers};
use crate::r#loop::lock;

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
        .map_err(|error| StartError::from_io("cannot start a thread", error))?;
    // Until the start line is printed.
    stdout.hold();
    let (mut config, stdout) = (config.clone(), Arc::new(stdout));
    if !matches!(command, Command::Echo | Command::Chat(_)) {
        config.access_log = logging.open(&stdout)?;
        if config.admin.is_some() {
            config.workers = worker_count(config.workers);
            config.metrics = Some(Metrics::default());
        }
    } else if let Some(tls) = &mut config.tls {
        // Clients of a TCP server negotiate no application protocol, or a protocol of their own.
        tls.alpn_protocols.clear();
        // The redirect exists only for HTTP.
        tls.plain_port = None;
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
            if !is_plain(&config) {
                let make = move |_| AnyHandler::new(Fixed::new(text));
                return serve_http(config, limits, Arc::new(make), ("listening on", stdout));
            }
            // A type of its own: the call by address would take as long as a tenth of a pipelined request.
            let server = http_server(&config, limits, Box::new(move |_: Worker| Fixed::new(text)));
            let on_started = Box::new(|started| announce(("listening on", "http"), &started, stdout));
            config.serve_unflushed(&worker_loops::<Plain, _>(server), on_started)
        }
        Command::Whoami { limits } => {
            let body_bytes_max = limits.body_bytes_max;
            let make = move |worker| AnyHandler::new(Whoami::new(worker, body_bytes_max));
            serve_http(config, limits, Arc::new(make), ("whoami on", stdout))
        }
        Command::Files(files_config) => run_files(config, &files_config, stdout),
        Command::Echo => {
            Echo::set_watermarks(&mut config.loop_limits);
            let on_started = Box::new(|started| announce(("echo on", "tcp"), &started, stdout));
            config.serve_unflushed(&worker_loops::<Other, _>(|_| Echo), on_started)
        }
        Command::Chat(chat_config) => {
            run_chat(&config, &chat_config, |started| announce(("chat on", "tcp"), started, stdout))
        }
    }
}

/// Creates the handler of a worker from its number.
type MakeHandler = Arc<dyn Fn(usize) -> AnyHandler + Send + Sync>;

/// Runs an HTTP server with the handlers made by `make`, with the redirect from http to https if it is configured.
fn serve_http(
    mut config: Config,
    limits: Limits,
    make: MakeHandler,
    (start, stdout): (&str, &Sink),
) -> Result<(), StartError> {
    let on_started = Box::new(|started| announce((start, "http"), &started, stdout));
    if config.tls.as_ref().is_none_or(|tls| tls.plain_port.is_none()) {
        let make = Box::new(move |worker: Worker| make(worker.number));
        return config
            .serve_unflushed(&worker_loops::<PlainOrOther, _>(http_server(&config, limits, make)), on_started);
    }
    let challenges = open_challenges(&mut config)?;
    let public_port = config.http.https_port;
    let make = Box::new(move |worker: Worker| {
        let handler = layers::https_redirect(make(worker.number), public_port.unwrap_or(worker.port));
        match &challenges {
            Some(files) => AnyHandler::new(AcmeChallenges::new(files.clone(), handler)),
            None => AnyHandler::new(handler),
        }
    });
    config.serve_unflushed(&worker_loops::<PlainOrOther, _>(http_server(&config, limits, make)), on_started)
}

/// Opens the directory with the challenges of an ACME client, if there is one.
fn open_challenges(config: &mut Config) -> Result<Option<Files>, StartError> {
    let Some(directory) = &config.http.acme_webroot else { return Ok(None) };
    config.files_max += ACME_OPEN_FILES_MAX;
    let private = private_keys::paths(config).collect();
    AcmeChallenges::open(directory, private).map(Some).map_err(|error| {
        let shown = directory.display();
        StartError::new(format!("--acme-webroot: cannot serve {shown}: {error}; create the directory"))
    })
}

/// Returns a function that creates the HTTP server of a worker from the handler made by `make`.
fn http_server<H: Handler + 'static>(
    config: &Config,
    limits: Limits,
    make: Box<dyn Fn(Worker) -> H + Send + Sync>,
) -> impl Fn(Worker) -> HttpServer<H> + Send + Sync + 'static {
    let (log, options, proxies) = (config.access_log.clone(), config.http.clone(), config.trusted_proxies.clone());
    let metrics = config.metrics.clone();
    let has_several_certificates = config.tls.as_ref().is_some_and(|tls| tls.files.len() > 1);
    let buffer_limit = BufferLimit::new(options.buffered_bytes_max);
    let idle = config.timeouts.idle.map(|idle| config.timeout.map_or(idle, |cap| cap.min(idle)));
    let idle = idle.filter(|_| options.keep_alive_header);
    move |worker| {
        let server = HttpServer::with(make(worker))
            .limits(limits.clone())
            .access_log(log.clone().map(|log| log.worker(worker.number)).as_ref())
            .buffer_limit(&buffer_limit)
            .keep_alive_header(idle)
            .requests_max(options.requests_max)
            .allow_hosts(&options.allowed_hosts)
            .strict_sni_host(has_several_certificates)
            .hsts(options.hsts)
            .trusted_proxies(&proxies, options.client_ip_header)
            .metrics(metrics.as_ref().map(|metrics| metrics.worker(worker.number)).as_ref());
        let server = match &options.request_id {
            Some(header) => server.request_id(header.clone()),
            None => server,
        };
        match &options.health_path {
            Some(path) => server.health_path(path),
            None => server,
        }
    }
}

/// Prints a start line for each address, and one for each address that redirects to it, then releases the access log,
/// which may also write to standard output.
///
/// `scheme` is the one of plain TCP. With TLS, the fingerprint of the certificate is printed too.
fn announce((what, scheme): (&str, &str), started: &Started, stdout: &Sink) {
    let Started { local_addrs, plain_addrs, backend, workers, fingerprint, .. } = started;
    let plural = if *workers == 1 { "" } else { "s" };
    let (scheme, print) = match fingerprint {
        Some(print) => (if scheme == "http" { "https" } else { "tls" }, format!(", certificate {print}")),
        None => (scheme, String::new()),
    };
    let line = |address| format!("serverd: {what} {scheme}://{address} ({backend}, {workers} worker{plural}{print})\n");
    let redirect = |plain: &SocketAddr| {
        let secure = SocketAddr::new(plain.ip(), local_addrs[0].port());
        format!("serverd: redirecting http://{plain} to https://{secure}\n")
    };
    let lines = local_addrs.iter().map(line).chain(plain_addrs.iter().map(redirect));
    stdout.release_after(&lines.collect::<String>());
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
    let mut files_config = files_config.clone();
    private_keys::protect(&config, &files_config.directory, &mut files_config.options);
    let files_config = &files_config;
    config.files_max = files_config.options.open_files_max;
    let directory = files_config.directory.clone();
    config.ready_check = Some(ReadyCheck::new(move || {
        // Opening a directory does not need the permission to search it.
        std::fs::metadata(directory.join(".")).map(drop).map_err(|error| format!("the directory: {error}"))
    }));
    let files = files_config.open()?;
    let (limits, start) = (files_config.limits.clone(), format!("serving {} on", files_config.directory.display()));
    let reload = files.reloader();
    let counted = if config.metrics.is_some() { config.workers } else { 0 };
    config.file_caches = (0..counted).map(|_| Arc::default()).collect();
    let caches = config.file_caches.clone();
    if files_config.is_plain() {
        config.on_reload = Some(OnReload::new(reload));
        let make = move |worker| match caches.get(worker) {
            Some(metrics) => AnyHandler::new(CountedFiles::new(files.clone(), metrics)),
            None => AnyHandler::Files(Box::new(files.clone())),
        };
        return serve_http(config, limits, Arc::new(make), (&start, stdout));
    }
    let (layers, reload_users) = files_config.layers()?;
    if layers.auth.is_some() {
        config.auth_metrics = (0..counted).map(|_| Arc::default()).collect();
    }
    let auth_metrics = config.auth_metrics.clone();
    config.on_reload = Some(OnReload::new(move || {
        reload();
        if let Some(reload_users) = &reload_users {
            reload_users();
        }
    }));
    let make = move |worker| {
        let files = files.clone();
        let handler: Box<dyn Handler> = match caches.get(worker) {
            Some(metrics) => Box::new(CountedFiles::new(files, metrics)),
            None => Box::new(files),
        };
        AnyHandler::Other(layers.around(handler, auth_metrics.get(worker)))
    };
    serve_http(config, limits, Arc::new(make), (&start, stdout))
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
            Pool::new(threads, queued_max).map_err(|error| StartError::from_io("cannot start a thread", error))
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
                        .map_err(|error| StartError::from_io("cannot start a thread", error))?,
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
    /// again at once. Until all files can be read, the previous users stay in effect.
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
            lock(&thread).unpark();
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
    text.map_err(|error| {
        format!("cannot read {}: {error}; create it with serverd hash NAME > FILE, or htpasswd -cB", path.display())
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
    fn around(&self, mut handler: Box<dyn Handler>, metrics: Option<&Arc<AuthMetrics>>) -> Box<dyn Handler> {
        if let Some(pool) = &self.compress {
            handler = Box::new(layers::compress(handler, pool.clone()));
        }
        if let Some((users, pool)) = &self.auth {
            let (users, pool) = (users.clone(), pool.clone());
            handler = Box::new(layers::basic_auth_with_metrics(handler, "files", users, pool, metrics.cloned()));
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

/// Maximum size of the message of the day and of the password file.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// Maximum length of a line typed at the console. Terminals usually limit it to this as well.
const CONSOLE_LINE_MAX: usize = 4096;

/// Interval at which a server in the background checks whether it is in the foreground.
#[cfg(unix)]
const FOREGROUND_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum time to wait for the log to be written at the end.
const LOG_END_MAX: Duration = Duration::from_secs(1);

/// Configuration of `serverd chat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatConfig {
    /// The limits.
    pub bounds: Bounds,
    /// The password of the chat, if any.
    pub password: Option<Password>,
    /// File with the message of the day, at most 16 KiB.
    pub motd: Option<PathBuf>,
    /// Directory of the log.
    pub log: Option<PathBuf>,
}

/// The password of a chat.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// The password itself.
    Text(String),
    /// A file, whose first line is the password. It is read at start.
    File(PathBuf),
}

impl std::fmt::Debug for Password {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Password::Text(_) => formatter.write_str("Text(..)"),
            Password::File(path) => formatter.debug_tuple("File").field(path).finish(),
        }
    }
}

fn run_chat(config: &Config, chat_config: &ChatConfig, announce: impl FnOnce(&Started)) -> Result<(), StartError> {
    let log = match &chat_config.log {
        Some(directory) => Some(RoomLog::open(directory).map_err(|error| {
            let shown = directory.display();
            StartError::new(format!("--log: cannot write to {shown}: {error}; specify a writable directory"))
        })?),
        None => None,
    };
    let (log, log_end) = log.unzip();
    let options = Options {
        bounds: chat_config.bounds,
        password: chat_config.password.as_ref().map(read_password).transpose()?,
        motd: chat_config.motd.as_deref().map_or(Ok(String::new()), |path| read_text("--motd", path))?,
        log,
    };
    let chats = Chat::with_options(options, worker_count(config.workers));
    let console = chats.first().map(Chat::console);
    let instances = Mutex::new(chats);
    // Each worker takes one of them, in any order.
    let make = move |_| lock(&instances).pop().expect("one per worker");
    let on_started = |started| {
        announce(&started);
        if let Some(console) = console.filter(|_| io::stdin().is_terminal()) {
            start_console(console);
        }
    };
    let outcome = config.serve_unflushed(&worker_loops::<Other, _>(make), Box::new(on_started));
    if let Some(end) = log_end {
        end.wait(LOG_END_MAX);
    }
    outcome
}

fn read_password(password: &Password) -> Result<String, StartError> {
    let text = match password {
        Password::Text(text) => text.clone(),
        Password::File(path) => read_text("--password-file", path)?,
    };
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(StartError::new("the password is empty; write it into the first line of the file")),
    }
}

fn read_text(option: &str, path: &Path) -> Result<String, StartError> {
    let mut text = String::new();
    let outcome = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    let shown = path.display();
    match outcome {
        Err(error) => Err(StartError::new(format!("{option}: cannot read {shown}: {error}"))),
        Ok(_) if text.len() as u64 > FILE_BYTES_MAX => {
            Err(StartError::new(format!("{option}: {shown} is longer than {FILE_BYTES_MAX} bytes")))
        }
        Ok(_) => Ok(text),
    }
}

/// Starts the thread that executes the lines typed at the terminal. It ends with the process.
fn start_console(console: Console) {
    let execute = move |line: &str| {
        // A closed stdout does not end the console.
        let mut out = io::stdout().lock();
        let _ = out.write_all(console.execute(line).as_bytes()).and_then(|()| out.flush());
    };
    if let Err(error) = std::thread::Builder::new().name("console".into()).spawn(move || read_terminal(execute)) {
        log::warn!("cannot start the console: {error}");
    }
}

/// Calls `execute` with each line typed at the terminal, until the terminal is closed. Reads only while the process is
/// in the foreground process group: a read from the background would stop the process (SIGTTIN).
#[cfg(unix)]
fn read_terminal(execute: impl Fn(&str)) {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;

    let stdin = io::stdin();
    let is_foreground = || rustix::termios::tcgetpgrp(&stdin).is_ok_and(|group| group == rustix::process::getpgrp());
    let (mut line, mut buffer) = (Vec::new(), [0; CONSOLE_LINE_MAX]);
    loop {
        if !is_foreground() {
            std::thread::sleep(FOREGROUND_INTERVAL);
            continue;
        }
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None) {
            // The shell may have taken the terminal back during the poll.
            Ok(_) if !is_foreground() => continue,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        match rustix::io::read(&stdin, &mut buffer) {
            Ok(0) => return,
            Ok(count) => take_lines(&mut line, &buffer[..count], &execute),
            Err(Errno::INTR | Errno::IO | Errno::AGAIN) => std::thread::sleep(FOREGROUND_INTERVAL),
            Err(_) => return,
        }
    }
}

/// Calls `execute` with each line typed at the terminal, until the terminal is closed.
#[cfg(not(unix))]
fn read_terminal(execute: impl Fn(&str)) {
    let (mut line, mut buffer) = (Vec::new(), [0; CONSOLE_LINE_MAX]);
    while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
        take_lines(&mut line, &buffer[..count], &execute);
    }
}

/// Appends input to a partial line, and calls `execute` with each line that is complete. Longer lines are cut.
fn take_lines(line: &mut Vec<u8>, input: &[u8], execute: impl Fn(&str)) {
    for piece in input.split_inclusive(|&byte| byte == b'\n') {
        let room = CONSOLE_LINE_MAX.saturating_sub(line.len());
        line.extend_from_slice(&piece[..piece.len().min(room)]);
        if piece.ends_with(b"\n") {
            execute(String::from_utf8_lossy(line).trim_end());
            line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

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

    #[test]
    fn console_lines_are_assembled_and_cut() {
        let lines = RefCell::new(Vec::new());
        let mut line = Vec::new();
        let long = "x".repeat(5000);
        for piece in ["a\r\nb", "c\n", &long, "y\n", "d\n"] {
            take_lines(&mut line, piece.as_bytes(), |line| lines.borrow_mut().push(line.to_owned()));
        }
        assert_eq!(*lines.borrow(), ["a", "bc", &long[..CONSOLE_LINE_MAX], "d"]);
    }

    #[test]
    fn the_password_is_the_first_line_and_not_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let file = Password::File(path.clone());
        assert!(read_password(&file).unwrap_err().to_string().contains("cannot read"));
        for (text, password) in [("secret\r\nnext\n", Some("secret")), ("secret", Some("secret")), ("\nsecret", None)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_password(&file).ok().as_deref(), password);
        }
        std::fs::write(&path, "x".repeat(20_000)).unwrap();
        assert!(read_password(&file).unwrap_err().to_string().contains("longer than 16384 bytes"));
    }
}
