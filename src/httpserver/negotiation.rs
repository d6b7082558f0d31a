//! What a client prefers: the weights of Accept and Accept-Encoding (RFC 9110 section 12).

use super::RequestHead;

/// A weight of one, in thousandths.
const FULL: u16 = 1000;

/// What is acceptable without being asked for comes after everything that is asked for.
const TOLERATED: u16 = 1;

/// A content coding (RFC 9110 section 8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentCoding {
    /// The content as it is.
    Identity,
    /// `gzip`, and its alias `x-gzip`.
    Gzip,
    /// `zstd` (RFC 8878).
    Zstd,
    /// `br` (RFC 7932).
    Brotli,
}

impl ContentCoding {
    /// The name in Content-Encoding; none for the identity, which is never told.
    pub fn name(self) -> Option<&'static str> {
        match self {
            ContentCoding::Identity => None,
            ContentCoding::Gzip => Some("gzip"),
            ContentCoding::Zstd => Some("zstd"),
            ContentCoding::Brotli => Some("br"),
        }
    }

    fn is_named(self, name: &str) -> bool {
        let own = self.name().unwrap_or("identity");
        name.eq_ignore_ascii_case(own) || (self == ContentCoding::Gzip && name.eq_ignore_ascii_case("x-gzip"))
    }
}

/// The codings a client takes, each by its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedCodings {
    /// In thousandths, in the order of the enum; zero is refused.
    weights: [u16; 4],
}

const CODINGS: [ContentCoding; 4] =
    [ContentCoding::Identity, ContentCoding::Gzip, ContentCoding::Zstd, ContentCoding::Brotli];

impl AcceptedCodings {
    /// Reads the values of all fields Accept-Encoding of a request.
    fn read<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut told: [Option<u16>; 4] = [None; 4];
        let mut others = None;
        for (name, weight) in values.flat_map(members) {
            let Some(weight) = weight else { continue };
            if name == "*" {
                others = others.or(Some(weight));
            } else if let Some(at) = CODINGS.iter().position(|coding| coding.is_named(name)) {
                told[at] = told[at].or(Some(weight));
            }
        }
        // RFC 9110 section 12.5.3: the asterisk stands for what is not listed; without either, only the identity will do.
        let mut weights = told.map(|own| own.or(others).unwrap_or(0));
        if told[0].or(others).is_none() {
            weights[0] = TOLERATED;
        }
        AcceptedCodings { weights }
    }

    /// Whether the client takes this coding.
    pub fn accepts(self, coding: ContentCoding) -> bool {
        self.weights[coding as usize] > 0
    }

    /// The one with the greatest weight of those that are `available`, which stand in the order in which the server
    /// prefers them. Without one that the client takes, none.
    ///
    /// # Examples
    /// ```
    /// use serverd::{ContentCoding, HttpServer, Request};
    ///
    /// let server = HttpServer::new(|request: &Request<'_>| {
    ///     match request.accepted_codings().best(&[ContentCoding::Zstd, ContentCoding::Gzip]) {
    ///         Some(coding) => format!("{coding:?}\n"),
    ///         None => "as it is\n".to_owned(),
    ///     }
    /// });
    /// # drop(server);
    /// ```
    pub fn best(self, available: &[ContentCoding]) -> Option<ContentCoding> {
        // `max_by_key` takes the last of equals.
        let acceptable = available.iter().rev().copied().filter(|&coding| self.accepts(coding));
        acceptable.max_by_key(|&coding| self.weights[coding as usize])
    }
}

impl RequestHead<'_> {
    /// The content codings that the client takes (RFC 9110 section 12.5.3). One that says nothing gets the identity:
    /// it would have to take any coding, but those that can do so say it.
    pub fn accepted_codings(&self) -> AcceptedCodings {
        AcceptedCodings::read(self.values("accept-encoding"))
    }

    /// The weight that the client gives to a media type in Accept, in thousandths: that of the most precise range
    /// that covers it (RFC 9110 section 12.5.1). Without the field, every type has all of it.
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
        if self.field("accept").is_none() {
            return FULL;
        }
        media_weight(self.values("accept"), media_type)
    }

    /// Whether the client asks for a media type by its name, not only for anything: as browsers ask for `text/html` where
    /// somebody goes to a page, and not where a page asks for its parts.
    pub fn names_media_type(&self, media_type: &str) -> bool {
        let is_it = |(range, weight): (&str, Option<u16>)| {
            range.eq_ignore_ascii_case(media_type) && weight.is_some_and(|weight| weight > 0)
        };
        self.values("accept").flat_map(members).any(is_it)
    }

    /// The values of all fields of this name.
    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let is_it = move |own: &[u8]| own.eq_ignore_ascii_case(name.as_bytes());
        self.fields().filter(move |(own, _)| is_it(own)).map(|(_, value)| value)
    }
}

fn media_weight<'a>(values: impl Iterator<Item = &'a [u8]>, media_type: &str) -> u16 {
    let (major, _) = media_type.split_once('/').unwrap_or((media_type, ""));
    let mut best = (0, 0);
    for (range, weight) in values.flat_map(members) {
        let precision = match range.strip_suffix("/*") {
            _ if range.eq_ignore_ascii_case(media_type) => 3,
            Some(own) if own.eq_ignore_ascii_case(major) => 2,
            Some("*") => 1,
            _ => continue,
        };
        if precision > best.0 {
            best = (precision, weight.unwrap_or(0));
        }
    }
    best.1
}

/// The members of a list, each with its weight; without one where that is malformed.
fn members(value: &[u8]) -> impl Iterator<Item = (&str, Option<u16>)> {
    // What is not text names nothing that anybody knows.
    std::str::from_utf8(value).unwrap_or_default().split(',').filter_map(|member| {
        let mut parts = member.split(';').map(str::trim);
        let name = parts.next().filter(|name| !name.is_empty())?;
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        Some((name, weight.map_or(Some(FULL), thousandths)))
    })
}

/// A weight such as `0.5` (RFC 9110 section 12.4.2); nothing is said by one that is malformed.
fn thousandths(weight: &str) -> Option<u16> {
    let (whole, rest) = weight.split_once('.').unwrap_or((weight, ""));
    let is_good = rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_digit());
    let fraction = format!("{rest:0<3}").parse::<u16>().ok().filter(|_| is_good)?;
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
        AcceptedCodings::read([value.as_bytes()].into_iter())
    }

    #[test]
    fn the_best_coding_is_the_heaviest_and_then_the_servers_choice() {
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
        assert_eq!(AcceptedCodings::read([].into_iter()).best(&all), Some(Identity));
        let several = AcceptedCodings::read([&b"br;q=0.1"[..], b"gzip"].into_iter());
        assert_eq!(several.best(&all), Some(Gzip));
    }

    #[test]
    fn a_media_type_has_the_weight_of_the_most_precise_range() {
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
