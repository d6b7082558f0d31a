//! The requested format and order of a listing.

use super::entries::SortKey;
use crate::httpserver::RequestHead;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Html,
    Json,
}

/// The directory, format and order of a listing.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) format: Format,
    pub(super) key: SortKey,
    pub(super) descending: bool,
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
    pub(super) fn default_descending(self) -> bool {
        self != SortKey::Name
    }
}

impl View {
    /// Parses `?sort=name|size|date`, `?order=asc|desc` and `?format=html|json`, ignoring invalid values. Without
    /// `format`, the Accept header selects the format.
    pub(super) fn new(head: &RequestHead<'_>, segments: Vec<Vec<u8>>) -> Self {
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
            _ if head.weight_of("application/json") > head.weight_of("text/html") => Format::Json,
            _ => Format::Html,
        };
        View { format, key, descending, segments }
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
