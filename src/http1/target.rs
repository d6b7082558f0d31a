//! The request target and its parts (RFC 9112 section 3.2, RFC 3986).
//!
//! The grammar of RFC 3986 is held to the letter, with one exception: what browsers leave as it is, by the URL Standard of
//! the WHATWG (`[`, `]` and `|` everywhere, `\`, `^`, `` ` ``, `{` and `}` in a query), is let through. No reader takes
//! these octets for anything else, and a user who typed `?f=a|b` is not to blame. A malformed percent-encoding is refused
//! though browsers let it pass, since readers differ in what they make of it.

use super::error::Error;

/// The four forms of RFC 9112 section 3.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// `/path?query`, what clients send to origins.
    #[default]
    Origin,
    /// `http://host/path?query`, what clients send to proxies and origins must accept.
    Absolute,
    /// `host:port`, for CONNECT alone.
    Authority,
    /// `*`, for OPTIONS alone.
    Asterisk,
}

const PATH: u8 = 1;
const QUERY: u8 = 2;
const HOST: u8 = 4;

/// Which octets may stand in a path, in a query, in a reg-name (percent-encodings aside).
const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut octet = 0_u8;
    while octet < 128 {
        let byte = octet;
        let unreserved = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        let sub_delim = matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
        if unreserved || sub_delim {
            class[octet as usize] = PATH | QUERY | HOST;
        } else if matches!(byte, b':' | b'@' | b'/' | b'[' | b']' | b'|') {
            class[octet as usize] = PATH | QUERY;
        } else if matches!(byte, b'?' | b'\\' | b'^' | b'`' | b'{' | b'}') {
            class[octet as usize] = QUERY;
        }
        octet += 1;
    }
    class
};

/// Which form a target has, if it is one that may stand with this method.
pub(super) fn check(method: &[u8], target: &[u8]) -> Result<Form, Error> {
    if method == b"CONNECT" {
        let (_, port) = split_port(target);
        return if is_authority(target) && port.is_some_and(|port| port.len() > 1) {
            Ok(Form::Authority)
        } else {
            Err(Error::Authority)
        };
    }
    match target.first() {
        Some(b'/') => check_path_and_query(target).map(|()| Form::Origin),
        Some(b'*') if target.len() == 1 && method == b"OPTIONS" => Ok(Form::Asterisk),
        Some(b'*') if target.len() == 1 => Err(Error::Asterisk),
        _ => check_absolute(target).map(|()| Form::Absolute),
    }
}

fn check_absolute(target: &[u8]) -> Result<(), Error> {
    let scheme_len = target.iter().position(|&byte| byte == b':').ok_or(Error::Target)?;
    let scheme = &target[..scheme_len];
    let is_scheme = scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    let rest = target[scheme_len + 1..].strip_prefix(b"//").ok_or(Error::Target)?;
    let (authority, rest) = rest.split_at(authority_len(rest));
    // RFC 9110 section 4.2.4: user information in an http URI is an error; section 4.2.1: so is an empty host.
    if !is_scheme || !is_authority(authority) {
        return Err(Error::Target);
    }
    check_path_and_query(rest)?;
    if scheme.eq_ignore_ascii_case(b"http") { Ok(()) } else { Err(Error::Scheme) }
}

fn authority_len(rest: &[u8]) -> usize {
    rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len())
}

/// The authority of a target in absolute form.
pub(super) fn authority(target: &[u8]) -> &[u8] {
    let start = target.windows(3).position(|window| window == b"://").map_or(0, |at| at + 3);
    let rest = &target[start..];
    &rest[..authority_len(rest)]
}

/// The path and the query of a target in origin or absolute form. A path that is empty is `/`.
pub(super) fn path_and_query(form: Form, target: &[u8]) -> (&[u8], Option<&[u8]>) {
    let rest = match form {
        Form::Origin => target,
        Form::Absolute => {
            let start = target.windows(3).position(|window| window == b"://").map_or(0, |at| at + 3);
            &target[start + authority_len(&target[start..])..]
        }
        Form::Authority | Form::Asterisk => return (target, None),
    };
    let (path, query) = match memchr::memchr(b'?', rest) {
        Some(mark) => (&rest[..mark], Some(&rest[mark + 1..])),
        None => (rest, None),
    };
    (if path.is_empty() { b"/" } else { path }, query)
}

fn check_path_and_query(bytes: &[u8]) -> Result<(), Error> {
    if path_and_query_len(bytes) == bytes.len() { Ok(()) } else { Err(Error::Target) }
}

/// How much of the front is a path and a query.
#[inline]
pub(super) fn path_and_query_len(bytes: &[u8]) -> usize {
    let mut class = PATH;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if CLASS[byte as usize] & class != 0 {
            at += 1;
        } else if byte == b' ' {
            break;
        } else if byte == b'?' {
            class = QUERY;
            at += 1;
        } else if let Some(len) = percent(&bytes[at..]) {
            at += len;
        } else {
            break;
        }
    }
    at
}

/// The length of the percent-encoding at the front.
fn percent(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => Some(3),
        _ => None,
    }
}

