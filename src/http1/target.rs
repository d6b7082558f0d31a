//! Validates and splits request targets (RFC 9112 section 3.2, RFC 3986).
//!
//! The grammar of RFC 3986 is enforced strictly, with one exception: characters that browsers do not percent-encode,
//! following the WHATWG URL Standard, are accepted (`[`, `]` and `|` everywhere; `\`, `^`, `` ` ``, `{` and `}` in a
//! query). All recipients interpret these the same way, and users do type URLs such as `?f=a|b`. A `%` that does not
//! begin a percent-encoding is accepted in a query, which browsers send as typed (`?q=100%`) and which only the
//! application interprets. In a path it is rejected, since recipients differ in how they interpret it.

use super::error::Error;
use super::scan::{CLASS, HOST, path_and_query_len, percent_encoding_len};

/// The form of a request target (RFC 9112 section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`, the usual form in a request to an origin server.
    #[default]
    Origin,
    /// `http://host/path?query`, sent to proxies; origin servers must accept it too.
    Absolute,
    /// `host:port`, only for CONNECT.
    Authority,
    /// `*`, only for OPTIONS.
    Asterisk,
}

/// Validates a target and returns its form. Some forms are only valid with certain methods.
pub(super) fn check(method: &[u8], target: &[u8]) -> Result<TargetForm, Error> {
    if method == b"CONNECT" {
        let (_, port) = split_port(target);
        return if is_authority(target) && port.is_some_and(|port| port.len() > 1) {
            Ok(TargetForm::Authority)
        } else {
            Err(Error::Authority)
        };
    }
    match target.first() {
        Some(b'/') => check_path_and_query(target).map(|()| TargetForm::Origin),
        Some(b'*') if target.len() == 1 && method == b"OPTIONS" => Ok(TargetForm::Asterisk),
        Some(b'*') if target.len() == 1 => Err(Error::Asterisk),
        _ => check_absolute(target).map(|()| TargetForm::Absolute),
    }
}

fn check_absolute(target: &[u8]) -> Result<(), Error> {
    let scheme_len = target.iter().position(|&byte| byte == b':').ok_or(Error::Target)?;
    let scheme = &target[..scheme_len];
    let is_scheme = scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    let rest = target[scheme_len + 1..].strip_prefix(b"//").ok_or(Error::Target)?;
    let (authority, rest) = rest.split_at(authority_len(rest));
    // User information (RFC 9110 section 4.2.4) and an empty host (section 4.2.1) are errors in an http URI.
    if !is_scheme || !is_authority(authority) {
        return Err(Error::Target);
    }
    check_path_and_query(rest)?;
    if scheme.eq_ignore_ascii_case(b"http") { Ok(()) } else { Err(Error::Scheme) }
}

fn authority_len(rest: &[u8]) -> usize {
    rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len())
}

/// Returns the authority of a target in absolute form.
pub(crate) fn authority(target: &[u8]) -> &[u8] {
    let start = target.windows(3).position(|window| window == b"://").map_or(0, |at| at + 3);
    let rest = &target[start..];
    &rest[..authority_len(rest)]
}

/// Splits a target into path and query. An empty path in absolute form is returned as `/`. A target in authority or
/// asterisk form is returned unchanged as the path.
pub(crate) fn path_and_query(form: TargetForm, target: &[u8]) -> (&[u8], Option<&[u8]>) {
    let rest = match form {
        TargetForm::Origin => target,
        TargetForm::Absolute => {
            let start = target.windows(3).position(|window| window == b"://").map_or(0, |at| at + 3);
            &target[start + authority_len(&target[start..])..]
        }
        TargetForm::Authority | TargetForm::Asterisk => return (target, None),
    };
    let (path, query) = match memchr::memchr(b'?', rest) {
        Some(question_mark) => (&rest[..question_mark], Some(&rest[question_mark + 1..])),
        None => (rest, None),
    };
    (if path.is_empty() { b"/" } else { path }, query)
}

fn check_path_and_query(bytes: &[u8]) -> Result<(), Error> {
    if path_and_query_len(bytes) == bytes.len() { Ok(()) } else { Err(Error::Target) }
}

