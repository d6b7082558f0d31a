//! Parser of the header of the PROXY protocol, versions 1 and 2, according to its specification
//! (`doc/proxy-protocol.txt` of `HAProxy`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Maximum length of a header, which is that of a version 2 with many extensions (TLVs).
pub(super) const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Maximum length of a header of version 1, with its CRLF.
const LINE_BYTES_MAX: usize = 107;

const PREFIX: &[u8] = b"PROXY ";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Length of a header of version 2 without addresses.
const FIXED_BYTES: usize = 16;

/// Addresses that a proxy reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Proxied {
    /// The address of the proxy's client. `None` if the proxy has no client, such as for a health check, or one without
    /// an IP address.
    pub source: Option<SocketAddr>,
    /// The address to which that client has connected.
    pub destination: Option<SocketAddr>,
}

/// The header at the beginning of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// More bytes are needed.
    Incomplete,
    /// The connection begins with something else.
    Absent,
    /// A header of this length.
    Header(usize, Proxied),
    /// The header is invalid, for this reason.
    Invalid(&'static str),
}

/// Returns whether input that is not a request is the beginning of a header. Leading line breaks of the header may be
/// missing, since HTTP ignores them before a request.
pub(crate) fn is_proxy_header(bytes: &[u8]) -> bool {
    let start = bytes.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(bytes.len());
    let (rest, signature) = (&bytes[start..], &SIGNATURE[4..]);
    let length = rest.len().min(signature.len());
    bytes.starts_with(PREFIX) || (length > 0 && rest[..length] == signature[..length])
}

/// Parses the first bytes of a connection.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    if bytes.starts_with(SIGNATURE) {
        parse_binary(bytes)
    } else if bytes.starts_with(PREFIX) {
        parse_line(bytes)
    } else if PREFIX.starts_with(bytes) || SIGNATURE.starts_with(bytes) {
        Parsed::Incomplete
    } else {
        Parsed::Absent
    }
}

/// Parses version 1, such as `PROXY TCP4 192.0.2.1 198.51.100.1 4711 80`.
fn parse_line(bytes: &[u8]) -> Parsed {
    let line = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        return if line.len() < LINE_BYTES_MAX { Parsed::Incomplete } else { Parsed::Invalid("its line is too long") };
    };
    let Some(text) = line[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok()) else {
        return Parsed::Invalid("its line does not end with CRLF");
    };
    let mut parts = text[PREFIX.len()..].split(' ');
    let proxied = match parts.next() {
        // The rest of the line must be ignored.
        Some("UNKNOWN") => Some(Proxied::default()),
        Some("TCP4") => parse_addresses(parts, |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)),
        Some("TCP6") => parse_addresses(parts, |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6)),
        _ => None,
    };
    proxied.map_or(Parsed::Invalid("its addresses are invalid"), |proxied| Parsed::Header(end + 1, proxied))
}

fn parse_addresses<'a>(
    mut parts: impl Iterator<Item = &'a str>,
    parse_ip: impl Fn(&str) -> Option<IpAddr>,
) -> Option<Proxied> {
    let (source, destination) = (parse_ip(parts.next()?)?, parse_ip(parts.next()?)?);
    let mut port = || {
        let text = parts.next()?;
        if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
    };
    let (source_port, destination_port) = (port()?, port()?);
    parts.next().is_none().then(|| Proxied::new(source, source_port, destination, destination_port))
}

/// Parses version 2, whose 13th byte contains the version and the command, and the 14th the address family and the
/// transport. Extensions (TLVs) after the addresses are skipped.
fn parse_binary(bytes: &[u8]) -> Parsed {
    let Some((fixed, _)) = bytes.split_first_chunk::<FIXED_BYTES>() else { return Parsed::Incomplete };
    let (command, family) = (fixed[12], fixed[13]);
    let end = FIXED_BYTES + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if command >> 4 != 2 {
        return Parsed::Invalid("its version is not 1 or 2");
    }
    if end > HEADER_BYTES_MAX {
        return Parsed::Invalid("it is longer than 16 KiB");
    }
    let Some(addresses) = bytes.get(FIXED_BYTES..end) else { return Parsed::Incomplete };
    match (command & 0xf, family >> 4, family & 0xf) {
        (1, 1, 1) => parse_ips::<4>(addresses, |bytes| Ipv4Addr::from(bytes).into(), end),
        (1, 2, 1) => parse_ips::<16>(addresses, |bytes| Ipv6Addr::from(bytes).into(), end),
        // LOCAL, a connection of the proxy itself such as a health check; Unix sockets; unknown and unusual transports.
        (0, ..) | (1, 0..=3, 0..=2) => Parsed::Header(end, Proxied::default()),
        _ => Parsed::Invalid("its command or address family is unknown"),
    }
}

/// Parses two addresses of `N` bytes and two ports.
fn parse_ips<const N: usize>(bytes: &[u8], ip: impl Fn([u8; N]) -> IpAddr, end: usize) -> Parsed {
    let parse = || {
        let (source, rest) = bytes.split_first_chunk::<N>()?;
        let (destination, rest) = rest.split_first_chunk::<N>()?;
        let ([a, b, c, d], _) = rest.split_first_chunk::<4>()?;
        let (source_port, destination_port) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
        Some(Proxied::new(ip(*source), source_port, ip(*destination), destination_port))
    };
    parse().map_or(Parsed::Invalid("its addresses are incomplete"), |proxied| Parsed::Header(end, proxied))
}

