//! Class entropy of a latent, the paper's measure of how specific it is: the entropy of its activation mass over the
//! classes.

use rayon::prelude::*;

use super::bootstrap::{COLUMNS, Draws, Interval, Means, quantile};
use super::sample::Columns;

/// Latents that are active on fewer held-out rows are left out, as in the paper's code.
pub(super) const MIN_ROWS: usize = 10;
/// Latents with an entropy below this count as specific.
pub(super) const SPECIFIC: f64 = 0.5;
/// Latents that a thread takes at a time.
const CHUNK: usize = 64;

/// The number of latents that are active on at least [`MIN_ROWS`] rows, the mean and median of their entropies, and the
/// share of them below [`SPECIFIC`].
pub(super) struct Entropies {
    pub(super) latents: usize,
    pub(super) mean: Interval,
    pub(super) median: Interval,
    pub(super) specific: Interval,
}

/// Entropies of the latents over the classes of the held-out rows.
pub(super) fn entropies(held_out: &Columns, draws: &Draws) -> Entropies {
    let often: Vec<usize> = (0..held_out.latents())
        .filter(|j| held_out.of(*j).len() >= MIN_ROWS)
        .collect();
    let present = held_out
        .labels
        .rows
        .iter()
        .filter(|rows| **rows > 0)
        .count();
    let each: Vec<Vec<f64>> = often
        .par_chunks(CHUNK)
        .flat_map_iter(|chunk| {
            let mut mass = vec![0.0; held_out.labels.rows.len() * COLUMNS];
            let of = move |j: &usize| of_latent(held_out, *j, draws, present, &mut mass);
            chunk.iter().map(of).collect::<Vec<_>>()
        })
        .collect();
    let mut mean = Means::new();
    each.iter().for_each(|entropies| mean.add(entropies));
    let mut medians = vec![f64::NAN; COLUMNS];
    let mut parts = medians.clone();
    for column in 0..COLUMNS {
        let values = each.iter().map(|entropies| entropies[column]);
        let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        values.sort_unstable_by(f64::total_cmp);
        medians[column] = quantile(&values, 0.5).unwrap_or(f64::NAN);
        parts[column] =
            values.partition_point(|value| *value < SPECIFIC) as f64 / values.len() as f64;
    }
    Entropies {
        latents: often.len(),
        mean: mean.interval(),
        median: Interval::of(&medians),
        specific: Interval::of(&parts),
    }
}

/// `-sum_c p_c ln p_c / ln C` of one latent in every draw, where `p_c` is the share of `sum |a_j|` on rows of class c;
/// NaN if the latent is never active. `mass [classes, COLUMNS]` is zero before and after.
fn of_latent(
    held_out: &Columns,
    j: usize,
    draws: &Draws,
    classes: usize,
    mass: &mut [f64],
) -> Vec<f64> {
    let class = |row: &u32| held_out.labels.of[*row as usize] as usize;
    let mut total = vec![0.0; COLUMNS];
    for (row, a) in held_out.of(j) {
        let (a, mass) = (
            f64::from(a.abs()),
            &mut mass[class(row) * COLUMNS..][..COLUMNS],
        );
        for ((mass, total), times) in mass.iter_mut().zip(&mut total).zip(draws.of(*row as usize)) {
            *mass += a * f64::from(*times);
            *total += a * f64::from(*times);
        }
    }
    let mut entropies = vec![0.0; COLUMNS];
    for (row, _) in held_out.of(j) {
        let mass = &mut mass[class(row) * COLUMNS..][..COLUMNS];
        if mass[0] == 0.0 {
            continue; // done at the class's first row
        }
        for ((mass, total), entropy) in mass.iter_mut().zip(&total).zip(&mut entropies) {
            let p = *mass / total;
            *entropy -= if *mass > 0.0 { p * p.ln() } else { 0.0 };
            *mass = 0.0;
        }
    }
    let most = (classes as f64).ln(); // 0 with a single class: all entropies are NaN
    let each = entropies.iter().zip(&total);
    each.map(|(entropy, total)| {
        if *total > 0.0 {
            entropy / most
        } else {
            f64::NAN
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::columns;
    use super::*;

    #[test]
    fn entropies_by_hand() {
        // Latent 0: all in class 0. Latent 1: the same mass in both. Latent 2: 3/4 and 1/4. Latent 3: active on 9 rows.
        let mut dense = Vec::new();
        let labels: Vec<u32> = (0..20).map(|row| row % 2).collect();
        for row in 0..20 {
            let first = row % 2 == 0;
            dense.extend([
                if first { 2.0 } else { 0.0 },
                if first { -1.0 } else { 1.0 },
                if first { 3.0 } else { 1.0 },
                if row < 9 { 1.0 } else { 0.0 },
            ]);
        }
        let held_out = columns(&dense, 4, &labels, 2);
        let found = entropies(&held_out, &Draws::new(20));
        assert_eq!(found.latents, 3);
        let quarter = -(0.75f64 * 0.75f64.log2() + 0.25 * 0.25f64.log2());
        let close = |value: Option<f64>, to: f64| {
            assert!(
                (value.unwrap_or(f64::NAN) - to).abs() < 1e-12,
                "{value:?} {to}"
            )
        };
        close(found.mean.value, (0.0 + 1.0 + quarter) / 3.0);
        close(found.median.value, quarter);
        close(found.specific.value, 1.0 / 3.0);
        assert!(found.mean.low < found.mean.value && found.mean.value < found.mean.high);
    }
}
