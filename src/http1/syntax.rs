//! The syntax of the elements of a message: the bytes allowed in tokens, values and hosts, with SIMD searches for the
//! first other byte, field lines in their usual form, and request targets (RFC 9112 section 3.2, RFC 3986).
//!
//! A search converts 16 bytes at a time to a bitmask with one bit per byte, set where the byte matches. That takes a
//! few instructions on targets with 16-byte vectors (all of x86-64 and `AArch64`), and scalar arithmetic elsewhere.
//!
//! The grammar of RFC 3986 is enforced strictly, with one exception: characters that browsers do not percent-encode,
//! following the WHATWG URL Standard, are accepted (`[`, `]` and `|` everywhere; `\`, `^`, `` ` ``, `{` and `}` in a
//! query). All recipients interpret these the same way, and users do type URLs such as `?f=a|b`. A `%` that does not
//! begin a percent-encoding is accepted in a query, which browsers send as typed (`?q=100%`) and which only the
//! application interprets. In a path it is rejected, since recipients differ in how they interpret it.

use wide::{CmpEq, CmpGt, CmpLt, i8x16};

use super::error::Error;

/// The bytes allowed in a token (RFC 9110 section 5.6.2).
pub(super) const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut index = 0_u8;
    while index < 128 {
        let byte = index;
        table[index as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        index += 1;
    }
    table
};

/// The bytes allowed in a field value: VCHAR, SP, HTAB, obs-text (RFC 9110 section 5.5).
pub(super) const VALUE: [bool; 256] = {
    let mut table = [true; 256];
    let mut index = 0;
    while index < 32 {
        table[index] = index == 9;
        index += 1;
    }
    table[127] = false;
    table
};

const PATH: u8 = 1;
const QUERY: u8 = 2;
pub(super) const HOST: u8 = 4;

/// The bytes allowed in a path, a query and a reg-name, apart from percent-encodings.
pub(super) const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        let unreserved = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        let sub_delim = matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
        if unreserved || sub_delim {
            class[byte as usize] = PATH | QUERY | HOST;
        } else if matches!(byte, b':' | b'@' | b'/' | b'[' | b']' | b'|') {
            class[byte as usize] = PATH | QUERY;
        } else if matches!(byte, b'%' | b'?' | b'\\' | b'^' | b'`' | b'{' | b'}') {
            class[byte as usize] = QUERY;
        }
        byte += 1;
    }
    class
};

/// Bytes per vector.
pub(super) const BLOCK: usize = 16;

/// Bitmask of control characters: bytes below SP, and DEL.
#[inline]
fn control_mask(block: [u8; BLOCK]) -> u32 {
    let bytes = signed(block);
    // In signed comparison bytes >= 0x80 are negative.
    unmatched(bytes.cmp_lt(i8x16::splat(0)) | between(bytes, b' ', b'~'))
}

/// Bitmask of bytes other than visible ASCII and SP.
#[inline]
fn unprintable_mask(block: [u8; BLOCK]) -> u32 {
    unmatched(between(signed(block), b' ', b'~'))
}

/// Bitmask of bytes other than ASCII letters and `-`, the characters of common header names.
#[inline]
fn non_name_mask(block: [u8; BLOCK]) -> u32 {
    let bytes = signed(block);
    unmatched(letters(bytes) | bytes.cmp_eq(i8x16::splat(b'-'.cast_signed())))
}

/// Bitmask of bytes other than ASCII letters, digits, `-` and `.`, the characters of common hosts.
#[inline]
fn non_host_mask(block: [u8; BLOCK]) -> u32 {
    let bytes = signed(block);
    let slash = bytes.cmp_eq(i8x16::splat(b'/'.cast_signed()));
    unmatched(letters(bytes) | (between(bytes, b'-', b'9') & !slash))
}

#[inline]
fn signed(block: [u8; BLOCK]) -> i8x16 {
    i8x16::new(block.map(u8::cast_signed))
}

/// Matches ASCII letters: OR 0x20 lower-cases them and maps no other byte into `a..=z`.
#[inline]
fn letters(bytes: i8x16) -> i8x16 {
    between(bytes | i8x16::splat(0x20), b'a', b'z')
}

/// Matches the bytes from `first` to `last`, both ASCII. After adding a bias that maps `last` to `i8::MAX`, one signed
/// comparison with the biased `first` suffices.
#[inline]
fn between(bytes: i8x16, first: u8, last: u8) -> i8x16 {
    let distance = i8::MAX.wrapping_sub(last.cast_signed());
    (bytes + i8x16::splat(distance)).cmp_gt(i8x16::splat(i8::MAX - (last - first).cast_signed() - 1))
}

