//! What tells one state of a file from another: entity tag and date (RFC 9110 section 8.8).

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cap_std::fs::Metadata;

/// As long as a file may be changed again without a change of its time: that of FAT, the coarsest in use.
const GRANULARITY: Duration = Duration::from_secs(2);

/// What the system tells of a file that changes when the file does, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) len: u64,
    modified: Option<SystemTime>,
    /// Device and inode, and when the latter was changed; nothing where there is no such thing.
    inode: (u64, u64, i64, i64),
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok().map(cap_std::time::SystemTime::into_std);
        Identity { len: metadata.len(), modified, inode: inode(metadata) }
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
    /// With its quotes, and `W/` in front where it is weak.
    pub(super) etag: String,
    /// In seconds since 1970; `None` where the system does not know.
    pub(super) modified: Option<u64>,
    /// Whether the file was at rest when this was looked up: any change since then shows, and the validators are strong.
    pub(super) settled: bool,
}

impl Validators {
    /// Those of a file that was looked at `now`.
    pub(super) fn new(identity: &Identity, now: SystemTime) -> Self {
        let Identity { len, modified, inode } = *identity;
        let settled = modified.is_some_and(|modified| now.duration_since(modified).is_ok_and(|age| age >= GRANULARITY));
        let mut etag = String::from(if settled { "\"" } else { "W/\"" });
        let nanoseconds = modified.map_or(0, nanoseconds);
        let _ = write!(etag, "{nanoseconds:x}-{len:x}-{:x}\"", inode.1);
        // RFC 9110 section 8.8.2.1: a date that is to come is replaced by that of the message.
        let modified = modified.map(|modified| seconds(modified.min(now)));
        Validators { etag, modified, settled }
    }

    /// Those of a form of its own, in this coding: where there are no inodes, nothing else may tell it from the others.
    pub(super) fn coded(mut self, coding: Option<&str>) -> Self {
        if let Some(coding) = coding.filter(|_| cfg!(not(unix))) {
            self.etag.insert_str(self.etag.len() - 1, coding);
        }
        self
    }

    /// The value of Last-Modified.
    pub(super) fn last_modified(&self) -> Option<String> {
        self.modified.map(|seconds| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds)))
    }

    /// Whether an entity tag is this one, by the strong comparison (RFC 9110 section 8.8.3.2).
    pub(super) fn matches_strongly(&self, tag: &str) -> bool {
        self.settled && self.etag == tag
    }

    /// Whether an entity tag is this one, by the weak comparison.
    pub(super) fn matches_weakly(&self, tag: &str) -> bool {
        opaque(&self.etag) == opaque(tag)
    }
}

fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// Files may be older than time.
fn nanoseconds(time: SystemTime) -> i128 {
    let count = |duration: Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
    time.duration_since(UNIX_EPOCH).map_or_else(|before| -count(before.duration()), count)
}

/// What a date in HTTP can tell: from 1970 to 9999.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().min(253_402_300_799))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, nanoseconds: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanoseconds)
    }

    fn identity(modified: SystemTime) -> Identity {
        Identity { len: 255, modified: Some(modified), inode: (0, 16, 0, 0) }
    }

    /// Windows tells times by 100 ns.
    #[test]
    fn a_tag_is_strong_once_the_file_is_at_rest() {
        let file = identity(at(1, 500));
        let fresh = Validators::new(&file, at(3, 400));
        assert_eq!((fresh.etag.as_str(), fresh.settled), ("W/\"3b9acbf4-ff-10\"", false));
        let settled = Validators::new(&file, at(3, 500));
        assert_eq!((settled.etag.as_str(), settled.settled), ("\"3b9acbf4-ff-10\"", true));
        assert!(settled.matches_strongly("\"3b9acbf4-ff-10\"") && !settled.matches_strongly("W/\"3b9acbf4-ff-10\""));
        assert!(settled.matches_weakly(&fresh.etag) && !fresh.matches_strongly(&fresh.etag));
    }

    #[test]
    fn dates_stay_within_what_can_be_told() {
        let now = at(1_000_000_000, 0);
        for (modified, seconds) in [
            (at(784_111_777, 999_999_999), 784_111_777),
            (at(2_000_000_000, 0), 1_000_000_000),
            (UNIX_EPOCH - Duration::from_secs(5), 0),
        ] {
            assert_eq!(Validators::new(&identity(modified), now).modified, Some(seconds));
        }
        let date = Validators::new(&identity(at(784_111_777, 1)), now).last_modified();
        assert_eq!(date.as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    }
}
