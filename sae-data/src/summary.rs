//! One pass over the data: the statistics that training needs, and findings that a user should look at.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::Range;

use rayon::prelude::*;
use twox_hash::XxHash64;

use crate::data::ActivationData;
use crate::duplicates::{Duplicates, Hashes};
use crate::error::DataError;
use crate::limit::{MEDIANS, norm};
use crate::moments::Moments;

/// Rows that are summed up before they are added to the total, so that sums do not depend on the threads.
const BLOCK: usize = 1024;
/// Blocks that are in memory at a time.
const AT_ONCE: usize = 32;
/// Bins per octave of the histogram of norms.
const BINS_PER_OCTAVE: f64 = 64.0;

/// Number of these bins that share moments: eight groups per octave.
const BINS_PER_MOMENTS: i32 = 8;

/// The bin of a norm.
fn norm_bin(norm: f64) -> i32 {
    (norm.max(1e-30).log2() * BINS_PER_OCTAVE).floor() as i32
}

/// Result of a pass over a data set. All means are over the rows without NaN or infinity.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Number of rows read.
    pub rows: usize,
    /// `mean(x) [d]`.
    pub mean: Vec<f32>,
    /// `sigma^2 = mean ||x - mean(x)||^2`.
    pub variance: f64,
    /// Statistics without rows of huge norm, from which training derives scales and initial values.
    pub typical: Statistics,
    /// The rows that `typical` leaves out.
    pub beyond: Beyond,
    /// Number of values that are NaN or infinite, and the first of them: (count, row, column, value).
    pub non_finite: Option<(u64, usize, usize, f32)>,
    /// Columns with the same value in all rows.
    pub constant_columns: Vec<usize>,
    /// Rows that occur more than once.
    pub duplicates: Duplicates,
    /// Smallest, mean and largest `||x||`.
    pub norms: (f64, f64, f64),
    /// Number of rows with `||x||` from each key's bound (see [`Summary::norm_bound`]) to the next.
    pub norm_histogram: BTreeMap<i32, u64>,
}

/// Statistics of the rows with a norm of at most about 10 times the median ([`Beyond::limit`]), whatever `data.max_norm`:
/// one row in ten thousand with a hundred times the usual norm would double `sigma^2`.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// `mean(x) [d]`.
    pub mean: Vec<f32>,
    /// `sigma^2 = mean ||x - mean(x)||^2`.
    pub variance: f64,
    /// Median of `||x||`, to 0.6 %.
    pub median_norm: f64,
}

impl Statistics {
    /// `||mean(x)|| / sigma`: far above 1, all rows have a similar direction, and latents that start on the other side never
    /// fire unless the mean is subtracted first (the pre-bias).
    pub fn mean_over_sigma(&self) -> f64 {
        mean_over_sigma(&self.mean, self.variance)
    }
}

fn mean_over_sigma(mean: &[f32], variance: f64) -> f64 {
    let square: f64 = mean.iter().map(|m| f64::from(*m).powi(2)).sum();
    square.sqrt() / variance.sqrt()
}

/// Rows with a norm of at least `limit`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beyond {
    /// 10 times the median norm, rounded up to the next of eight steps to the octave.
    pub limit: f64,
    /// Number of such rows among the rows read.
    pub rows: usize,
    /// Their share of `sum ||x - mean(x)||^2`.
    pub variance_share: f64,
}

impl Summary {
    /// Reads all rows of `data`, or about `sample` evenly spread rows (`Some(0)` also means all). `progress` is called with
    /// the number of rows after each step.
    ///
    /// # Errors
    /// [`DataError`] if the files cannot be read; no value in them is an error here.
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

    /// [`Statistics::mean_over_sigma`] of all rows.
    pub fn mean_over_sigma(&self) -> f64 {
        mean_over_sigma(&self.mean, self.variance)
    }

    /// Lower bound of a bin of [`Summary::norm_histogram`].
    pub fn norm_bound(bin: i32) -> f64 {
        (f64::from(bin) / BINS_PER_OCTAVE).exp2()
    }

    /// Findings that a user should look at, one sentence each.
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
        let Beyond {
            rows,
            variance_share,
            limit,
        } = self.beyond;
        if rows > 0 {
            warnings.push(format!("{rows} rows of norm {limit:.4} and more, {:.1} times the median, have {:.1} % of the variance: such rows rule the loss (data.max_norm = \"10x median\" leaves them out)", limit / self.typical.median_norm, 100.0 * variance_share));
        }
        if self.norms.0 == 0.0 {
            warnings.push("there are rows of zeros".into());
        }
        warnings
    }
}

