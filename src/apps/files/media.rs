//! Media types: by file extension and, where that does not decide, by the first bytes of the content.

use std::path::Path;

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
pub(super) fn is_compressed(name: &Path) -> bool {
    const ARCHIVES: [&str; 12] = ["br", "bz2", "gz", "rar", "svgz", "tgz", "whl", "woff", "woff2", "xz", "zip", "zst"];
    let guess = known(name).unwrap_or_default();
    let is_media = ["image/", "audio/", "video/"].iter().any(|kind| guess.starts_with(kind));
    (is_media && !is_text_type(guess)) || ARCHIVES.iter().any(|archive| has_extension(name, archive))
}

#[cfg(test)]
mod tests {
    use super::*;

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
