//! `serverd::Files` serves a directory: real files, in a tree that each test plants for itself.

mod bounds;
mod changes;
mod command;
mod conditions;
#[cfg(unix)]
mod kinds;
mod listing;
#[cfg(unix)]
mod names;
mod ranges;
mod serving;
mod site;
mod traversal;
mod variants;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serverd::apps::files::Options;
use serverd::{Files, HttpServer};
use tempfile::TempDir;

use crate::harness::{Answer, Backend, Client, PATIENCE, Server, serve};

/// A directory to be served, in one that is not.
pub(crate) struct Tree {
    outside: TempDir,
}

impl Tree {
    /// Plants files by their names; a name that ends with `/` is a directory.
    pub(crate) fn new(files: &[(&str, &str)]) -> Tree {
        let tree = Tree { outside: TempDir::new().expect("a directory") };
        std::fs::create_dir(tree.path()).expect("a directory");
        for (name, text) in files {
            tree.write(name, text);
        }
        tree
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.outside.path().join("root")
    }

    /// Beside the directory, where nobody may get.
    pub(crate) fn outside(&self) -> &Path {
        self.outside.path()
    }

    /// Writes a file that was last changed long ago, as most were.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        if name.ends_with('/') {
            std::fs::create_dir_all(&path).expect("a directory");
            return path;
        }
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(&path, text).expect("a file");
        settle(&path);
        path
    }

    pub(crate) fn serve<B: Backend>(&self) -> Server {
        self.serve_with::<B>(Options::default())
    }

    pub(crate) fn serve_with<B: Backend>(&self, options: Options) -> Server {
        let files = Files::with(self.path(), options).expect("a directory");
        serve::<B, _>(move || HttpServer::with(files))
    }
}

/// Sat, 14 Nov 2020 12:00:00.123456789 GMT.
pub(crate) const LONG_AGO: (u64, u32) = (1_605_355_200, 123_456_789);
pub(crate) const LONG_AGO_TEXT: &str = "Sat, 14 Nov 2020 12:00:00 GMT";

/// Makes a file one that was last changed long ago.
pub(crate) fn settle(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).expect("a file");
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(LONG_AGO.0, LONG_AGO.1);
    file.set_modified(time).expect("a time");
}

/// Asks for a path, with more fields.
pub(crate) fn ask(client: &mut Client, method: &str, path: &str, fields: &str) -> Answer {
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n"));
    client.answer_to(method)
}

pub(crate) fn get(client: &mut Client, path: &str) -> Answer {
    ask(client, "GET", path, "")
}

/// Asks until the answer is as wanted, which takes a second at most: so long is a file taken for what it was.
pub(crate) fn get_until(client: &mut Client, path: &str, is_it: impl Fn(&Answer) -> bool) -> Answer {
    let start = Instant::now();
    loop {
        let answer = get(client, path);
        if is_it(&answer) {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "{path}: still {} {:?}", answer.status, answer.head);
    }
}
