//! Counts of errors by their number.

use std::io;

/// Maximum number of error numbers that are counted separately.
const NUMBERS_MAX: usize = 8;

/// Counts errors by the number that the system has given them; 0 for those without one, and beyond [`NUMBERS_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ErrorNumbers {
    counts: [(i32, u64); NUMBERS_MAX],
    other: u64,
}

impl ErrorNumbers {
    #[cold]
    pub(super) fn count(&mut self, error: &io::Error) {
        let number = error.raw_os_error().unwrap_or(0);
        match self.counts.iter_mut().find(|(known, count)| *known == number || *count == 0) {
            Some(entry) if number != 0 => *entry = (number, entry.1 + 1),
            _ => self.other += 1,
        }
    }

    /// Returns the numbers that have occurred, and their counts.
    pub(crate) fn iter(self) -> impl Iterator<Item = (i32, u64)> {
        self.counts.into_iter().chain([(0, self.other)]).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_number_up_to_a_limit() {
        let mut errors = ErrorNumbers::default();
        for number in 1..=20 {
            errors.count(&io::Error::from_raw_os_error(number));
            errors.count(&io::Error::from_raw_os_error(1));
        }
        errors.count(&io::ErrorKind::InvalidInput.into());
        let counts: Vec<_> = errors.iter().collect();
        assert_eq!((counts.len(), counts[0], counts[1], counts[8]), (9, (1, 21), (2, 1), (0, 13)));
    }
}
