//! Content negotiation: quality values of Accept and Accept-Encoding (RFC 9110 section 12).

use super::request::RequestHead;

/// Quality value 1, in thousandths.
const FULL: u16 = 1000;

/// Weight of identity if it is neither listed nor excluded: lower than that of any listed coding.
const DEFAULT: u16 = 1;

/// A content coding (RFC 9110 section 8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContentCoding {
    /// No encoding.
    Identity,
    /// `gzip`, and its alias `x-gzip`.
    Gzip,
    /// `zstd` (RFC 8878).
    Zstd,
    /// `br` (RFC 7932).
    Brotli,
}

impl ContentCoding {
    /// Returns the name used in Content-Encoding, or `None` for identity, which is never sent.
    pub fn name(self) -> Option<&'static str> {
        match self {
            ContentCoding::Identity => None,
            ContentCoding::Gzip => Some("gzip"),
            ContentCoding::Zstd => Some("zstd"),
            ContentCoding::Brotli => Some("br"),
        }
    }

    fn is_named(self, name: &str) -> bool {
        let canonical = self.name().unwrap_or("identity");
        name.eq_ignore_ascii_case(canonical) || (self == ContentCoding::Gzip && name.eq_ignore_ascii_case("x-gzip"))
    }
}

/// The content codings a client accepts, with their quality values (RFC 9110 section 12.5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedCodings {
    /// In thousandths, in the order of the enum; zero means not acceptable.
    weights: [u16; 4],
}

const CODINGS: [ContentCoding; 4] =
    [ContentCoding::Identity, ContentCoding::Gzip, ContentCoding::Zstd, ContentCoding::Brotli];

impl AcceptedCodings {
    /// Parses the values of all Accept-Encoding headers of a request.
    fn parse<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut listed: [Option<u16>; 4] = [None; 4];
        let mut wildcard = None;
        for (name, weight) in values.flat_map(members) {
            let Some(weight) = weight else { continue };
            if name == "*" {
                wildcard = wildcard.or(Some(weight));
            } else if let Some(at) = CODINGS.iter().position(|coding| coding.is_named(name)) {
                listed[at] = listed[at].or(Some(weight));
            }
        }
        // RFC 9110 section 12.5.3: the asterisk matches any coding that is not listed, and identity is acceptable
        // unless excluded.
        let mut weights = listed.map(|weight| weight.or(wildcard).unwrap_or(0));
        if listed[0].or(wildcard).is_none() {
            weights[0] = DEFAULT;
        }
        AcceptedCodings { weights }
    }

    /// Returns whether the client accepts this coding.
    pub fn accepts(self, coding: ContentCoding) -> bool {
        self.weights[coding as usize] > 0
    }

    /// Returns the coding with the highest quality value among those `available`, which are in the server's order of
    /// preference, or `None` if the client accepts none of them.
    ///
    /// # Examples
    /// ```
    /// use serverd::{ContentCoding, HttpServer, Request};
    ///
    /// let server = HttpServer::new(|request: &Request<'_>| {
    ///     match request.accepted_codings().best(&[ContentCoding::Zstd, ContentCoding::Gzip]) {
    ///         Some(coding) => format!("{coding:?}\n"),
    ///         None => "identity\n".to_owned(),
    ///     }
    /// });
    /// # drop(server);
    /// ```
    pub fn best(self, available: &[ContentCoding]) -> Option<ContentCoding> {
        // Reversed because `max_by_key` returns the last of several equal elements.
        let acceptable = available.iter().rev().copied().filter(|&coding| self.accepts(coding));
        acceptable.max_by_key(|&coding| self.weights[coding as usize])
    }
}

impl RequestHead<'_> {
    /// Returns the content codings that the client accepts (RFC 9110 section 12.5.3). Without Accept-Encoding only
    /// identity is accepted: the RFC permits any coding then, but clients that can decode one send the header.
    pub fn accepted_codings(&self) -> AcceptedCodings {
        AcceptedCodings::parse(self.values("accept-encoding"))
    }

    /// Returns the quality value of a media type in Accept, in thousandths: that of the most specific media range that
    /// matches it (RFC 9110 section 12.5.1). Without an Accept header it is 1000 for every type; 0 means not
    /// acceptable.
    ///
    /// # Examples
    /// ```
    /// use serverd::{HttpServer, Request};
    ///
    /// let server = HttpServer::new(|request: &Request<'_>| {
    ///     if request.weight_of("text/html") > request.weight_of("text/plain") { "<p>hello" } else { "hello\n" }
    /// });
    /// # drop(server);
    /// ```
    pub fn weight_of(&self, media_type: &str) -> u16 {
        if self.header("accept").is_none() {
            return FULL;
        }
        media_weight(self.values("accept"), media_type)
    }

    /// Returns whether Accept lists a media type by name rather than only by a wildcard. Browsers list `text/html` when
    /// navigating to a page, but not when loading its resources.
    pub fn names_media_type(&self, media_type: &str) -> bool {
        let is_match = |(range, weight): (&str, Option<u16>)| {
            range.eq_ignore_ascii_case(media_type) && weight.is_some_and(|weight| weight > 0)
        };
        self.values("accept").flat_map(members).any(is_match)
    }

    /// Returns the values of all headers with this name.
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let is_name = move |header: &[u8]| header.eq_ignore_ascii_case(name.as_bytes());
        self.headers().filter(move |(header, _)| is_name(header)).map(|(_, value)| value)
    }
}

