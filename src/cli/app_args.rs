//! The options of `serverd chat` and of `serverd files`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::environment::PASSWORD;
use super::values::{size, whole_seconds};
use crate::apps::chat::{Bounds, Budget};
use crate::apps::files::{CacheControl, Options, is_media_type};
use crate::http1::Limits;
use crate::httpserver::HeaderBlock;
use crate::httpserver::layers::Users;
use crate::server::{ChatConfig, Command, FilesConfig, Password};

/// Default time for a connection to send its first line, during which a member may only read.
pub(super) const DEFAULT_SILENT_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) const CHAT_EXAMPLES: &str = "\
Examples:
  serverd chat --host ::                      Listen on all addresses, port 8888
  nc HOST 8888                                Join with netcat; telnet works too
  serverd connect HOST:8888                   Join without netcat";

#[derive(Debug, Args)]
#[allow(clippy::doc_markdown, reason = "help texts have no code markup")]
pub(super) struct ChatArgs {
    /// Maximum number of members, across all workers
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000), help_heading = "Chat")]
    max_members: u32,

    /// Maximum number of rooms, including the lobby
    #[arg(long, value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000), hide_short_help = true, help_heading = "Chat")]
    max_rooms: u32,

    /// Bytes accepted from a member at once; see --byte-rate
    #[arg(long, value_name = "SIZE", value_parser = budget, default_value = "64KiB")]
    #[arg(hide_short_help = true, help_heading = "Chat")]
    byte_burst: u32,

    /// Maximum bytes per second from a member; 0 for no limit
    ///
    /// This is an average: --byte-burst is accepted at once. A member that has used that up is not read until some of
    /// it has recovered (back-pressure). Its lines are delayed, none is lost, and it is not disconnected for being
    /// idle.
    #[arg(long, value_name = "SIZE", value_parser = rate, default_value = "4KiB")]
    #[arg(help_heading = "Chat")]
    byte_rate: u32,

    /// Lines accepted from a member at once; see --line-rate
    #[arg(long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000), hide_short_help = true, help_heading = "Chat")]
    line_burst: u32,

    /// Maximum lines per second from a member; 0 for no limit
    ///
    /// Works like --byte-rate. For a limit that drops lines, see --rate.
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1_000_000), help_heading = "Chat")]
    line_rate: u32,

    /// Mute a member that sends more than N lines per second [default: never]
    ///
    /// A member who exceeds it is notified and muted for 3 seconds: its lines are dropped.
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000), hide_short_help = true, help_heading = "Chat")]
    rate: Option<u32>,

    /// Number of recent lines sent to a member who joins a room
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=1000), help_heading = "Chat")]
    history: u16,

    /// Require the password in FILE, or in the variable SERVERD_PASSWORD
    ///
    /// The password is the first line of FILE. A connection must send it as its first line; it has three tries. FILE
    /// takes precedence over SERVERD_PASSWORD.
    #[arg(long, value_name = "FILE", help_heading = "Chat")]
    password_file: Option<PathBuf>,

    /// Send the text in FILE to each new member (message of the day)
    #[arg(long, value_name = "FILE", help_heading = "Chat")]
    motd: Option<PathBuf>,

    /// Log public messages to DIR, in one file per room and day
    ///
    /// A file is named DATE.ROOM.log; dates and times are in UTC. Private messages are not logged. Lines are dropped if
    /// the disk is too slow.
    #[arg(long, value_name = "DIR", help_heading = "Chat")]
    log: Option<PathBuf>,
}

impl ChatArgs {
    pub(super) fn command(self, queue_bytes_max: usize) -> Command {
        let count = |number| usize::try_from(number).unwrap_or(usize::MAX);
        let budget = |burst, per_second| (per_second > 0).then_some(Budget { burst, per_second });
        let bounds = Bounds {
            members_max: count(self.max_members),
            rooms_max: count(self.max_rooms),
            byte_budget: budget(self.byte_burst, self.byte_rate),
            line_budget: budget(self.line_burst, self.line_rate),
            rate: self.rate,
            queue_bytes_max,
            history_lines: self.history.into(),
        };
        let password = match self.password_file {
            Some(path) => Some(Password::File(path)),
            None => password_variable().map(Password::Text),
        };
        Command::Chat(Box::new(ChatConfig { bounds, password, motd: self.motd, log: self.log }))
    }
}

