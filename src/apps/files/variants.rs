//! Files that are there in compressed form too: `app.js.br`, `app.js.zst` and `app.js.gz` beside `app.js`.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::media;
use super::root::{Found, Root};
use crate::httpserver::{AcceptedCodings, ContentCoding};

/// In the order in which they are preferred: the smallest first.
const CODINGS: [(ContentCoding, &str); 3] =
    [(ContentCoding::Brotli, "br"), (ContentCoding::Zstd, "zst"), (ContentCoding::Gzip, "gz")];

/// Which of its compressed forms a file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Variants {
    /// In the order of the table.
    there: [bool; 3],
}

impl Variants {
    /// Looks for those of a file.
    pub(super) fn find(root: &Root, relative: &Path) -> Self {
        // Nobody compresses again what is compressed, so the disk need not be asked.
        if media::is_compressed(relative) {
            return Variants::default();
        }
        let is_there = |(coding, _)| matches!(root.find(&name(relative, coding)), Ok(Found::File));
        Variants { there: CODINGS.map(is_there) }
    }

    /// Whether there are any.
    pub(super) fn any(self) -> bool {
        self.there != [false; 3]
    }

    /// The one for a client that takes these codings, which may be the file itself. `None` where that is refused, and
    /// nothing else will do.
    pub(super) fn choose(self, accepted: AcceptedCodings) -> Option<ContentCoding> {
        let there = CODINGS.iter().zip(self.there).filter(|(_, there)| *there).map(|((coding, _), _)| *coding);
        let available: Vec<ContentCoding> = there.chain([ContentCoding::Identity]).collect();
        accepted.best(&available)
    }
}

/// The name of a file in one of its forms.
pub(super) fn name(relative: &Path, coding: ContentCoding) -> PathBuf {
    let mut name = OsString::from(relative);
    if let Some((_, ending)) = CODINGS.iter().find(|(own, _)| *own == coding) {
        name.push(".");
        name.push(ending);
    }
    name.into()
}

/// The name without the ending that tells of the coding.
pub(super) fn original(relative: &Path, coding: ContentCoding) -> Cow<'_, Path> {
    if coding == ContentCoding::Identity { relative.into() } else { relative.with_extension("").into() }
}