fn media_weight<'a>(values: impl Iterator<Item = &'a [u8]>, media_type: &str) -> u16 {
    let (major, _) = media_type.split_once('/').unwrap_or((media_type, ""));
    let mut best = (0, 0);
    for (range, weight) in values.flat_map(members) {
        let specificity = match range.strip_suffix("/*") {
            _ if range.eq_ignore_ascii_case(media_type) => 3,
            Some(range) if range.eq_ignore_ascii_case(major) => 2,
            Some("*") => 1,
            _ => continue,
        };
        if specificity > best.0 {
            best = (specificity, weight.unwrap_or(0));
        }
    }
    best.1
}

/// Iterates over the members of a list header with their quality values, which are `None` if malformed.
fn members(value: &[u8]) -> impl Iterator<Item = (&str, Option<u16>)> {
    // A value that is not UTF-8 counts as empty.
    std::str::from_utf8(value).unwrap_or_default().split(',').filter_map(|member| {
        let mut parts = member.split(';').map(str::trim);
        let name = parts.next().filter(|name| !name.is_empty())?;
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        Some((name, weight.map_or(Some(FULL), thousandths)))
    })
}

/// Parses a quality value such as `0.5` (RFC 9110 section 12.4.2); returns `None` if it is malformed.
fn thousandths(weight: &str) -> Option<u16> {
    let (whole, rest) = weight.split_once('.').unwrap_or((weight, ""));
    let is_valid = rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_digit());
    let fraction = format!("{rest:0<3}").parse::<u16>().ok().filter(|_| is_valid)?;
    match (whole, fraction) {
        ("0", fraction) => Some(fraction),
        ("1", 0) => Some(FULL),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use ContentCoding::{Brotli, Gzip, Identity, Zstd};

    fn codings(value: &str) -> AcceptedCodings {
        AcceptedCodings::parse([value.as_bytes()].into_iter())
    }

    #[test]
    fn the_best_coding_has_the_highest_weight_and_ties_follow_the_servers_order() {
        let all = [Brotli, Zstd, Gzip, Identity];
        for (value, best) in [
            ("gzip, deflate, br, zstd", Some(Brotli)),
            ("gzip, zstd;q=0.9, br;q=0.8", Some(Gzip)),
            ("GZIP;Q=0.5", Some(Gzip)),
            ("x-gzip", Some(Gzip)),
            ("gzip ; q=0.001", Some(Gzip)),
            ("identity, gzip;q=0.5", Some(Identity)),
            ("gzip;q=0", Some(Identity)),
            ("", Some(Identity)),
            ("deflate", Some(Identity)),
            ("*", Some(Brotli)),
            ("*;q=0.5, gzip;q=0.7, br;q=0", Some(Gzip)),
            ("br;q=0, *", Some(Zstd)),
            ("identity;q=0", None),
            ("*;q=0", None),
            ("gzip, *;q=0", Some(Gzip)),
            ("identity;q=0.5, *;q=0", Some(Identity)),
            ("gzip;q=2, br;q=x, zstd;q=0.1234", Some(Identity)),
            (",, gzip ,", Some(Gzip)),
        ] {
            assert_eq!(codings(value).best(&all), best, "{value:?}");
        }
        assert_eq!(codings("br, gzip;q=0.2").best(&[Gzip, Identity]), Some(Gzip));
        assert_eq!(codings("br, identity;q=0").best(&[Gzip, Identity]), None);
        assert_eq!(AcceptedCodings::parse([].into_iter()).best(&all), Some(Identity));
        let several = AcceptedCodings::parse([&b"br;q=0.1"[..], b"gzip"].into_iter());
        assert_eq!(several.best(&all), Some(Gzip));
    }

    #[test]
    fn the_most_specific_range_decides_the_weight_of_a_media_type() {
        for (accept, json, plain) in [
            ("application/json", 1000, 0),
            ("text/html, application/json;q=0.9, */*;q=0.8", 900, 800),
            ("APPLICATION/JSON ; Q=0.5", 500, 0),
            ("application/*, text/plain;q=0.999", 1000, 999),
            ("*/*", 1000, 1000),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", 800, 800),
            ("application/json;q=0, */*", 0, 1000),
            ("application/json;q=x, */*", 0, 1000),
            ("", 0, 0),
        ] {
            assert_eq!(media_weight([accept.as_bytes()].into_iter(), "application/json"), json, "{accept}");
            assert_eq!(media_weight([accept.as_bytes()].into_iter(), "text/plain"), plain, "{accept}");
        }
    }
}
