//! The options of `serverd files`.

use std::path::PathBuf;

use clap::Args;

use crate::apps::files::{Caching, Options};
use crate::http1::Limits;
use crate::httpserver::FieldBlock;
use crate::httpserver::layers::Users;
use crate::server::{Command, Site};

pub(super) const EXAMPLES: &str = r#"Examples:
  serverd files                                  what is here, on http://127.0.0.1:8888
  serverd files public --host :: --port 80       a site, on every address
  serverd files --index home.html --hidden       another index; files such as .well-known too
  serverd files dist --spa index.html --cache 1h --compress
                                                 a program that runs in the browser
  serverd files --auth "$(serverd hash alice)"   for alice alone; asks for her password

Only regular files below DIR are served. Links that lead out of it are not followed unless --follow-symlinks is given."#;

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct FilesArgs {
    /// The directory
    #[arg(value_name = "DIR", default_value = ".", env = "SERVERD_DIR", hide_env_values = true)]
    directory: PathBuf,

    /// Files that stand for their directory, the first that there is
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "index.html", env = "SERVERD_INDEX")]
    #[arg(value_parser = plain_name, hide_env_values = true, help_heading = "Files")]
    index: Vec<String>,

    /// Serve also what is hidden: names that begin with a dot, and on Windows by attribute
    #[arg(long, env = "SERVERD_HIDDEN", hide_env_values = true, help_heading = "Files")]
    hidden: bool,

    /// Follow symbolic links that lead out of the directory
    #[arg(long, env = "SERVERD_FOLLOW_SYMLINKS", hide_env_values = true, help_heading = "Files")]
    follow_symlinks: bool,

    /// Do not list directories that have no index (--spa does not either)
    #[arg(long, env = "SERVERD_NO_LISTING", hide_env_values = true, help_heading = "Files")]
    no_listing: bool,

    /// File that is sent where a browser goes to a page that is not there
    #[arg(long, value_name = "FILE", value_parser = relative_path, env = "SERVERD_SPA", hide_env_values = true)]
    #[arg(help_heading = "Files")]
    spa: Option<String>,

    /// How long files may be kept: a time (a year for names with a hash, such as app.3f9c2b1a.js), no-cache or no-store
    #[arg(long, value_name = "TIME", value_parser = caching, default_value = "no-cache", env = "SERVERD_CACHE")]
    #[arg(hide_env_values = true, help_heading = "Files")]
    cache: Caching,

    /// Field of every answer, in place of the server's own, but not where a request is malformed, too large or too slow
    /// (400, 408, 413, 431 ...); may be given again (lines in the variable)
    #[arg(long, value_name = "'NAME: VALUE'", value_parser = header, value_delimiter = '\n', env = "SERVERD_HEADER")]
    #[arg(hide_env_values = true, help_heading = "Files")]
    header: Vec<(String, String)>,

    /// Let scripts of every origin read what is served
    #[arg(long, env = "SERVERD_CORS", hide_env_values = true, help_heading = "Files")]
    cors: bool,

    /// Who may come in, by a bcrypt hash of the password; may be given again, or be @FILE as htpasswd -B makes it
    #[arg(long, value_name = "NAME:HASH", value_parser = user, value_delimiter = '\n', env = "SERVERD_AUTH")]
    #[arg(hide_env_values = true, help_heading = "Files")]
    auth: Vec<String>,

    /// Compress text while it is sent, by gzip or zstd
    #[arg(long, env = "SERVERD_COMPRESS", hide_env_values = true, help_heading = "Files")]
    compress: bool,

    /// Do not send app.js.br, app.js.zst or app.js.gz in place of app.js to who takes that
    #[arg(long, env = "SERVERD_NO_PRECOMPRESSED", hide_env_values = true, help_heading = "Files")]
    no_precompressed: bool,

    /// Bytes of small files that each worker keeps in memory
    #[arg(long, value_name = "SIZE", value_parser = super::size, default_value = "16MiB", env = "SERVERD_FILE_CACHE")]
    #[arg(hide_env_values = true, help_heading = "Files")]
    file_cache: u64,

    /// Larger files that each worker keeps open
    #[arg(long, value_name = "N", default_value_t = 256, env = "SERVERD_OPEN_FILES", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100_000), help_heading = "Files")]
    open_files: u32,
}

