//! Encoding without a `[B, M]` matrix: scores are computed one tile (rows by concepts) at a time, and each tile is
//! searched for candidates of the selection rule while it is still in the cache.
//!
//! The threads share the tiles of a round (`blocking.rs`). After each round, the candidates of each row are merged and
//! bound the scores of later rounds. The cut depends on the shape alone, and scores do not depend on the cut
//! (`product.rs`). So neither the number of threads nor the other rows of a batch change a row's codes, except with
//! BatchTopK, which chooses from the whole batch.

use std::cell::{Cell, RefCell};

use rayon::prelude::*;

use super::batch_topk::BatchTopK;
use super::blocking::{Round, Tile, rounds};
use super::product::product_nt;
use super::select::{self, Candidates, Chosen, Found, Rule};
use super::simd::Simd;
use crate::ops::codes::Pattern;
use crate::ops::selection::Selection;

/// Rows per task: the minimum where candidates are merged, the number where rows are finished.
const GRAIN: usize = 64;

/// The input of the encoder, which computes `z = q E^T + bias` at the latents that are not masked.
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
    /// 0 for latents that must not be selected, else 1, `[M]`; empty if none is masked.
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

/// What a rule keeps of candidates of each row that it has kept of some of the latents each, in ascending order of latents: the
/// indices of the entries are their places among the candidates of their row.
///
/// # Panics
/// If the rule looks at each score by itself: then they are what it keeps.
pub(crate) fn of_candidates(rows: Vec<Vec<f32>>, selection: Selection) -> Encoded {
    let most = rows.iter().map(Vec::len).max().unwrap_or_default();
    let mut candidates: Vec<Candidates> = rows.into_iter().map(Candidates::of).collect();
    match selection {
        Selection::Sparsemax(value) => gather(&select::Sparsemax(value), &mut candidates, most),
        Selection::TopK(k) => gather(&select::TopK(k), &mut candidates, most),
        Selection::BatchTopK(k) => {
            let rows = candidates.len();
            let rule = BatchTopK { n: k * rows, rows };
            rule.settle_batch(&mut candidates, true);
            gather(&rule, &mut candidates, most)
        }
        Selection::Threshold(_) | Selection::JumpRelu { .. } => {
            unreachable!("nothing is left to be decided")
        }
    }
}

/// Memory that is reused for the next batch.
#[derive(Default)]
struct Scratch {
    /// One per row.
    candidates: Vec<Candidates>,
    /// One per tile.
    found: Vec<Found>,
}

thread_local! {
    /// Belongs to the calling thread. It is taken out while in use, because this thread may begin another batch while
    /// it waits for the pool.
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

    /// Computes the scores of a tile, `[rows, latents]`. Masked latents get minus infinity, which is above no bound.
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

/// Merges the candidates that the tiles of a round have found in each row.
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

/// Finishes every row and concatenates the rows.
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

/// Concatenates one list of each part.
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
pub(super) mod tests;
