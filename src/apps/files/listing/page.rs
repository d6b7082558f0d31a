//! The view of a directory that a request asks for, and its text: an HTML page, self-contained, with inline CSS and
//! without scripts, or JSON. Formats names, sizes and times, and encodes names for links.
//!
//! The page links to its directories and files only. Other views of the listing are forms: a program that follows
//! links, such as `wget -r`, would otherwise download each listing in every order.

use std::fmt::Write as _;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::entries::{Entries, Entry, Kind, SortKey};
use crate::httpserver::RequestHead;

const STYLE: &str = include_str!("page.css");

/// The Content-Security-Policy: no external resources, no scripts, and no style sheet other than our own, as a second
/// line of defense against hostile file names. Icons are part of the style sheet.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; style-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'self'; \
         frame-ancestors 'self'",
        STANDARD.encode(Sha256::digest(STYLE))
    )
});

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Html,
    Json,
}

/// The directory, format, order and filter of a listing.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) format: Format,
    pub(super) key: SortKey,
    pub(super) descending: bool,
    /// Text that the names contain, as requested; empty for all.
    pub(super) filter: String,
    /// `filter` in lower case.
    lower_filter: String,
    /// The name of the root directory.
    pub(super) root_name: Vec<u8>,
    /// The names of the directories from the root to this one, percent-decoded.
    pub(super) segments: Vec<Vec<u8>>,
}

impl SortKey {
    /// Returns the value of the `sort` parameter.
    pub(super) fn name(self) -> &'static str {
        match self {
            SortKey::Name => "name",
            SortKey::Size => "size",
            SortKey::Date => "date",
        }
    }

    /// Returns whether descending is the default order: largest or newest first.
    fn default_descending(self) -> bool {
        self != SortKey::Name
    }
}

impl View {
    /// Parses `?sort=name|size|date`, `?order=asc|desc`, `?format=html|json` and `?q=TEXT`, ignoring invalid values.
    /// Without `format`, the Accept header selects the format.
    pub(super) fn new(head: &RequestHead<'_>, root_name: Vec<u8>, segments: Vec<Vec<u8>>) -> Self {
        let key = match head.query_value("sort").as_deref() {
            Some("size") => SortKey::Size,
            Some("date") => SortKey::Date,
            _ => SortKey::Name,
        };
        let descending = match head.query_value("order").as_deref() {
            Some("asc") => false,
            Some("desc") => true,
            _ => key.default_descending(),
        };
        let format = match head.query_value("format").as_deref() {
            Some("json") => Format::Json,
            Some("html") => Format::Html,
            _ if prefers_json(head) => Format::Json,
            _ => Format::Html,
        };
        let filter = head.query_value("q").unwrap_or_default().trim().to_owned();
        let lower_filter = filter.to_lowercase();
        View { format, key, descending, filter, lower_filter, root_name, segments }
    }

    /// Returns whether a name contains the text of the filter, in any case.
    pub(super) fn matches(&self, name: &[u8]) -> bool {
        self.lower_filter.is_empty() || String::from_utf8_lossy(name).to_lowercase().contains(&self.lower_filter)
    }

    /// Returns the HTML-escaped query string that preserves the order in links to other directories.
    pub(super) fn query(&self) -> &'static str {
        match (self.key, self.descending) {
            (SortKey::Name, false) => "",
            (SortKey::Name, true) => "?sort=name&amp;order=desc",
            (SortKey::Size, false) => "?sort=size&amp;order=asc",
            (SortKey::Size, true) => "?sort=size&amp;order=desc",
            (SortKey::Date, false) => "?sort=date&amp;order=asc",
            (SortKey::Date, true) => "?sort=date&amp;order=desc",
        }
    }
}

