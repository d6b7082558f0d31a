//! Whether a new connection is read from before the backend is told about it.
//!
//! Under load, and wherever clients send at once, the request is there by the time the connection is accepted; then
//! a one-shot connection is served without ever being registered. Where clients are slow to send, that read
//! finds nothing and is one call too many. So the loop goes by what the last ones did, and tries again from time to time.

/// How sure the loop gets at most.
const SURE: i8 = 8;

/// One try in so many while the reads find nothing.
const TRY_EVERY: u8 = 16;

/// What early reads have found lately.
#[derive(Debug)]
pub(super) struct Eager {
    /// Above zero: they mostly find something.
    score: i8,
    untried: u8,
}

impl Default for Eager {
    fn default() -> Self {
        Eager { score: SURE, untried: 0 }
    }
}

impl Eager {
    /// Whether to read from the next connection at once.
    pub(super) fn tries(&mut self) -> bool {
        if self.score > 0 {
            return true;
        }
        self.untried = (self.untried + 1) % TRY_EVERY;
        self.untried == 0
    }

    /// What an early read found.
    pub(super) fn learn(&mut self, found: bool) {
        let step = if found { 2 } else { -1 };
        self.score = (self.score + step).clamp(-SURE, SURE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_that_find_nothing_are_given_up_and_tried_again() {
        let mut eager = Eager::default();
        for _ in 0..SURE {
            assert!(eager.tries());
            eager.learn(false);
        }
        assert!(!eager.tries());
        let tries = (0..160).filter(|_| eager.tries()).count();
        assert_eq!(tries, 160 / usize::from(TRY_EVERY));
        for _ in 0..SURE {
            eager.learn(true);
        }
        assert!(eager.tries());
    }
}