/// Bitmask of the matching lanes.
#[inline]
fn matched(lanes: i8x16) -> u32 {
    lanes.move_mask().cast_unsigned()
}

/// Bitmask of the lanes that do not match.
#[inline]
fn unmatched(lanes: i8x16) -> u32 {
    matched(lanes) ^ 0xffff
}

/// Returns the index of the first byte at or after `from` that is set in the bitmask computed by `ends`, or the length.
#[allow(clippy::inline_always, reason = "hot path")]
#[inline(always)]
fn find(bytes: &[u8], from: usize, ends: impl Fn([u8; BLOCK]) -> u32) -> usize {
    let mut rest = bytes.get(from..).unwrap_or_default();
    while let Some((block, more)) = rest.split_first_chunk() {
        let found = ends(*block);
        if found != 0 {
            return bytes.len() - rest.len() + found.trailing_zeros() as usize;
        }
        rest = more;
    }
    if let Some(block) = bytes.last_chunk() {
        // Reload the last full block, and shift out the bytes already checked.
        let found = ends(*block) >> (BLOCK - rest.len());
        return bytes.len() - rest.len() + (found | 1 << rest.len()).trailing_zeros() as usize;
    }
    let found = ends(padded(rest));
    bytes.len() - rest.len() + (found | 1 << rest.len()).trailing_zeros() as usize
}

#[cold]
fn padded(rest: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..rest.len()].copy_from_slice(rest);
    block
}

/// Returns the index of the first control character (HTAB included) at or after `from`, or the length.
#[inline]
fn find_control(bytes: &[u8], from: usize) -> usize {
    find(bytes, from, control_mask)
}

/// Returns the index of the first byte at or after `from` that is neither visible ASCII nor SP, or the length.
#[inline]
pub(super) fn find_unprintable(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(blocks) = bytes.get(at..at + 2 * BLOCK) {
        let found = blocks.first_chunk().map_or(0, |block| unprintable_mask(*block));
        let found = found | blocks.last_chunk().map_or(0, |block| unprintable_mask(*block)) << BLOCK;
        if found != 0 {
            return at + found.trailing_zeros() as usize;
        }
        at += 2 * BLOCK;
    }
    find(bytes, at, unprintable_mask)
}

/// Returns two bitmasks of the first block of a field line: the bytes other than ASCII letters and `-`, and the bytes
/// other than visible ASCII and SP.
#[allow(clippy::inline_always, reason = "hot path of two callers")]
#[inline(always)]
fn field_masks(block: &[u8; BLOCK]) -> (u32, u32) {
    (non_name_mask(*block), unprintable_mask(*block))
}

/// Returns the index of the first byte at or after `from` that is not an ASCII letter, a digit, `-` or `.`, or the
/// length.
///
/// A host mostly ends within one block, which begins before `from` if fewer bytes are left.
#[allow(clippy::inline_always, reason = "hot path")]
#[inline(always)]
pub(super) fn find_non_host(bytes: &[u8], from: usize) -> usize {
    let start = from.min(bytes.len().wrapping_sub(BLOCK));
    if let Some(block) = bytes.get(start..).and_then(<[u8]>::first_chunk) {
        let found = non_host_mask(*block) >> (from - start);
        if found != 0 {
            return from + found.trailing_zeros() as usize;
        }
    }
    find_non_host_outlined(bytes, from)
}

/// Out-of-line version of [`find_non_host`].
#[inline(never)]
pub(super) fn find_non_host_outlined(bytes: &[u8], from: usize) -> usize {
    find(bytes, from, non_host_mask)
}

/// Returns the index of the first byte at or after `from` that is neither an ASCII letter nor `-`, or the length.
#[inline]
pub(super) fn find_non_name(bytes: &[u8], from: usize) -> usize {
    find(bytes, from, non_name_mask)
}

/// Offsets of the name and value of a field within its line.
#[derive(Clone, Copy)]
pub(super) struct FieldSpan {
    pub(super) name_end: usize,
    pub(super) value_start: usize,
    pub(super) value_end: usize,
}