/// Returns whether a client prefers JSON. Of two types of the same weight, one that is named precedes one that only a
/// range such as `*/*` matches; HTML precedes JSON otherwise.
fn prefers_json(head: &RequestHead<'_>) -> bool {
    let (json, html) = (head.weight_of("application/json"), head.weight_of("text/html"));
    let only_json_is_named = || head.names_media_type("application/json") && !head.names_media_type("text/html");
    json > html || json == html && json > 0 && only_json_is_named()
}

/// Appends everything before the first entry.
pub(super) fn push_start(out: &mut String, view: &View, entries: &Entries) {
    out.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n");
    out.push_str(
        "<meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"robots\" content=\"noindex\">\n<title>",
    );
    push_title(out, view);
    out.push_str("</title>\n<style>");
    out.push_str(STYLE);
    out.push_str("</style>\n</head>\n<body>\n<main>\n<header>\n<nav aria-label=\"Path\"><h1>");
    push_breadcrumb(out, view);
    out.push_str("</h1></nav>\n<p>");
    push_summary(out, entries);
    out.push_str("</p>\n");
    push_filter(out, view);
    out.push_str("</header>\n<table>\n<caption class=\"h\">Contents of ");
    push_path(out, view);
    out.push_str("</caption>\n<thead><tr>");
    push_column(out, view, SortKey::Name, "n", "Name");
    push_column(out, view, SortKey::Size, "s", "Size");
    push_column(out, view, SortKey::Date, "t", "Modified (UTC)");
    out.push_str("</tr></thead>\n<tbody>\n");
    if !view.segments.is_empty() {
        let _ = write!(out, "<tr><td class=\"n up\"><a href=\"../{}\">Parent directory</a>", view.query());
        out.push_str("<td class=\"s\"><td class=\"t\">\n");
    }
    if entries.len() == 0 {
        let text = if view.filter.is_empty() { "This directory is empty." } else { "No name matches the filter." };
        let _ = writeln!(out, "<tr><td class=\"none\" colspan=\"3\">{text}");
    }
}

/// Appends one entry.
pub(super) fn push_entry(out: &mut String, view: &View, entry: Entry<'_>) {
    let Entry { name, kind, size, modified } = entry;
    let directory = kind == Kind::Directory;
    let class = if directory { "di" } else { icon_class(name) };
    let _ = write!(out, "<tr><td class=\"n {class}\"><a href=\"");
    push_segment(out, name);
    if directory {
        out.push('/');
        out.push_str(view.query());
    }
    out.push_str("\">");
    push_html(out, name);
    out.push_str(if directory { "/</a><td class=\"s\">" } else { "</a><td class=\"s\" title=\"" });
    if !directory {
        push_grouped(out, size);
        out.push_str(if size == 1 { " byte\">" } else { " bytes\">" });
        push_size(out, size);
    }
    out.push_str("<td class=\"t\"><time datetime=\"");
    let time = DateTime::new(modified);
    time.push_iso(out);
    out.push_str("\">");
    time.push_minute(out, ' ');
    out.push_str("</time>\n");
}

/// Appends everything after the last entry.
pub(super) fn push_end(out: &mut String, view: &View, entries: &Entries) {
    out.push_str("</tbody>\n</table>\n<footer>");
    if entries.truncated {
        out.push_str("This listing is truncated. ");
    }
    out.push_str("<form>");
    push_order(out, view);
    push_hidden_filter(out, view);
    out.push_str("<button name=\"format\" value=\"json\">View as JSON</button></form></footer>\n");
    out.push_str("</main>\n</body>\n</html>\n");
}

/// Appends the path of the directory; the name of the root in place of a slash.
fn push_title(out: &mut String, view: &View) {
    if view.segments.is_empty() && !view.root_name.is_empty() {
        push_html(out, &view.root_name);
    } else {
        push_path(out, view);
    }
}

/// Appends the form that filters the listing by name, and keeps the order.
fn push_filter(out: &mut String, view: &View) {
    out.push_str("<form role=\"search\">");
    push_order(out, view);
    out.push_str("<input type=\"search\" name=\"q\" placeholder=\"Filter\" aria-label=\"Filter by name\" value=\"");
    push_html(out, view.filter.as_bytes());
    out.push_str("\"></form>\n");
}

