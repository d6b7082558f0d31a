//! The client of a request that comes through trusted proxies: its address, and whether it uses TLS.
//!
//! A proxy appends the address of its client to a header, which its client may have sent too. The header is therefore
//! read from the right, and only past addresses that are trusted: the first one that is not is the client. A header
//! from a peer that is not trusted is ignored.

use std::net::{IpAddr, SocketAddr};

use crate::http1::Head;
use crate::r#loop::{Addrs, Networks, Peer};

/// Maximum number of lines of a header that are examined, from the last one.
const LINES_MAX: usize = 16;

/// The header with which trusted proxies name the client of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[non_exhaustive]
pub enum ClientIpHeader {
    /// Forwarded (RFC 7239); its `proto` says whether the client uses TLS.
    Forwarded,
    /// X-Forwarded-For, with X-Forwarded-Proto.
    #[default]
    XForwardedFor,
    /// X-Real-IP, with X-Forwarded-Proto.
    XRealIp,
    /// No header: only the PROXY protocol.
    None,
}

/// The proxies of a server, and the header that they send.
#[derive(Debug)]
pub(super) struct RealClient {
    pub(super) trusted: Networks,
    pub(super) header: ClientIpHeader,
}

/// The headers of a request.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    pub(super) headers: &'a Head,
    /// The bytes of the head.
    pub(super) bytes: &'a [u8],
}

/// The client according to a header.
struct Named {
    /// `None` if the header names no address beyond the peer.
    address: Option<SocketAddr>,
    /// `Some(true)` if the client uses TLS; `None` if the header does not say.
    is_secure: Option<bool>,
}

impl RealClient {
    /// Returns the address of the client; `source` is the address that the connection comes from.
    pub(super) fn address(&self, source: Option<SocketAddr>, addrs: &Addrs<'_>, head: Lines<'_>) -> Option<SocketAddr> {
        if !self.trusts(source, addrs) {
            return source;
        }
        let named = match self.header {
            ClientIpHeader::Forwarded => self.forwarded(head).address,
            ClientIpHeader::XForwardedFor => self.x_forwarded_for(head),
            ClientIpHeader::XRealIp => last_line(head, b"x-real-ip").and_then(parse_node),
            ClientIpHeader::None => None,
        };
        named.or(source)
    }

    /// Returns whether the client uses TLS; `None` if no trusted proxy says so.
    pub(super) fn is_secure(&self, addrs: &Addrs<'_>, head: Lines<'_>) -> Option<bool> {
        if self.header == ClientIpHeader::None || !self.trusts(addrs.source_addr(), addrs) {
            return None;
        }
        if self.header == ClientIpHeader::Forwarded {
            return self.forwarded(head).is_secure;
        }
        let last = last_line(head, b"x-forwarded-proto")?.rsplit(|&byte| byte == b',').next()?;
        parse_scheme(last.trim_ascii())
    }

    /// Returns whether the connection comes from a trusted proxy.
    pub(super) fn trusts(&self, source: Option<SocketAddr>, addrs: &Addrs<'_>) -> bool {
        match source {
            Some(source) => self.trusted.contains(source.ip()),
            None => self.trusted.contains_unix() && addrs.peer().is_some_and(Peer::is_unix),
        }
    }

    fn x_forwarded_for(&self, head: Lines<'_>) -> Option<SocketAddr> {
        let mut client = None;
        for line in last_lines(head, b"x-forwarded-for") {
            for entry in line.rsplit(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty()) {
                // A proxy that is not reached by IP, or an invalid entry, ends the known part of the path.
                let Some(address) = parse_node(entry) else { return client };
                client = Some(address);
                if !self.trusted.contains(address.ip()) {
                    return client;
                }
            }
        }
        client
    }

    fn forwarded(&self, head: Lines<'_>) -> Named {
        let mut named = Named { address: None, is_secure: None };
        for line in last_lines(head, b"forwarded") {
            for element in split_outside_quotes(line, b',').filter(|element| !element.is_empty()) {
                let Some(element) = parse_element(element) else { return named };
                named.is_secure = element.is_secure;
                let Some(address) = element.address else { return named };
                named.address = Some(address);
                if !self.trusted.contains(address.ip()) {
                    return named;
                }
            }
        }
        named
    }
}

/// Returns the last lines of a header, the last one first.
fn last_lines<'a>(head: Lines<'a>, name: &[u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    let (mut lines, mut count) = ([&[][..]; LINES_MAX], 0);
    for (_, value) in head.headers.headers(head.bytes).filter(|(key, _)| key.eq_ignore_ascii_case(name)) {
        lines[count % LINES_MAX] = value;
        count += 1;
    }
    (count.saturating_sub(LINES_MAX)..count).rev().map(move |index| lines[index % LINES_MAX])
}

fn last_line<'a>(head: Lines<'a>, name: &[u8]) -> Option<&'a [u8]> {
    head.headers
        .headers(head.bytes)
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .last()
        .map(|(_, value)| value.trim_ascii())
}

