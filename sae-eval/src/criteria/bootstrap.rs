//! Bootstrap intervals: each number is computed again on held-out rows drawn with replacement.
//!
//! All criteria use the same draws. The first "draw" is every row once, so that a number and its interval come from the
//! same code.

use super::sample::mixed;

/// Number of draws, not counting the rows themselves.
pub(crate) const RESAMPLES: usize = 200;
/// Numbers computed together: one for all rows, then one per draw.
pub(crate) const COLUMNS: usize = RESAMPLES + 1;
/// Share of the draws outside an interval.
const OUTSIDE: f64 = 0.05;

/// How often each row is in each draw, `[rows, COLUMNS]`; the first column is 1.
pub(crate) struct Draws {
    times: Vec<u8>,
    rows: usize,
}

impl Draws {
    pub(crate) fn new(rows: usize) -> Self {
        let mut times = vec![0u8; rows * COLUMNS];
        for row in 0..rows {
            times[row * COLUMNS] = 1;
        }
        for draw in 0..RESAMPLES {
            for i in 0..rows {
                let random = mixed((draw * rows + i + 1) as u64) >> 32;
                let row = (random * rows as u64) >> 32;
                let times = &mut times[row as usize * COLUMNS + draw + 1];
                *times = times.saturating_add(1);
            }
        }
        Self { times, rows }
    }

    /// How often a row is in each draw.
    pub(crate) fn of(&self, row: usize) -> &[u8] {
        &self.times[row * COLUMNS..][..COLUMNS]
    }

    /// How often these rows are in each draw, in all.
    pub(crate) fn count(&self, rows: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let mut counts = vec![0; COLUMNS];
        for row in rows {
            let times = self.of(row as usize).iter();
            counts
                .iter_mut()
                .zip(times)
                .for_each(|(n, t)| *n += u32::from(*t));
        }
        counts
    }

    /// Number of rows per draw.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }
}

/// A number, and an interval around it: the 2.5 % and 97.5 % points of the draws, shifted by the number minus the
/// draws' mean.
///
/// Entropies of few rows are too low, and a draw has fewer different rows than the data: without the shift, their
/// interval would lie below the number. Numbers that are right on average (accuracies, F1) hardly move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    pub(crate) value: Option<f64>,
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
}

impl Interval {
    /// From the number on all rows, then one number per draw. Draws whose number is not finite do not count.
    pub(crate) fn of(columns: &[f64]) -> Self {
        let finite = columns[1..].iter().copied().filter(|v| v.is_finite());
        let mut draws: Vec<f64> = finite.collect();
        draws.sort_unstable_by(f64::total_cmp);
        let value = Some(columns[0]).filter(|value| value.is_finite());
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let point = |q| Some(value? + quantile(&draws, q)? - mean);
        Self {
            value,
            low: point(OUTSIDE / 2.0),
            high: point(1.0 - OUTSIDE / 2.0),
        }
    }
}

/// A quantile of sorted numbers, interpolated linearly between neighbours (numpy's default).
pub(crate) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = q * last as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    Some(sorted[low] + part * (sorted[(low + 1).min(last)] - sorted[low]))
}

/// Means of several numbers, column by column; values that are not finite do not count.
pub(crate) struct Means {
    sums: Vec<f64>,
    counts: Vec<u32>,
}

impl Means {
    pub(crate) fn new() -> Self {
        Self {
            sums: vec![0.0; COLUMNS],
            counts: vec![0; COLUMNS],
        }
    }

    pub(crate) fn add(&mut self, columns: &[f64]) {
        let sums = self.sums.iter_mut().zip(&mut self.counts);
        for ((sum, count), value) in sums.zip(columns).filter(|(_, value)| value.is_finite()) {
            *sum += value;
            *count += 1;
        }
    }

    pub(crate) fn interval(&self) -> Interval {
        let means = self.sums.iter().zip(&self.counts);
        let means: Vec<f64> = means.map(|(sum, n)| sum / f64::from(*n)).collect();
        Interval::of(&means)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_draw_has_as_many_rows() {
        let draws = Draws::new(50);
        assert_eq!(draws.count(0..50), vec![50; COLUMNS]);
        assert_eq!(draws.count([3])[0], 1);
        assert!(draws.of(3).iter().any(|times| *times > 1));
    }

    /// The mean of a Bernoulli variable has a known standard error: an interval is 2 * 1.96 standard errors wide.
    #[test]
    fn an_interval_is_as_wide_as_theory_says() {
        let draws = Draws::new(1000);
        let hits = draws.count((0..1000).filter(|row| row % 4 == 0));
        let parts: Vec<f64> = hits.iter().map(|hits| f64::from(*hits) / 1000.0).collect();
        let interval = Interval::of(&parts);
        assert_eq!(interval.value, Some(0.25));
        let width = interval.high.unwrap_or(0.0) - interval.low.unwrap_or(1.0);
        let expected = 2.0 * 1.96 * (0.25f64 * 0.75 / 1000.0).sqrt();
        assert!((width / expected - 1.0).abs() < 0.2, "{width} {expected}"); // 200 draws: 10 % standard error
    }

    #[test]
    fn an_interval_is_around_its_number() {
        let mut columns = vec![1.0; COLUMNS];
        for (i, value) in columns[1..].iter_mut().enumerate() {
            *value = i as f64; // the mean is 99.5, the points are 4.975 and 194.025
        }
        let interval = Interval::of(&columns);
        let close =
            |value: Option<f64>, to: f64| value.is_some_and(|value| (value - to).abs() < 1e-9);
        assert!(
            close(interval.low, 1.0 - 94.525) && close(interval.high, 1.0 + 94.525),
            "{interval:?}"
        );
        columns.fill(f64::NAN);
        assert_eq!(Interval::of(&columns).low, None);
    }

    #[test]
    fn quantiles_by_hand() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), Some(3.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
