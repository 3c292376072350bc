//! A shuffle as a pure function of position, epoch and seed, in constant time and memory.
//!
//! The order is a Feistel network over the smallest domain with an even number of bits that contains all rows, applied
//! until the result is a row (cycle walking; Black & Rogaway 2002). There is no index vector, and the position is all that
//! a resumed run needs.

/// A permutation of `0..len`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shuffle {
    len: u64,
    half_bits: u32,
    keys: [u64; Self::ROUNDS],
}

impl Shuffle {
    const ROUNDS: usize = 6;

    /// The order of `len` rows in `epoch` under `seed`.
    pub(crate) fn new(len: usize, seed: u64, epoch: u64) -> Self {
        let len = len as u64;
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let mut state = mix(seed ^ mix(epoch.wrapping_add(0x5ae)));
        let keys = std::array::from_fn(|_| {
            state = mix(state);
            state
        });
        Self {
            len,
            half_bits: bits.div_ceil(2).max(1),
            keys,
        }
    }

    /// The row at `position`.
    ///
    /// # Panics
    /// If `position` is not below `len`.
    pub(crate) fn row(&self, position: usize) -> usize {
        let mut row = position as u64;
        assert!(row < self.len, "position {position} of {} rows", self.len);
        loop {
            row = self.permute(row);
            if row < self.len {
                return row as usize;
            }
        }
    }

    /// The position of `row`: the inverse of [`Shuffle::row`].
    ///
    /// # Panics
    /// If `row` is not below `len`.
    pub(crate) fn position(&self, row: usize) -> usize {
        let mut position = row as u64;
        assert!(position < self.len, "row {row} of {}", self.len);
        loop {
            position = self.permute_back(position);
            if position < self.len {
                return position as usize;
            }
        }
    }

    /// A bijection of `0..4^half_bits`.
    fn permute(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }

    /// Its inverse.
    fn permute_back(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys.iter().rev() {
            (left, right) = (right ^ (mix(left ^ key) & mask), left);
        }
        (left << self.half_bits) | right
    }
}

/// splitmix64's finaliser (Steele, Lea & Flood 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
        let shuffle = Shuffle::new(len, seed, epoch);
        (0..len).map(|i| shuffle.row(i)).collect()
    }

    proptest! {
        #[test]
        fn every_row_exactly_once(len in 1usize..3000, seed in any::<u64>(), epoch in 0u64..100) {
            let mut rows = order(len, seed, epoch);
            rows.sort_unstable();
            prop_assert!(rows.iter().enumerate().all(|(i, r)| i == *r));
        }

        #[test]
        fn position_is_the_inverse(len in 1usize..3000, seed in any::<u64>()) {
            let shuffle = Shuffle::new(len, seed, 1);
            prop_assert!((0..len).all(|i| shuffle.position(shuffle.row(i)) == i));
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        assert_eq!(order(1000, 7, 3), order(1000, 7, 3));
        assert_ne!(order(1000, 7, 3), order(1000, 7, 4));
        assert_ne!(order(1000, 7, 3), order(1000, 8, 3));
    }

    #[test]
    fn positions_and_rows_are_uncorrelated() {
        // |correlation| of a random permutation of n has standard deviation 1/sqrt(n - 1); allow five.
        let n = 20_000;
        for epoch in 0..8 {
            let mean = (n - 1) as f64 / 2.0;
            let (mut product, mut square) = (0.0, 0.0);
            for (i, row) in order(n, 1, epoch).into_iter().enumerate() {
                product += (i as f64 - mean) * (row as f64 - mean);
                square += (i as f64 - mean).powi(2);
            }
            let correlation: f64 = product / square;
            assert!(
                correlation.abs() < 5.0 / (n as f64).sqrt(),
                "epoch {epoch}: {correlation}"
            );
        }
    }
}
