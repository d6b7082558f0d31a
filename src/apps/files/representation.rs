//! Representations of a file: the file itself, and its precompressed siblings `app.js.br`, `app.js.zst` and `app.js.gz`.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cap_std::fs::Metadata;

use super::media;
use super::root::Root;
use crate::httpserver::{AcceptedCodings, ContentCoding};

/// Content codings and their file extensions, in order of preference: best compression first.
const CODINGS: [(ContentCoding, &str); 3] =
    [(ContentCoding::Brotli, "br"), (ContentCoding::Zstd, "zst"), (ContentCoding::Gzip, "gz")];

/// A representation of a resource: a file and its content coding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Representation {
    pub(super) relative: PathBuf,
    pub(super) coding: ContentCoding,
    /// The precompressed siblings of the file.
    precompressed: Precompressed,
    /// The media type, if it is that of another file: the one that was compressed.
    pub(super) content_type: Option<String>,
}

impl Representation {
    /// Creates the identity (uncompressed) representation of a file.
    pub(super) fn identity(relative: PathBuf) -> Self {
        let precompressed = Precompressed::default();
        Representation { relative, coding: ContentCoding::Identity, precompressed, content_type: None }
    }

    /// Creates the identity representation of a file, and looks for its precompressed siblings if `finds_siblings` is
    /// set.
    pub(super) fn find(root: &Root, relative: PathBuf, finds_siblings: bool) -> Self {
        let precompressed =
            if finds_siblings { Precompressed::find(root, &relative) } else { Precompressed::default() };
        Representation { precompressed, ..Representation::identity(relative) }
    }

    /// Returns the precompressed representation to send to a client, or `None` if that is this one. `content_type` is the
    /// media type of the file.
    pub(super) fn for_client(&self, accepted: AcceptedCodings, content_type: &str) -> Option<Representation> {
        let coding = self.precompressed.best(accepted)?;
        coding.name()?;
        let relative = sibling_name(&self.relative, coding);
        Some(Representation {
            relative,
            coding,
            precompressed: self.precompressed,
            content_type: Some(content_type.into()),
        })
    }

    /// Returns the name of the original file, without the extension of the coding.
    pub(super) fn original_name(&self) -> Cow<'_, Path> {
        if self.coding == ContentCoding::Identity {
            (&*self.relative).into()
        } else {
            self.relative.with_extension("").into()
        }
    }

    /// Returns whether the response depends on Accept-Encoding.
    #[inline]
    pub(super) fn varies(&self) -> bool {
        self.precompressed.any()
    }

    /// Returns the name of its content coding; empty for identity.
    pub(super) fn coding_name(&self) -> &'static str {
        self.coding.name().unwrap_or_default()
    }
}

/// The precompressed siblings that a file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Precompressed {
    /// In the order of `CODINGS`.
    present: [bool; 3],
}

impl Precompressed {
    /// Looks for the siblings of a file. One that is empty or older than the file is not up to date, and is ignored.
    fn find(root: &Root, relative: &Path) -> Self {
        // Files in a compressed format have no siblings: skip the system calls.
        if media::is_compressed(relative) {
            return Precompressed::default();
        }
        let siblings = CODINGS.map(|(coding, _)| root.metadata(&sibling_name(relative, coding)).ok());
        // Most files have none; the file itself is then not looked up.
        let is_usable = |sibling: &Metadata| sibling.is_file() && sibling.len() > 0;
        if !siblings.iter().flatten().any(is_usable) {
            return Precompressed::default();
        }
        let Some(original) = root.metadata(relative).ok().map(|metadata| modified(&metadata)) else {
            return Precompressed::default();
        };
        let is_current = |sibling: &Metadata| is_usable(sibling) && !is_older(modified(sibling), original);
        Precompressed { present: siblings.map(|sibling| sibling.as_ref().is_some_and(is_current)) }
    }

    /// Returns whether the file has any precompressed sibling.
    #[inline]
    fn any(self) -> bool {
        self.present != [false; 3]
    }

    /// Returns the best available coding for a client, which may be identity, or `None` if the client accepts none of
    /// them.
    fn best(self, accepted: AcceptedCodings) -> Option<ContentCoding> {
        let present = CODINGS.iter().zip(self.present).filter(|(_, present)| *present).map(|((coding, _), _)| *coding);
        let available: Vec<ContentCoding> = present.chain([ContentCoding::Identity]).collect();
        accepted.best(&available)
    }
}

fn modified(metadata: &Metadata) -> Option<SystemTime> {
    metadata.modified().ok().map(cap_std::time::SystemTime::into_std)
}

/// Returns whether a sibling is older than the original. Some compressors copy the mtime of the original without the
/// fraction of its second.
fn is_older(sibling: Option<SystemTime>, original: Option<SystemTime>) -> bool {
    let (Some(sibling), Some(original)) = (sibling, original) else { return false };
    let whole = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(Duration::ZERO, |time| time);
    let (sibling, original) = (whole(sibling), whole(original));
    if sibling.subsec_nanos() == 0 { sibling.as_secs() < original.as_secs() } else { sibling < original }
}

/// Returns the name of the sibling with this coding.
fn sibling_name(relative: &Path, coding: ContentCoding) -> PathBuf {
    let mut name = OsString::from(relative);
    if let Some((_, extension)) = CODINGS.iter().find(|(listed, _)| *listed == coding) {
        name.push(".");
        name.push(extension);
    }
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sibling_may_have_the_whole_seconds_of_its_original() {
        let at = |seconds, nanoseconds| Some(UNIX_EPOCH + Duration::new(seconds, nanoseconds));
        for (sibling, original, expected) in [
            (at(5, 0), at(5, 0), false),
            (at(5, 0), at(5, 700), false),
            (at(5, 600), at(5, 700), true),
            (at(5, 700), at(5, 700), false),
            (at(4, 0), at(5, 0), true),
            (at(6, 0), at(5, 900), false),
            (None, at(5, 0), false),
        ] {
            assert_eq!(is_older(sibling, original), expected, "{sibling:?} {original:?}");
        }
    }
}
