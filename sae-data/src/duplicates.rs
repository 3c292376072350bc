//! Rows that come more than once: found by their hashes, in memory of a fixed size.

use std::collections::HashMap;

/// Different rows that are remembered to find repeated ones.
const REMEMBERED: usize = 1 << 18;

/// Repeated rows, exactly or from a sample by content, so that all copies of a row are in it or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicates {
    /// Rows compared.
    pub compared: u64,
    /// Of these, rows that had come before.
    pub repeated: u64,
    /// One in so many rows was compared.
    pub one_in: u64,
}

impl Duplicates {
    /// Part of the rows that had come before.
    pub fn fraction(&self) -> f64 {
        self.repeated as f64 / self.compared.max(1) as f64
    }
}

/// Counts rows by their hashes: all of them while they are few, then those whose hashes end in zeros.
#[derive(Default)]
pub(crate) struct Hashes {
    pub(crate) counts: HashMap<u64, u64>,
    /// Trailing zeros that a hash must have.
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

    /// What has been found.
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
        // 400,000 different rows, and every fourth of them once more
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