/// Returns the password in [`PASSWORD`].
fn password_variable() -> Option<String> {
    // A password that is not UTF-8 becomes one that cannot be entered, rather than none.
    let text = std::env::var_os(PASSWORD)?.to_string_lossy().into_owned();
    (!text.is_empty()).then_some(text)
}

/// Parses a number of bytes per second.
fn rate(text: &str) -> Result<u32, String> {
    match u32::try_from(size(text)?) {
        Ok(bytes @ 0..=0x4000_0000) => Ok(bytes),
        _ => Err("must be at most 1GiB".into()),
    }
}

/// Parses a number of bytes that is not zero.
fn budget(text: &str) -> Result<u32, String> {
    match rate(text)? {
        0 => Err("must be greater than zero; use --byte-rate 0 for no limit".into()),
        bytes => Ok(bytes),
    }
}

/// The last line of `serverd files -h`.
pub(super) const FILES_EXAMPLE: &str = "Example: serverd files dist --spa index.html --cache 1h --compress";

pub(super) const FILES_EXAMPLES: &str = r#"Examples:
  serverd files                                   Serve the current directory
  serverd files public --host :: --port 80        Serve a website on all addresses
  serverd files --index home.html --hidden        Change the index file; serve dotfiles, too
  serverd files dist --spa index.html --cache 1h --compress
                                                  Serve a single-page app
  serverd files --header "X-Frame-Options: DENY"  Set a response header
  serverd files --type log=text/plain             Set the media type of an extension
  serverd files --auth "$(serverd hash alice)"    Protect with a password"#;

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct FilesArgs {
    /// Directory to serve
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,

    /// Other spellings of DIR, for users of other servers.
    #[arg(long = "directory", alias = "root", value_name = "DIR", hide = true)]
    directory_option: Option<PathBuf>,

    /// Index file names, in order of preference
    ///
    /// Separate multiple names with commas.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "index.html")]
    #[arg(value_parser = file_name, help_heading = "Files")]
    index: Vec<String>,

    /// Serve hidden files
    ///
    /// Hidden files are those whose names begin with a dot and, on Windows, those with the hidden attribute.
    #[arg(long, hide_short_help = true, help_heading = "Files")]
    hidden: bool,

    /// Follow symbolic links that lead out of the directory
    ///
    /// Everything these links point to is served. Links within the directory are always followed.
    #[arg(long, hide_short_help = true)]
    #[arg(help_heading = "Files")]
    follow_symlinks: bool,

    /// Do not list directories that have no index file
    #[arg(long, hide_short_help = true, help_heading = "Files")]
    no_listing: bool,

    /// Serve FILE for page requests that match no file (single-page apps)
    ///
    /// Page requests accept text/html and are not for a resource of a page, such as a script or an API, as shown by the
    /// Accept and Sec-Fetch-Dest headers and the extension of the path. FILE is a path below DIR. Implies --no-listing.
    #[arg(long, value_name = "FILE", value_parser = relative_path)]
    #[arg(help_heading = "Files")]
    spa: Option<String>,

    /// Serve about.html at /about, without the extension
    ///
    /// Requests for /about.html are redirected to /about. A file named about takes precedence over about.html, and
    /// about.html over a directory named about.
    #[arg(long, hide_short_help = true, help_heading = "Files")]
    clean_urls: bool,

    /// Set the media type of a file extension (repeatable)
    ///
    /// Takes precedence over the built-in types. An extension may contain dots, as in tar.gz=TYPE; the longest that
    /// matches is used. In the environment variable, separate multiple types with newlines.
    #[arg(long = "type", value_name = "EXT=TYPE", value_parser = media_type, value_delimiter = '\n')]
    #[arg(hide_short_help = true, help_heading = "Files")]
    types: Vec<(String, String)>,

    /// Cache-Control: a lifetime, no-cache or no-store
    ///
    /// With a lifetime such as 1h, clients may reuse a file for that long without revalidating it; files with a hash in
    /// their names, such as app.3f9c2b1a.js, may be reused for a year. With no-cache, clients must revalidate a file
    /// before each use. With no-store, they must not keep a copy.
    #[arg(long, value_name = "TIME", value_parser = cache_control, default_value = "no-cache")]
    #[arg(help_heading = "Files")]
    cache: CacheControl,

    /// Set a response header (repeatable)
    ///
    /// Replaces the server's own header of that name. Not set on error responses to malformed, oversized or slow
    /// requests (400, 408, 413, 431 etc.). In the environment variable, separate multiple headers with newlines.
    #[arg(long, value_name = "'NAME: VALUE'", value_parser = header, value_delimiter = '\n')]
    #[arg(help_heading = "Files")]
    header: Vec<(String, String)>,

    /// Allow scripts from any origin to read responses (CORS)
    #[arg(long, help_heading = "Files")]
    cors: bool,

    /// Require Basic authentication (repeatable)
    ///
    /// HASH is a bcrypt hash of the user's password; `serverd hash NAME` prints a line NAME:HASH. @FILE reads such
    /// lines from a file, for example one created with htpasswd -B; it is read again when it changes, and on SIGHUP. In
    /// the environment variable, separate multiple users with newlines.
    #[arg(long, value_name = "NAME:HASH|@FILE", value_parser = user, value_delimiter = '\n')]
    #[arg(help_heading = "Files")]
    auth: Vec<String>,

    /// Compress text responses with gzip or zstd
    ///
    /// Responses of at least 1 KiB are compressed on the fly, for clients that accept it.
    #[arg(long, help_heading = "Files")]
    compress: bool,

    /// Do not serve precompressed files (.br, .zst, .gz)
    ///
    /// By default, app.js.br, app.js.zst or app.js.gz is served in place of app.js to clients that accept the encoding.
    #[arg(long, hide_short_help = true)]
    #[arg(help_heading = "Files")]
    no_precompressed: bool,

    /// Memory per worker for caching small files (up to 32KiB each)
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "16MiB")]
    #[arg(hide_short_help = true, help_heading = "Files")]
    file_cache: u64,

    /// Maximum number of larger files that each worker keeps open
    #[arg(long, value_name = "N", default_value_t = 256)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100_000), hide_short_help = true, help_heading = "Files")]
    open_files: u32,
}

