//! The files of a certificate and its private key, which are replaced together by one process at a time.
//!
//! Both files are complete, under temporary names, before the first is renamed. If the process ends between the two
//! renames, the temporary certificate is left. It belongs to the key, by which the next call recognizes that key.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::tls::{Authority, Certificate, Issued};

/// Time to wait for another process, which takes milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// Time between two attempts to lock a directory.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// A certificate and its private key.
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Pair {
    /// Returns the pair for these names, with the file names that mkcert would use.
    pub(super) fn new(directory: &Path, names: &[String]) -> Self {
        let mut stem = names[0].replace(':', "_").replace('*', "_wildcard");
        if names.len() > 1 {
            let _ = write!(stem, "+{}", names.len() - 1);
        }
        let path = |suffix: &str| directory.join(format!("{stem}{suffix}"));
        Pair { certificate: path(".pem"), key: path("-key.pem") }
    }

    /// Checks that the files do not exist, or may be replaced: a certificate of this authority with its key is renewed.
    pub(super) fn check(&self, authority: &Authority) -> Result<(), String> {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        let has_certificate = is_present(&self.certificate);
        if has_certificate && !self.has_own_certificate(authority) {
            return Err(format!(
                "{certificate} exists and is not a certificate of the local authority; use --force to overwrite it, or \
                 --out"
            ));
        }
        if !is_present(&self.key) || self.has_own_key(authority) {
            return Ok(());
        }
        Err(if has_certificate {
            format!("{key} exists and is not the private key of {certificate}; use --force to overwrite both, or --out")
        } else {
            format!(
                "{key} exists, but its certificate {certificate} does not; remove the key if it is not needed, use --force \
                 to overwrite it, or --out"
            )
        })
    }

    fn has_own_certificate(&self, authority: &Authority) -> bool {
        fs::read(&self.certificate).is_ok_and(|pem| authority.has_issued_pem(&pem))
    }

    /// Returns whether the key belongs to a certificate of the authority: the present one, or the one that an interrupted
    /// call has left.
    fn has_own_key(&self, authority: &Authority) -> bool {
        let Ok(key) = fs::read(&self.key) else { return false };
        [&self.certificate, &temporary(&self.certificate)].into_iter().any(|path| {
            fs::read(path).is_ok_and(|pem| authority.has_issued_pem(&pem) && Certificate::from_pem(&pem, &key).is_ok())
        })
    }

    /// Replaces both files. Another file at their place is overwritten.
    pub(super) fn write(&self, issued: &Issued) -> Result<(), String> {
        let (new_key, new_certificate) = (temporary(&self.key), temporary(&self.certificate));
        for path in [&new_key, &new_certificate] {
            // Left by an interrupted call, if it exists.
            let _ = fs::remove_file(path);
        }
        let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(|error| cannot("write", to, &error));
        let written = create_file(&new_key, issued.key.as_bytes(), true)
            .and_then(|()| create_file(&new_certificate, issued.certificate.as_bytes(), false))
            .and_then(|()| rename(&new_key, &self.key));
        if written.is_err() {
            for path in [&new_key, &new_certificate] {
                let _ = fs::remove_file(path);
            }
            return written;
        }
        rename(&new_certificate, &self.certificate)
    }
}

/// Returns whether anything has this name. Not `exists`, since a link to nothing must not be followed.
fn is_present(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Returns the name of a file until it is complete.
fn temporary(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Creates a file that does not exist yet. A secret one is readable for its owner only, from the beginning.
pub(super) fn create_file(path: &Path, bytes: &[u8], is_secret: bool) -> Result<(), String> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if is_secret {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    #[cfg(not(unix))]
    let _ = is_secret;
    let mut file = options.open(path).map_err(|error| cannot("create", path, &error))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| {
        let _ = fs::remove_file(path);
        cannot("write", path, &error)
    })
}

pub(super) fn cannot(action: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {action} {}: {error}", path.display())
}

/// A directory in which no other process creates certificates. `None` where directories cannot be locked, as on some
/// network file systems.
pub(super) struct DirectoryLock {
    _file: Option<File>,
}

impl DirectoryLock {
    /// Waits until no other process has locked the directory.
    pub(super) fn acquire(directory: &Path) -> Result<Self, String> {
        let start = Instant::now();
        loop {
            match try_lock(directory) {
                Ok(file) => return Ok(DirectoryLock { _file: Some(file) }),
                Err(error) if is_locked(&error) => {}
                Err(error) => {
                    log::debug!("{}", cannot("lock", directory, &error));
                    return Ok(DirectoryLock { _file: None });
                }
            }
            if start.elapsed() > LOCK_TIMEOUT {
                let shown = directory.display();
                return Err(format!("another serverd cert is still using {shown}; wait until it has ended, or end it"));
            }
            thread::sleep(LOCK_INTERVAL);
        }
    }
}

/// Locks a directory until the file is closed. `File::lock` needs Rust 1.89.
#[cfg(unix)]
fn try_lock(directory: &Path) -> io::Result<File> {
    use rustix::fs::{FlockOperation, flock};
    let file = File::open(directory)?;
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive))?;
    Ok(file)
}

#[cfg(unix)]
fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Locks a directory until the file is closed, which no other process can open until then.
#[cfg(windows)]
fn try_lock(directory: &Path) -> io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt;
    const DELETE_ON_CLOSE: u32 = 0x0400_0000;
    let mut options = File::options();
    options.write(true).create(true).truncate(false).share_mode(0).custom_flags(DELETE_ON_CLOSE);
    options.open(directory.join(".serverd-cert.lock"))
}

#[cfg(windows)]
fn is_locked(error: &io::Error) -> bool {
    const SHARING_VIOLATION: i32 = 32;
    error.raw_os_error() == Some(SHARING_VIOLATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_names_that_mkcert_uses() {
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let Pair { certificate, key } = Pair::new(Path::new(""), &names);
            (certificate.display().to_string(), key.display().to_string())
        };
        assert_eq!(names(&["localhost"]), ("localhost.pem".into(), "localhost-key.pem".into()));
        assert_eq!(names(&["*.a.test", "b", "c"]).0, "_wildcard.a.test+2.pem");
        assert_eq!(names(&["::1"]).1, "__1-key.pem");
    }

    #[test]
    fn a_pair_that_was_replaced_by_half_is_recognized_by_the_next_call() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["a.test".to_owned()];
        let authority = Authority::create("serverd local CA (a@b)").unwrap();
        let pair = Pair::new(directory.path(), &names);
        let interrupt = || {
            let issued = authority.issue(&names).unwrap();
            fs::write(&pair.key, issued.key).unwrap();
            fs::write(temporary(&pair.certificate), issued.certificate).unwrap();
        };
        // A first call, and a renewal.
        for _ in 0..2 {
            interrupt();
            pair.check(&authority).unwrap();
            pair.write(&authority.issue(&names).unwrap()).unwrap();
            let files = [&pair.certificate, &pair.key].map(|path| fs::read(path).unwrap());
            assert!(Certificate::from_pem(&files[0], &files[1]).is_ok());
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "no temporary file");
        }
        interrupt();
        fs::write(&pair.key, authority.issue(&names).unwrap().key).unwrap();
        assert!(pair.check(&authority).unwrap_err().contains("is not the private key of"));
    }
}
