//! Reads the parts of an X.509 certificate (RFC 5280) that rustls does not expose: its validity, and the names of its
//! subject. Any other content is skipped. Malformed input results in `None`.

/// Tags of ASN.1 types in DER.
pub(super) mod tag {
    pub(in crate::tls) const INTEGER: u8 = 0x02;
    pub(in crate::tls) const OCTET_STRING: u8 = 0x04;
    pub(in crate::tls) const OBJECT_IDENTIFIER: u8 = 0x06;
    pub(in crate::tls) const UTF8_STRING: u8 = 0x0c;
    pub(in crate::tls) const NUMERIC_STRING: u8 = 0x12;
    pub(in crate::tls) const PRINTABLE_STRING: u8 = 0x13;
    pub(in crate::tls) const TELETEX_STRING: u8 = 0x14;
    pub(in crate::tls) const IA5_STRING: u8 = 0x16;
    pub(in crate::tls) const UTC_TIME: u8 = 0x17;
    pub(in crate::tls) const GENERALIZED_TIME: u8 = 0x18;
    pub(in crate::tls) const BMP_STRING: u8 = 0x1e;
    pub(in crate::tls) const SEQUENCE: u8 = 0x30;
    pub(in crate::tls) const SET: u8 = 0x31;
    pub(in crate::tls) const DNS_NAME: u8 = 0x82;
    pub(in crate::tls) const VERSION: u8 = 0xa0;
    pub(in crate::tls) const EXTENSIONS: u8 = 0xa3;
}

/// The content of the object identifier 2.5.29.17, subjectAltName.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// The content of the object identifier 2.5.4.3, commonName.
#[cfg(any(feature = "cli", test))]
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The fields of a certificate that are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    /// Start of the validity, in seconds since 1970.
    pub(super) not_before: i64,
    /// End of the validity, in seconds since 1970.
    pub(super) not_after: i64,
    /// The DNS names in the subject alternative name, in lower case.
    pub(super) dns_names: Vec<String>,
}

/// A sequence of elements that are not read yet.
#[derive(Clone, Copy)]
pub(super) struct Elements<'a>(pub(super) &'a [u8]);

impl<'a> Elements<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the next element: its tag and content.
    pub(super) fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x0f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// Takes the next element if it has this tag.
    pub(super) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut rest = *self;
        let (_, content) = rest.next().filter(|(found, _)| *found == tag)?;
        *self = rest;
        Some(content)
    }
}

/// Takes the fields of a certificate in DER up to its issuer, and returns the others.
fn after_issuer(certificate: &[u8]) -> Option<Elements<'_>> {
    let mut certificate = Elements(Elements(certificate).take(tag::SEQUENCE)?);
    let mut fields = Elements(certificate.take(tag::SEQUENCE)?);
    // Version 1 certificates omit the version.
    fields.take(tag::VERSION);
    fields.take(tag::INTEGER)?;
    let (_algorithm, _issuer) = (fields.take(tag::SEQUENCE)?, fields.take(tag::SEQUENCE)?);
    Some(fields)
}

/// Reads the fields of a certificate in DER.
pub(super) fn read(certificate: &[u8]) -> Option<Fields> {
    let mut fields = after_issuer(certificate)?;
    let mut validity = Elements(fields.take(tag::SEQUENCE)?);
    let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
    let mut dns_names = Vec::new();
    while let Some((tag, content)) = fields.next() {
        if tag == tag::EXTENSIONS {
            dns_names = alternative_names(content)?;
        }
    }
    Some(Fields { not_before, not_after, dns_names })
}

/// Returns the content of the subject of a certificate in DER, which is a distinguished name.
pub(super) fn subject(certificate: &[u8]) -> Option<&[u8]> {
    let mut fields = after_issuer(certificate)?;
    let _validity = fields.take(tag::SEQUENCE)?;
    fields.take(tag::SEQUENCE)
}

/// Reads the common name of the subject of a certificate in DER, if it has one.
#[cfg(any(feature = "cli", test))]
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    let mut subject = Elements(subject(certificate)?);
    while let Some((_, set)) = subject.next() {
        let mut attribute = Elements(Elements(set).take(tag::SEQUENCE)?);
        if attribute.take(tag::OBJECT_IDENTIFIER)? == COMMON_NAME {
            return String::from_utf8(attribute.next()?.1.to_vec()).ok();
        }
    }
    None
}