/// Splits the field line at the start of `rest`, for the parsers of requests and of responses. This is the fast path: a
/// name of letters and `-`, a value of visible ASCII after one space or none, and CRLF. It leaves any other line to the
/// general parsers, and splits none in a different way than they do. Returns `None` if it does not apply or `rest` is
/// shorter than a block.
#[allow(clippy::inline_always, reason = "hot path of two callers")]
#[inline(always)]
pub(super) fn split_field(rest: &[u8]) -> Option<FieldSpan> {
    let (non_names, ends) = field_masks(rest.first_chunk()?);
    // Keep searching if the name or value extends beyond the first block.
    let name_end = if non_names == 0 { find_non_name(rest, 0) } else { non_names.trailing_zeros() as usize };
    let value_end = || if ends == 0 { find_unprintable(rest, name_end) } else { ends.trailing_zeros() as usize };
    split_field_at(rest, name_end, value_end)
}

/// Splits the field line at the start of `rest`, whose name ends at `name_end`. Returns `None` if the fast path does
/// not apply.
#[allow(clippy::inline_always, reason = "hot path of two callers")]
#[inline(always)]
pub(super) fn split_field_at(rest: &[u8], name_end: usize, value_end: impl FnOnce() -> usize) -> Option<FieldSpan> {
    if name_end == 0 || rest.get(name_end) != Some(&b':') {
        return None;
    }
    let value_start = name_end + 1 + usize::from(rest.get(name_end + 1) == Some(&b' '));
    let value_end = value_end();
    let value = rest.get(value_start..value_end)?;
    // The general parser strips surrounding whitespace from values.
    let is_trimmed = *value.first()? != b' ' && *value.last()? != b' ';
    (is_trimmed && rest[value_end..].starts_with(b"\r\n")).then_some(FieldSpan { name_end, value_start, value_end })
}

/// Returns whether `bytes` equals `word`, ignoring ASCII case. `bytes` must not contain control characters; `word` must
/// be at least four bytes long and consist of lower-case letters and `-`.
#[inline]
pub(super) fn eq_lower<const N: usize>(bytes: &[u8], word: &[u8; N]) -> bool {
    // OR 0x20 lower-cases letters. It maps no other byte to a letter, and only CR to `-`.
    let same = |at: usize| match (bytes[at..].first_chunk(), word[at..].first_chunk()) {
        (Some(own), Some(other)) => u32::from_le_bytes(*own) | 0x2020_2020 == u32::from_le_bytes(*other),
        _ => false,
    };
    bytes.len() == N && (0..N / 4).all(|part| same(part * 4)) && same(N - 4)
}

/// Returns whether `bytes` is a token (RFC 9110 section 5.6.2), such as a method or a header name.
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| TOKEN[byte as usize])
}

/// Returns whether `bytes` contains only bytes allowed in a header value (RFC 9110 section 5.5).
pub fn is_header_value(bytes: &[u8]) -> bool {
    let checked = find_control(bytes, 0);
    bytes[checked..].iter().all(|&byte| VALUE[byte as usize])
}

/// Strips leading and trailing optional whitespace (RFC 9110 section 5.6.3).
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Returns the non-empty elements of a comma-separated list (RFC 9110 section 5.6.1).
pub(crate) fn list_elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|element| !element.is_empty())
}

/// Returns the length of the path and query at the start of `bytes`.
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
        } else if let Some(len) = percent_encoding_len(&bytes[at..]) {
            at += len;
        } else {
            break;
        }
    }
    at
}

/// Returns the length of the percent-encoding at the start of `bytes`, if there is one.
fn percent_encoding_len(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => Some(3),
        _ => None,
    }
}

/// The form of a request target (RFC 9112 section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`, the usual form in a request to an origin server.
    #[default]
    Origin,
    /// `http://host/path?query` or the same with `https`, sent to proxies; origin servers must accept it too.
    Absolute,
    /// `host:port`, only for CONNECT.
    Authority,
    /// `*`, only for OPTIONS.
    Asterisk,
}

/// Validates a target and returns its form. Some forms are only valid with certain methods.
pub(super) fn check_target(method: &[u8], target: &[u8]) -> Result<TargetForm, Error> {
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
    let is_http = scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https");
    if is_http { Ok(()) } else { Err(Error::Scheme) }
}

