//! What a pass over the data finds: everything that training has to know beforehand, and what should make a
//! user look twice.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use rayon::prelude::*;
use twox_hash::XxHash64;

use crate::data::ActivationData;
use crate::error::DataError;

/// Rows that are summed up before they are added to the rest: the sums do not depend on the threads.
const BLOCK: usize = 1024;
/// Blocks in flight at once.
const AT_ONCE: usize = 32;
/// Different rows that are remembered to find repeated ones.
const REMEMBERED: usize = 1 << 18;
/// Bins of the histogram of norms between one power of two and the next.
const BINS_PER_OCTAVE: f64 = 64.0;

/// A pass over a data set. All means are over the rows without NaN or infinity.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Rows looked at.
    pub rows: usize,
    /// `mean(x) [d]`.
    pub mean: Vec<f32>,
    /// `sigma^2 = mean ||x - mean(x)||^2`.
    pub variance: f64,
    /// Values that are NaN or infinite, and the first: (count, row, column, value).
    pub non_finite: Option<(u64, usize, usize, f32)>,
    /// Columns that have one value in all rows.
    pub constant_columns: Vec<usize>,
    /// Rows that come more than once.
    pub duplicates: Duplicates,
    /// Smallest, mean and largest `||x||`.
    pub norms: (f64, f64, f64),
    /// Number of rows with `||x||` from each key's bound (see [`Summary::norm_bound`]) to the next.
    pub norm_histogram: BTreeMap<i32, u64>,
}

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

impl Summary {
    /// Looks at all rows of `data`, or at about `sample` of them, evenly spread (`Some(0)` is all, too). `progress`
    /// hears of rows as they are done.
    ///
    /// # Errors
    /// [`DataError`] if the files cannot be read; what is in them is no error here.
    pub fn of(
        data: &ActivationData,
        sample: Option<usize>,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, DataError> {
        let blocks = data.rows().div_ceil(BLOCK);
        let wanted = match sample.filter(|rows| *rows > 0) {
            None => blocks,
            Some(rows) => rows.div_ceil(BLOCK).clamp(1, blocks),
        };
        let chosen: Vec<usize> = (0..wanted).map(|i| i * blocks / wanted).collect();
        let most = data.together(BLOCK) / BLOCK;
        let mut reads: Vec<Range<usize>> = Vec::new();
        for block in chosen {
            match reads.last_mut() {
                Some(last) if last.end == block && last.len() < most => last.end += 1,
                _ => reads.push(block..block + 1),
            }
        }
        let mut sums = Sums::new(data.width());
        let at_once = (AT_ONCE / most).clamp(rayon::current_num_threads().min(AT_ONCE), AT_ONCE);
        for reads in reads.chunks(at_once) {
            let parts: Vec<Vec<Sums>> = reads
                .par_iter()
                .map(|blocks| Sums::of(data, blocks))
                .collect::<Result<_, _>>()?;
            for part in parts.into_iter().flatten() {
                progress(part.rows);
                sums.add(part);
            }
        }
        Ok(sums.summary())
    }

    /// `||mean(x)|| / sigma`: far above 1, all rows point the same way, and latents that do not start on their
    /// side never fire unless the mean is taken off first (the pre-bias).
    pub fn mean_over_sigma(&self) -> f64 {
        let norm = self
            .mean
            .iter()
            .map(|m| f64::from(*m).powi(2))
            .sum::<f64>()
            .sqrt();
        norm / self.variance.sqrt()
    }

    /// Lower bound of a bin of [`Summary::norm_histogram`].
    pub fn norm_bound(bin: i32) -> f64 {
        (f64::from(bin) / BINS_PER_OCTAVE).exp2()
    }

    /// What should make a user look twice, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.constant_columns.is_empty() {
            let n = self.constant_columns.len();
            warnings.push(format!(
                "{n} of {} columns have one value in all rows (the first is column {})",
                self.mean.len(),
                self.constant_columns[0]
            ));
        }
        if self.duplicates.fraction() > 0.01 {
            let percent = 100.0 * self.duplicates.fraction();
            warnings.push(format!("{percent:.1} % of the rows are copies of others; held-out metrics flatter where copies are on both sides"));
        }
        if self.mean_over_sigma() > 3.0 {
            let ratio = self.mean_over_sigma();
            warnings.push(format!("||mean|| is {ratio:.1} sigma: without a pre-bias many latents would never fire (model.pre_bias = true, model.init_pre_bias = \"mean\")"));
        }
        let (smallest, mean, largest) = self.norms;
        if largest > 20.0 * mean {
            warnings.push(format!("the largest norm is {:.0} times the mean: such rows rule the loss; position 0 of language models is often one (data.drop_first_token)", largest / mean));
        }
        if smallest == 0.0 {
            warnings.push("there are rows of zeros".into());
        }
        warnings
    }
}

/// Sums over some rows.
struct Sums {
    rows: usize,
    /// Rows that the moments are of.
    finite: usize,
    mean: Vec<f64>,
    /// `sum (x - mean)^2` of each column.
    squares: Vec<f64>,
    low: Vec<f32>,
    high: Vec<f32>,
    non_finite: Option<(u64, usize, usize, f32)>,
    norm_sum: f64,
    norms: (f64, f64),
    histogram: BTreeMap<i32, u64>,
    hashes: Hashes,
}