/// Splits a value at a separator outside of quoted strings, from the right: a client can send a quote that is never
/// closed, but not after what a proxy appends.
fn split_outside_quotes(value: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let value = rest?;
        let mut is_quoted = false;
        let at = value.iter().rposition(|&byte| {
            is_quoted ^= byte == b'"';
            byte == separator && !is_quoted
        });
        rest = at.map(|at| &value[..at]);
        Some(value[at.map_or(0, |at| at + 1)..].trim_ascii())
    })
}

/// Parses an element of Forwarded, such as `for="[2001:db8::1]:4711";proto=https`; `None` if it is invalid.
fn parse_element(element: &[u8]) -> Option<Named> {
    let mut named = Named { address: None, is_secure: None };
    let mut has_node = false;
    for pair in split_outside_quotes(element, b';').filter(|pair| !pair.is_empty()) {
        let at = memchr::memchr(b'=', pair)?;
        let (name, value) = (&pair[..at], unquote(&pair[at + 1..])?);
        if name.eq_ignore_ascii_case(b"for") {
            // With a second one, it would be ambiguous.
            if std::mem::replace(&mut has_node, true) {
                return None;
            }
            named.address = parse_node(value);
        } else if name.eq_ignore_ascii_case(b"proto") {
            named.is_secure = parse_scheme(value);
        }
    }
    Some(named)
}

/// Removes the quotes of a quoted string; `None` if they do not match. No value that matters contains a backslash.
fn unquote(value: &[u8]) -> Option<&[u8]> {
    let inner = match value {
        [b'"', inner @ .., b'"'] => inner,
        _ => value,
    };
    (!inner.contains(&b'"') && !inner.contains(&b'\\')).then_some(inner)
}

fn parse_scheme(value: &[u8]) -> Option<bool> {
    let is = |scheme: &str| value.eq_ignore_ascii_case(scheme.as_bytes());
    if is("https") || is("wss") { Some(true) } else { (is("http") || is("ws")).then_some(false) }
}

/// Parses an address with an optional port, which is otherwise 0; `None` for anything else, such as `unknown`. An IPv6
/// address with a port is in brackets.
fn parse_node(value: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(value).ok()?;
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (IpAddr::V6(host.parse().ok()?), if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => (IpAddr::V4(host.parse().ok()?), Some(port)),
            _ => (text.parse().ok()?, None),
        },
    };
    let port = match port {
        // RFC 7239 section 6 allows a proxy to obfuscate the port.
        None => 0,
        Some(port) if port.len() > 1 && port.starts_with('_') => 0,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok()?,
        Some(_) => return None,
    };
    Some(SocketAddr::new(host.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_an_address_with_an_optional_port() {
        for (text, expected) in [
            ("192.0.2.1", Some("192.0.2.1:0")),
            ("192.0.2.1:4711", Some("192.0.2.1:4711")),
            ("2001:db8::1", Some("[2001:db8::1]:0")),
            ("[2001:db8::1]", Some("[2001:db8::1]:0")),
            ("[2001:db8::1]:80", Some("[2001:db8::1]:80")),
            ("[2001:db8::1]:_port", Some("[2001:db8::1]:0")),
            ("::ffff:192.0.2.1", Some("192.0.2.1:0")),
            ("", None),
            ("unknown", None),
            ("_hidden", None),
            ("192.0.2.1:", None),
            ("192.0.2.1:65536", None),
            ("192.0.2.1:+80", None),
            ("192.0.2.1:_", None),
            ("192.0.2.256", None),
            ("[192.0.2.1]", None),
            ("[2001:db8::1", None),
            ("[2001:db8::1]80", None),
            ("fe80::1%eth0", None),
        ] {
            assert_eq!(parse_node(text.as_bytes()), expected.map(|text| text.parse().unwrap()), "{text}");
        }
        assert_eq!(parse_node(b"192.0.2.1\xff"), None);
    }

    #[test]
    fn a_separator_in_a_quoted_string_does_not_split() {
        let split = |value: &'static str| -> Vec<&str> {
            split_outside_quotes(value.as_bytes(), b',').map(|part| std::str::from_utf8(part).unwrap()).collect()
        };
        assert_eq!(split("a, b=\"x,y\" ,c"), ["c", "b=\"x,y\"", "a"]);
        assert_eq!(split("for=\"forged, for=1.2.3.4"), ["for=1.2.3.4", "for=\"forged"]);
        assert_eq!(split(""), [""]);
    }

    #[test]
    fn an_invalid_element_is_rejected() {
        for element in ["for", "for=a;for=b", "for=\"1.2.3.4", "for=\"a\\b\"", "secret=\"\"\""] {
            assert!(parse_element(element.as_bytes()).is_none(), "{element}");
        }
        let named = parse_element(b"By=203.0.113.43;Proto=HTTPS;For=\"[2001:db8::1]:80\"").unwrap();
        assert_eq!((named.address, named.is_secure), (Some("[2001:db8::1]:80".parse().unwrap()), Some(true)));
    }
}
