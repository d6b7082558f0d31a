//! Renders a listing as JSON: an array with one object per entry.

use std::fmt::Write as _;

use super::entries::{Entry, Kind};
use super::text::{DateTime, push_json, push_segment};

/// Appends one entry. `href` is the name as a relative URL, which is lossless even if the name is not UTF-8.
pub(super) fn push_entry(out: &mut String, index: usize, entry: Entry<'_>) {
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
