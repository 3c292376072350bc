//! Finds rows that occur more than once, by their hashes, in a fixed amount of memory.

use std::collections::HashMap;

/// Number of different rows that are remembered.
const REMEMBERED: usize = 1 << 18;

/// Repeated rows, counted exactly or in a sample by content, which contains all copies of a row or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicates {
    /// Rows compared.
    pub compared: u64,
    /// Number of these that had occurred before.
    pub repeated: u64,
    /// One of this many rows was compared.
    pub one_in: u64,
}

impl Duplicates {
    /// Fraction of the rows that had occurred before.
    pub fn fraction(&self) -> f64 {
        self.repeated as f64 / self.compared.max(1) as f64
    }
}

/// Counts rows by their hashes: all rows at first; when there are too many, only rows whose hashes end in zeros.
#[derive(Default)]
pub(crate) struct Hashes {
    pub(crate) counts: HashMap<u64, u64>,
    /// Number of trailing zeros that a hash needs.
    zeros: u32,
}

impl Hashes {
    /// Counts a row of this hash `count` times.
    pub(crate) fn add(&mut self, hash: u64, count: u64) {
        if hash.trailing_zeros() < self.zeros {
            return;
        }
        *self.counts.entry(hash).or_default() += count;
        while self.counts.len() > REMEMBERED {
            self.zeros += 1;
            self.counts
                .retain(|hash, _| hash.trailing_zeros() >= self.zeros);
        }
    }

    /// The result so far.
    pub(crate) fn duplicates(&self) -> Duplicates {
        let compared: u64 = self.counts.values().sum();
        Duplicates {
            compared,
            repeated: compared - self.counts.len() as u64,
            one_in: 1 << self.zeros,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twox_hash::XxHash64;

    #[test]
    fn repeated_rows_are_found_in_a_sample_too() {
        let mut hashes = Hashes::default();
        // 400,000 different rows, every fourth of them twice
        for i in 0..400_000u64 {
            let hash = XxHash64::oneshot(0, &i.to_le_bytes());
            hashes.add(hash, 1);
            if i % 4 == 0 {
                hashes.add(hash, 1);
            }
        }
        let found = hashes.duplicates();
        assert_eq!(found.one_in, 2);
        assert!((found.fraction() - 0.2).abs() < 0.005, "{found:?}");
    }
}
