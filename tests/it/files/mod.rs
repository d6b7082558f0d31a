//! Tests of `serverd::Files` with real files, in a temporary directory per test.

mod cache_limits;
mod changes;
mod command;
mod conditions;
mod error_pages;
mod listing;
#[cfg(unix)]
mod log_lines;
mod media_types;
#[cfg(unix)]
mod names;
mod precompressed;
mod private_keys;
mod ranges;
mod replaced_root;
mod serving;
mod slow_root;
#[cfg(unix)]
mod special_files;
mod traversal;
mod validators;
mod website;

use std::path::{Path, PathBuf};

use serverd::apps::files::Options;
use serverd::{Files, HttpServer};
use tempfile::TempDir;

use crate::harness::{Backend, Client, RawResponse, Server, retry, serve};

/// The Accept header that a browser sends when it navigates to a page.
const NAVIGATION: &str = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n";

/// A served directory inside a temporary directory that is not served.
pub(crate) struct Tree {
    outside: TempDir,
}

impl Tree {
    /// Creates files from names and contents; a name that ends with `/` creates a directory.
    pub(crate) fn new(files: &[(&str, &str)]) -> Tree {
        let tree = Tree { outside: TempDir::new().expect("create temporary directory") };
        std::fs::create_dir(tree.path()).expect("create directory");
        for (name, text) in files {
            tree.write(name, text);
        }
        tree
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.outside.path().join("root")
    }

    /// The parent of the served directory, which must not be reachable.
    pub(crate) fn outside(&self) -> &Path {
        self.outside.path()
    }

    /// Writes a file with an mtime in the distant past, or creates a directory if `name` ends with `/`.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        if name.ends_with('/') {
            std::fs::create_dir_all(&path).expect("create directory");
            return path;
        }
        std::fs::create_dir_all(path.parent().expect("parent directory")).expect("create directory");
        std::fs::write(&path, text).expect("write file");
        set_old_mtime(&path);
        path
    }

    pub(crate) fn serve<B: Backend>(&self) -> Server {
        self.serve_with::<B>(Options::default())
    }

    pub(crate) fn serve_with<B: Backend>(&self, options: Options) -> Server {
        let files = Files::with_options(self.path(), options).expect("open directory");
        serve::<B, _>(move || HttpServer::with(files))
    }
}

/// Sat, 14 Nov 2020 12:00:00.123456789 GMT, as seconds and nanoseconds since the Unix epoch.
pub(crate) const LONG_AGO: (u64, u32) = (1_605_355_200, 123_456_789);
pub(crate) const LONG_AGO_TEXT: &str = "Sat, 14 Nov 2020 12:00:00 GMT";

/// Sets the mtime of a file to `LONG_AGO`.
pub(crate) fn set_old_mtime(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).expect("open file");
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(LONG_AGO.0, LONG_AGO.1);
    file.set_modified(time).expect("set mtime");
}

/// Sends a request with additional headers and reads the response.
pub(crate) fn request(client: &mut Client, method: &str, path: &str, headers: &str) -> RawResponse {
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"));
    client.response_to(method)
}

pub(crate) fn get(client: &mut Client, path: &str) -> RawResponse {
    request(client, "GET", path, "")
}

/// Repeats a request until the response matches. Takes about a second, as cached files are revalidated once per second.
pub(crate) fn get_until(client: &mut Client, path: &str, matches: impl Fn(&RawResponse) -> bool) -> RawResponse {
    request_until(client, path, "", matches)
}

/// Repeats a request with additional headers until the response matches.
fn request_until(
    client: &mut Client,
    path: &str,
    headers: &str,
    matches: impl Fn(&RawResponse) -> bool,
) -> RawResponse {
    retry(|| {
        let response = request(client, "GET", path, headers);
        if matches(&response) {
            Ok(response)
        } else {
            Err(format!("{path}: still {} {:?}", response.status, response.head))
        }
    })
}
