//! The options of `serverd files`.

use std::path::PathBuf;

use clap::Args;

use crate::apps::files::Options;
use crate::http1::Limits;
use crate::server::Command;

pub(super) const EXAMPLES: &str = "\
Examples:
  serverd files                                  what is here, on http://127.0.0.1:8888
  serverd files public --host :: --port 80       a site, on every address
  serverd files --index home.html --hidden       another index; files such as .well-known too

Only regular files below DIR are served. Links that lead out of it are not followed unless --follow-symlinks is given.";

#[derive(Debug, Args)]
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
            cache_bytes_max: usize::try_from(self.file_cache).unwrap_or(usize::MAX),
            open_files_max: usize::try_from(self.open_files).unwrap_or(usize::MAX),
        };
        Command::Files { directory: self.directory, options, limits }
    }
}

/// A name without a path.
fn plain_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text == "." || text == ".." || text.contains(['/', '\\']) {
        return Err("a file's name, without a path".into());
    }
    Ok(text.to_owned())
}
