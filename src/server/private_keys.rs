//! Private keys in the directory that `serverd files` serves: those that it refuses, and warnings about all of them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::config::Config;
use crate::apps::files::Options;
use crate::tls::{AUTHORITY_KEY, authority_directory, is_rereadable};

/// Number of entries of the served directory that are searched for private keys at start.
const SCANNED_MAX: usize = 1000;

/// Maximum number of private keys that a warning names.
const NAMED_KEYS_MAX: usize = 10;

/// Length of the beginning of a file in which the first line of a private key is expected, with room for a comment.
const START_BYTES: u64 = 4096;

/// Excludes the private keys of TLS, and that of the local authority, from the served files. Logs warnings about private
/// keys in the served directory.
pub(super) fn protect(config: &Config, directory: &Path, options: &mut Options) {
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let mut served = Vec::new();
    for key in paths(config) {
        if key.canonicalize().is_ok_and(|key| key.starts_with(&directory)) {
            served.push(key.display().to_string());
        } else if !key.exists() && !key.starts_with(&directory) {
            // Nothing to protect, now or later; each protected file takes a system call per look-up.
            continue;
        }
        options.private.push(key);
    }
    let authority_key = directory.join(AUTHORITY_KEY);
    let is_known = options.private.iter().any(|key| key.canonicalize().ok().as_ref() == Some(&authority_key));
    if authority_key.is_file() && !is_known {
        served.push(authority_key.display().to_string());
    }
    if !served.is_empty() {
        let served = served.join(", ");
        log::warn!("private keys in the served directory are not served, but move them elsewhere: {served}");
    }
    let public = public_keys(&directory, options);
    if !public.is_empty() {
        log::warn!("private keys are served; move them out of the served directory: {}", public.join(", "));
    }
}

/// Returns the private keys directly in the served directory that are served, such as those of `serverd cert`. Looks at a
/// limited number of files, so that the start of the server does not take longer.
fn public_keys(directory: &Path, options: &Options) -> Vec<String> {
    let private: Vec<_> = options.private.iter().filter_map(|key| key.canonicalize().ok()).collect();
    let is_within = |path: &Path| options.follow_symlinks || path.starts_with(directory);
    let is_public = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        let has_usual_name = path.extension().is_some_and(|extension| extension == "pem" || extension == "key");
        has_usual_name
            && name != AUTHORITY_KEY
            && (options.hidden || !name.as_encoded_bytes().starts_with(b"."))
            && path.canonicalize().is_ok_and(|path| is_within(&path) && !private.contains(&path))
            && begins_with_private_key(path)
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten().take(SCANNED_MAX).flatten();
    let keys = entries.map(|entry| entry.path()).filter(is_public);
    keys.take(NAMED_KEYS_MAX).map(|path| path.display().to_string()).collect()
}

/// Returns whether the beginning of a regular file has the first line of a private key in PEM.
fn begins_with_private_key(path: &Path) -> bool {
    let mut start = Vec::new();
    let is_read =
        is_rereadable(path) && File::open(path).and_then(|file| file.take(START_BYTES).read_to_end(&mut start)).is_ok();
    is_read && memchr::memmem::find(&start, b"PRIVATE KEY-----").is_some()
}

/// Returns the private keys that must not be served: those of TLS, and that of the local authority.
pub(super) fn paths(config: &Config) -> impl Iterator<Item = PathBuf> {
    let keys = config.tls.iter().flat_map(|tls| &tls.files).map(|(_, key)| key.clone());
    keys.chain(authority_directory().map(|directory| directory.join(AUTHORITY_KEY)))
}
