//! Precompressed siblings of a file: `app.js.br`, `app.js.zst` and `app.js.gz` next to `app.js`.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::media;
use super::root::{FileKind, Root};
use crate::httpserver::{AcceptedCodings, ContentCoding};

/// Content codings and their file extensions, in order of preference: best compression first.
const CODINGS: [(ContentCoding, &str); 3] =
    [(ContentCoding::Brotli, "br"), (ContentCoding::Zstd, "zst"), (ContentCoding::Gzip, "gz")];

/// The precompressed siblings that a file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Precompressed {
    /// In the order of `CODINGS`.
    present: [bool; 3],
}

impl Precompressed {
    /// Looks for the siblings of a file.
    pub(super) fn find(root: &Root, relative: &Path) -> Self {
        // Files in a compressed format have no siblings: skip the system calls.
        if media::is_compressed(relative) {
            return Precompressed::default();
        }
        let exists = |(coding, _)| matches!(root.kind(&sibling_name(relative, coding)), Ok(FileKind::File));
        Precompressed { present: CODINGS.map(exists) }
    }

    /// Returns whether the file has any precompressed sibling.
    pub(super) fn any(self) -> bool {
        self.present != [false; 3]
    }

    /// Returns the best available coding for a client, which may be identity, or `None` if the client accepts none of
    /// them.
    pub(super) fn best(self, accepted: AcceptedCodings) -> Option<ContentCoding> {
        let present = CODINGS.iter().zip(self.present).filter(|(_, present)| *present).map(|((coding, _), _)| *coding);
        let available: Vec<ContentCoding> = present.chain([ContentCoding::Identity]).collect();
        accepted.best(&available)
    }
}

/// Returns the name of the sibling with this coding.
pub(super) fn sibling_name(relative: &Path, coding: ContentCoding) -> PathBuf {
    let mut name = OsString::from(relative);
    if let Some((_, extension)) = CODINGS.iter().find(|(listed, _)| *listed == coding) {
        name.push(".");
        name.push(extension);
    }
    name.into()
}

/// Returns the name of the original file, without the extension of the coding.
pub(super) fn original_name(relative: &Path, coding: ContentCoding) -> Cow<'_, Path> {
    if coding == ContentCoding::Identity { relative.into() } else { relative.with_extension("").into() }
}
