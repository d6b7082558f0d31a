//! Media types by file extension.

use std::path::Path;

/// Returns the Content-Type of a file, with a charset for text (RFC 9110 section 8.3).
pub(super) fn content_type(name: &Path) -> String {
    let guess = mime_guess::from_path(name).first_raw().unwrap_or("application/octet-stream");
    let charset = if is_text(guess) { "; charset=utf-8" } else { "" };
    format!("{guess}{charset}")
}

/// Returns whether a media type is text.
pub(super) fn is_text(media_type: &str) -> bool {
    media_type.starts_with("text/")
        || media_type.ends_with("+xml")
        || media_type.ends_with("+json")
        || matches!(media_type, "application/javascript" | "application/json" | "application/xml")
}

/// Returns whether a file is in a compressed format, such as an image, audio, video or archive.
pub(super) fn is_compressed(name: &Path) -> bool {
    const ARCHIVES: [&str; 9] = ["br", "bz2", "gz", "rar", "woff", "woff2", "xz", "zip", "zst"];
    let extension = name.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let guess = mime_guess::from_path(name).first_raw().unwrap_or_default();
    let is_media = ["image/", "audio/", "video/"].iter().any(|kind| guess.starts_with(kind));
    (is_media && !is_text(guess)) || ARCHIVES.iter().any(|archive| extension.eq_ignore_ascii_case(archive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_types_have_a_charset() {
        for (name, content_type) in [
            ("a.html", "text/html; charset=utf-8"),
            ("A.HTM", "text/html; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.json", "application/json; charset=utf-8"),
            ("a.svg", "image/svg+xml; charset=utf-8"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.png", "image/png"),
            ("a.mp4", "video/mp4"),
            ("a.wasm", "application/wasm"),
            ("a.tar.gz", "application/gzip"),
            ("a.no-such-thing", "application/octet-stream"),
            ("README", "application/octet-stream"),
            ("", "application/octet-stream"),
        ] {
            assert_eq!(super::content_type(Path::new(name)), content_type, "{name}");
        }
    }
}
