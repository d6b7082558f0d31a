//! Maps a request path to a file, a directory or a redirect.
//!
//! A path is split at slashes and then decoded, once (RFC 3986 section 2.4), so `%2F` is not a separator and `%252e` is
//! not a dot. Repeated slashes count as one and `.` segments are skipped, as in the normal form that the router uses.
//! Any other segment that is not a plain file name is rejected (404), so that responses are the same on all platforms.
//! Security does not depend on this: `root` confines requests to the root.

use std::io;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use super::options::Options;
use super::root::{FileKind, Root, is_not_found};
use crate::httpserver::push_byte;

/// Extension that is omitted with [`Options::clean_urls`].
const PAGE_EXTENSION: &str = ".html";

/// A decoded request path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Path relative to the root; empty for the root itself.
    pub(super) relative: PathBuf,
    /// True if the path ends with a slash, which denotes a directory.
    pub(super) slash: bool,
}

impl Target {
    /// Parses a raw request path such as `/a/b`. Returns `None` if no file can have this path.
    pub(super) fn parse(path: &str, hidden: bool) -> Option<Target> {
        let mut segments = path.split('/').peekable();
        // The path must begin with a slash, which `*` and an authority do not.
        if segments.next() != Some("") {
            return None;
        }
        let (mut relative, mut slash) = (PathBuf::new(), false);
        while let Some(segment) = segments.next() {
            let name: Vec<u8> = percent_decode_str(segment).collect();
            // RFC 3986 section 5.2.4: `/a/.` denotes `/a/`.
            if matches!(&name[..], b"" | b".") {
                slash |= segments.peek().is_none();
                continue;
            }
            let is_hidden = name.starts_with(b".");
            if !is_name(&name) || is_hidden && !hidden {
                return None;
            }
            relative.push(os_name(name)?);
        }
        Some(Target { relative, slash })
    }

    /// Returns the canonical spelling of the path, with the minimum of percent-encoding.
    pub(super) fn canonical(&self) -> String {
        let mut path = canonical(&self.relative);
        if self.slash {
            path.push('/');
        }
        path
    }
}

/// The result of resolving a path.
pub(super) enum Resolved {
    /// A file, as a path relative to the root.
    File(PathBuf),
    /// A directory without an index file.
    Directory,
    /// A directory requested without its trailing slash.
    Redirect,
    /// A page requested with its extension, which is redirected to this name in the same directory.
    CleanUrl(String),
}

impl Target {
    /// Finds the file or directory with this path.
    pub(super) fn resolve(&self, root: &Root, options: &Options) -> io::Result<Resolved> {
        if options.clean_urls && !self.slash {
            return self.resolve_clean_url(root, options);
        }
        match root.kind(&self.relative)? {
            FileKind::File if self.slash => Err(io::ErrorKind::NotFound.into()),
            FileKind::File => Ok(Resolved::File(self.relative.clone())),
            FileKind::Directory if self.slash => {
                Ok(find_index(root, options, &self.relative)?.map_or(Resolved::Directory, Resolved::File))
            }
            FileKind::Directory => Ok(Resolved::Redirect),
        }
    }

    /// Resolves a path without a trailing slash: to the file of this name, its page `NAME.html`, or the directory, in
    /// this order.
    fn resolve_clean_url(&self, root: &Root, options: &Options) -> io::Result<Resolved> {
        let exact = root.kind(&self.relative);
        if let Ok(FileKind::File) = exact {
            let clean = clean_name(root, options, &self.relative);
            return Ok(clean.map_or_else(|| Resolved::File(self.relative.clone()), Resolved::CleanUrl));
        }
        if self.relative.file_name().is_some() {
            let mut page = self.relative.clone().into_os_string();
            page.push(PAGE_EXTENSION);
            if let Ok(FileKind::File) = root.kind(page.as_ref()) {
                return Ok(Resolved::File(page.into()));
            }
        }
        exact.map(|_| Resolved::Redirect)
    }
}

/// Returns the name of a page without its extension, unless it would lead to another file; empty for an index file.
fn clean_name(root: &Root, options: &Options, relative: &Path) -> Option<String> {
    let name = relative.file_name()?.to_str()?;
    let stem = name.strip_suffix(PAGE_EXTENSION).filter(|stem| !stem.is_empty())?;
    if find_index(root, options, relative.parent()?).ok()?.is_some_and(|index| index == relative) {
        return Some(String::new());
    }
    let is_taken = matches!(root.kind(&relative.with_file_name(stem)), Ok(FileKind::File));
    let clean = canonical(Path::new(stem));
    (!is_taken).then(|| clean.trim_start_matches('/').to_owned())
}