/// Host, and port where a colon stands behind it.
fn split_port(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    let host_len = if authority.first() == Some(&b'[') {
        authority.iter().position(|&byte| byte == b']').map_or(authority.len(), |end| end + 1)
    } else {
        authority.iter().position(|&byte| byte == b':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(host_len);
    if rest.is_empty() { (host, None) } else { (host, Some(rest)) }
}

/// Whether these are `uri-host [ ":" port ]` with a host that is not empty (RFC 9110 sections 4.2.1 and 7.2).
pub(super) fn is_authority(authority: &[u8]) -> bool {
    let name_len = authority.iter().position(|&byte| CLASS[byte as usize] & HOST == 0).unwrap_or(authority.len());
    match &authority[name_len..] {
        [] => name_len > 0,
        [b':', port @ ..] => name_len > 0 && port.iter().all(u8::is_ascii_digit),
        _ => is_unusual_authority(authority),
    }
}

/// One with a percent-encoding or an IP literal.
fn is_unusual_authority(authority: &[u8]) -> bool {
    let (host, port) = split_port(authority);
    let port_is_good = port.is_none_or(|port| port[0] == b':' && port[1..].iter().all(u8::is_ascii_digit));
    port_is_good && is_host(host)
}

fn is_host(host: &[u8]) -> bool {
    if let [b'[', literal @ .., b']'] = host {
        return is_ip_literal(literal);
    }
    let mut at = 0;
    while let Some(&byte) = host.get(at) {
        if CLASS[byte as usize] & HOST != 0 {
            at += 1;
        } else if let Some(len) = percent(&host[at..]) {
            at += len;
        } else {
            return false;
        }
    }
    at > 0
}

/// RFC 3986 section 3.2.2: `IPv6address / IPvFuture`.
fn is_ip_literal(literal: &[u8]) -> bool {
    if let [b'v' | b'V', rest @ ..] = literal {
        let Some(dot) = rest.iter().position(|&byte| byte == b'.') else {
            return false;
        };
        let (version, address) = (&rest[..dot], &rest[dot + 1..]);
        let good = |byte: &u8| CLASS[*byte as usize] & HOST != 0 || *byte == b':';
        return !version.is_empty()
            && version.iter().all(u8::is_ascii_hexdigit)
            && !address.is_empty()
            && address.iter().all(good);
    }
    std::str::from_utf8(literal).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_told_apart_by_method_and_target() {
        assert_eq!(check(b"GET", b"/"), Ok(Form::Origin));
        assert_eq!(check(b"GET", b"/a;b=c/%7Ed?x=1&y=/?:@!$'()*+,"), Ok(Form::Origin));
        assert_eq!(check(b"GET", b"http://a.test/x?y"), Ok(Form::Absolute));
        assert_eq!(check(b"GET", b"HTTP://a.test:80"), Ok(Form::Absolute));
        assert_eq!(check(b"GET", b"http://a.test?x"), Ok(Form::Absolute));
        assert_eq!(check(b"OPTIONS", b"*"), Ok(Form::Asterisk));
        assert_eq!(check(b"CONNECT", b"a.test:443"), Ok(Form::Authority));
        assert_eq!(check(b"CONNECT", b"[::1]:443"), Ok(Form::Authority));
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for target in [
            "",
            "index.html",
            "/a#b",
            "/a b",
            "/\u{7f}",
            "/%zz",
            "/%4",
            "/a\\b",
            "/a\"b",
            "/?a\"b",
            "/^",
            "/`",
            "/{a}",
            "/<",
            "/?<",
            "/?%",
            "/?100%&a",
            "http:/a",
            "://a/",
            "http:///x",
            "http://u@a/",
            "http://a:8x/",
            "http://[::1/",
            "1a://b/",
            "/\u{e9}",
        ] {
            assert_eq!(check(b"GET", target.as_bytes()), Err(Error::Target), "{target:?}");
        }
        assert_eq!(check(b"GET", b"https://a.test/"), Err(Error::Scheme));
        assert_eq!(check(b"GET", b"*"), Err(Error::Asterisk));
        assert_eq!(check(b"OPTIONS", b"**"), Err(Error::Target));
        for target in ["a.test", "a.test:", "/", "a.test:1/", "a:b", ":80"] {
            assert_eq!(check(b"CONNECT", target.as_bytes()), Err(Error::Authority), "{target:?}");
        }
    }

    #[test]
    fn what_browsers_leave_as_it_is_is_let_through() {
        for target in ["/a[1].txt", "/a|b", "/?a[]=1", "/?f=a|b", "/?q={\\^`}"] {
            assert_eq!(check(b"GET", target.as_bytes()), Ok(Form::Origin), "{target}");
        }
    }

    #[test]
    fn hosts_are_names_addresses_or_literals() {
        for host in [
            "a",
            "a.test",
            "a.test:",
            "a.test:8080",
            "1.2.3.4:1",
            "[::1]",
            "[2001:db8::1]:80",
            "[v1.a:b]",
            "a%20b",
            "a_b",
        ] {
            assert!(is_authority(host.as_bytes()), "{host}");
        }
        for host in [
            "", ":80", "a b", "a/x", "a:80x", "a@b", "[::1", "[::1]x", "[]", "[v.a]", "[g::]", "a%2", "a:1:2", "\u{e9}",
        ] {
            assert!(!is_authority(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn paths_and_queries_are_split_at_the_first_question_mark() {
        assert_eq!(path_and_query(Form::Origin, b"/a?b?c"), (&b"/a"[..], Some(&b"b?c"[..])));
        assert_eq!(path_and_query(Form::Absolute, b"http://h/a?"), (&b"/a"[..], Some(&b""[..])));
        assert_eq!(path_and_query(Form::Absolute, b"http://h"), (&b"/"[..], None));
        assert_eq!(path_and_query(Form::Absolute, b"http://h?q"), (&b"/"[..], Some(&b"q"[..])));
        assert_eq!(authority(b"http://h:1?q"), b"h:1");
    }
}