impl FilesArgs {
    pub(super) fn command(self, limits: Limits) -> Command {
        let options = Options {
            index: self.index,
            hidden: self.hidden,
            follow_symlinks: self.follow_symlinks,
            // With --spa, a directory without an index file gets the page of the app.
            listing: !self.no_listing && self.spa.is_none(),
            spa: self.spa,
            clean_urls: self.clean_urls,
            types: self.types,
            private: self.auth.iter().filter_map(|user| user.strip_prefix('@')).map(PathBuf::from).collect(),
            cache_control: self.cache,
            precompressed: !self.no_precompressed,
            cache_bytes_max: usize::try_from(self.file_cache).unwrap_or(usize::MAX),
            open_files_max: usize::try_from(self.open_files).unwrap_or(usize::MAX),
        };
        let directory = self.directory_option.unwrap_or(self.directory);
        let FilesArgs { header: headers, cors, auth, compress, .. } = self;
        Command::Files(Box::new(FilesConfig { directory, options, headers, cors, auth, compress, limits }))
    }
}

/// Parses the name of a file, without a path.
fn file_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text == "." || text == ".." || text.contains(['/', '\\']) {
        return Err("must be a file name without a path".into());
    }
    Ok(text.to_owned())
}

/// Parses the path of a file below the served directory.
fn relative_path(text: &str) -> Result<String, String> {
    let names = text.strip_prefix('/').unwrap_or(text);
    if names.split('/').any(|name| file_name(name).is_err()) {
        return Err("must be the path of a file below the directory, e.g. index.html".into());
    }
    Ok(names.to_owned())
}

