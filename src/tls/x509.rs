//! Reads the parts of an X.509 certificate (RFC 5280) that rustls does not expose: its validity, what it may be used for, its
//! public key, and the names of its subject, which can be formatted as text (RFC 4514). Any other content is skipped.
//! Malformed input results in `None`.

use std::fmt::Write as _;

/// Tags of ASN.1 types in DER.
mod tag {
    pub(super) const BOOLEAN: u8 = 0x01;
    pub(super) const INTEGER: u8 = 0x02;
    pub(super) const BIT_STRING: u8 = 0x03;
    pub(super) const OCTET_STRING: u8 = 0x04;
    pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
    pub(super) const UTF8_STRING: u8 = 0x0c;
    pub(super) const NUMERIC_STRING: u8 = 0x12;
    pub(super) const PRINTABLE_STRING: u8 = 0x13;
    pub(super) const TELETEX_STRING: u8 = 0x14;
    pub(super) const IA5_STRING: u8 = 0x16;
    pub(super) const UTC_TIME: u8 = 0x17;
    pub(super) const GENERALIZED_TIME: u8 = 0x18;
    pub(super) const BMP_STRING: u8 = 0x1e;
    pub(super) const SEQUENCE: u8 = 0x30;
    pub(super) const SET: u8 = 0x31;
    pub(super) const DNS_NAME: u8 = 0x82;
    pub(super) const VERSION: u8 = 0xa0;
    pub(super) const EXTENSIONS: u8 = 0xa3;
}

/// The content of the object identifier 2.5.29.17, subjectAltName.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// The content of the object identifier 2.5.29.15, keyUsage.
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];

/// The bit keyCertSign in the first byte of a key usage.
const KEY_CERT_SIGN: u8 = 0x04;

/// The content of the object identifier 2.5.29.19, basicConstraints.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// The content of the object identifier 2.5.29.37, extKeyUsage.
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];

/// The content of the object identifier 2.5.29.37.0, anyExtendedKeyUsage.
const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];

/// The content of the object identifier 1.3.6.1.5.5.7.3.1, serverAuth.
pub(super) const FOR_SERVERS: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];

/// The content of the object identifier 1.3.6.1.5.5.7.3.2, clientAuth.
pub(super) const FOR_CLIENTS: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// The content of the object identifier 1.2.840.113549.1.1.1, rsaEncryption.
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

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
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the next element: its tag and content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
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
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut rest = *self;
        let (_, content) = rest.next().filter(|(found, _)| *found == tag)?;
        *self = rest;
        Some(content)
    }
}

/// The fields of a certificate up to its issuer, and the others.
struct Start<'a> {
    has_version: bool,
    issuer: &'a [u8],
    rest: Elements<'a>,
}

/// Reads the fields of a certificate in DER up to its issuer.
fn start(certificate: &[u8]) -> Option<Start<'_>> {
    let mut certificate = Elements(Elements(certificate).take(tag::SEQUENCE)?);
    let mut fields = Elements(certificate.take(tag::SEQUENCE)?);
    // Version 1 certificates omit the version.
    let has_version = fields.take(tag::VERSION).is_some();
    fields.take(tag::INTEGER)?;
    let (_algorithm, issuer) = (fields.take(tag::SEQUENCE)?, fields.take(tag::SEQUENCE)?);
    Some(Start { has_version, issuer, rest: fields })
}

/// Takes the fields of a certificate in DER up to its issuer, and returns the others.
fn after_issuer(certificate: &[u8]) -> Option<Elements<'_>> {
    start(certificate).map(|start| start.rest)
}

/// Returns whether a certificate in DER is of version 1, which has no extensions.
pub(super) fn is_version_1(certificate: &[u8]) -> bool {
    start(certificate).is_some_and(|start| !start.has_version)
}

/// What a certificate may be used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    /// Its subject is its issuer, as that of a root authority or of a self-signed certificate.
    pub(super) is_self_issued: bool,
    /// Its key may sign certificates.
    pub(super) is_authority: bool,
    /// The purposes that it is limited to, as contents of object identifiers; `None` if it is not limited.
    pub(super) purposes: Option<Vec<Vec<u8>>>,
}

impl Usage {
    /// Returns whether the certificate may be used for this purpose.
    pub(super) fn allows(&self, purpose: &[u8]) -> bool {
        let is_allowed = |allowed: &Vec<u8>| allowed == purpose || allowed == ANY_PURPOSE;
        self.purposes.as_ref().is_none_or(|purposes| purposes.iter().any(is_allowed))
    }
}

