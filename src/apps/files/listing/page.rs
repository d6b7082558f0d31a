//! A listing as a page: plain HTML and CSS, whole in itself, the same without scripts.

use std::fmt::Write as _;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::entries::{Entries, Entry, Key, Kind};
use super::icons;
use super::text::{Moment, push_grouped, push_html, push_segment, push_size};
use super::view::View;

const STYLE: &str = include_str!("page.css");

/// Nothing is loaded, nothing runs, and no style but ours applies, whatever a name may bring in. Icons are in the style.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; style-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'self'",
        STANDARD.encode(Sha256::digest(STYLE))
    )
});

/// Everything before the first name.
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
    out.push_str("</p>\n</header>\n<table>\n<caption class=\"h\">What is in ");
    push_path(out, view);
    out.push_str("</caption>\n<thead><tr>");
    push_column(out, view, Key::Name, "n", "Name");
    push_column(out, view, Key::Size, "s", "Size");
    push_column(out, view, Key::Date, "t", "Changed (UTC)");
    out.push_str("</tr></thead>\n<tbody>\n");
    if !view.segments.is_empty() {
        let _ = write!(out, "<tr><td class=\"n up\"><a href=\"../{}\">Parent directory</a>", view.suffix());
        out.push_str("<td class=\"s\"><td class=\"t\">\n");
    }
    if entries.len() == 0 {
        out.push_str("<tr><td class=\"none\" colspan=\"3\">This directory is empty.\n");
    }
}

/// One name.
pub(super) fn push_entry(out: &mut String, view: &View, entry: Entry<'_>) {
    let Entry { name, kind, size, modified } = entry;
    let directory = kind == Kind::Directory;
    let class = if directory { "di" } else { icons::class(name) };
    let _ = write!(out, "<tr><td class=\"n {class}\"><a href=\"");
    push_segment(out, name);
    if directory {
        out.push('/');
        out.push_str(view.suffix());
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
    let moment = Moment::new(modified);
    moment.push_iso(out);
    out.push_str("\">");
    moment.push_minute(out, ' ');
    out.push_str("</time>\n");
}

/// Everything after the last name.
pub(super) fn push_end(out: &mut String, entries: &Entries) {
    out.push_str("</tbody>\n</table>\n<footer>");
    if entries.cut {
        out.push_str("There is more here than is listed. ");
    }
    out.push_str("<a href=\"?format=json\">As JSON</a></footer>\n</main>\n</body>\n</html>\n");
}

fn push_path(out: &mut String, view: &View) {
    out.push('/');
    for segment in &view.segments {
        push_html(out, segment);
        out.push('/');
    }
}

/// Links are relative, so that they hold behind a proxy that changes the front of the path.
fn push_breadcrumb(out: &mut String, view: &View) {
    const HOME: &str = "<span class=\"home\"></span><span class=\"h\">Top directory</span>";
    let depth = view.segments.len();
    if depth == 0 {
        let _ = write!(out, "<span aria-current=\"page\">{HOME}</span>");
        return;
    }
    let _ = write!(out, "<a href=\"{}{}\">{HOME}</a>", "../".repeat(depth), view.suffix());
    for (at, segment) in view.segments.iter().enumerate() {
        out.push_str("<i>/</i>");
        let last = at + 1 == depth;
        if last {
            out.push_str("<span aria-current=\"page\">");
        } else {
            let _ = write!(out, "<a href=\"{}{}\">", "../".repeat(depth - at - 1), view.suffix());
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

/// The head of a column is the link that sorts by it; that of the one in force turns the order around.
fn push_column(out: &mut String, view: &View, key: Key, class: &str, label: &str) {
    let in_force = view.key == key;
    let descending = if in_force { !view.descending } else { key.begins_descending() };
    let _ = write!(out, "<th class=\"{class}\" scope=\"col\"");
    if in_force {
        let order = if view.descending { "descending" } else { "ascending" };
        let _ = write!(out, " aria-sort=\"{order}\"");
    }
    let order = if descending { "desc" } else { "asc" };
    let _ = write!(out, "><a href=\"?sort={}&amp;order={order}\">{label}</a></th>", key.name());
}