/// Splits an authority into the host and the rest: the port with its colon, if any.
fn split_port(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    let host_len = if authority.first() == Some(&b'[') {
        authority.iter().position(|&byte| byte == b']').map_or(authority.len(), |end| end + 1)
    } else {
        authority.iter().position(|&byte| byte == b':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(host_len);
    if rest.is_empty() { (host, None) } else { (host, Some(rest)) }
}

/// Returns whether `authority` is `uri-host [ ":" port ]` with a non-empty host (RFC 9110 sections 4.2.1 and 7.2).
pub(super) fn is_authority(authority: &[u8]) -> bool {
    let name_len = authority.iter().position(|&byte| CLASS[byte as usize] & HOST == 0).unwrap_or(authority.len());
    match &authority[name_len..] {
        [] => name_len > 0,
        [b':', port @ ..] => name_len > 0 && port.iter().all(u8::is_ascii_digit),
        _ => is_authority_general(authority),
    }
}

/// General case of [`is_authority`], for hosts with a percent-encoding or an IP literal.
fn is_authority_general(authority: &[u8]) -> bool {
    let (host, port) = split_port(authority);
    let is_port = port.is_none_or(|port| port[0] == b':' && port[1..].iter().all(u8::is_ascii_digit));
    is_port && is_host(host)
}

fn is_host(host: &[u8]) -> bool {
    if let [b'[', literal @ .., b']'] = host {
        return is_ip_literal(literal);
    }
    let mut at = 0;
    while let Some(&byte) = host.get(at) {
        if CLASS[byte as usize] & HOST != 0 {
            at += 1;
        } else if let Some(len) = percent_encoding_len(&host[at..]) {
            at += len;
        } else {
            return false;
        }
    }
    at > 0
}

/// Returns whether `literal` is `IPv6address / IPvFuture` (RFC 3986 section 3.2.2).
fn is_ip_literal(literal: &[u8]) -> bool {
    if let [b'v' | b'V', rest @ ..] = literal {
        let Some(dot) = rest.iter().position(|&byte| byte == b'.') else {
            return false;
        };
        let (version, address) = (&rest[..dot], &rest[dot + 1..]);
        let is_allowed = |byte: &u8| CLASS[*byte as usize] & HOST != 0 || *byte == b':';
        return !version.is_empty()
            && version.iter().all(u8::is_ascii_hexdigit)
            && !address.is_empty()
            && address.iter().all(is_allowed);
    }
    std::str::from_utf8(literal).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_follows_from_method_and_target() {
        assert_eq!(check(b"GET", b"/"), Ok(TargetForm::Origin));
        assert_eq!(check(b"GET", b"/a;b=c/%7Ed?x=1&y=/?:@!$'()*+,"), Ok(TargetForm::Origin));
        assert_eq!(check(b"GET", b"http://a.test/x?y"), Ok(TargetForm::Absolute));
        assert_eq!(check(b"GET", b"HTTP://a.test:80"), Ok(TargetForm::Absolute));
        assert_eq!(check(b"GET", b"http://a.test?x"), Ok(TargetForm::Absolute));
        assert_eq!(check(b"OPTIONS", b"*"), Ok(TargetForm::Asterisk));
        assert_eq!(check(b"CONNECT", b"a.test:443"), Ok(TargetForm::Authority));
        assert_eq!(check(b"CONNECT", b"[::1]:443"), Ok(TargetForm::Authority));
    }

    #[test]
    fn invalid_targets_are_rejected() {
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
            "/%?%",
            "/100%&a",
            "http://a%/?q",
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
    fn characters_browsers_do_not_encode_are_accepted() {
        for target in ["/a[1].txt", "/a|b", "/?a[]=1", "/?f=a|b", "/?q={\\^`}", "/?q=100%", "/%20?%&a=%4", "/?%zz%25"] {
            assert_eq!(check(b"GET", target.as_bytes()), Ok(TargetForm::Origin), "{target}");
        }
        assert_eq!(check(b"GET", b"http://a?100%"), Ok(TargetForm::Absolute));
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
        assert_eq!(path_and_query(TargetForm::Origin, b"/a?b?c"), (&b"/a"[..], Some(&b"b?c"[..])));
        assert_eq!(path_and_query(TargetForm::Absolute, b"http://h/a?"), (&b"/a"[..], Some(&b""[..])));
        assert_eq!(path_and_query(TargetForm::Absolute, b"http://h"), (&b"/"[..], None));
        assert_eq!(path_and_query(TargetForm::Absolute, b"http://h?q"), (&b"/"[..], Some(&b"q"[..])));
        assert_eq!(authority(b"http://h:1?q"), b"h:1");
    }
}