impl Sums {
    fn new(width: usize) -> Self {
        Self {
            rows: 0,
            finite: 0,
            mean: vec![0.0; width],
            squares: vec![0.0; width],
            low: vec![f32::INFINITY; width],
            high: vec![f32::NEG_INFINITY; width],
            non_finite: None,
            norm_sum: 0.0,
            norms: (f64::INFINITY, 0.0),
            histogram: BTreeMap::new(),
            hashes: Hashes::default(),
        }
    }

    /// The sums of each of these blocks, which are read together.
    fn of(data: &ActivationData, blocks: &Range<usize>) -> Result<Vec<Self>, DataError> {
        let rows = blocks.start * BLOCK..(blocks.end * BLOCK).min(data.rows());
        let values = data.read(rows.clone())?;
        let parts = values.chunks(BLOCK * data.width());
        let starts = rows.step_by(BLOCK);
        Ok(starts
            .zip(parts)
            .map(|(start, values)| Self::of_block(data, start, values))
            .collect())
    }

    /// The sums of the block `values` whose first row is `start`.
    fn of_block(data: &ActivationData, start: usize, values: &[f32]) -> Self {
        let width = data.width();
        let mut sums = Self::new(width);
        sums.rows = values.len() / width;
        let mut finite = Vec::with_capacity(sums.rows);
        for (i, row) in values.chunks_exact(width).enumerate() {
            if row.iter().all(|v| v.is_finite()) {
                finite.push(row);
                sums.hashes
                    .add(XxHash64::oneshot(0, bytemuck::cast_slice(row)), 1);
                continue;
            }
            let wrong = row.iter().filter(|v| !v.is_finite()).count() as u64;
            let column = row.iter().position(|v| !v.is_finite()).unwrap_or(0);
            let first = (0, data.row_in_source(start + i), column, row[column]);
            sums.non_finite.get_or_insert(first).0 += wrong;
        }
        sums.finite = finite.len();
        for row in &finite {
            sums.columns(row);
        }
        for mean in &mut sums.mean {
            *mean /= finite.len().max(1) as f64;
        }
        for row in &finite {
            let squares = sums.squares.iter_mut().zip(&sums.mean).zip(*row);
            squares.for_each(|((square, mean), x)| *square += (f64::from(*x) - mean).powi(2));
        }
        sums
    }

    /// Adds a row to everything but the squares.
    fn columns(&mut self, row: &[f32]) {
        self.mean
            .iter_mut()
            .zip(row)
            .for_each(|(sum, x)| *sum += f64::from(*x));
        self.low
            .iter_mut()
            .zip(row)
            .for_each(|(low, x)| *low = low.min(*x));
        self.high
            .iter_mut()
            .zip(row)
            .for_each(|(high, x)| *high = high.max(*x));
        let norm = row
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt();
        self.norm_sum += norm;
        self.norms = (self.norms.0.min(norm), self.norms.1.max(norm));
        let bin = (norm.max(1e-30).log2() * BINS_PER_OCTAVE).floor() as i32;
        *self.histogram.entry(bin).or_default() += 1;
    }

    /// Chan, Golub & LeVeque's update of means and squares; `other` comes behind.
    fn add(&mut self, other: Self) {
        let (n, m) = (self.finite as f64, other.finite as f64);
        let total = (n + m).max(1.0);
        for (i, (mean, squares)) in self.mean.iter_mut().zip(&mut self.squares).enumerate() {
            let delta = other.mean[i] - *mean;
            *mean += delta * m / total;
            *squares += other.squares[i] + delta * delta * n * m / total;
        }
        self.low
            .iter_mut()
            .zip(&other.low)
            .for_each(|(low, x)| *low = low.min(*x));
        self.high
            .iter_mut()
            .zip(&other.high)
            .for_each(|(high, x)| *high = high.max(*x));
        self.non_finite = match (self.non_finite, other.non_finite) {
            (Some((a, row, column, value)), Some((b, ..))) => Some((a + b, row, column, value)),
            (mine, others) => mine.or(others),
        };
        self.rows += other.rows;
        self.finite += other.finite;
        self.norm_sum += other.norm_sum;
        self.norms = (
            self.norms.0.min(other.norms.0),
            self.norms.1.max(other.norms.1),
        );
        for (bin, count) in other.histogram {
            *self.histogram.entry(bin).or_default() += count;
        }
        for (hash, count) in other.hashes.counts {
            self.hashes.add(hash, count);
        }
    }

    fn summary(self) -> Summary {
        let rows = self.finite.max(1) as f64;
        let constant = self.low.iter().zip(&self.high).enumerate();
        Summary {
            rows: self.rows,
            mean: self.mean.iter().map(|m| *m as f32).collect(),
            variance: self.squares.iter().sum::<f64>() / rows,
            non_finite: self.non_finite,
            constant_columns: constant
                .filter(|(_, (low, high))| low == high)
                .map(|(i, _)| i)
                .collect(),
            duplicates: self.hashes.duplicates(),
            norms: (self.norms.0, self.norm_sum / rows, self.norms.1),
            norm_histogram: self.histogram,
        }
    }
}

/// Counts rows by their hashes: all of them while they are few, then those whose hashes end in zeros.
#[derive(Default)]
struct Hashes {
    counts: HashMap<u64, u64>,
    /// Trailing zeros that a hash must have.
    zeros: u32,
}

impl Hashes {
    fn add(&mut self, hash: u64, count: u64) {
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

    fn duplicates(&self) -> Duplicates {
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
