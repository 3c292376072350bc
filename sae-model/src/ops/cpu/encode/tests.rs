//! The cut of the work changes no codes, and masked latents are not selected.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::ops::SparseValue;

/// Pseudo-random numbers in [-0.5, 0.5), which do not lie on a coarse grid.
pub(in super::super) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

const SELECTIONS: [Selection; 6] = [
    Selection::Sparsemax(SparseValue::Probability),
    Selection::Sparsemax(SparseValue::Score),
    Selection::Threshold(0.2),
    Selection::TopK(7),
    Selection::BatchTopK(7),
    Selection::JumpRelu { bandwidth: 0.2 },
];

/// The entries of each row, as (latent, bits of the value).
fn rows_of(encoded: &Encoded) -> Vec<Vec<(u32, u32)>> {
    let pattern = &encoded.pattern;
    let of_row = |row| {
        let entries = pattern.row(row);
        entries
            .map(|e| (pattern.indices()[e], encoded.values[e].to_bits()))
            .collect()
    };
    (0..pattern.rows()).map(of_row).collect()
}

/// Compares, for each shape and rule, the codes on 1, 2, 3 and 8 threads and the codes of single rows.
#[test]
fn neither_threads_nor_other_rows_change_a_row() {
    for (rows, latents, d) in [
        (1, 1, 1),
        (7, 3, 2),
        (37, 1301, 19),
        (64, 48, 640),
        (512, 48, 640),
        (70, 200, 96),
        (130, 3, 384),
        (5, 513, 1100),
        (1030, 6, 33),
        (300, 1700, 64),
    ] {
        let (queries, dictionary) = (noise(rows * d, 1), noise(latents * d, 2));
        let thresholds = vec![0.4; latents];
        let on = |threads: usize, queries: &[f32], selection| {
            let input = Input {
                queries,
                dictionary: &dictionary,
                bias: &[],
                thresholds: &thresholds,
                mask: &[],
                width: d,
            };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            rows_of(&pool.unwrap().install(|| encode(&input, selection)))
        };
        for selection in SELECTIONS {
            let one = on(1, &queries, selection);
            for threads in [2, 3, 8] {
                assert_eq!(
                    on(threads, &queries, selection),
                    one,
                    "{selection:?} {rows} {latents} {d}"
                );
            }
            if matches!(selection, Selection::BatchTopK(_)) {
                continue;
            }
            for row in [0, rows / 2, rows - 1] {
                let alone = on(1, &queries[row * d..][..d], selection);
                assert_eq!(
                    alone[0], one[row],
                    "{selection:?} {rows} {latents} {d} row {row}"
                );
            }
        }
    }
}

/// Compares with the rules applied to all scores at once, without rounds, tiles and bounds.
#[test]
fn rounds_find_what_the_whole_row_holds() {
    let (rows, latents, d) = (9, 2600, 8);
    let (queries, dictionary) = (noise(rows * d, 3), noise(latents * d, 4));
    let mut scores = vec![0.0; rows * latents];
    product_nt(&queries, &dictionary, d, &mut scores);
    let input = Input {
        queries: &queries,
        dictionary: &dictionary,
        bias: &[],
        thresholds: &[],
        mask: &[],
        width: d,
    };
    let chosen = |selection| rows_of(&encode(&input, selection));
    let entries = |row: usize, wanted: &dyn Fn(f32) -> bool| -> Vec<(u32, u32)> {
        let row = scores[row * latents..][..latents].iter().enumerate();
        let wanted = row.filter(|(_, z)| wanted(**z));
        wanted.map(|(j, z)| (j as u32, z.to_bits())).collect()
    };
    let nth = |scores: &[f32], n: usize| {
        let mut sorted = scores.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted[n - 1]
    };
    for k in [1, 7, 600, 2500] {
        let bound = nth(&scores, k * rows);
        for (row, codes) in chosen(Selection::BatchTopK(k)).iter().enumerate() {
            assert_eq!(
                *codes,
                entries(row, &|z| z >= bound && z > 0.0),
                "batch, k = {k}"
            );
        }
        for (row, codes) in chosen(Selection::TopK(k)).iter().enumerate() {
            let bound = nth(&scores[row * latents..][..latents], k);
            assert_eq!(*codes, entries(row, &|z| z >= bound && z > 0.0), "k = {k}");
        }
    }
    for (row, codes) in chosen(Selection::Sparsemax(SparseValue::Score))
        .iter()
        .enumerate()
    {
        let row_scores = &scores[row * latents..][..latents];
        let tau = (1..=latents).map(|n| {
            let mut sorted: Vec<f64> = row_scores.iter().map(|z| f64::from(*z)).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            (sorted[..n].iter().sum::<f64>() - 1.0) / n as f64
        });
        let tau = if row > 1 {
            continue;
        } else {
            tau.fold(f64::NEG_INFINITY, f64::max)
        };
        assert_eq!(*codes, entries(row, &|z| f64::from(z) > tau), "row {row}");
    }
}