/// Reads the DNS names from the extensions.
fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut extensions = Elements(Elements(extensions).take(tag::SEQUENCE)?);
    while let Some((_, extension)) = extensions.next() {
        let mut extension = Elements(extension);
        if extension.take(tag::OBJECT_IDENTIFIER)? != SUBJECT_ALT_NAME {
            continue;
        }
        // The optional flag `critical` precedes the value.
        let value = extension.take(tag::OCTET_STRING).or_else(|| {
            extension.next()?;
            extension.take(tag::OCTET_STRING)
        })?;
        let mut names = Elements(Elements(value).take(tag::SEQUENCE)?);
        let all = std::iter::from_fn(|| names.next()).filter(|(tag, _)| *tag == tag::DNS_NAME);
        return Some(all.map(|(_, name)| String::from_utf8_lossy(name).to_ascii_lowercase()).collect());
    }
    Some(Vec::new())
}

/// Reads a time: `YYMMDDHHMMSSZ`, or with four digits for the year.
fn time(elements: &mut Elements<'_>) -> Option<i64> {
    let (tag, text) = elements.next()?;
    let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii())?.strip_suffix('Z')?;
    let (year, rest) = text.split_at_checked(match tag {
        tag::UTC_TIME => 2,
        tag::GENERALIZED_TIME => 4,
        _ => return None,
    })?;
    let year: i64 = year.parse().ok()?;
    let century = match (tag, year) {
        (tag::GENERALIZED_TIME, _) => 0,
        // RFC 5280 section 4.1.2.5.1.
        (_, 50..) => 1900,
        _ => 2000,
    };
    let mut parts = [0; 5];
    for (index, part) in parts.iter_mut().enumerate() {
        *part = rest.get(2 * index..2 * index + 2)?.parse::<i64>().ok()?;
    }
    let [month, day, hour, minute, second] = parts;
    Some(days_from_date(century + year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Returns the days from 1970-01-01 to a date of the Gregorian calendar.
fn days_from_date(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the leap day is the last.
    let shifted = month <= 2;
    let year = year - i64::from(shifted);
    let month = if shifted { month + 9 } else { month - 3 };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

/// Returns the date, as year, month and day, of a number of days since 1970-01-01.
pub(super) fn date_from_days(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days.div_euclid(366);
    while days_from_date(year + 1, 1, 1) <= days {
        year += 1;
    }
    let month = (1..=12).rev().find(|&month| days_from_date(year, month, 1) <= days).unwrap_or(1);
    (year, month, days - days_from_date(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_days_since_1970_are_converted() {
        for (date, days) in [
            ((1970, 1, 1), 0),
            ((1969, 12, 31), -1),
            ((2000, 2, 29), 11_016),
            ((2000, 3, 1), 11_017),
            ((2026, 11, 28), 20_785),
            ((2100, 3, 1), 47_541),
        ] {
            let (year, month, day) = date;
            assert_eq!(days_from_date(year, month, day), days, "{date:?}");
            assert_eq!(date_from_days(days), date, "{days}");
        }
    }

    #[test]
    fn times_of_both_formats_are_read() {
        let read = |tag: u8, text: &str| {
            let element = [&[tag, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
            time(&mut Elements(&element))
        };
        assert_eq!(read(tag::UTC_TIME, "700101000001Z"), Some(1));
        assert_eq!(read(tag::UTC_TIME, "491231235959Z"), read(tag::GENERALIZED_TIME, "20491231235959Z"));
        assert_eq!(read(tag::UTC_TIME, "500101000000Z"), read(tag::GENERALIZED_TIME, "19500101000000Z"));
        for text in ["7001010000Z", "700101000001", "7\u{e9}0101000001Z", "", "70010100000xZ"] {
            assert_eq!(read(tag::UTC_TIME, text), None, "{text}");
        }
        assert_eq!(read(tag::INTEGER, "700101000001Z"), None);
    }

    #[test]
    fn truncated_certificates_are_rejected_without_a_panic() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["A.example".to_string(), "*.b.example".into()]).unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let fields = read(&der).unwrap();
        assert_eq!(fields.dns_names, ["a.example", "*.b.example"]);
        // The defaults of rcgen.
        assert_eq!((fields.not_before, fields.not_after), (157_766_400, 67_090_118_400));
        for len in 0..der.len() {
            assert_eq!((read(&der[..len]), common_name(&der[..len])), (None, None), "{len}");
            let mut changed = der.clone();
            changed[len] ^= 0x81;
            let _ = (read(&changed), common_name(&changed));
        }
    }
}
