//! Renders a listing as an HTML page: self-contained, with inline CSS and without scripts.

use std::fmt::Write as _;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::entries::{Entries, Entry, Kind, SortKey};
use super::icons;
use super::text::{DateTime, push_grouped, push_html, push_segment, push_size};
use super::view::View;

const STYLE: &str = include_str!("page.css");

/// The Content-Security-Policy: no external resources, no scripts, and no style sheet but our own, as a second line of
/// defense against hostile file names. Icons are part of the style sheet.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; style-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'self'",
        STANDARD.encode(Sha256::digest(STYLE))
    )
});

/// Appends everything before the first entry.
pub(super) fn push_start(out: &mut String, view: &View, entries: &Entries) {
    out.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n");
    out.push_str(
        "<meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"robots\" content=\"noindex\">\n<title>",
    );
    push_path(out, view);
    out.push_str("</title>\n<style>");
    out.push_str(STYLE);
    out.push_str("</style>\n</head>\n<body>\n<main>\n<header>\n<nav aria-label=\"Path\"><h1>");
    push_breadcrumb(out, view);
    out.push_str("</h1></nav>\n<p>");
    push_summary(out, entries);
    out.push_str("</p>\n</header>\n<table>\n<caption class=\"h\">Contents of ");
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
        out.push_str("<tr><td class=\"none\" colspan=\"3\">This directory is empty.\n");
    }
}

/// Appends one entry.
pub(super) fn push_entry(out: &mut String, view: &View, entry: Entry<'_>) {
    let Entry { name, kind, size, modified } = entry;
    let directory = kind == Kind::Directory;
    let class = if directory { "di" } else { icons::class(name) };
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
pub(super) fn push_end(out: &mut String, entries: &Entries) {
    out.push_str("</tbody>\n</table>\n<footer>");
    if entries.truncated {
        out.push_str("This listing is truncated. ");
    }
    out.push_str("<a href=\"?format=json\">View as JSON</a></footer>\n</main>\n</body>\n</html>\n");
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
        let _ = write!(out, "<span aria-current=\"page\">{HOME}</span>");
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

/// Appends a column header: a link that sorts by the column, or reverses the order if the listing is already sorted by
/// it.
fn push_column(out: &mut String, view: &View, key: SortKey, class: &str, label: &str) {
    let is_active = view.key == key;
    let descending = if is_active { !view.descending } else { key.default_descending() };
    let _ = write!(out, "<th class=\"{class}\" scope=\"col\"");
    if is_active {
        let order = if view.descending { "descending" } else { "ascending" };
        let _ = write!(out, " aria-sort=\"{order}\"");
    }
    let order = if descending { "desc" } else { "asc" };
    let _ = write!(out, "><a href=\"?sort={}&amp;order={order}\">{label}</a></th>", key.name());
}