/// Reads what a certificate in DER may be used for. As for OpenSSL, an authority is a certificate with the basic constraint
/// CA, and without that extension a self-signed one of version 1, or one whose key usage includes signing certificates.
pub(super) fn usage(certificate: &[u8]) -> Option<Usage> {
    let Start { has_version, issuer, rest } = start(certificate)?;
    let (mut fields, mut extensions) = (rest, None);
    let _validity = fields.take(tag::SEQUENCE)?;
    let is_self_issued = fields.take(tag::SEQUENCE)? == issuer;
    while let Some((tag, content)) = fields.next() {
        if tag == tag::EXTENSIONS {
            extensions = Some(content);
        }
    }
    let find = |identifier| extensions.map_or(Some(None), |extensions| extension(extensions, identifier));
    let constraints = find(BASIC_CONSTRAINTS)?.map(is_constrained_to_authorities);
    let signs = find(KEY_USAGE)?.map(|value| {
        Elements(value).take(tag::BIT_STRING).and_then(|bits| bits.get(1)).is_some_and(|bits| bits & KEY_CERT_SIGN != 0)
    });
    let is_authority = match (constraints, signs) {
        (Some(is_authority), signs) => is_authority && signs != Some(false),
        (None, Some(signs)) => signs,
        (None, None) => is_self_issued && !has_version,
    };
    let purposes = find(EXTENDED_KEY_USAGE)?.map(|value| {
        let mut purposes = Elements(Elements(value).take(tag::SEQUENCE).unwrap_or_default());
        std::iter::from_fn(|| purposes.take(tag::OBJECT_IDENTIFIER)).map(<[u8]>::to_vec).collect()
    });
    Some(Usage { is_self_issued, is_authority, purposes })
}

/// Reads the value of the extension basicConstraints.
fn is_constrained_to_authorities(value: &[u8]) -> bool {
    let constraints = Elements(value).take(tag::SEQUENCE).unwrap_or_default();
    Elements(constraints).take(tag::BOOLEAN).is_some_and(|flag| flag != [0])
}

/// The public key of a certificate.
pub(super) struct PublicKey<'a> {
    /// The content of the algorithm identifier in DER: the algorithm and its parameters.
    pub(super) algorithm: &'a [u8],
    /// The key, in a format that depends on the algorithm.
    pub(super) key: &'a [u8],
}

/// Reads the public key of a certificate in DER.
pub(super) fn public_key(certificate: &[u8]) -> Option<PublicKey<'_>> {
    let mut fields = after_issuer(certificate)?;
    let (_validity, _subject) = (fields.take(tag::SEQUENCE)?, fields.take(tag::SEQUENCE)?);
    let mut key = Elements(fields.take(tag::SEQUENCE)?);
    let algorithm = key.take(tag::SEQUENCE)?;
    // The first byte is the number of unused bits, which is 0 for all keys.
    Some(PublicKey { algorithm, key: key.take(tag::BIT_STRING)?.strip_prefix(&[0])? })
}

impl PublicKey<'_> {
    /// Returns the number of bits of an RSA key; `None` if it is another key.
    pub(super) fn rsa_bits(&self) -> Option<usize> {
        if Elements(self.algorithm).take(tag::OBJECT_IDENTIFIER)? != RSA {
            return None;
        }
        let modulus = Elements(Elements(self.key).take(tag::SEQUENCE)?).take(tag::INTEGER)?;
        let first = modulus.iter().position(|&byte| byte != 0)?;
        let unused = modulus[first].leading_zeros() as usize;
        Some((modulus.len() - first) * 8 - unused)
    }
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

/// Finds the value of an extension; `Some(None)` if there is none.
#[expect(clippy::option_option, reason = "a damaged certificate is not one without the extension")]
fn extension<'a>(extensions: &'a [u8], identifier: &[u8]) -> Option<Option<&'a [u8]>> {
    let mut extensions = Elements(Elements(extensions).take(tag::SEQUENCE)?);
    while let Some((_, extension)) = extensions.next() {
        let mut extension = Elements(extension);
        if extension.take(tag::OBJECT_IDENTIFIER)? != identifier {
            continue;
        }
        // The optional flag `critical` precedes the value.
        extension.take(tag::BOOLEAN);
        return extension.take(tag::OCTET_STRING).map(Some);
    }
    Some(None)
}