/// Appends the order of the listing as hidden inputs, unless it is the default.
fn push_order(out: &mut String, view: &View) {
    if view.query().is_empty() {
        return;
    }
    let order = if view.descending { "desc" } else { "asc" };
    let _ = write!(out, "<input type=\"hidden\" name=\"sort\" value=\"{}\">", view.key.name());
    let _ = write!(out, "<input type=\"hidden\" name=\"order\" value=\"{order}\">");
}

fn push_hidden_filter(out: &mut String, view: &View) {
    if !view.filter.is_empty() {
        out.push_str("<input type=\"hidden\" name=\"q\" value=\"");
        push_html(out, view.filter.as_bytes());
        out.push_str("\">");
    }
}

fn push_path(out: &mut String, view: &View) {
    out.push('/');
    for segment in &view.segments {
        push_html(out, segment);
        out.push('/');
    }
}

/// Appends the breadcrumb trail. Its links are relative, so they work behind a proxy that changes the path prefix.
fn push_breadcrumb(out: &mut String, view: &View) {
    const HOME: &str = "<span class=\"home\"></span><span class=\"h\">Root directory</span>";
    let depth = view.segments.len();
    if depth == 0 {
        let _ = write!(out, "<span aria-current=\"page\">{HOME}");
        if !view.root_name.is_empty() {
            out.push(' ');
            push_html(out, &view.root_name);
        }
        out.push_str("</span>");
        return;
    }
    let _ = write!(out, "<a href=\"{}{}\">{HOME}</a>", "../".repeat(depth), view.query());
    for (at, segment) in view.segments.iter().enumerate() {
        out.push_str("<i>/</i>");
        let last = at + 1 == depth;
        if last {
            out.push_str("<span aria-current=\"page\">");
        } else {
            let _ = write!(out, "<a href=\"{}{}\">", "../".repeat(depth - at - 1), view.query());
        }
        push_html(out, segment);
        out.push_str(if last { "</span>" } else { "</a>" });
    }
}

fn push_summary(out: &mut String, entries: &Entries) {
    let (mut directories, mut files, mut bytes) = (0, 0, 0_u64);
    for entry in entries.iter() {
        match entry.kind {
            Kind::Directory => directories += 1,
            Kind::File => {
                files += 1;
                bytes = bytes.saturating_add(entry.size);
            }
        }
    }
    push_grouped(out, directories);
    out.push_str(if directories == 1 { " directory, " } else { " directories, " });
    push_grouped(out, files);
    out.push_str(if files == 1 { " file, " } else { " files, " });
    push_size(out, bytes);
}

/// Appends a column header: a button that sorts by the column, or reverses the order if the listing is already sorted
/// by it.
fn push_column(out: &mut String, view: &View, key: SortKey, class: &str, label: &str) {
    let is_active = view.key == key;
    let descending = if is_active { !view.descending } else { key.default_descending() };
    let _ = write!(out, "<th class=\"{class}\" scope=\"col\"");
    if is_active {
        let order = if view.descending { "descending" } else { "ascending" };
        let _ = write!(out, " aria-sort=\"{order}\"");
    }
    let order = if descending { "desc" } else { "asc" };
    out.push_str("><form>");
    push_hidden_filter(out, view);
    let _ = write!(out, "<button name=\"sort\" value=\"{}\">{label}</button>", key.name());
    let _ = write!(out, "<input type=\"hidden\" name=\"order\" value=\"{order}\"></form></th>");
}

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
fn icon_class(name: &[u8]) -> &'static str {
    let Some(dot) = name.iter().rposition(|&byte| byte == b'.').filter(|&dot| dot > 0) else { return "fi" };
    let extension = &name[dot + 1..];
    let has = |list: &[&str]| list.iter().any(|known| extension.eq_ignore_ascii_case(known.as_bytes()));
    CLASSES.iter().find(|(_, list)| has(list)).map_or("fi", |(class, _)| class)
}

