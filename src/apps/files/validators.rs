//! Validators, ETag and Last-Modified (RFC 9110 section 8.8).
//!
//! The entity tag of a small file is a hash of its content. That of a larger one is its length and mtime, so that copies
//! of a file on several servers have the same tag. Where the mtime cannot be trusted to change with the content, the
//! ctime is added, which a program cannot set.

use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cap_std::fs::Metadata;
use lru::LruCache;
use sha2::{Digest, Sha256};

/// Within this time after its mtime or ctime, a file may change again without a new one: the granularity of FAT, the
/// coarsest in use.
const GRANULARITY: Duration = Duration::from_secs(2);

/// Number of bytes of the SHA-256 hash in an entity tag.
const TAG_BYTES: usize = 15;

/// Midnight of 1980-01-01, the earliest date in a zip archive, in any time zone.
const ZIP_EPOCH: std::ops::RangeInclusive<u64> = 315_532_800 - 14 * 3600..=315_532_800 + 14 * 3600;

/// Number of larger files whose fingerprints are remembered.
const HISTORY_MAX: usize = 4096;

/// File metadata that changes when the file does, as far as the operating system can detect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    pub(super) len: u64,
    modified: Option<SystemTime>,
    /// `None` outside Unix.
    changed: Option<SystemTime>,
    /// Device and inode number; zeros outside Unix.
    inode: (u64, u64),
}

/// The information in the mtime of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mtime {
    /// The time of the last change.
    Plain(SystemTime),
    /// In the future.
    Future,
    /// A fixed value that build tools set, or none.
    Fixed,
}

impl Fingerprint {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok().map(cap_std::time::SystemTime::into_std);
        let (changed, inode) = inode(metadata);
        Fingerprint { len: metadata.len(), modified, changed, inode }
    }

    fn mtime(&self, now: SystemTime) -> Mtime {
        match self.modified {
            Some(time) if time > now => Mtime::Future,
            Some(time) if seconds(time) > 1 && !ZIP_EPOCH.contains(&seconds(time)) => Mtime::Plain(time),
            _ => Mtime::Fixed,
        }
    }

    /// Returns whether any later change of the file must alter this fingerprint, read at `now`.
    pub(super) fn is_stable(&self, now: SystemTime) -> bool {
        self.changed.or(self.modified).is_some_and(|time| is_old(time, now))
    }
}

