//! Finding where a stretch of a head ends, sixteen octets at a time.
//!
//! A block of octets becomes a mask with one bit for each octet at which the stretch may end. That is a handful of
//! instructions wherever there are vectors of sixteen octets (any x86-64, any `AArch64`), and plain arithmetic elsewhere.

use wide::{CmpEq, CmpGt, CmpLt, i8x16};

pub(super) const BLOCK: usize = 16;

/// Control octets: all below SP, and DEL.
#[inline]
fn controls(block: [u8; BLOCK]) -> u32 {
    let octets = signed(block);
    // With a sign the upper half comes first of all.
    others(octets.cmp_lt(i8x16::splat(0)) | between(octets, b' ', b'~'))
}

/// Everything but visible ASCII and SP.
#[inline]
fn unprintables(block: [u8; BLOCK]) -> u32 {
    others(between(signed(block), b' ', b'~'))
}

/// Everything but ASCII letters and `-`.
#[inline]
fn others_than_letters(block: [u8; BLOCK]) -> u32 {
    let octets = signed(block);
    others(letters(octets) | octets.cmp_eq(i8x16::splat(b'-'.cast_signed())))
}

/// Everything but ASCII letters, digits, `-` and `.`: what almost every host consists of.
#[inline]
fn others_than_host(block: [u8; BLOCK]) -> u32 {
    let octets = signed(block);
    let slash = octets.cmp_eq(i8x16::splat(b'/'.cast_signed()));
    others(letters(octets) | (between(octets, b'-', b'9') & !slash))
}

#[inline]
fn signed(block: [u8; BLOCK]) -> i8x16 {
    i8x16::new(block.map(u8::cast_signed))
}

/// ASCII letters: one bit makes small ones of all, and of nothing else.
#[inline]
fn letters(octets: i8x16) -> i8x16 {
    between(octets | i8x16::splat(0x20), b'a', b'z')
}

/// The octets between these two, of ASCII. Moved so that the last one is the largest number with a sign there is, none
/// else is as large as the first.
#[inline]
fn between(octets: i8x16, first: u8, last: u8) -> i8x16 {
    let distance = i8::MAX.wrapping_sub(last.cast_signed());
    (octets + i8x16::splat(distance)).cmp_gt(i8x16::splat(i8::MAX - (last - first).cast_signed() - 1))
}

/// A bit for each octet that was told.
#[inline]
fn mask(told: i8x16) -> u32 {
    told.move_mask().cast_unsigned()
}

/// A bit for each octet that was not.
#[inline]
fn others(told: i8x16) -> u32 {
    mask(told) ^ 0xffff
}

/// Where the first octet from `from` on stands that `ends` tells of, or else the end.
#[allow(clippy::inline_always, reason = "on the way of every request")]
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
        // The last block once more, less what was looked at before.
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

/// Where the first control octet from `from` on stands, HTAB among them; the length if there is none.
#[inline]
pub(super) fn control(bytes: &[u8], from: usize) -> usize {
    find(bytes, from, controls)
}

/// Where the first octet from `from` on stands that is neither visible ASCII nor SP; the length if there is none.
#[inline]
pub(super) fn unprintable(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(blocks) = bytes.get(at..at + 2 * BLOCK) {
        let found = blocks.first_chunk().map_or(0, |block| unprintables(*block));
        let found = found | blocks.last_chunk().map_or(0, |block| unprintables(*block)) << BLOCK;
        if found != 0 {
            return at + found.trailing_zeros() as usize;
        }
        at += 2 * BLOCK;
    }
    find(bytes, at, unprintables)
}

/// What stands in the first block of a field line: a bit for each octet that is neither an ASCII letter nor `-`, and
/// one for each that is neither visible ASCII nor SP.
#[inline]
pub(super) fn opening(block: &[u8; BLOCK]) -> (u32, u32) {
    (others_than_letters(*block), unprintables(*block))
}

/// Where the first octet from `from` on stands that is none of ASCII letters, digits, `-` and `.`; the length if there
/// is none.
#[inline]
pub(super) fn other_than_host(bytes: &[u8], from: usize) -> usize {
    find(bytes, from, others_than_host)
}

/// Where the first octet from `from` on stands that is neither an ASCII letter nor `-`; the length if there is none.
#[inline]
pub(super) fn other_than_letter(bytes: &[u8], from: usize) -> usize {
    find(bytes, from, others_than_letters)
}

/// Whether octets that are no controls are this word in any case. The word has small letters and `-`
/// alone, four at least.
#[inline]
pub(super) fn is_word<const N: usize>(octets: &[u8], word: &[u8; N]) -> bool {
    // The bit makes small letters of capitals. Of other octets it makes no letters, and `-` only of CR.
    let same = |at: usize| match (octets[at..].first_chunk(), word[at..].first_chunk()) {
        (Some(own), Some(other)) => u32::from_le_bytes(*own) | 0x2020_2020 == u32::from_le_bytes(*other),
        _ => false,
    };
    octets.len() == N && (0..N / 4).all(|part| same(part * 4)) && same(N - 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every octet at every place, in stretches of every length up to some blocks, is what is found.
    fn agrees(find: fn(&[u8], usize) -> usize, fill: u8, ends: fn(u8) -> bool) {
        for len in 0..36 {
            for from in 0..=len {
                assert_eq!(find(&vec![fill; len], from), len);
            }
            for at in 0..len {
                for octet in 0..=255 {
                    let mut bytes = vec![fill; len];
                    bytes[at] = octet;
                    for from in [0, at.saturating_sub(1), at, at + 1] {
                        let expected = bytes[from..].iter().position(|&octet| ends(octet)).map_or(len, |at| from + at);
                        assert_eq!(find(&bytes, from), expected, "{octet} at {at} of {len} from {from}");
                    }
                }
            }
        }
    }

    #[test]
    fn controls_are_found_at_every_place() {
        agrees(control, b'a', |octet| octet.is_ascii_control());
        agrees(control, 0xff, |octet| octet.is_ascii_control());
    }

    #[test]
    fn what_is_not_printed_is_found_at_every_place() {
        agrees(unprintable, b' ', |octet| !(b' '..=b'~').contains(&octet));
        agrees(unprintable, b'~', |octet| !(b' '..=b'~').contains(&octet));
    }

    #[test]
    fn what_is_not_of_a_host_is_found_at_every_place() {
        let ends = |octet: u8| !octet.is_ascii_alphanumeric() && octet != b'-' && octet != b'.';
        agrees(other_than_host, b'.', ends);
        agrees(other_than_host, b'9', ends);
    }

    #[test]
    fn what_is_no_letter_is_found_at_every_place() {
        agrees(other_than_letter, b'Z', |octet| !octet.is_ascii_alphabetic() && octet != b'-');
        agrees(other_than_letter, b'-', |octet| !octet.is_ascii_alphabetic() && octet != b'-');
    }

    #[test]
    fn the_first_of_several_is_found() {
        assert_eq!(control(b"abc\x1f\x01\x7f\x80def", 0), 3);
        assert_eq!(control(b"abc\x7f\x01\x1f\x80def", 4), 4);
        assert_eq!(other_than_letter(b"a-Z@[`{:", 0), 3);
    }

    #[test]
    fn a_word_is_told_in_any_case() {
        assert!(is_word(b"hOSt", b"host") && is_word(b"Content-Length", b"content-length"));
        assert!(!is_word(b"hos", b"host") && !is_word(b"hosts", b"host") && !is_word(b"h0st", b"host"));
    }
}
