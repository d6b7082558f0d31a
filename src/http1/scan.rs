//! The bytes allowed in tokens, values, hosts and targets, and SIMD searches for the first other byte, 16 bytes at a time.
//!
//! A block of bytes is converted to a bitmask with one bit per byte, set where the byte matches. That takes a few
//! instructions on targets with 16-byte vectors (all of x86-64 and `AArch64`), and scalar arithmetic elsewhere.

use wide::{CmpEq, CmpGt, CmpLt, i8x16};

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
pub(super) fn find_control(bytes: &[u8], from: usize) -> usize {
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
#[inline]
pub(super) fn field_masks(block: &[u8; BLOCK]) -> (u32, u32) {
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
pub(super) fn list_elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
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
pub(super) fn percent_encoding_len(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => Some(3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares `find` with a naive search: every byte at every index, in slices of lengths around multiples of a block.
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
}