/// Returns whether a later change must have another time.
fn is_old(time: SystemTime, now: SystemTime) -> bool {
    now.duration_since(time).is_ok_and(|age| age >= GRANULARITY)
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> (Option<SystemTime>, (u64, u64)) {
    use cap_std::fs::MetadataExt;
    let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0).min(999_999_999);
    let changed = UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
    (changed, (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> (Option<SystemTime>, (u64, u64)) {
    (None, (0, 0))
}

/// The fingerprints of larger files that were served, by path. Shows which files change under the same mtime and length.
/// Bounded: the least recently served file is forgotten.
pub(super) struct History {
    files: Mutex<LruCache<u64, Seen>>,
    hasher: RandomState,
}

struct Seen {
    fingerprint: Fingerprint,
    mtime_is_reused: bool,
}

impl Default for History {
    fn default() -> Self {
        let files = Mutex::new(LruCache::new(NonZeroUsize::new(HISTORY_MAX).unwrap_or(NonZeroUsize::MIN)));
        History { files, hasher: RandomState::new() }
    }
}

impl History {
    /// Records the fingerprint of a file. Returns whether the file had another inode or ctime before, under this mtime
    /// and length.
    pub(super) fn record(&self, relative: &Path, fingerprint: &Fingerprint) -> bool {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let key = self.hasher.hash_one(relative);
        let mtime_is_reused = files.get(&key).is_some_and(|seen| {
            let has_same = (seen.fingerprint.len, seen.fingerprint.modified) == (fingerprint.len, fingerprint.modified);
            has_same && (seen.mtime_is_reused || seen.fingerprint != *fingerprint)
        });
        files.put(key, Seen { fingerprint: *fingerprint, mtime_is_reused });
        mtime_is_reused
    }
}

/// The validators of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Validators {
    /// The entity tag including its quotes, and the prefix `W/` if it is weak.
    pub(super) etag: String,
    /// The value of Last-Modified as a Unix time in seconds; `None` if the mtime says nothing about the content.
    pub(super) modified: Option<u64>,
    /// True if the date changes with every change of the content.
    pub(super) date_is_strong: bool,
}

impl Validators {
    /// Creates the validators of a file from its content.
    pub(super) fn of_content(content: &[u8], fingerprint: &Fingerprint, now: SystemTime) -> Self {
        let hash = Sha256::digest(content);
        let etag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&hash[..TAG_BYTES]));
        let (modified, date_is_strong) = last_modified(fingerprint, now);
        Validators { etag, modified, date_is_strong }
    }

    /// Creates the validators of a file from its metadata, which was read at `now`, and its content coding.
    /// `mtime_is_reused` is the result of [`History::record`].
    pub(super) fn of_metadata(
        fingerprint: &Fingerprint,
        coding: Option<&str>,
        mtime_is_reused: bool,
        now: SystemTime,
    ) -> Self {
        let Fingerprint { len, modified, changed, .. } = *fingerprint;
        let mut tag = format!("{:x}-{len:x}", modified.map_or(0, nanoseconds));
        let is_strong = match fingerprint.mtime(now) {
            Mtime::Plain(time) if !mtime_is_reused => is_old(time, now),
            _ => {
                let _ = write!(tag, "-{:x}", changed.map_or(0, nanoseconds));
                changed.is_some_and(|time| is_old(time, now))
            }
        };
        if let Some(coding) = coding {
            let _ = write!(tag, "-{coding}");
        }
        let (modified, date_is_strong) = if mtime_is_reused { (None, false) } else { last_modified(fingerprint, now) };
        let etag = if is_strong { format!("\"{tag}\"") } else { format!("W/\"{tag}\"") };
        Validators { etag, modified, date_is_strong }
    }

    /// Returns the value of Last-Modified, if there is one.
    pub(super) fn last_modified(&self) -> Option<String> {
        self.modified.map(|seconds| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds)))
    }

    /// Compares entity tags by the strong comparison (RFC 9110 section 8.8.3.2).
    pub(super) fn matches_strongly(&self, tag: &str) -> bool {
        self.etag.starts_with('"') && self.etag == tag
    }

    /// Compares entity tags by the weak comparison (RFC 9110 section 8.8.3.2).
    pub(super) fn matches_weakly(&self, tag: &str) -> bool {
        opaque(&self.etag) == opaque(tag)
    }
}

/// Returns the date of a file as a Unix time in seconds, and whether it is a strong validator. RFC 9110 section 8.8.2.1:
/// it must not be later than the response. In place of an mtime in the future it is the ctime, which does not change
/// with the clock as the date of the response does.
fn last_modified(fingerprint: &Fingerprint, now: SystemTime) -> (Option<u64>, bool) {
    let time = match fingerprint.mtime(now) {
        Mtime::Plain(time) => Some(time),
        Mtime::Future => fingerprint.changed.filter(|time| *time <= now),
        Mtime::Fixed => None,
    };
    (time.map(seconds), time.is_some_and(|time| is_old(time, now)))
}

fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// Returns the nanoseconds since the Unix epoch; negative for earlier times.
fn nanoseconds(time: SystemTime) -> i128 {
    let count = |duration: Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
    time.duration_since(UNIX_EPOCH).map_or_else(|before| -count(before.duration()), count)
}