impl Proxied {
    fn new(source: IpAddr, source_port: u16, destination: IpAddr, destination_port: u16) -> Self {
        Proxied {
            source: Some(SocketAddr::new(source.to_canonical(), source_port)),
            destination: Some(SocketAddr::new(destination.to_canonical(), destination_port)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, payload].concat()
    }

    fn proxied(source: &str, destination: &str) -> Proxied {
        Proxied { source: Some(source.parse().unwrap()), destination: Some(destination.parse().unwrap()) }
    }

    const UNKNOWN: Proxied = Proxied { source: None, destination: None };

    #[test]
    fn a_line_has_addresses_or_is_unknown() {
        let v4 = proxied("192.0.2.1:4711", "198.51.100.1:80");
        let v6 = proxied("[2001:db8::1]:1", "[2001:db8::2]:65535");
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 4711 80\r\n", Some(v4)),
            ("PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n", Some(v6)),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 4711 80\r\n", Some(v4)),
            ("PROXY UNKNOWN\r\n", Some(UNKNOWN)),
            ("PROXY UNKNOWN 1 2 3 4 5\r\n", Some(UNKNOWN)),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 4711 80\n", None),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 4711\r\n", None),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 4711 80 1\r\n", None),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 4711 65536\r\n", None),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 +1 80\r\n", None),
            ("PROXY TCP4  192.0.2.1 198.51.100.1 4711 80\r\n", None),
            ("PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n", None),
            ("PROXY TCP6 192.0.2.1 198.51.100.1 1 2\r\n", None),
            ("PROXY tcp4 192.0.2.1 198.51.100.1 1 2\r\n", None),
            ("PROXY \r\n", None),
        ] {
            match (parse(line.as_bytes()), expected) {
                (Parsed::Header(length, found), Some(expected)) => {
                    assert_eq!((length, found), (line.len(), expected), "{line}");
                }
                (Parsed::Invalid(_), None) => {}
                (other, _) => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_binary_header_has_addresses_and_extensions_that_are_skipped() {
        let v4 = [&[192, 0, 2, 1, 198, 51, 100, 1][..], &4711_u16.to_be_bytes(), &80_u16.to_be_bytes()].concat();
        let v6: Vec<u8> = [[0x20, 1, 0xd, 0xb8], [0; 4], [0; 4], [0, 0, 0, 1]].concat();
        let v6 = [&v6[..], &v6, &1_u16.to_be_bytes(), &2_u16.to_be_bytes()].concat();
        let expected_v4 = proxied("192.0.2.1:4711", "198.51.100.1:80");
        for (header, expected) in [
            (binary(0x21, 0x11, &v4), Some(expected_v4)),
            (binary(0x21, 0x11, &[&v4[..], &[4, 0, 1, 9]].concat()), Some(expected_v4)),
            (binary(0x21, 0x21, &v6), Some(proxied("[2001:db8::1]:1", "[2001:db8::1]:2"))),
            (binary(0x20, 0x11, &v4), Some(UNKNOWN)),
            (binary(0x20, 0x00, &[]), Some(UNKNOWN)),
            (binary(0x21, 0x00, &[1; 40]), Some(UNKNOWN)),
            (binary(0x21, 0x31, &[1; 216]), Some(UNKNOWN)),
            (binary(0x21, 0x12, &v4), Some(UNKNOWN)),
            (binary(0x21, 0x11, &v4[..11]), None),
            (binary(0x21, 0x21, &v6[..35]), None),
            (binary(0x11, 0x11, &v4), None),
            (binary(0x22, 0x11, &v4), None),
            (binary(0x21, 0x41, &v4), None),
            (binary(0x21, 0x13, &v4), None),
            (binary(0x21, 0x11, &[0; HEADER_BYTES_MAX]), None),
        ] {
            match (parse(&header), expected) {
                (Parsed::Header(length, found), Some(expected)) => {
                    assert_eq!((length, found), (header.len(), expected));
                }
                (Parsed::Invalid(_), None) => {}
                (other, _) => panic!("{header:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_header_in_pieces_is_incomplete_until_it_is_whole() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 80\r\n".to_vec();
        for header in [line, binary(0x21, 0x11, &[1; 30])] {
            for end in 0..header.len() {
                assert_eq!(parse(&header[..end]), Parsed::Incomplete, "{end} of {header:?}");
            }
            let more = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert!(matches!(parse(&more), Parsed::Header(length, _) if length == header.len()));
        }
        assert_eq!(parse(&[PREFIX, &[b'1'; 100]].concat()), Parsed::Incomplete);
        assert!(matches!(parse(&[PREFIX, &[b'1'; 101]].concat()), Parsed::Invalid(_)));
    }

    #[test]
    fn other_protocols_are_not_mistaken_for_a_header() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PUT / HTTP/1.1", b"\r\nGET /", b"PROXYX", b"\x16\x03\x01", b"\0GET"]
        {
            assert_eq!(parse(bytes), Parsed::Absent, "{bytes:?}");
            assert!(!is_proxy_header(bytes));
        }
        for bytes in [b"PROXY TCP4 ", &binary(0x21, 0x11, &[])[..], b"\r\n\0", b"\0\r\nQUIT\n\x21"] {
            assert!(is_proxy_header(bytes), "{bytes:?}");
        }
    }
}
