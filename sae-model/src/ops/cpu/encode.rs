//! Encoding without a `[B, M]` matrix: scores are computed a tile of rows and concepts at a time, and each tile is
//! searched for what the selection rule may want while it is still in the cache.
//!
//! The tiles of a round (`blocking.rs`) are shared out among the threads; between rounds each row's candidates are put
//! together and bound what comes next. How the work is cut depends on the shape alone and scores do not depend
//! on how they are cut (`product.rs`), so neither threads nor the other rows of a batch change a row's
//! codes (BatchTopK, which chooses from the whole batch, aside).

use std::cell::{Cell, RefCell};

use rayon::prelude::*;

use super::batch_topk::BatchTopK;
use super::blocking::{Round, Tile, rounds};
use super::product::product_nt;
use super::select::{self, Candidates, Chosen, Found, Rule};
use super::simd::Simd;
use crate::ops::codes::Pattern;
use crate::ops::selection::Selection;

/// Rows that one task finishes.
const GRAIN: usize = 64;

/// What is encoded: `z = q E^T + bias` at the latents that take part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    /// Queries q `[B, d]`.
    pub(crate) queries: &'a [f32],
    /// Encoder dictionary E `[M, d]`.
    pub(crate) dictionary: &'a [f32],
    /// Bias `[M]`, or empty.
    pub(crate) bias: &'a [f32],
    /// JumpReLU's thresholds `[M]`, or empty.
    pub(crate) thresholds: &'a [f32],
    /// 0 for latents that are not to be selected whatever their score, else 1 `[M]`; empty for none.
    pub(crate) mask: &'a [f32],
    /// Width d.
    pub(crate) width: usize,
}

/// The codes of a batch.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    /// Activation of each entry.
    pub(crate) values: Vec<f32>,
    /// Score of each entry; only for JumpReLU, whose backward pass needs it.
    pub(crate) scores: Vec<f32>,
    pub(crate) pattern: Pattern,
}

/// Encodes a batch.
pub(crate) fn encode(input: &Input, selection: Selection) -> Encoded {
    encode_with(input, selection, Simd::detect())
}

fn encode_with(input: &Input, selection: Selection, simd: Simd) -> Encoded {
    let pass = Pass { input, simd };
    match selection {
        Selection::Sparsemax(value) => pass.run(&select::Sparsemax(value)),
        Selection::Threshold(t) => pass.run(&select::Threshold(t)),
        Selection::TopK(k) => pass.run(&select::TopK(k)),
        Selection::BatchTopK(k) => {
            let rows = input.queries.len() / input.width;
            pass.run(&BatchTopK { n: k * rows, rows })
        }
        Selection::JumpRelu { bandwidth } => {
            pass.run(&select::JumpRelu::new(input.thresholds, bandwidth))
        }
    }
}

/// Memory that is used again for the next batch.
#[derive(Default)]
struct Scratch {
    /// One a row.
    candidates: Vec<Candidates>,
    /// One a tile.
    found: Vec<Found>,
}

thread_local! {
    /// Of the thread that asks; it is taken while in use, in case the thread is asked again while it waits.
    static SCRATCH: Cell<Scratch> = Cell::default();
    static SCORES: RefCell<Vec<f32>> = RefCell::default();
}

struct Pass<'a> {
    input: &'a Input<'a>,
    simd: Simd,
}

