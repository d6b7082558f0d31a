//! Options of the file server, and the Cache-Control policy.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options for serving a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "independent options")]
#[non_exhaustive]
pub struct Options {
    /// Index files, in order of preference. Default: `index.html`.
    pub index: Vec<String>,
    /// Serves hidden files: names that begin with a dot and, on Windows, files with the hidden attribute. Default:
    /// false.
    pub hidden: bool,
    /// Follows symbolic links that lead out of the directory. Links that lead to a place inside it are always followed.
    /// Default: false.
    pub follow_symlinks: bool,
    /// Lists directories that have no index file: as HTML, or as JSON if requested by Accept or `?format=json`.
    /// Default: true.
    pub listing: bool,
    /// The file to serve for page requests that match no file, for single-page apps: a path relative to the directory.
    /// A page request accepts `text/html` and is not for a resource of a page, as shown by its Accept and
    /// Sec-Fetch-Dest headers and by the extension of the path. Default: none.
    pub spa: Option<String>,
    /// Serves `about.html` at `/about`, and redirects `/about.html` there. Default: false.
    pub clean_urls: bool,
    /// Media types by file extension, such as `("log", "text/plain")`; they precede the built-in ones. Of several that
    /// match, such as `gz` and `tar.gz`, the longest is used. Default: none.
    pub types: Vec<(String, String)>,
    /// Files that are never served or listed, even if they are in the directory, such as a password file; also not
    /// through links, which are recognized by device and inode. Files with the content of a private key that was read by
    /// this process, as by `tls::Certificate::from_pem_files`, are always private, and so are files with the name
    /// `ca-key.pem`. Default: none.
    pub private: Vec<PathBuf>,
    /// The Cache-Control policy. Default: `no-cache`.
    pub cache_control: CacheControl,
    /// Serves `app.js.br`, `app.js.zst` or `app.js.gz` in place of `app.js` to clients that accept the coding, unless
    /// it is empty or older than `app.js`. Default: true.
    pub precompressed: bool,
    /// Maximum total size in bytes of the small files (up to 32 KiB each) that each worker holds in memory. With 0,
    /// every request compares the file with the file system; otherwise a change may take a second to become visible.
    /// Default: 16 MiB.
    pub cache_bytes_max: usize,
    /// Maximum number of larger files that each worker keeps open. Default: 256.
    pub open_files_max: usize,
}

impl Options {
    optional_setters! {
        spa: String,
    }

    setters! {
        index: Vec<String>,
        hidden: bool,
        follow_symlinks: bool,
        listing: bool,
        clean_urls: bool,
        types: Vec<(String, String)>,
        private: Vec<PathBuf>,
        cache_control: CacheControl,
        precompressed: bool,
        cache_bytes_max: usize,
        open_files_max: usize,
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            index: vec!["index.html".into()],
            hidden: false,
            follow_symlinks: false,
            listing: true,
            spa: None,
            clean_urls: false,
            types: Vec::new(),
            private: Vec::new(),
            cache_control: CacheControl::default(),
            precompressed: true,
            cache_bytes_max: 16 << 20,
            open_files_max: 256,
        }
    }
}

/// The Cache-Control policy for files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheControl {
    /// `no-cache`: caches store the file but revalidate it on each use. Changes are visible at once, and an unchanged
    /// file costs only a 304.
    #[default]
    NoCache,
    /// `no-store`: caches do not store the file.
    NoStore,
    /// `max-age`: caches may reuse the file for this duration, in whole seconds. A file whose name contains a content
    /// hash gets one year and `immutable` instead.
    MaxAge(Duration),
}

/// The value for names that contain a content hash: one year, the conventional maximum.
const IMMUTABLE: &str = "max-age=31536000, immutable";

/// Extensions of files that bundlers name by content hash.
const BUNDLED_EXTENSIONS: [&str; 19] = [
    "avif", "css", "gif", "ico", "jpeg", "jpg", "js", "json", "map", "mjs", "otf", "png", "svg", "ttf", "wasm", "webm",
    "webp", "woff", "woff2",
];

impl CacheControl {
    /// Returns the header value for a file of this name.
    pub(super) fn value(&self, name: &Path) -> String {
        match self {
            CacheControl::NoCache => "no-cache".into(),
            CacheControl::NoStore => "no-store".into(),
            CacheControl::MaxAge(_) if is_hashed(name) => IMMUTABLE.into(),
            CacheControl::MaxAge(time) => format!("max-age={}", time.as_secs()),
        }
    }
}

/// Returns whether a name contains a content hash as bundlers write it: `app.3f9c2b1a.js`, `index-BxK3a9Qz.css`.
/// Dates, versions and words do not count.
fn is_hashed(name: &Path) -> bool {
    let extension = name.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let name = name.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let parts: Vec<&str> = name.split(['.', '-', '_']).collect();
    BUNDLED_EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str())
        && parts.iter().skip(1).any(|part| is_hash(part))
}

/// Matches eight or more lower-case hexadecimal digits, at least one of them a digit and one a letter, or exactly eight
/// alphanumerics that include a digit, a lower-case letter and an upper-case letter.
fn is_hash(part: &str) -> bool {
    let has = |is: fn(&u8) -> bool| part.as_bytes().iter().any(is);
    let hexadecimal = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if part.len() >= 8 && hexadecimal {
        return has(u8::is_ascii_digit) && has(u8::is_ascii_lowercase);
    }
    part.len() == 8
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && [u8::is_ascii_digit, u8::is_ascii_lowercase, u8::is_ascii_uppercase].into_iter().all(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_content_hash_are_immutable() {
        let policy = CacheControl::MaxAge(Duration::from_secs(3600));
        for name in [
            "app.3f9c2b1a.js",
            "a/b/main-0a1b2c3d4e5f.css",
            "index-BxK3a9Qz.js",
            "logo.3f9c2b1a.min.svg",
            "chunk_3f9c2b1a.js.map",
        ] {
            assert_eq!(policy.value(Path::new(name)), IMMUTABLE, "{name}");
        }
        for name in [
            "index.html",
            "photo.20240101.jpg",
            "jquery-3.7.1.min.js",
            "3f9c2b1a.js",
            "app.deadbeef.js",
            "report-3f9c2b1a.pdf",
            "style.css",
            "app.3f9c2b1a",
            "Final-Copy2024x.png",
        ] {
            assert_eq!(policy.value(Path::new(name)), "max-age=3600", "{name}");
        }
        assert_eq!(CacheControl::NoStore.value(Path::new("app.3f9c2b1a.js")), "no-store");
        assert_eq!(CacheControl::default().value(Path::new("app.3f9c2b1a.js")), "no-cache");
    }
}