/// Returns a Unix time in seconds, clamped to what an HTTP date can express: 1970 to 9999.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().min(253_402_300_799))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, nanoseconds: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanoseconds)
    }

    /// Times are multiples of 100 ns, the resolution of Windows.
    fn fingerprint(modified: SystemTime, changed: SystemTime) -> Fingerprint {
        Fingerprint { len: 255, modified: Some(modified), changed: Some(changed), inode: (0, 16) }
    }

    fn metadata_tag(file: &Fingerprint, now: SystemTime) -> String {
        Validators::of_metadata(file, None, false, now).etag
    }

    #[test]
    fn an_etag_is_strong_once_the_mtime_is_stable() {
        let file = fingerprint(at(5, 500), at(5, 500));
        assert_eq!(metadata_tag(&file, at(7, 400)), "W/\"12a05f3f4-ff\"");
        let stable = Validators::of_metadata(&file, None, false, at(7, 500));
        assert_eq!(stable.etag, "\"12a05f3f4-ff\"");
        assert!(stable.matches_strongly("\"12a05f3f4-ff\"") && !stable.matches_strongly("W/\"12a05f3f4-ff\""));
        assert!(stable.matches_weakly("W/\"12a05f3f4-ff\""));
        assert_eq!(Validators::of_metadata(&file, Some("gzip"), false, at(9, 0)).etag, "\"12a05f3f4-ff-gzip\"");
    }

    #[test]
    fn copies_have_the_same_tag_unless_the_mtime_says_nothing() {
        let now = at(1_700_000_000, 0);
        let tags = |modified| {
            let copies = [at(1_000, 0), at(2_000, 0)].map(|changed| fingerprint(modified, changed));
            copies.map(|copy| metadata_tag(&copy, now))
        };
        let [one, other] = tags(at(1_600_000_000, 1));
        assert_eq!(one, other);
        for modified in [at(0, 0), at(1, 999), at(315_532_800, 0), at(315_536_400, 0), at(1_700_000_001, 0)] {
            let [one, other] = tags(modified);
            assert_ne!(one, other, "{modified:?}");
        }
    }

    #[test]
    fn the_tag_of_content_depends_on_nothing_else() {
        let now = at(1_700_000_000, 0);
        let tag = |content: &[u8], modified| Validators::of_content(content, &fingerprint(modified, now), now).etag;
        assert_eq!(tag(b"one", at(1, 0)), tag(b"one", now));
        assert_ne!(tag(b"one", at(1, 0)), tag(b"two", at(1, 0)));
        assert!(tag(b"", now).starts_with('"'), "strong, whatever the mtime");
    }

    #[test]
    fn a_change_under_the_same_mtime_and_length_is_remembered() {
        let (history, now) = (History::default(), at(1_700_000_000, 0));
        let (path, modified) = (Path::new("a"), at(1_600_000_000, 0));
        let [first, second] = [10, 20].map(|changed| fingerprint(modified, at(changed, 0)));
        assert!(!history.record(path, &first) && !history.record(path, &first));
        assert!(!history.record(Path::new("b"), &second));
        assert!(history.record(path, &second), "another ctime");
        assert!(history.record(path, &second), "also when the file is opened again");
        let validators = Validators::of_metadata(&second, None, true, now);
        assert_ne!(validators.etag, metadata_tag(&second, now));
        assert_eq!((validators.last_modified(), validators.date_is_strong), (None, false));
        assert!(!history.record(path, &fingerprint(at(1_600_000_001, 0), at(30, 0))), "a new mtime is trusted");
        for number in 0..HISTORY_MAX {
            history.record(Path::new(&number.to_string()), &first);
        }
        assert_eq!(history.files.lock().unwrap().len(), HISTORY_MAX);
    }

    #[test]
    fn last_modified_is_a_stable_date_in_the_past() {
        let now = at(1_000_000_000, 0);
        for (modified, seconds) in [
            (at(784_111_777, 999_999_999), Some(784_111_777)),
            // The ctime, in place of an mtime in the future.
            (at(2_000_000_000, 0), Some(900_000_000)),
            (UNIX_EPOCH - Duration::from_secs(5), None),
            (at(0, 0), None),
            (at(1, 0), None),
            (at(2, 0), Some(2)),
            (at(315_532_800, 0), None),
        ] {
            let file = fingerprint(modified, at(900_000_000, 0));
            assert_eq!(Validators::of_metadata(&file, None, false, now).modified, seconds, "{modified:?}");
            assert_eq!(Validators::of_content(b"", &file, now).modified, seconds, "{modified:?}");
        }
        let both_ahead = fingerprint(at(2_000_000_000, 0), at(2_000_000_000, 0));
        assert_eq!(Validators::of_content(b"", &both_ahead, now).modified, None);
        let date = Validators::of_content(b"", &fingerprint(at(784_111_777, 1), now), now).last_modified();
        assert_eq!(date.as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    }
}