fn cache_control(text: &str) -> Result<CacheControl, String> {
    match text {
        "no-store" => Ok(CacheControl::NoStore),
        "no-cache" => Ok(CacheControl::NoCache),
        // max-age counts whole seconds (RFC 9111 section 1.2.2).
        _ => match whole_seconds(text) {
            Ok(time) => Ok(CacheControl::MaxAge(time)),
            Err(error) => Err(format!("use a time such as 1h, no-cache or no-store; {error}")),
        },
    }
}

/// Parses a header, `Name: value`. Rejects the headers that the server sets itself, such as Content-Length.
fn header(text: &str) -> Result<(String, String), String> {
    let Some((name, value)) = text.split_once(':') else { return Err("must have the form 'Name: value'".into()) };
    let (name, value) = (name.to_owned(), value.trim().to_owned());
    HeaderBlock::new().try_header(&name, value.as_bytes()).map_err(|error| format!("{error}; use 'Name: value'"))?;
    Ok((name, value))
}

/// Parses a media type by extension, `EXT=TYPE`.
fn media_type(text: &str) -> Result<(String, String), String> {
    let Some((extension, media_type)) = text.split_once('=') else {
        return Err("must have the form EXT=TYPE, e.g. log=text/plain".into());
    };
    let (extension, media_type) = (extension.trim_start_matches('.'), media_type.trim());
    if extension.is_empty() || extension.contains(['/', '\\']) || !is_media_type(media_type) {
        return Err("must be a file extension and a media type, e.g. log=text/plain".into());
    }
    Ok((extension.to_owned(), media_type.to_owned()))
}

/// Checks an entry of `--auth`: `NAME:HASH`, or `@FILE`, which is read when the server starts.
fn user(text: &str) -> Result<String, String> {
    if text.starts_with('@') && text.len() > 1 {
        return Ok(text.to_owned());
    }
    Users::parse(text).map(|_| text.to_owned()).map_err(|error| format!("{error}; or pass a file of such lines: @FILE"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn budgets_are_sizes_and_may_be_switched_off() {
        assert_eq!((rate("4KiB"), rate("0"), budget("1m")), (Ok(4096), Ok(0), Ok(1 << 20)));
        assert!(rate("2GiB").unwrap_err().contains("1GiB") && budget("0").unwrap_err().contains("--byte-rate 0"));
    }

    #[test]
    fn cache_is_a_time_or_a_keyword() {
        assert_eq!(cache_control("1h"), Ok(CacheControl::MaxAge(Duration::from_secs(3600))));
        assert_eq!(
            (cache_control("no-store"), cache_control("no-cache")),
            (Ok(CacheControl::NoStore), Ok(CacheControl::NoCache))
        );
        assert!(cache_control("500ms").unwrap_err().contains("must be whole seconds"));
        assert!(
            cache_control("never").unwrap_err().contains("no-store")
                && cache_control("60").unwrap_err().contains("60s")
        );
    }

    #[test]
    fn only_valid_headers_are_accepted() {
        assert_eq!(header("X-Frame-Options: DENY"), Ok(("X-Frame-Options".into(), "DENY".into())));
        assert_eq!(header("X-Empty:"), Ok(("X-Empty".into(), String::new())));
        for text in ["no colon", "bad name: x", "X: a\rb", "Content-Length: 3", ": x"] {
            assert!(header(text).unwrap_err().contains("'Name: value'"), "{text}");
        }
    }

    #[test]
    fn users_have_a_hash_or_come_from_a_file() {
        assert!(user("alice:$2y$05$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy").is_ok());
        assert!(user("@/etc/users").is_ok());
        // A hash that was mangled by shell expansion inside double quotes.
        assert!(user("alice:$2y/U/lAOzoim86wOywsVSaKAy").unwrap_err().contains("enclose it in single quotes"));
        assert!(user("@").is_err() && user("alice").unwrap_err().contains("NAME:HASH"));
    }

    #[test]
    fn the_spa_file_is_below_the_directory() {
        assert_eq!(relative_path("/app/index.html"), Ok("app/index.html".into()));
        for text in ["", "/", "../index.html", "a//b", "a/./b", "a\\b"] {
            assert!(relative_path(text).is_err(), "{text:?}");
        }
    }
}
