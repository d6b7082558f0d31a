//! Representations of a file: the file itself, and its precompressed siblings `app.js.br`, `app.js.zst` and
//! `app.js.gz`. Their media type follows from the file extension and, where that does not decide, from the first bytes
//! of the content.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cap_std::fs::Metadata;

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

    /// Returns the precompressed representation to send to a client, or `None` if that is this one. `content_type` is
    /// the media type of the file.
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

    /// Returns the names of all content codings of precompressed siblings.
    pub(super) fn coding_names() -> impl Iterator<Item = &'static str> {
        CODINGS.iter().filter_map(|(coding, _)| coding.name())
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
        if is_compressed(relative) {
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

/// Used for content of an unknown type.
const BINARY: &str = "application/octet-stream";

/// Media types by extension that `mime_guess` lacks or has outdated.
const EXTENSIONS: [(&str, &str); 14] = [
    ("cjs", "text/javascript"),
    ("jxl", "image/jxl"),
    // RFC 8216 section 10.
    ("m3u8", "application/vnd.apple.mpegurl"),
    ("mpd", "application/dash+xml"),
    ("opus", "audio/ogg"),
    ("rpm", "application/x-rpm"),
    ("svgz", "image/svg+xml"),
    ("tgz", "application/gzip"),
    ("webmanifest", "application/manifest+json"),
    ("whl", "application/zip"),
    // RFC 9512.
    ("yaml", "application/yaml"),
    ("yml", "application/yaml"),
    ("zst", "application/zstd"),
    ("zstd", "application/zstd"),
];

/// Extensions that both MPEG transport streams and TypeScript modules have.
const TRANSPORT_STREAMS: [&str; 3] = ["ts", "mts", "m2ts"];

/// The media type of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Media {
    /// The value of Content-Type.
    pub(super) content_type: String,
    /// True if the format is gzip around another format, as in `.svgz`, so that Content-Encoding is needed.
    pub(super) is_gzip: bool,
}

impl Media {
    /// Determines the media type of a file from its name and `start`, the beginning of its content. `start` is ignored
    /// unless [`needs_content`].
    pub(super) fn new(name: &Path, types: &[(String, String)], start: &[u8]) -> Media {
        let configured = configured(name, types);
        let is_gzip = configured.is_none() && has_extension(name, "svgz") && start.starts_with(b"\x1f\x8b");
        let media_type = match configured.or_else(|| known(name)) {
            Some(media_type) => media_type,
            None if is_transport_stream(name) && !is_text(start) => "video/mp2t",
            None if has_utf16_mark(start) || is_text(start) => "text/plain",
            None => BINARY,
        };
        let needs_charset = is_text_type(media_type) && !media_type.contains(';') && is_utf8(start);
        let charset = if needs_charset { "; charset=utf-8" } else { "" };
        Media { content_type: format!("{media_type}{charset}"), is_gzip }
    }
}

/// Returns whether the media type of a file depends on its content.
pub(super) fn needs_content(name: &Path, types: &[(String, String)]) -> bool {
    configured(name, types)
        .or_else(|| known(name))
        .is_none_or(|media_type| is_text_type(media_type) && !media_type.contains(';'))
}

/// Returns the media type that was configured for the longest extension of a file.
fn configured<'a>(name: &Path, types: &'a [(String, String)]) -> Option<&'a str> {
    let matching = types.iter().filter(|(extension, _)| has_extension(name, extension));
    matching.max_by_key(|(extension, _)| extension.len()).map(|(_, media_type)| media_type.as_str())
}

/// Returns the media type of a known extension, unless it is ambiguous.
fn known(name: &Path) -> Option<&'static str> {
    let own = EXTENSIONS.iter().find(|(extension, _)| has_extension(name, extension));
    match own {
        Some((_, media_type)) => Some(media_type),
        None if is_transport_stream(name) => None,
        None => mime_guess::from_path(name).first_raw(),
    }
}

/// Returns whether the name of a file ends with a dot and `extension`, which may contain dots, in any case.
fn has_extension(name: &Path, extension: &str) -> bool {
    let name = name.file_name().unwrap_or_default().as_encoded_bytes();
    let Some(dot) = name.len().checked_sub(extension.len() + 1) else { return false };
    name[dot] == b'.' && name[dot + 1..].eq_ignore_ascii_case(extension.as_bytes())
}

fn is_transport_stream(name: &Path) -> bool {
    TRANSPORT_STREAMS.iter().any(|extension| has_extension(name, extension))
}

/// Returns whether a path has an extension other than that of a page: it then names a resource, such as a script.
pub(super) fn is_resource(name: &Path) -> bool {
    name.extension().is_some() && !has_extension(name, "html") && !has_extension(name, "htm")
}

/// Returns whether a string is a media type, with or without parameters (RFC 9110 section 8.3.1).
#[cfg(feature = "cli")]
pub(crate) fn is_media_type(text: &str) -> bool {
    let essence = text.split(';').next().unwrap_or_default().trim();
    let is_token = |part: &str| crate::http1::is_token(part.as_bytes());
    essence.split_once('/').is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype))
        && crate::http1::is_header_value(text.as_bytes())
}

/// Returns whether a media type is text.
fn is_text_type(media_type: &str) -> bool {
    media_type.starts_with("text/")
        || media_type.ends_with("+xml")
        || media_type.ends_with("+json")
        || matches!(media_type, "application/javascript" | "application/json" | "application/xml")
}

