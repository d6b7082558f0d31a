//! Validators: ETag and Last-Modified (RFC 9110 section 8.8).

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cap_std::fs::Metadata;

/// Within this time after its mtime, a file may change again without a new mtime: the granularity of FAT, the coarsest
/// in use.
const MTIME_GRANULARITY: Duration = Duration::from_secs(2);

/// File metadata that changes when the file does, as far as the operating system can detect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    pub(super) len: u64,
    modified: Option<SystemTime>,
    /// Device, inode number and ctime (seconds, nanoseconds); zeros outside Unix.
    inode: (u64, u64, i64, i64),
}

impl Fingerprint {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok().map(cap_std::time::SystemTime::into_std);
        Fingerprint { len: metadata.len(), modified, inode: inode(metadata) }
    }
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> (u64, u64, i64, i64) {
    use cap_std::fs::MetadataExt;
    (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> (u64, u64, i64, i64) {
    (0, 0, 0, 0)
}

/// The validators of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Validators {
    /// The entity tag including its quotes, and the prefix `W/` if it is weak.
    pub(super) etag: String,
    /// The mtime as a Unix time in seconds; `None` if the file system has none.
    pub(super) modified: Option<u64>,
    /// True if the mtime was old enough that any later change must alter it, which makes the validators strong.
    pub(super) mtime_is_stable: bool,
}

impl Validators {
    /// Creates the validators of a file whose metadata was read at `now`.
    pub(super) fn new(fingerprint: &Fingerprint, now: SystemTime) -> Self {
        let Fingerprint { len, modified, inode } = *fingerprint;
        let mtime_is_stable =
            modified.is_some_and(|modified| now.duration_since(modified).is_ok_and(|age| age >= MTIME_GRANULARITY));
        let mut etag = String::from(if mtime_is_stable { "\"" } else { "W/\"" });
        let nanoseconds = modified.map_or(0, nanoseconds);
        let _ = write!(etag, "{nanoseconds:x}-{len:x}-{:x}\"", inode.1);
        // RFC 9110 section 8.8.2.1: a date in the future is replaced with the date of the response.
        let modified = modified.map(|modified| seconds(modified.min(now)));
        Validators { etag, modified, mtime_is_stable }
    }

    /// Adds the content coding to the entity tag on platforms without inode numbers, where two representations could
    /// otherwise have the same tag.
    pub(super) fn with_coding(mut self, coding: Option<&str>) -> Self {
        if let Some(coding) = coding.filter(|_| cfg!(not(unix))) {
            self.etag.insert_str(self.etag.len() - 1, coding);
        }
        self
    }

    /// Returns the value of Last-Modified, if the mtime is known.
    pub(super) fn last_modified(&self) -> Option<String> {
        self.modified.map(|seconds| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds)))
    }

    /// Compares entity tags by the strong comparison (RFC 9110 section 8.8.3.2).
    pub(super) fn matches_strongly(&self, tag: &str) -> bool {
        self.mtime_is_stable && self.etag == tag
    }

    /// Compares entity tags by the weak comparison (RFC 9110 section 8.8.3.2).
    pub(super) fn matches_weakly(&self, tag: &str) -> bool {
        opaque(&self.etag) == opaque(tag)
    }
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

    fn fingerprint(modified: SystemTime) -> Fingerprint {
        Fingerprint { len: 255, modified: Some(modified), inode: (0, 16, 0, 0) }
    }

    /// Times are multiples of 100 ns, the resolution of Windows.
    #[test]
    fn an_etag_is_strong_once_the_mtime_is_stable() {
        let file = fingerprint(at(1, 500));
        let fresh = Validators::new(&file, at(3, 400));
        assert_eq!((fresh.etag.as_str(), fresh.mtime_is_stable), ("W/\"3b9acbf4-ff-10\"", false));
        let stable = Validators::new(&file, at(3, 500));
        assert_eq!((stable.etag.as_str(), stable.mtime_is_stable), ("\"3b9acbf4-ff-10\"", true));
        assert!(stable.matches_strongly("\"3b9acbf4-ff-10\"") && !stable.matches_strongly("W/\"3b9acbf4-ff-10\""));
        assert!(stable.matches_weakly(&fresh.etag) && !fresh.matches_strongly(&fresh.etag));
    }

    #[test]
    fn dates_are_clamped_to_the_http_range() {
        let now = at(1_000_000_000, 0);
        for (modified, seconds) in [
            (at(784_111_777, 999_999_999), 784_111_777),
            (at(2_000_000_000, 0), 1_000_000_000),
            (UNIX_EPOCH - Duration::from_secs(5), 0),
        ] {
            assert_eq!(Validators::new(&fingerprint(modified), now).modified, Some(seconds));
        }
        let date = Validators::new(&fingerprint(at(784_111_777, 1)), now).last_modified();
        assert_eq!(date.as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    }
}