/// A masked latent is not selected, whatever its score. If all are masked, nothing is selected.
#[test]
fn masked_latents_leave_the_selection() {
    let (rows, latents, d) = (5, 700, 4);
    let (queries, dictionary) = (noise(rows * d, 5), noise(latents * d, 6));
    let (bias, thresholds) = (vec![9.0; latents], vec![0.1; latents]);
    for selection in SELECTIONS {
        for left in [0, 1, 3] {
            let mask: Vec<f32> = (0..latents)
                .map(|j| f32::from(u8::from(j % 4 < left)))
                .collect();
            let input = Input {
                queries: &queries,
                dictionary: &dictionary,
                bias: &bias,
                thresholds: &thresholds,
                mask: &mask,
                width: d,
            };
            let encoded = encode(&input, selection);
            assert_eq!(encoded.pattern.is_empty(), left == 0, "{selection:?}");
            assert!(
                encoded
                    .pattern
                    .indices()
                    .iter()
                    .all(|j| mask[*j as usize] == 1.0)
            );
            assert!(encoded.values.iter().all(|a| a.is_finite()));
        }
    }
}

/// BatchTopK, with the largest number of candidates that the batch had.
struct Watched(BatchTopK, AtomicUsize);

impl Rule for Watched {
    fn first_round(&self) -> usize {
        self.0.first_round()
    }

    fn feed(&self, simd: Simd, scores: &[f32], first: u32, bound: f32, found: &mut Found) {
        self.0.feed(simd, scores, first, bound, found);
    }

    fn settle_batch(&self, rows: &mut [Candidates], last: bool) {
        let total = rows.iter().map(Candidates::len).sum();
        self.1.fetch_max(total, Ordering::Relaxed);
        self.0.settle_batch(rows, last);
    }

    fn finish_row(&self, row: &mut Candidates, out: &mut Chosen) {
        self.0.finish_row(row, out);
    }
}

/// The number in docs/PERFORMANCE.md: about 2 k B candidates for the whole batch.
#[test]
fn batch_topk_never_holds_three_times_what_it_chooses() {
    let (rows, latents, d, k) = (256, 6144, 16, 32);
    let input = Input {
        queries: &noise(rows * d, 7),
        dictionary: &noise(latents * d, 8),
        bias: &[],
        thresholds: &[],
        mask: &[],
        width: d,
    };
    let rule = Watched(BatchTopK { n: k * rows, rows }, AtomicUsize::new(0));
    let pass = Pass {
        input: &input,
        simd: Simd::detect(),
    };
    assert_eq!(pass.run(&rule).pattern.len(), k * rows);
    let most = rule.1.into_inner();
    assert!(
        most <= 3 * k * rows,
        "{most} candidates for {} entries",
        k * rows
    );
}

/// Scores so large that `z - 1` equals `z` in float64.
#[test]
fn very_large_scores_keep_their_support() {
    for value in [SparseValue::Probability, SparseValue::Score] {
        let dictionary = [1e20, 1e20, -3e20, 5e19];
        let input = Input {
            queries: &[1.0],
            dictionary: &dictionary,
            bias: &[],
            thresholds: &[],
            mask: &[],
            width: 1,
        };
        let encoded = encode(&input, Selection::Sparsemax(value));
        assert_eq!(encoded.pattern.indices(), [0, 1]);
        let expected = if value == SparseValue::Score {
            1e20
        } else {
            0.5
        };
        assert_eq!(encoded.values, [expected; 2]);
    }
}
