//! A listing as JSON: an array with an object for each name.

use std::fmt::Write as _;

use super::entries::{Entry, Kind};
use super::text::{Moment, push_json, push_segment};

/// Appends one name. `href` is the name as a relative URL, exact also where the name is not UTF-8.
pub(super) fn push_entry(out: &mut String, at: usize, entry: Entry<'_>) {
    let Entry { name, kind, size, modified } = entry;
    out.push_str(if at == 0 { "{\"name\":" } else { ",\n{\"name\":" });
    push_json(out, name);
    out.push_str(",\"href\":\"");
    push_segment(out, name);
    match kind {
        Kind::Directory => out.push_str("/\",\"type\":\"directory\",\"mtime\":\""),
        Kind::File => {
            let _ = write!(out, "\",\"type\":\"file\",\"size\":{size},\"mtime\":\"");
        }
    }
    Moment::new(modified).push_iso(out);
    out.push_str("\"}");
}