/// Appends a name as HTML text. ASCII control characters are replaced with control pictures; other invisible or
/// bidirectional characters and invalid UTF-8 are replaced with U+FFFD.
fn push_html(out: &mut String, name: &[u8]) {
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '"' => out.push_str("&quot;"),
                '\'' => out.push_str("&#39;"),
                _ => out.push(visible(c)),
            }
        }
        if !chunk.invalid().is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

fn visible(c: char) -> char {
    match c {
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(c)).unwrap_or(char::REPLACEMENT_CHARACTER),
        '\u{7f}' => '\u{2421}',
        '\u{80}'..='\u{9f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{61c}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' => char::REPLACEMENT_CHARACTER,
        _ => c,
    }
}

/// Appends a name as one segment of a relative URL. Percent-encodes all but the unreserved characters of RFC 3986, so
/// that a colon is not mistaken for the end of a scheme, and bytes that are not UTF-8 are preserved.
fn push_segment(out: &mut String, name: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in name {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// Appends a name as a JSON string (RFC 8259 section 7), with invalid UTF-8 replaced by U+FFFD.
fn push_json(out: &mut String, name: &[u8]) {
    out.push('"');
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => {
                    out.push('\\');
                    out.push(c);
                }
                '\0'..='\u{1f}' => {
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                _ => out.push(c),
            }
        }
        if !chunk.invalid().is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
    out.push('"');
}

/// Appends an entry of a JSON array. `href` is the name as a relative URL, which is lossless even if the name is not
/// UTF-8.
pub(super) fn push_json_entry(out: &mut String, index: usize, entry: Entry<'_>) {
    let Entry { name, kind, size, modified } = entry;
    out.push_str(if index == 0 { "{\"name\":" } else { ",\n{\"name\":" });
    push_json(out, name);
    out.push_str(",\"href\":\"");
    push_segment(out, name);
    match kind {
        Kind::Directory => out.push_str("/\",\"type\":\"directory\",\"mtime\":\""),
        Kind::File => {
            let _ = write!(out, "\",\"type\":\"file\",\"size\":{size},\"mtime\":\"");
        }
    }
    DateTime::new(modified).push_iso(out);
    out.push_str("\"}");
}

/// Appends a size with three significant digits, such as `1.21 MiB`, `15.3 KiB` or `999 B`.
fn push_size(out: &mut String, bytes: u64) {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1000 {
        let _ = write!(out, "{bytes} B");
        return;
    }
    // Use the smallest unit in which the size is below 1,000. Calculate in hundredths, rounded down, to avoid floating
    // point.
    let hundredths = |shift: u32| (u128::from(bytes) * 100) >> shift;
    let at = (0..5).find(|&at| hundredths(10 * (at + 1)) < 100_000).unwrap_or(5);
    let value = hundredths(10 * (at + 1));
    let (whole, rest) = (value / 100, value % 100);
    let unit = UNITS[at as usize];
    let _ = match whole {
        0..=9 => write!(out, "{whole}.{rest:02} {unit}"),
        10..=99 => write!(out, "{whole}.{} {unit}", rest / 10),
        _ => write!(out, "{whole} {unit}"),
    };
}

/// Appends a number with its digits in groups of three: `1,234,567`.
fn push_grouped(out: &mut String, number: u64) {
    let digits = number.to_string();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
}

/// A date and time in UTC, converted from a Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    year: i64,
    month: u8,
    day: u8,
    second_of_day: u32,
}