/// Reads the DNS names from the extensions.
fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let Some(value) = extension(extensions, SUBJECT_ALT_NAME)? else { return Some(Vec::new()) };
    let mut names = Elements(Elements(value).take(tag::SEQUENCE)?);
    let all = std::iter::from_fn(|| names.next()).filter(|(tag, _)| *tag == tag::DNS_NAME);
    Some(all.map(|(_, name)| String::from_utf8_lossy(name).to_ascii_lowercase()).collect())
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

/// Attribute types with a short name (RFC 4514 section 3), by the content of their object identifier. Not in that table,
/// but common in certificates of clients: the address in PKCS #9, which openssl prints with this name too.
const SHORT_NAMES: [(&[u8], &str); 10] = [
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 9], "STREET"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], "emailAddress"),
];

/// Formats a distinguished name in DER, without its outer tag, as in `CN=Alice,O=Example` (RFC 4514): the content of a
/// sequence of relative names. Returns `None` if it is damaged. The last relative name comes first (section 2.1).
pub(super) fn format_name(name: &[u8]) -> Option<String> {
    let mut relative_names = Vec::new();
    let mut rest = Elements(name);
    while !rest.is_empty() {
        relative_names.push(relative_name(rest.take(tag::SET)?)?);
    }
    relative_names.reverse();
    Some(relative_names.join(","))
}

