//! The heuristic that decides whether to read from a new connection before registering it with the backend.
//!
//! Under load, and with clients that send immediately, the request has arrived by the time the connection is accepted;
//! a one-shot connection is then served without being registered at all. With slow clients that read would block and
//! waste a system call. The decision is therefore based on recent results, with an occasional probe.

/// Upper bound of the confidence score.
const CONFIDENCE_MAX: i8 = 8;

/// While eager reads mostly fail, one in this many connections is still read eagerly, as a probe.
const TRY_EVERY: u8 = 16;

/// The recent success rate of eager reads.
#[derive(Debug)]
pub(super) struct EagerRead {
    /// Above zero if eager reads mostly find data.
    score: i8,
    skipped: u8,
}

impl Default for EagerRead {
    fn default() -> Self {
        EagerRead { score: CONFIDENCE_MAX, skipped: 0 }
    }
}

impl EagerRead {
    /// Returns whether to read from the next connection before registering it.
    pub(super) fn should_try(&mut self) -> bool {
        if self.score > 0 {
            return true;
        }
        self.skipped = (self.skipped + 1) % TRY_EVERY;
        self.skipped == 0
    }

    /// Records whether an eager read found data.
    pub(super) fn record(&mut self, found: bool) {
        let step = if found { 2 } else { -1 };
        self.score = (self.score + step).clamp(-CONFIDENCE_MAX, CONFIDENCE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_failed_reads_only_probes_are_made_until_reads_succeed() {
        let mut eager = EagerRead::default();
        for _ in 0..CONFIDENCE_MAX {
            assert!(eager.should_try());
            eager.record(false);
        }
        assert!(!eager.should_try());
        let tries = (0..160).filter(|_| eager.should_try()).count();
        assert_eq!(tries, 160 / usize::from(TRY_EVERY));
        for _ in 0..CONFIDENCE_MAX {
            eager.record(true);
        }
        assert!(eager.should_try());
    }
}
