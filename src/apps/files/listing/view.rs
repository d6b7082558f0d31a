//! The requested format, order and filter of a listing.

use super::entries::SortKey;
use crate::httpserver::RequestHead;

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
    pub(super) fn default_descending(self) -> bool {
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