impl DateTime {
    /// Converts a Unix time in seconds. Counts days from 1 March of year 0, so that a leap day is the last day of its
    /// year.
    pub(super) fn new(seconds: i64) -> Self {
        // Clamp to years of four digits.
        let seconds = seconds.clamp(-62_135_596_800, 253_402_300_799);
        let days = seconds.div_euclid(86_400) + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let narrow = |number: i64| u8::try_from(number).unwrap_or(1);
        let second_of_day = u32::try_from(seconds.rem_euclid(86_400)).unwrap_or(0);
        DateTime { year, month: narrow(month), day: narrow(day), second_of_day }
    }

    /// Appends the time in ISO 8601 format, such as `2026-11-25T10:50:31Z`.
    fn push_iso(self, out: &mut String) {
        self.push_minute(out, 'T');
        let _ = write!(out, ":{:02}Z", self.second_of_day % 60);
    }

    /// Appends the time to the minute, such as `2026-11-25 10:50`, with `separator` between date and time.
    fn push_minute(self, out: &mut String, separator: char) {
        let (hour, minute) = (self.second_of_day / 3600, self.second_of_day / 60 % 60);
        let _ = write!(out, "{:04}-{:02}-{:02}{separator}{hour:02}:{minute:02}", self.year, self.month, self.day);
    }
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
            assert_eq!(icon_class(name.as_bytes()), expected, "{name}");
        }
        for name in ["a", "", ".png", "a.", "a.unknown", "png"] {
            assert_eq!(icon_class(name.as_bytes()), "fi", "{name}");
        }
    }

    fn text(push: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        push(&mut out);
        out
    }

    #[test]
    fn names_are_escaped_in_html() {
        let html = |name: &[u8]| text(|out| push_html(out, name));
        assert_eq!(html(b"<script>alert('&\"')</script>"), "&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;");
        assert_eq!(html(b"a\nb\x7f\x00"), "a\u{240a}b\u{2421}\u{2400}");
        assert_eq!(html("a\u{202e}gpj.exe\u{200b}".as_bytes()), "a\u{fffd}gpj.exe\u{fffd}");
        assert_eq!(html(b"caf\xe9 \xff"), "caf\u{fffd} \u{fffd}");
        assert_eq!(html("日本 🦀".as_bytes()), "日本 🦀");
    }

    #[test]
    fn names_are_percent_encoded_as_one_segment() {
        let segment = |name: &[u8]| text(|out| push_segment(out, name));
        assert_eq!(segment(b"a b%#?&;:/\\\"'<>\n\xff"), "a%20b%25%23%3F%26%3B%3A%2F%5C%22%27%3C%3E%0A%FF");
        assert_eq!(segment(b"javascript:alert(1)"), "javascript%3Aalert%281%29");
        assert_eq!(segment(b"plain-1.0_~.tar.gz"), "plain-1.0_~.tar.gz");
    }

    #[test]
    fn names_are_escaped_in_json() {
        assert_eq!(text(|out| push_json(out, b"a\"\\\n\x01\xff")), "\"a\\\"\\\\\\u000a\\u0001\u{fffd}\"");
    }

    #[test]
    fn sizes_have_three_significant_digits() {
        for (bytes, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.97 KiB"),
            (1024, "1.00 KiB"),
            (15_700, "15.3 KiB"),
            (1_023_000, "999 KiB"),
            (1_024_000, "0.97 MiB"),
            (1_073_741_824, "1.00 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(text(|out| push_size(out, bytes)), expected, "{bytes}");
        }
        assert_eq!(text(|out| push_grouped(out, 1_234_567)), "1,234,567");
        assert_eq!(text(|out| push_grouped(out, 12)), "12");
    }

    #[test]
    fn dates_follow_the_gregorian_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_764_067_831, "2025-11-25T10:50:31Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (i64::MAX, "9999-12-31T23:59:59Z"),
            (i64::MIN, "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(text(|out| DateTime::new(seconds).push_iso(out)), expected, "{seconds}");
        }
        assert_eq!(text(|out| DateTime::new(951_782_460).push_minute(out, ' ')), "2000-02-29 00:01");
    }
}