/// Returns whether the beginning of a file is text: UTF-8 without the control characters that only binary formats have
/// (the binary data bytes of the WHATWG MIME Sniffing Standard, section 3).
fn is_text(start: &[u8]) -> bool {
    let is_binary = |byte: &u8| matches!(byte, 0..=8 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    !start.is_empty() && !start.iter().any(is_binary) && is_utf8(start)
}

fn has_utf16_mark(start: &[u8]) -> bool {
    start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff")
}

/// Returns whether the beginning of a file is UTF-8; its last character may be cut off. Text with escape characters is
/// not: they select the characters in ISO 2022, whose bytes are ASCII.
fn is_utf8(start: &[u8]) -> bool {
    let is_valid = match std::str::from_utf8(start) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    is_valid && !start.windows(2).any(|pair| pair[0] == 0x1b && matches!(pair[1], b'$' | b'(' | b')'))
}

/// Returns whether a file is in a compressed format, such as an image, audio, video or archive.
fn is_compressed(name: &Path) -> bool {
    const ARCHIVES: [&str; 12] = ["br", "bz2", "gz", "rar", "svgz", "tgz", "whl", "woff", "woff2", "xz", "zip", "zst"];
    let guess = known(name).unwrap_or_default();
    let is_media = ["image/", "audio/", "video/"].iter().any(|kind| guess.starts_with(kind));
    (is_media && !is_text_type(guess)) || ARCHIVES.iter().any(|archive| has_extension(name, archive))
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

    fn content_type(name: &str, start: &[u8]) -> String {
        Media::new(Path::new(name), &[], start).content_type
    }

    #[test]
    fn known_extensions_decide_and_text_types_have_a_charset() {
        for (name, expected) in [
            ("a.html", "text/html; charset=utf-8"),
            ("A.HTM", "text/html; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.cjs", "text/javascript; charset=utf-8"),
            ("a.json", "application/json; charset=utf-8"),
            ("a.svg", "image/svg+xml; charset=utf-8"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.png", "image/png"),
            ("a.mp4", "video/mp4"),
            ("a.wasm", "application/wasm"),
            ("a.tar.gz", "application/gzip"),
            ("a.rpm", "application/x-rpm"),
            ("a.m3u8", "application/vnd.apple.mpegurl"),
            ("A.YAML", "application/yaml"),
            ("a.yml", "application/yaml"),
            ("a.bin", BINARY),
        ] {
            assert_eq!(content_type(name, b"text"), expected, "{name}");
        }
    }

    #[test]
    fn the_content_decides_where_the_extension_is_unknown() {
        for name in ["README", "Makefile", "a.diff", "main.go", "a.jsonl", "a.zig", ".env", "a.", "a.ts"] {
            assert_eq!(content_type(name, "gr\u{fc}n\t\n".as_bytes()), "text/plain; charset=utf-8", "{name}");
        }
        for start in [&b""[..], b"\0", b"text\x01", b"\x89PNG\r\n", b"gr\xfcn", b"\x7fELF\x02\x01\x01\0"] {
            assert_eq!(content_type("README", start), BINARY, "{start:?}");
        }
        assert_eq!(content_type("a.ts", &[0x47, 0x40, 0x11, 0x10, 0]), "video/mp2t");
        assert_eq!(content_type("README", b"\xff\xfet\0e\0"), "text/plain");
    }

    #[test]
    fn only_utf8_has_a_charset() {
        for start in [&b"gr\xfcn"[..], b"\xff\xfet\0", b"\x93\xfa\x96\x7b", b"\x1b$B\x46\x7c\x1b(B"] {
            assert_eq!(content_type("a.html", start), "text/html", "{start:?}");
        }
        // The end of a file is valid, and so is a character that continues beyond the beginning of the file.
        assert_eq!(content_type("a.html", &"gr\u{fc}n".as_bytes()[..3]), "text/html; charset=utf-8");
        assert_eq!(content_type("a.html", b""), "text/html; charset=utf-8");
        assert_eq!(content_type("a.html", b"\x1b[1mbold"), "text/html; charset=utf-8");
    }

    #[test]
    fn configured_types_precede_the_built_in_ones() {
        let types = [("gz", "application/x-one"), ("tar.gz", "application/x-two"), ("LOG", "text/x-log")];
        let types = types.map(|(extension, media_type)| (extension.to_owned(), media_type.to_owned()));
        for (name, expected) in [
            ("a.gz", "application/x-one"),
            ("a.TAR.gz", "application/x-two"),
            ("a.log", "text/x-log; charset=utf-8"),
            ("gz", "text/plain; charset=utf-8"),
            ("a.txt", "text/plain; charset=utf-8"),
        ] {
            assert_eq!(Media::new(Path::new(name), &types, b"text").content_type, expected, "{name}");
        }
        let latin = [("txt".to_owned(), "text/plain; charset=iso-8859-1".to_owned())];
        assert_eq!(Media::new(Path::new("a.txt"), &latin, b"text").content_type, latin[0].1);
        assert!(!needs_content(Path::new("a.txt"), &latin) && needs_content(Path::new("a.html"), &latin));
    }

    #[test]
    fn compressed_svg_is_recognized_by_its_content() {
        let media = Media::new(Path::new("a.svgz"), &[], b"\x1f\x8b\x08\0");
        assert_eq!((media.content_type.as_str(), media.is_gzip), ("image/svg+xml", true));
        assert!(!Media::new(Path::new("a.svgz"), &[], b"<svg/>").is_gzip);
        assert!(is_compressed(Path::new("a.svgz")) && !is_compressed(Path::new("a.svg")));
    }

    #[test]
    #[cfg(feature = "cli")]
    fn media_types_are_checked() {
        for text in ["text/plain", "application/x-a+b", "text/plain; charset=utf-8"] {
            assert!(is_media_type(text), "{text}");
        }
        for text in ["", "text", "text/", "/plain", "text/pl ain", "text/plain;\r\nX: y", "a/b/c"] {
            assert!(!is_media_type(text), "{text:?}");
        }
    }
}