/// Sums over some rows.
struct Sums {
    rows: usize,
    /// Moments of the finite rows by bin of their norm: the typical ones are known only after the last row.
    moments: BTreeMap<i32, Moments>,
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
            moments: BTreeMap::new(),
            low: vec![f32::INFINITY; width],
            high: vec![f32::NEG_INFINITY; width],
            non_finite: None,
            norm_sum: 0.0,
            norms: (f64::INFINITY, 0.0),
            histogram: BTreeMap::new(),
            hashes: Hashes::default(),
        }
    }

    /// The sums of each of these blocks, which are read in one call.
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
        let mut finite: BTreeMap<i32, Vec<&[f32]>> = BTreeMap::new();
        for (i, row) in values.chunks_exact(width).enumerate() {
            if row.iter().all(|v| v.is_finite()) {
                sums.hashes
                    .add(XxHash64::oneshot(0, bytemuck::cast_slice(row)), 1);
                let bin = sums.add_row(row).div_euclid(BINS_PER_MOMENTS);
                finite.entry(bin).or_default().push(row);
                continue;
            }
            let wrong = row.iter().filter(|v| !v.is_finite()).count() as u64;
            let column = row.iter().position(|v| !v.is_finite()).unwrap_or(0);
            let first = (0, data.row_in_source(start + i), column, row[column]);
            sums.non_finite.get_or_insert(first).0 += wrong;
        }
        let moments = finite.iter();
        sums.moments = moments
            .map(|(bin, rows)| (*bin, Moments::of(rows, width)))
            .collect();
        sums
    }

    /// Adds a row to everything but the moments; returns the bin of its norm.
    fn add_row(&mut self, row: &[f32]) -> i32 {
        each(&mut self.low, row, f32::min);
        each(&mut self.high, row, f32::max);
        let norm = norm(row);
        self.norm_sum += norm;
        self.norms = (self.norms.0.min(norm), self.norms.1.max(norm));
        let bin = norm_bin(norm);
        *self.histogram.entry(bin).or_default() += 1;
        bin
    }

    /// Adds the sums of later rows.
    fn add(&mut self, other: Self) {
        for (bin, moments) in other.moments {
            let mine = self.moments.entry(bin);
            mine.and_modify(|mine| mine.add(&moments))
                .or_insert(moments);
        }
        each(&mut self.low, &other.low, f32::min);
        each(&mut self.high, &other.high, f32::max);
        self.non_finite = match (self.non_finite, other.non_finite) {
            (Some((a, row, column, value)), Some((b, ..))) => Some((a + b, row, column, value)),
            (mine, others) => mine.or(others),
        };
        self.rows += other.rows;
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

    /// Median of the norms, as the middle of its bin of the histogram; 0 if no row is finite.
    fn median_norm(&self) -> f64 {
        let rows: u64 = self.histogram.values().sum();
        let mut before = 0;
        let bin = self.histogram.iter().find_map(|(bin, count)| {
            before += count;
            (2 * before >= rows).then_some(*bin)
        });
        bin.map_or(0.0, |bin| {
            Summary::norm_bound(bin) * (0.5 / BINS_PER_OCTAVE).exp2()
        })
    }

    fn summary(self) -> Summary {
        let width = self.low.len();
        let median_norm = self.median_norm();
        let last = norm_bin(MEDIANS * median_norm).div_euclid(BINS_PER_MOMENTS);
        let of = |bins: btree_map::Range<i32, Moments>| {
            let mut sum = Moments::new(width);
            bins.for_each(|(_, moments)| sum.add(moments));
            sum
        };
        let (typical, beyond) = (
            of(self.moments.range(..=last)),
            of(self.moments.range(last + 1..)),
        );
        let mut all = typical.clone();
        all.add(&beyond);
        let constant = self.low.iter().zip(&self.high).enumerate();
        Summary {
            rows: self.rows,
            mean: all.mean_f32(),
            variance: all.variance(),
            typical: Statistics {
                mean: typical.mean_f32(),
                variance: typical.variance(),
                median_norm,
            },
            beyond: Beyond {
                limit: Summary::norm_bound((last + 1) * BINS_PER_MOMENTS),
                rows: beyond.rows,
                variance_share: beyond.squares_about(&all.mean) / all.squares(),
            },
            non_finite: self.non_finite,
            constant_columns: constant
                .filter(|(_, (low, high))| low == high)
                .map(|(i, _)| i)
                .collect(),
            duplicates: self.hashes.duplicates(),
            norms: (
                self.norms.0,
                self.norm_sum / all.rows.max(1) as f64,
                self.norms.1,
            ),
            norm_histogram: self.histogram,
        }
    }
}

/// Replaces every bound by `of(bound, x)`.
fn each(bounds: &mut [f32], row: &[f32], of: impl Fn(f32, f32) -> f32) {
    for (bound, x) in bounds.iter_mut().zip(row) {
        *bound = of(*bound, *x);
    }
}