/// Formats one or more attributes.
fn relative_name(attributes: &[u8]) -> Option<String> {
    let (mut text, mut rest) = (String::new(), Elements(attributes));
    while !rest.is_empty() {
        if !text.is_empty() {
            text.push('+');
        }
        let mut attribute = Elements(rest.take(tag::SEQUENCE)?);
        let identifier = attribute.take(tag::OBJECT_IDENTIFIER)?;
        let encoded = attribute.0;
        let (tag, value) = attribute.next()?;
        let short = SHORT_NAMES.iter().find(|(known, _)| *known == identifier);
        if let Some((name, value)) = short.and_then(|(_, name)| Some((name, string(tag, value)?))) {
            let _ = write!(text, "{name}=");
            escape(&mut text, &value);
        } else {
            // RFC 4514 section 2.4.
            write_identifier(&mut text, identifier)?;
            text.push_str("=#");
            for byte in encoded {
                let _ = write!(text, "{byte:02x}");
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

/// Decodes a string of one of the types that certificates use.
fn string(tag: u8, value: &[u8]) -> Option<String> {
    match tag {
        tag::UTF8_STRING => String::from_utf8(value.to_vec()).ok(),
        tag::NUMERIC_STRING | tag::PRINTABLE_STRING | tag::IA5_STRING => {
            value.is_ascii().then(|| value.iter().copied().map(char::from).collect())
        }
        // By the standard T.61, in practice Latin-1.
        tag::TELETEX_STRING => Some(value.iter().copied().map(char::from).collect()),
        tag::BMP_STRING => {
            let (units, rest) = value.as_chunks::<2>();
            let units: Vec<u16> = units.iter().copied().map(u16::from_be_bytes).collect();
            String::from_utf16(&units).ok().filter(|_| rest.is_empty())
        }
        _ => None,
    }
}

/// Appends a value so that it cannot be confused with the syntax around it (RFC 4514 section 2.4). Control characters are
/// escaped as well.
fn escape(text: &mut String, value: &str) {
    let last = value.chars().count().saturating_sub(1);
    for (index, char) in value.chars().enumerate() {
        match char {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => text.extend(['\\', char]),
            ' ' if index == 0 || index == last => text.push_str("\\ "),
            '#' if index == 0 => text.push_str("\\#"),
            _ if char.is_control() => {
                let mut bytes = [0; 4];
                for byte in char.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(text, "\\{byte:02X}");
                }
            }
            _ => text.push(char),
        }
    }
}

/// Appends an object identifier in dotted notation.
fn write_identifier(text: &mut String, identifier: &[u8]) -> Option<()> {
    let mut component: u64 = 0;
    let mut is_first = true;
    for &byte in identifier {
        component = component.checked_mul(128)? + u64::from(byte & 0x7f);
        if byte & 0x80 != 0 {
            continue;
        }
        if is_first {
            let root = (component / 40).min(2);
            let _ = write!(text, "{root}.{}", component - 40 * root);
        } else {
            let _ = write!(text, ".{component}");
        }
        (component, is_first) = (0, false);
    }
    let is_complete = identifier.last().is_some_and(|byte| byte & 0x80 == 0);
    is_complete.then_some(())
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

    #[test]
    fn the_usage_and_the_key_of_a_certificate_are_read() {
        let issue = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
            let mut params = rcgen::CertificateParams::new(["a.example".to_string()]).unwrap();
            change(&mut params);
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
        };
        let leaf = issue(&|params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth]);
        let authority = issue(&|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
        let not_signing = issue(&|params| {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        });
        let of = |der: &[u8]| usage(der).unwrap();
        assert!(of(&leaf).is_self_issued && !of(&leaf).is_authority);
        assert!(of(&leaf).allows(FOR_CLIENTS) && !of(&leaf).allows(FOR_SERVERS));
        assert!(of(&authority).is_self_issued && of(&authority).is_authority && of(&authority).allows(FOR_SERVERS));
        assert!(!of(&not_signing).is_authority);
        assert!(!is_version_1(&leaf));
        assert_eq!((public_key(&leaf).unwrap().key.len(), public_key(&leaf).unwrap().rsa_bits()), (65, None));
        for len in 0..leaf.len() {
            assert!(usage(&leaf[..len]).is_none() && public_key(&leaf[..len]).is_none(), "{len}");
            let mut changed = leaf.clone();
            changed[len] ^= 0x81;
            let _ = (usage(&changed), public_key(&changed).map(|key| key.rsa_bits()));
        }
        let bits = |path: &str| {
            let der: rustls::pki_types::CertificateDer<'_> =
                rustls::pki_types::pem::PemObject::from_pem_file(path).unwrap();
            public_key(&der).unwrap().rsa_bits()
        };
        assert_eq!(bits("tests/tls/rsa.pem"), Some(2048));
        assert_eq!(bits("tests/tls/rsa1024.pem"), Some(1024));
    }

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
    }

    fn attribute(identifier: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        element(tag::SEQUENCE, &[element(tag::OBJECT_IDENTIFIER, identifier), element(tag, value)].concat())
    }

    fn common_name_attribute(value: &str) -> Vec<u8> {
        attribute(SHORT_NAMES[0].0, tag::UTF8_STRING, value.as_bytes())
    }

    #[test]
    fn names_are_formatted_as_in_rfc_4514() {
        let set = |attributes: &[Vec<u8>]| element(tag::SET, &attributes.concat());
        let organization = |value: &[u8]| attribute(SHORT_NAMES[3].0, tag::PRINTABLE_STRING, value);
        let serial = attribute(&[0x55, 4, 5], tag::PRINTABLE_STRING, b"7");
        let wide = attribute(SHORT_NAMES[0].0, tag::BMP_STRING, &[0, b'A', 0, 0xe4]);
        let odd = attribute(SHORT_NAMES[0].0, tag::BMP_STRING, &[0, b'A', 0]);
        let latin = attribute(SHORT_NAMES[9].0, tag::TELETEX_STRING, b"\xe4@b");
        for (relative_names, expected) in [
            (vec![], ""),
            (vec![set(&[organization(b"Example")]), set(&[common_name_attribute("Alice")])], "CN=Alice,O=Example"),
            (vec![set(&[common_name_attribute("A"), organization(b"B")])], "CN=A+O=B"),
            (vec![set(&[common_name_attribute(" a, CN=b\\\"+;<> ")])], "CN=\\ a\\, CN=b\\\\\\\"\\+\\;\\<\\>\\ "),
            (vec![set(&[common_name_attribute("#1\n\u{85}")])], "CN=\\#1\\0A\\C2\\85"),
            (vec![set(&[serial])], "2.5.4.5=#130137"),
            (vec![set(&[wide]), set(&[latin])], "emailAddress=\u{e4}@b,CN=A\u{e4}"),
            (vec![set(&[odd])], "2.5.4.3=#1e03004100"),
        ] {
            assert_eq!(format_name(&relative_names.concat()).as_deref(), Some(expected));
        }
    }

    #[test]
    fn damaged_names_are_rejected() {
        let empty = element(tag::SET, &[]);
        let no_identifier = element(tag::SET, &attribute(&[], tag::UTF8_STRING, b"a"));
        let unfinished = element(tag::SET, &attribute(&[0x55, 0x84], tag::UTF8_STRING, b"a"));
        let endless = element(tag::SET, &attribute(&[0xff; 20], tag::UTF8_STRING, b"a"));
        for name in [empty, no_identifier, unfinished, endless] {
            assert_eq!(format_name(&name), None, "{name:?}");
        }
        let name = element(tag::SET, &common_name_attribute("Alice"));
        for len in 1..name.len() {
            assert_eq!(format_name(&name[..len]), None, "{len}");
        }
    }
}