/// Returns whether a target in absolute form has the scheme https.
pub(crate) fn is_https(target: &[u8]) -> bool {
    target.get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"https://"))
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

    /// Compares `find` with a naive search: every byte at every index, in slices of lengths around multiples of a
    /// block.
    fn check_find(find: fn(&[u8], usize) -> usize, fill: u8, ends: fn(u8) -> bool) {
        for len in (0..5).chain(BLOCK - 1..BLOCK + 3).chain(2 * BLOCK - 1..2 * BLOCK + 4) {
            for from in 0..=len {
                assert_eq!(find(&vec![fill; len], from), len);
            }
            for at in 0..len {
                for byte in 0..=255 {
                    let mut bytes = vec![fill; len];
                    bytes[at] = byte;
                    for from in [0, at.saturating_sub(1), at, at + 1] {
                        let expected = bytes[from..].iter().position(|&byte| ends(byte)).map_or(len, |at| from + at);
                        assert_eq!(find(&bytes, from), expected, "{byte} at {at} of {len} from {from}");
                    }
                }
            }
        }
    }

    #[test]
    fn control_characters_are_found_at_every_index() {
        check_find(find_control, b'a', |byte| byte.is_ascii_control());
        check_find(find_control, 0xff, |byte| byte.is_ascii_control());
    }

    #[test]
    fn unprintable_bytes_are_found_at_every_index() {
        check_find(find_unprintable, b' ', |byte| !(b' '..=b'~').contains(&byte));
        check_find(find_unprintable, b'~', |byte| !(b' '..=b'~').contains(&byte));
    }

    #[test]
    fn non_host_bytes_are_found_at_every_index() {
        let ends = |byte: u8| !byte.is_ascii_alphanumeric() && byte != b'-' && byte != b'.';
        check_find(find_non_host, b'.', ends);
        check_find(find_non_host, b'9', ends);
    }

    #[test]
    fn non_name_bytes_are_found_at_every_index() {
        check_find(find_non_name, b'Z', |byte| !byte.is_ascii_alphabetic() && byte != b'-');
        check_find(find_non_name, b'-', |byte| !byte.is_ascii_alphabetic() && byte != b'-');
    }

    #[test]
    fn the_first_of_several_matches_is_found() {
        assert_eq!(find_control(b"abc\x1f\x01\x7f\x80def", 0), 3);
        assert_eq!(find_control(b"abc\x7f\x01\x1f\x80def", 4), 4);
        assert_eq!(find_non_name(b"a-Z@[`{:", 0), 3);
    }

    #[test]
    fn words_are_compared_ignoring_case() {
        assert!(eq_lower(b"hOSt", b"host") && eq_lower(b"Content-Length", b"content-length"));
        assert!(!eq_lower(b"hos", b"host") && !eq_lower(b"hosts", b"host") && !eq_lower(b"h0st", b"host"));
    }

    #[test]
    fn the_form_follows_from_method_and_target() {
        assert_eq!(check_target(b"GET", b"/"), Ok(TargetForm::Origin));
        assert_eq!(check_target(b"GET", b"/a;b=c/%7Ed?x=1&y=/?:@!$'()*+,"), Ok(TargetForm::Origin));
        assert_eq!(check_target(b"GET", b"http://a.test/x?y"), Ok(TargetForm::Absolute));
        assert_eq!(check_target(b"GET", b"HTTP://a.test:80"), Ok(TargetForm::Absolute));
        assert_eq!(check_target(b"GET", b"HTTPS://a.test:443"), Ok(TargetForm::Absolute));
        assert_eq!([&b"Https://a"[..], b"http://a", b"https:", b"*"].map(is_https), [true, false, false, false]);
        assert_eq!(check_target(b"GET", b"http://a.test?x"), Ok(TargetForm::Absolute));
        assert_eq!(check_target(b"OPTIONS", b"*"), Ok(TargetForm::Asterisk));
        assert_eq!(check_target(b"CONNECT", b"a.test:443"), Ok(TargetForm::Authority));
        assert_eq!(check_target(b"CONNECT", b"[::1]:443"), Ok(TargetForm::Authority));
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
            assert_eq!(check_target(b"GET", target.as_bytes()), Err(Error::Target), "{target:?}");
        }
        assert_eq!(check_target(b"GET", b"ftp://a.test/"), Err(Error::Scheme));
        assert_eq!(check_target(b"GET", b"*"), Err(Error::Asterisk));
        assert_eq!(check_target(b"OPTIONS", b"**"), Err(Error::Target));
        for target in ["a.test", "a.test:", "/", "a.test:1/", "a:b", ":80"] {
            assert_eq!(check_target(b"CONNECT", target.as_bytes()), Err(Error::Authority), "{target:?}");
        }
    }

    #[test]
    fn characters_browsers_do_not_encode_are_accepted() {
        for target in ["/a[1].txt", "/a|b", "/?a[]=1", "/?f=a|b", "/?q={\\^`}", "/?q=100%", "/%20?%&a=%4", "/?%zz%25"] {
            assert_eq!(check_target(b"GET", target.as_bytes()), Ok(TargetForm::Origin), "{target}");
        }
        assert_eq!(check_target(b"GET", b"http://a?100%"), Ok(TargetForm::Absolute));
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