impl FilesArgs {
    pub(super) fn command(self, limits: Limits) -> Command {
        let options = Options {
            index: self.index,
            hidden: self.hidden,
            follow_symlinks: self.follow_symlinks,
            // What is not there is a page of the program.
            listing: !self.no_listing && self.spa.is_none(),
            spa: self.spa,
            caching: self.cache,
            precompressed: !self.no_precompressed,
            cache_bytes_max: usize::try_from(self.file_cache).unwrap_or(usize::MAX),
            open_files_max: usize::try_from(self.open_files).unwrap_or(usize::MAX),
        };
        let FilesArgs { directory, header: headers, cors, auth, compress, .. } = self;
        Command::Files(Box::new(Site { directory, options, headers, cors, auth, compress, limits }))
    }
}

/// A name without a path.
fn plain_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text == "." || text == ".." || text.contains(['/', '\\']) {
        return Err("a file's name, without a path".into());
    }
    Ok(text.to_owned())
}

/// A path below the directory.
fn relative_path(text: &str) -> Result<String, String> {
    let names = text.strip_prefix('/').unwrap_or(text);
    if names.split('/').any(|name| plain_name(name).is_err()) {
        return Err("the path of a file below the directory, such as index.html".into());
    }
    Ok(names.to_owned())
}

fn caching(text: &str) -> Result<Caching, String> {
    match text {
        "no-store" => Ok(Caching::Never),
        "no-cache" => Ok(Caching::Revalidate),
        // RFC 9111 has whole seconds.
        _ => match super::duration(text) {
            Ok(time) if time.subsec_millis() == 0 => Ok(Caching::For(time)),
            Ok(_) => Err("whole seconds".into()),
            Err(error) => Err(format!("a time such as 1h, no-cache or no-store; {error}")),
        },
    }
}

/// A field that may be sent.
fn header(text: &str) -> Result<(String, String), String> {
    let Some((name, value)) = text.split_once(':') else { return Err("write 'Name: value'".into()) };
    let (name, value) = (name.to_owned(), value.trim().to_owned());
    FieldBlock::new().try_field(&name, value.as_bytes()).map_err(|error| format!("{error}; write 'Name: value'"))?;
    Ok((name, value))
}

/// One who may come in, or a file of them, which is read when the server starts.
fn user(text: &str) -> Result<String, String> {
    if text.starts_with('@') && text.len() > 1 {
        return Ok(text.to_owned());
    }
    Users::parse(text).map(|_| text.to_owned()).map_err(|error| format!("{error}; or name a file of such lines: @FILE"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn caching_is_a_time_or_a_word() {
        assert_eq!(caching("1h"), Ok(Caching::For(Duration::from_secs(3600))));
        assert_eq!((caching("no-store"), caching("no-cache")), (Ok(Caching::Never), Ok(Caching::Revalidate)));
        assert_eq!(caching("500ms"), Err("whole seconds".into()));
        assert!(caching("never").unwrap_err().contains("no-store") && caching("60").unwrap_err().contains("60s"));
    }

    #[test]
    fn headers_are_those_that_may_be_sent() {
        assert_eq!(header("X-Frame-Options: DENY"), Ok(("X-Frame-Options".into(), "DENY".into())));
        assert_eq!(header("X-Empty:"), Ok(("X-Empty".into(), String::new())));
        for text in ["no colon", "bad name: x", "X: a\rb", "Content-Length: 3", ": x"] {
            assert!(header(text).unwrap_err().contains("'Name: value'"), "{text}");
        }
    }

    #[test]
    fn users_have_hashes_or_are_in_a_file() {
        assert!(user("alice:$2y$05$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy").is_ok());
        assert!(user("@/etc/users").is_ok());
        // What is left of a hash between double quotes.
        assert!(user("alice:$2y/U/lAOzoim86wOywsVSaKAy").unwrap_err().contains("quote it in the shell by '...'"));
        assert!(user("@").is_err() && user("alice").unwrap_err().contains("NAME:HASH"));
    }

    #[test]
    fn the_page_of_a_program_is_below_the_directory() {
        assert_eq!(relative_path("/app/index.html"), Ok("app/index.html".into()));
        for text in ["", "/", "../index.html", "a//b", "a/./b", "a\\b"] {
            assert!(relative_path(text).is_err(), "{text:?}");
        }
    }
}
