//! The subject of an X.509 certificate as text, in the format of RFC 4514: `CN=Alice,O=Example`.

use std::fmt::Write as _;

use super::der::{Elements, tag};

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

/// Formats a name in DER, without its outer tag: the content of a sequence of relative names. Returns `None` if it is
/// damaged. The last relative name comes first (RFC 4514 section 2.1).
pub(super) fn format(name: &[u8]) -> Option<String> {
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

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
    }

    fn attribute(identifier: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        element(tag::SEQUENCE, &[element(tag::OBJECT_IDENTIFIER, identifier), element(tag, value)].concat())
    }

    fn common_name(value: &str) -> Vec<u8> {
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
            (vec![set(&[organization(b"Example")]), set(&[common_name("Alice")])], "CN=Alice,O=Example"),
            (vec![set(&[common_name("A"), organization(b"B")])], "CN=A+O=B"),
            (vec![set(&[common_name(" a, CN=b\\\"+;<> ")])], "CN=\\ a\\, CN=b\\\\\\\"\\+\\;\\<\\>\\ "),
            (vec![set(&[common_name("#1\n\u{85}")])], "CN=\\#1\\0A\\C2\\85"),
            (vec![set(&[serial])], "2.5.4.5=#130137"),
            (vec![set(&[wide]), set(&[latin])], "emailAddress=\u{e4}@b,CN=A\u{e4}"),
            (vec![set(&[odd])], "2.5.4.3=#1e03004100"),
        ] {
            assert_eq!(format(&relative_names.concat()).as_deref(), Some(expected));
        }
    }

    #[test]
    fn damaged_names_are_rejected() {
        let empty = element(tag::SET, &[]);
        let no_identifier = element(tag::SET, &attribute(&[], tag::UTF8_STRING, b"a"));
        let unfinished = element(tag::SET, &attribute(&[0x55, 0x84], tag::UTF8_STRING, b"a"));
        let endless = element(tag::SET, &attribute(&[0xff; 20], tag::UTF8_STRING, b"a"));
        for name in [empty, no_identifier, unfinished, endless] {
            assert_eq!(format(&name), None, "{name:?}");
        }
        let name = element(tag::SET, &common_name("Alice"));
        for len in 1..name.len() {
            assert_eq!(format(&name[..len]), None, "{len}");
        }
    }
}
