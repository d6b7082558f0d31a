//! How a listing was asked for.

use super::entries::Key;
use crate::httpserver::RequestHead;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Html,
    Json,
}

/// What is to be shown, and in which order.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) format: Format,
    pub(super) key: Key,
    pub(super) descending: bool,
    /// The names of the directories from the root to this one, percent-decoded.
    pub(super) segments: Vec<Vec<u8>>,
}

impl Key {
    /// The value of `sort`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Key::Name => "name",
            Key::Size => "size",
            Key::Date => "date",
        }
    }

    /// Whether the largest, or the newest, is what people look for.
    pub(super) fn begins_descending(self) -> bool {
        self != Key::Name
    }
}

impl View {
    /// Reads `?sort=name|size|date`, `?order=asc|desc` and `?format=html|json`; what is not understood is as if it were
    /// not there. Without a format Accept decides.
    pub(super) fn new(head: &RequestHead<'_>, segments: Vec<Vec<u8>>) -> Self {
        let key = match head.query_value("sort").as_deref() {
            Some("size") => Key::Size,
            Some("date") => Key::Date,
            _ => Key::Name,
        };
        let descending = match head.query_value("order").as_deref() {
            Some("asc") => false,
            Some("desc") => true,
            _ => key.begins_descending(),
        };
        let format = match head.query_value("format").as_deref() {
            Some("json") => Format::Json,
            Some("html") => Format::Html,
            _ if head.weight_of("application/json") > head.weight_of("text/html") => Format::Json,
            _ => Format::Html,
        };
        View { format, key, descending, segments }
    }

    /// The query that links to other directories carry on, so that the order stays.
    pub(super) fn suffix(&self) -> &'static str {
        match (self.key, self.descending) {
            (Key::Name, false) => "",
            (Key::Name, true) => "?sort=name&amp;order=desc",
            (Key::Size, false) => "?sort=size&amp;order=asc",
            (Key::Size, true) => "?sort=size&amp;order=desc",
            (Key::Date, false) => "?sort=date&amp;order=asc",
            (Key::Date, true) => "?sort=date&amp;order=desc",
        }
    }
}