impl Pass<'_> {
    fn run<R: Rule>(&self, rule: &R) -> Encoded {
        let d = self.input.width;
        let (rows, latents) = (
            self.input.queries.len() / d,
            self.input.dictionary.len() / d,
        );
        let mut scratch = SCRATCH.take();
        scratch
            .candidates
            .resize_with(rows.max(scratch.candidates.len()), Candidates::default);
        let candidates = &mut scratch.candidates[..rows];
        candidates.iter_mut().for_each(Candidates::clear);
        let mut to_come = rounds(rows, latents, rule.first_round()).peekable();
        while let Some(round) = to_come.next() {
            let tiles = round.tiles();
            scratch
                .found
                .resize_with(tiles.max(scratch.found.len()), Found::default);
            let found = &mut scratch.found[..tiles];
            found.par_iter_mut().enumerate().for_each(|(i, found)| {
                SCORES.with_borrow_mut(|scores| {
                    self.search(rule, &round.tile(i), candidates, scores, found);
                });
            });
            settle(rule, &round, found, candidates);
            rule.settle_batch(candidates, to_come.peek().is_none());
        }
        let encoded = gather(rule, candidates, latents);
        SCRATCH.set(scratch);
        encoded
    }

    /// Finds the candidates of a tile.
    fn search<R: Rule>(
        &self,
        rule: &R,
        tile: &Tile,
        candidates: &[Candidates],
        scores: &mut Vec<f32>,
        found: &mut Found,
    ) {
        let (width, first) = (tile.latents.len(), tile.latents.start as u32);
        scores.resize(tile.rows.len() * width, 0.0);
        self.score(tile, scores);
        found.clear();
        for (row, candidates) in scores
            .chunks_exact(width)
            .zip(&candidates[tile.rows.clone()])
        {
            rule.feed(self.simd, row, first, candidates.bound(), found);
            found.end_row();
        }
    }

    /// Scores of a tile, `[rows, latents]`; minus infinity, which is above no bound, where a latent is masked.
    fn score(&self, tile: &Tile, scores: &mut [f32]) {
        let Input {
            queries,
            dictionary,
            bias,
            mask,
            width: d,
            ..
        } = *self.input;
        let Tile { rows, latents } = tile.clone();
        let queries = &queries[rows.start * d..rows.end * d];
        product_nt(
            queries,
            &dictionary[latents.start * d..latents.end * d],
            d,
            scores,
        );
        let width = latents.len();
        if let Some(bias) = bias.get(latents.clone()) {
            for row in scores.chunks_exact_mut(width) {
                row.iter_mut().zip(bias).for_each(|(z, b)| *z += b);
            }
        }
        if let Some(mask) = mask.get(latents) {
            for row in scores.chunks_exact_mut(width) {
                let masked = row.iter_mut().zip(mask).filter(|(_, keep)| **keep == 0.0);
                masked.for_each(|(z, _)| *z = f32::NEG_INFINITY);
            }
        }
    }
}

/// Puts together what the tiles of a round have found in each row.
fn settle<R: Rule>(rule: &R, round: &Round, found: &[Found], candidates: &mut [Candidates]) {
    let mut rest = candidates;
    let mut by_tiles = Vec::with_capacity(round.high());
    for i in 0..round.high() {
        let tiles = &found[round.row_of_tiles(i)];
        let (rows, others) = rest.split_at_mut(round.tile(round.row_of_tiles(i).start).rows.len());
        by_tiles.push((rows, tiles));
        rest = others;
    }
    by_tiles.into_par_iter().for_each(|(rows, tiles)| {
        let rows = rows.par_iter_mut().with_min_len(GRAIN).enumerate();
        rows.for_each(|(row, candidates)| {
            tiles
                .iter()
                .for_each(|found| candidates.take_up(found, row));
            rule.settle(candidates);
        });
    });
}

/// Ends every row and lays the rows out one behind the other.
fn gather<R: Rule>(rule: &R, candidates: &mut [Candidates], latents: usize) -> Encoded {
    let finish = |rows: &mut [Candidates]| {
        let mut chosen = Chosen::default();
        for candidates in rows {
            rule.finish_row(candidates, &mut chosen);
            chosen.ends.push(chosen.values.len());
        }
        chosen
    };
    let parts: Vec<Chosen> = candidates.par_chunks_mut(GRAIN).map(finish).collect();
    let mut offsets = Vec::with_capacity(candidates.len() + 1);
    offsets.push(0);
    for part in &parts {
        let start = offsets[offsets.len() - 1];
        offsets.extend(part.ends.iter().map(|end| start + end));
    }
    let (values, (scores, indices)) = rayon::join(
        || laid_out(&parts, |part| &part.values),
        || {
            let scores = || laid_out(&parts, |part| &part.scores);
            rayon::join(scores, || laid_out(&parts, |part| &part.indices))
        },
    );
    Encoded {
        values,
        scores,
        pattern: Pattern::new(latents, offsets, indices),
    }
}

/// One list of each part, one behind the other.
fn laid_out<T: Copy + Default + Send + Sync>(
    parts: &[Chosen],
    list: impl Fn(&Chosen) -> &Vec<T> + Sync,
) -> Vec<T> {
    let mut out = vec![T::default(); parts.iter().map(|part| list(part).len()).sum()];
    let mut places = Vec::with_capacity(parts.len());
    let mut rest = out.as_mut_slice();
    for part in parts {
        let (place, others) = rest.split_at_mut(list(part).len());
        places.push((place, list(part)));
        rest = others;
    }
    places
        .into_par_iter()
        .with_min_len(4)
        .for_each(|(place, list)| place.copy_from_slice(list));
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ops::SparseValue;

    /// Numbers without a pattern that a grid would have.
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

    /// Entries row by row: latent and bits of the value.
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

    /// For each shape and rule: codes on 1, 2, 3 and 8 threads, and of each row without the others.
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

    /// What the rules make of all scores at once, without rounds, tiles and bounds.
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

    /// A masked latent is not selected, whatever its score; where all are, nothing is.
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

    /// Scores of which float64 does not hold one less.
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
}
