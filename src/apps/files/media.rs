//! Media types by the ends of names.

use std::path::Path;

/// The media type of a file, with a charset where it is text (RFC 9110 section 8.3).
pub(super) fn content_type(name: &Path) -> String {
    let guess = mime_guess::from_path(name).first_raw().unwrap_or("application/octet-stream");
    let charset = if is_text(guess) { "; charset=utf-8" } else { "" };
    format!("{guess}{charset}")
}

/// Whether a media type is one of text.
pub(super) fn is_text(media_type: &str) -> bool {
    media_type.starts_with("text/")
        || media_type.ends_with("+xml")
        || media_type.ends_with("+json")
        || matches!(media_type, "application/javascript" | "application/json" | "application/xml")
}

/// Whether content of this type is compressed in itself, as pictures, sounds and archives are.
pub(super) fn is_compressed(name: &Path) -> bool {
    const ARCHIVES: [&str; 9] = ["br", "bz2", "gz", "rar", "woff", "woff2", "xz", "zip", "zst"];
    let ending = name.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let guess = mime_guess::from_path(name).first_raw().unwrap_or_default();
    let is_medium = ["image/", "audio/", "video/"].iter().any(|kind| guess.starts_with(kind));
    (is_medium && !is_text(guess)) || ARCHIVES.iter().any(|own| ending.eq_ignore_ascii_case(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_charset() {
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
