//! How long what is served may be kept by who got it.

use std::path::Path;
use std::time::Duration;

/// What is sent as Cache-Control.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// Kept, but asked about each time (`no-cache`): what is changed is seen at once, and what is not costs a 304.
    #[default]
    Revalidate,
    /// Not kept at all (`no-store`).
    Never,
    /// Kept for so long; for a year, without asking, where the name has a hash of the content in it.
    For(Duration),
}

/// A name that changes with the content may be kept for a year, which RFC 9111 has as the usual most.
const IMMUTABLE: &str = "max-age=31536000, immutable";

/// Kinds of files that bundlers name after their content.
const BUNDLED: [&str; 19] = [
    "avif", "css", "gif", "ico", "jpeg", "jpg", "js", "json", "map", "mjs", "otf", "png", "svg", "ttf", "wasm", "webm",
    "webp", "woff", "woff2",
];

impl Caching {
    /// The value for a file of this name.
    pub(super) fn value(&self, name: &Path) -> String {
        match self {
            Caching::Revalidate => "no-cache".into(),
            Caching::Never => "no-store".into(),
            Caching::For(_) if is_hashed(name) => IMMUTABLE.into(),
            Caching::For(time) => format!("max-age={}", time.as_secs()),
        }
    }
}

/// Whether a name has a hash of the content in it, as bundlers write it: `app.3f9c2b1a.js`, `index-BxK3a9Qz.css`.
/// Dates, versions and words are none.
fn is_hashed(name: &Path) -> bool {
    let extension = name.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let name = name.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let parts: Vec<&str> = name.split(['.', '-', '_']).collect();
    BUNDLED.contains(&extension.to_ascii_lowercase().as_str()) && parts.iter().skip(1).any(|part| is_hash(part))
}

/// Eight or more hexadecimal digits of both kinds, or eight letters and digits of every kind.
fn is_hash(part: &str) -> bool {
    let has = |is: fn(&u8) -> bool| part.as_bytes().iter().any(is);
    let hexadecimal = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if part.len() >= 8 && hexadecimal {
        return has(u8::is_ascii_digit) && has(u8::is_ascii_lowercase);
    }
    part.len() == 8
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && [u8::is_ascii_digit, u8::is_ascii_lowercase, u8::is_ascii_uppercase].into_iter().all(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_change_with_their_content_are_immutable() {
        let caching = Caching::For(Duration::from_secs(3600));
        for name in [
            "app.3f9c2b1a.js",
            "a/b/main-0a1b2c3d4e5f.css",
            "index-BxK3a9Qz.js",
            "logo.3f9c2b1a.min.svg",
            "chunk_3f9c2b1a.js.map",
        ] {
            assert_eq!(caching.value(Path::new(name)), IMMUTABLE, "{name}");
        }
        for name in [
            "index.html",
            "photo.20240101.jpg",
            "jquery-3.7.1.min.js",
            "3f9c2b1a.js",
            "app.deadbeef.js",
            "report-3f9c2b1a.pdf",
            "style.css",
            "app.3f9c2b1a",
            "Final-Copy2024x.png",
        ] {
            assert_eq!(caching.value(Path::new(name)), "max-age=3600", "{name}");
        }
        assert_eq!(Caching::Never.value(Path::new("app.3f9c2b1a.js")), "no-store");
        assert_eq!(Caching::default().value(Path::new("app.3f9c2b1a.js")), "no-cache");
    }
}
