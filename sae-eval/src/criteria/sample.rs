//! The codes of a sample of rows, from which the criteria are computed.
//!
//! A row is in the sample if a number computed from its index alone is below a bound. The bound is halved whenever the
//! sample has more than [`MAX_ENTRIES`] entries. So memory is bounded for any data, and the sample depends neither on
//! the order nor on the size of batches.

/// Limit of the entries in a sample: 64 MiB.
const MAX_ENTRIES: usize = 1 << 23;
/// The bound that keeps every row.
const ALL: u64 = 1 << 32;

/// Describes which rows are in a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Kept {
    /// Rows in the sample.
    pub(crate) rows: usize,
    /// A row is in the sample if its number is below this; 2^32 keeps all rows.
    pub(crate) bound: u64,
}

/// Output number `index`, counted from 1, of splitmix64 with seed 0 (Steele, Lea & Flood 2014).
pub(super) fn mixed(index: u64) -> u64 {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sparse rows of a sample, in the order in which they were added.
pub(crate) struct Sample {
    bound: u64,
    max_entries: usize,
    rows: Vec<usize>,
    ends: Vec<usize>,
    entries: Vec<(u32, f32)>,
}

impl Sample {
    /// An empty sample for a data set of `total` rows; it keeps about `most` of them at most.
    pub(crate) fn new(total: usize, most: usize) -> Self {
        let bound = match total <= most {
            true => ALL,
            false => (most as u64 * ALL) / total as u64,
        };
        Self {
            bound,
            max_entries: MAX_ENTRIES,
            rows: Vec::new(),
            ends: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// The same with a smaller limit of the entries.
    pub(crate) fn within(total: usize, most: usize, max_entries: usize) -> Self {
        Self {
            max_entries,
            ..Self::new(total, most)
        }
    }

    /// True if a row is in the sample under the current bound.
    pub(crate) fn keeps(&self, row: usize) -> bool {
        mixed(row as u64 + 1) >> 32 < self.bound
    }

    /// Adds a row: its index in the data set, and its latents with their activations. Zeros are left out.
    pub(crate) fn push(&mut self, row: usize, latents: &[u32], values: &[f32]) {
        if !self.keeps(row) {
            return;
        }
        let entries = latents.iter().copied().zip(values.iter().copied());
        self.entries.extend(entries.filter(|(_, a)| *a != 0.0));
        self.rows.push(row);
        self.ends.push(self.entries.len());
        while self.entries.len() > self.max_entries && self.rows.len() > 1 {
            self.thin();
        }
    }

    /// Halves the bound, and drops the rows beyond it.
    fn thin(&mut self) {
        self.bound /= 2;
        let (mut start, mut to, mut kept) = (0, 0, 0);
        for i in 0..self.rows.len() {
            let (row, end) = (self.rows[i], self.ends[i]);
            if self.keeps(row) {
                self.entries.copy_within(start..end, to);
                to += end - start;
                (self.rows[kept], self.ends[kept]) = (row, to);
                kept += 1;
            }
            start = end;
        }
        self.rows.truncate(kept);
        self.ends.truncate(kept);
        self.entries.truncate(to);
    }

    /// Describes which rows are in the sample.
    pub(crate) fn kept(&self) -> Kept {
        Kept {
            rows: self.rows.len(),
            bound: self.bound,
        }
    }

    /// The rows' indices in the data set.
    pub(crate) fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// The latents of the row with this index, with their activations, if the row is in the sample. Rows must have been
    /// added in the order of their indices.
    pub(crate) fn of_row(&self, row: usize) -> Option<&[(u32, f32)]> {
        let place = match self.rows.get(row) {
            Some(found) if *found == row => row, // all rows are there
            _ => self.rows.binary_search(&row).ok()?,
        };
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.entries[start..self.ends[place]])
    }

    /// All pairs of a row's place in the sample and a latent that is active on the row.
    pub(crate) fn active(&self) -> impl Iterator<Item = (u32, u32)> {
        let starts = std::iter::once(&0).chain(&self.ends);
        let rows = (0u32..).zip(starts.zip(&self.ends));
        rows.flat_map(|(row, (start, end))| {
            let entries = self.entries[*start..*end].iter();
            entries.map(move |(latent, _)| (row, *latent))
        })
    }

    /// The sample by latent.
    pub(crate) fn into_columns(self, latents: usize, labels: Labels) -> Columns {
        let mut ends = vec![0; latents + 1];
        for (latent, _) in &self.entries {
            ends[*latent as usize + 1] += 1;
        }
        for j in 0..latents {
            ends[j + 1] += ends[j];
        }
        let mut next = ends.clone();
        let mut entries = vec![(0, 0.0); self.entries.len()];
        let mut start = 0;
        for (row, end) in (0u32..).zip(&self.ends) {
            for (latent, a) in &self.entries[start..*end] {
                let at = &mut next[*latent as usize];
                entries[*at] = (row, *a);
                *at += 1;
            }
            start = *end;
        }
        Columns {
            kept: self.kept(),
            ends,
            entries,
            labels,
        }
    }
}

/// The class of each row of a sample.
#[derive(Clone, Debug)]
pub(crate) struct Labels {
    /// Place of each row's class in the list of classes.
    pub(crate) of: Vec<u32>,
    /// Rows of each class.
    pub(crate) rows: Vec<usize>,
}

impl Labels {
    /// From the classes' places, each below `classes`.
    pub(crate) fn new(of: Vec<u32>, classes: usize) -> Self {
        let mut rows = vec![0; classes];
        of.iter().for_each(|class| rows[*class as usize] += 1);
        Self { of, rows }
    }
}

/// A sample by latent: for each latent the rows on which it is active, and its activations there.
pub(crate) struct Columns {
    pub(crate) kept: Kept,
    ends: Vec<usize>,
    entries: Vec<(u32, f32)>,
    pub(crate) labels: Labels,
}

impl Columns {
    /// Number of latents M.
    pub(crate) fn latents(&self) -> usize {
        self.ends.len() - 1
    }

    /// The rows on which latent `j` is active, ascending, with its activations.
    pub(crate) fn of(&self, j: usize) -> &[(u32, f32)] {
        &self.entries[self.ends[j]..self.ends[j + 1]]
    }

    /// Number of rows in the sample.
    pub(crate) fn rows(&self) -> usize {
        self.kept.rows
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The columns of a dense matrix.
    pub(crate) fn columns(
        dense: &[f32],
        latents: usize,
        labels: &[u32],
        classes: usize,
    ) -> Columns {
        let mut sample = Sample::new(labels.len(), labels.len());
        let all: Vec<u32> = (0..latents as u32).collect();
        for (i, row) in dense.chunks_exact(latents).enumerate() {
            sample.push(i, &all, row);
        }
        sample.into_columns(latents, Labels::new(labels.to_vec(), classes))
    }

    #[test]
    fn columns_are_the_matrix_transposed() {
        let columns = columns(&[0.0, 2.0, 3.0, 0.0, 5.0, -6.0], 2, &[0, 1, 1], 2);
        assert_eq!(columns.of(0), [(1, 3.0), (2, 5.0)]);
        assert_eq!(columns.of(1), [(0, 2.0), (2, -6.0)]);
        assert_eq!(columns.labels.rows, [1, 2]);
    }

    #[test]
    fn a_bound_keeps_about_as_many_rows_as_it_should() {
        let sample = Sample::new(1_000_000, 10_000);
        let kept = (0..1_000_000).filter(|row| sample.keeps(*row)).count();
        assert!((9_700..10_300).contains(&kept), "{kept}"); // three standard deviations
    }

    proptest! {
        #[test]
        fn thinned_is_as_if_the_bound_had_been_lower_from_the_start(
            lengths in prop::collection::vec(0usize..5, 1..60),
            max_entries in 5usize..40,
        ) {
            let mut thinned = Sample { max_entries, ..Sample::new(100, 100) };
            let fill = |sample: &mut Sample| {
                for (row, length) in lengths.iter().enumerate() {
                    let latents: Vec<u32> = (0..*length as u32).collect();
                    let values: Vec<f32> = latents.iter().map(|j| (row * 10) as f32 + *j as f32 + 1.0).collect();
                    sample.push(row, &latents, &values);
                }
            };
            fill(&mut thinned);
            let mut fresh = Sample { bound: thinned.bound, ..Sample::new(100, 100) };
            fill(&mut fresh);
            for (row, length) in lengths.iter().enumerate() {
                let place = thinned.rows.iter().position(|kept| *kept == row);
                let of_row = thinned.of_row(row).map(|of| of.iter().map(|(_, a)| *a as usize / 10).collect::<Vec<_>>());
                prop_assert_eq!(of_row, place.map(|_| vec![row; *length]));
            }
            prop_assert!(thinned.entries.len() <= max_entries || thinned.rows.len() == 1);
            prop_assert_eq!(thinned.rows, fresh.rows);
            prop_assert_eq!(thinned.ends, fresh.ends);
            prop_assert_eq!(thinned.entries, fresh.entries);
        }
    }
}
