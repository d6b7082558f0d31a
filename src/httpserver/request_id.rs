//! Random ids of requests.

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

/// A source of ids, which are unlikely to be used by any other server.
pub(super) struct RequestIds {
    /// The first half of each id.
    prefix: [u8; 16],
    count: u64,
}

impl RequestIds {
    pub(super) fn new() -> Self {
        let seed = RandomState::new().hash_one(Instant::now());
        RequestIds { prefix: hex(seed), count: RandomState::new().hash_one(0) }
    }

    /// Returns 32 hexadecimal digits.
    pub(super) fn next(&mut self) -> [u8; 32] {
        self.count = self.count.wrapping_add(1);
        // The finalizer of SplitMix64: different counts have different results.
        let mut mixed = self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mut id = [0; 32];
        id[..16].copy_from_slice(&self.prefix);
        id[16..].copy_from_slice(&hex(mixed ^ mixed >> 31));
        id
    }
}

/// Returns the hexadecimal digits of a number.
fn hex(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_those_of_proxies_are_checked() {
        let mut ids = RequestIds::new();
        let all: std::collections::HashSet<_> = (0..10_000).map(|_| ids.next()).collect();
        assert_eq!(all.len(), 10_000);
    }

    #[test]
    fn digits_are_in_order() {
        assert_eq!(&hex(0x0123_4567_89ab_cdef), b"0123456789abcdef");
    }
}