/// Returns the first index file that exists in `directory`.
fn find_index(root: &Root, options: &Options, directory: &Path) -> io::Result<Option<PathBuf>> {
    for name in &options.index {
        let index = directory.join(name);
        match root.kind(&index) {
            Ok(FileKind::File) => return Ok(Some(index)),
            Ok(FileKind::Directory) => {}
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Returns the canonical URL path of a file or directory: a slash before each name and none at the end; empty for the
/// root.
pub(super) fn canonical(relative: &Path) -> String {
    let mut path = String::new();
    for name in relative {
        path.push('/');
        for &byte in name.as_encoded_bytes() {
            push_byte(&mut path, byte);
        }
    }
    path
}

/// Returns the last segment of a request path in its canonical spelling.
pub(super) fn last_segment(path: &str) -> String {
    let segment = path.rsplit('/').next().unwrap_or_default();
    let mut canonical = String::with_capacity(segment.len());
    for byte in percent_decode_str(segment) {
        push_byte(&mut canonical, byte);
    }
    canonical
}

/// Returns whether `name` can be the name of a directory entry.
fn is_name(name: &[u8]) -> bool {
    name != b".." && !name.contains(&0) && !name.contains(&b'/')
}

/// Converts a decoded segment to a file name; on Unix any bytes are valid.
#[cfg(unix)]
#[allow(clippy::unnecessary_wraps, reason = "other platforms reject some names")]
fn os_name(name: Vec<u8>) -> Option<std::ffi::OsString> {
    Some(std::os::unix::ffi::OsStringExt::from_vec(name))
}

#[cfg(not(unix))]
fn os_name(name: Vec<u8>) -> Option<std::ffi::OsString> {
    let name = String::from_utf8(name).ok()?;
    is_windows_name(&name).then(|| name.into())
}

/// Returns whether `name` is a plain file name on Windows: without separators, drive letter, alternate data stream,
/// wildcards, or trailing dots and spaces (which Windows strips), and neither a device name nor an 8.3 short name
/// (`GIT~1`), which could refer to a hidden file.
#[cfg(any(not(unix), test))]
fn is_windows_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_uppercase();
    let numbered = ["COM", "LPT"].iter().find_map(|device| stem.strip_prefix(device));
    let is_device = matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || numbered.is_some_and(|rest| {
            let mut rest = rest.chars();
            matches!((rest.next(), rest.next()), (Some('0'..='9' | '\u{b9}' | '\u{b2}' | '\u{b3}'), None))
        });
    let is_invalid = |c: char| c.is_control() || r#"\/:*?"<>|"#.contains(c);
    let is_short = stem.rsplit_once('~').is_some_and(|(_, number)| number.parse::<u32>().is_ok()) && stem.len() <= 8;
    !is_device && !is_short && !name.contains(is_invalid) && !name.ends_with(['.', ' '])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_then_decoded_once() {
        for (path, names, slash) in [
            ("/", "", true),
            ("", "", false),
            ("/a", "a", false),
            ("/a/", "a", true),
            ("//a///b//", "a/b", true),
            ("/a%20b/%c3%a9", "a b/\u{e9}", false),
            ("/%252e%252e", "%2e%2e", false),
            ("/a;b=c/d", "a;b=c/d", false),
            ("/./a/././b", "a/b", false),
            ("/a/%2e/b/.", "a/b", true),
            ("/.", "", true),
            ("//.//./", "", true),
            // Not a valid name on Windows.
            #[cfg(unix)]
            ("/...", "...", false),
        ] {
            let target = Target::parse(path, true).unwrap();
            assert_eq!((target.relative.as_path(), target.slash), (std::path::Path::new(names), slash), "{path}");
        }
    }

    #[test]
    fn invalid_and_hidden_names_are_rejected() {
        for path in ["/..", "/%2e%2e/a", "/.%2E", "/./..", "/a/../b", "/a%2fb", "/a%00", "/%00", "*", "x.test:80"] {
            assert_eq!(Target::parse(path, true), None, "{path}");
        }
        for path in ["/.git/config", "/a/.b", "/%2egit"] {
            assert_eq!(Target::parse(path, false), None, "{path}");
            assert!(Target::parse(path, true).is_some(), "{path}");
        }
    }

    #[test]
    fn each_path_has_one_canonical_spelling() {
        for (path, canonical) in [
            ("/", "/"),
            ("//evil.test//", "/evil.test/"),
            ("/%61%2f", ""),
            // Windows does not allow most of these in a name.
            #[cfg(unix)]
            ("/a%20%22%3c%25%23%3f%0a%5c", "/a%20%22%3C%25%23%3F%0A%5C"),
            ("/a%20%25%23%c3%a9", "/a%20%25%23%C3%A9"),
            ("/%7e@/;=", "/~@/;="),
            #[cfg(unix)]
            ("/:", "/:"),
        ] {
            let target = Target::parse(path, true);
            assert_eq!(target.map(|target| target.canonical()).unwrap_or_default(), canonical, "{path}");
        }
    }

    #[test]
    fn windows_special_names_are_rejected() {
        for name in [
            "a",
            "a b.txt",
            "com",
            "com10",
            "console",
            "lpt",
            "caf\u{e9}",
            "con_",
            "aux-1.txt",
            "a~b",
            "backup.txt~",
            "...",
        ] {
            assert_eq!(is_windows_name(name), name != "...", "{name}");
        }
        for name in [
            "a:b",
            "c:",
            "a\\b",
            "..\\a",
            "a.txt.",
            "a ",
            "con",
            "NUL.txt",
            "Com1",
            "lpt9.x.y",
            "com\u{b9}",
            "aux .txt",
            "conin$",
            "a*",
            "a?",
            "a<",
            "a|",
            "a\"",
            "a\n",
            "file::$DATA",
            "GIT~1",
            "index~12.htm",
        ] {
            assert!(!is_windows_name(name), "{name}");
        }
    }
}
