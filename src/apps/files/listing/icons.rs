//! Selects icons by file extension.

/// The CSS class of each icon, and the lower-case extensions that use it.
const CLASSES: [(&str, &[&str]); 6] = [
    (
        "im",
        &[
            "apng", "avif", "bmp", "gif", "heic", "ico", "jpeg", "jpg", "jxl", "png", "psd", "svg", "tif", "tiff",
            "webp",
        ],
    ),
    ("vi", &["avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ogv", "webm", "wmv"]),
    ("au", &["aac", "aif", "aiff", "flac", "m4a", "mid", "mp3", "oga", "ogg", "opus", "wav", "wma"]),
    (
        "ar",
        &[
            "7z", "apk", "br", "bz2", "cab", "crate", "deb", "dmg", "gz", "iso", "jar", "lz4", "lzma", "rar", "rpm",
            "tar", "tgz", "txz", "whl", "xz", "zip", "zst",
        ],
    ),
    (
        "co",
        &[
            "bash", "bat", "c", "cc", "cfg", "conf", "cpp", "cs", "css", "go", "h", "hpp", "htm", "html", "ini",
            "java", "js", "json", "jsx", "kt", "lock", "lua", "mjs", "php", "pl", "ps1", "py", "rb", "rs", "scss",
            "sh", "sql", "swift", "toml", "ts", "tsx", "vue", "wasm", "xml", "yaml", "yml",
        ],
    ),
    (
        "te",
        &[
            "adoc", "csv", "doc", "docx", "epub", "log", "md", "odp", "ods", "odt", "pdf", "ppt", "pptx", "ps", "rst",
            "rtf", "tex", "tsv", "txt", "xls", "xlsx",
        ],
    ),
];

/// Returns the CSS class of a file's icon; `fi` for an unknown extension.
pub(super) fn class(name: &[u8]) -> &'static str {
    let Some(dot) = name.iter().rposition(|&byte| byte == b'.').filter(|&dot| dot > 0) else { return "fi" };
    let extension = &name[dot + 1..];
    let has = |list: &[&str]| list.iter().any(|known| extension.eq_ignore_ascii_case(known.as_bytes()));
    CLASSES.iter().find(|(_, list)| has(list)).map_or("fi", |(class, _)| class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn icons_are_chosen_by_extension() {
        for (name, expected) in [
            ("a.PNG", "im"),
            ("a.tar.gz", "ar"),
            ("main.rs", "co"),
            ("README.md", "te"),
            ("a.mp4", "vi"),
            ("a.flac", "au"),
        ] {
            assert_eq!(class(name.as_bytes()), expected, "{name}");
        }
        for name in ["a", "", ".png", "a.", "a.unknown", "png"] {
            assert_eq!(class(name.as_bytes()), "fi", "{name}");
        }
    }
}
