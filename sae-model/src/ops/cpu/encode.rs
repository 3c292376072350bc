//! Encoding without a `[B, M]` matrix: scores are computed a panel of concepts at a time, and each panel is
//! searched for what the selection rule may want while it is still in the cache (DESIGN §3).
//!
//! Rows are independent, except for BatchTopK's last step; a block of rows is one thread's work. How rows and
//! concepts are cut changes no result.

use std::cell::RefCell;
use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::select::{self, Candidates, Chosen, Rule};
use super::simd::Simd;
use crate::ops::codes::Pattern;
use crate::ops::selection::Selection;

/// Rows that one thread encodes at a time, at most. More read the dictionary less often, but their scores
/// (`ROWS * PANEL` floats) must stay in the cache.
const ROWS: usize = 1024;
/// Concepts scored at a time, at most.
const PANEL: usize = 512;
/// Rows in a block, at least: `gemm` adds up a product of very few rows in another order.
const MIN_ROWS: usize = 16;

/// What is encoded: `z = mask * (q E^T) + bias`.
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
    /// 1 for latents that take part, 0 for those whose score is set to zero `[M]`, or empty.
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
    let rows = input.queries.len() / input.width;
    // Two blocks a thread at least, so that a thread that is held up does not hold up the others.
    let share = rows.div_ceil(2 * rayon::current_num_threads());
    encode_in_blocks(
        input,
        selection,
        share.clamp(MIN_ROWS, ROWS),
        PANEL,
        Simd::detect(),
    )
}

/// `0..n` in stretches of nearly equal length, at most `longest`.
fn stretches(n: usize, longest: usize) -> impl Iterator<Item = Range<usize>> {
    let count = n.div_ceil(longest);
    (0..count).map(move |i| n * i / count..n * (i + 1) / count)
}

/// [`encode`] with blocks of at most `block` rows and panels of at most `panel` concepts.
pub(crate) fn encode_in_blocks(
    input: &Input,
    selection: Selection,
    block: usize,
    panel: usize,
    simd: Simd,
) -> Encoded {
    let rows = input.queries.len() / input.width;
    match selection {
        Selection::Sparsemax(value) => Blocks {
            input,
            block,
            panel,
            simd,
        }
        .run(&select::Sparsemax(value)),
        Selection::Threshold(t) => Blocks {
            input,
            block,
            panel,
            simd,
        }
        .run(&select::Threshold(t)),
        Selection::TopK(k) => Blocks {
            input,
            block,
            panel,
            simd,
        }
        .run(&select::TopK(k)),
        Selection::BatchTopK(k) => Blocks {
            input,
            block,
            panel,
            simd,
        }
        .run(&select::BatchTopK(k * rows)),
        Selection::JumpRelu { bandwidth } => {
            let rule = select::JumpRelu::new(input.thresholds, bandwidth);
            Blocks {
                input,
                block,
                panel,
                simd,
            }
            .run(&rule)
        }
    }
}

struct Blocks<'a> {
    input: &'a Input<'a>,
    block: usize,
    panel: usize,
    simd: Simd,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Memory that a thread uses again for each block, and for the next batch.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    candidates: Vec<Candidates>,
}

impl Blocks<'_> {
    fn run<R: Rule>(&self, rule: &R) -> Encoded {
        let latents = self.input.dictionary.len() / self.input.width;
        let d = self.input.width;
        let rows = self.input.queries.len() / d;
        let encode = |rows: Range<usize>| {
            let queries = &self.input.queries[rows.start * d..rows.end * d];
            SCRATCH.with_borrow_mut(|scratch| self.encode_block(rule, queries, scratch))
        };
        let blocks: Vec<Chosen> = {
            let blocks: Vec<Range<usize>> = stretches(rows, self.block).collect();
            blocks.into_par_iter().map(encode).collect()
        };
        let mut batch = Chosen::default();
        blocks.into_iter().for_each(|block| batch.append(block));
        rule.finish_batch(&mut batch);
        let offsets = std::iter::once(0).chain(batch.ends).collect();
        Encoded {
            values: batch.values,
            scores: batch.scores,
            pattern: Pattern::new(latents, offsets, batch.indices),
        }
    }

    fn encode_block<R: Rule>(&self, rule: &R, queries: &[f32], scratch: &mut Scratch) -> Chosen {
        let d = self.input.width;
        let (rows, latents) = (queries.len() / d, self.input.dictionary.len() / d);
        scratch.candidates.resize_with(rows, Candidates::default);
        scratch.candidates.iter_mut().for_each(Candidates::clear);
        scratch.scores.resize(rows * self.panel.min(latents), 0.0);
        for panel in stretches(latents, self.panel) {
            let (first, width) = (panel.start, panel.len());
            let scores = &mut scratch.scores[..rows * width];
            self.score(queries, first, width, scores);
            for (row, candidates) in scores.chunks_exact(width).zip(&mut scratch.candidates) {
                rule.feed(self.simd, row, first as u32, candidates);
            }
            rule.after_panel(&mut scratch.candidates);
        }
        let mut chosen = Chosen::default();
        for candidates in &mut scratch.candidates {
            rule.finish_row(candidates, &mut chosen);
            chosen.ends.push(chosen.values.len());
        }
        chosen
    }

    /// Scores of `[rows, d]` queries against concepts `first..first + width`, `[rows, width]`.
    fn score(&self, queries: &[f32], first: usize, width: usize, scores: &mut [f32]) {
        let d = self.input.width;
        product_nt(
            queries,
            &self.input.dictionary[first * d..][..width * d],
            d,
            scores,
            Parallelism::None,
        );
        if let Some(mask) = self.input.mask.get(first..first + width) {
            for row in scores.chunks_exact_mut(width) {
                row.iter_mut().zip(mask).for_each(|(z, m)| *z *= m);
            }
        }
        if let Some(bias) = self.input.bias.get(first..first + width) {
            for row in scores.chunks_exact_mut(width) {
                row.iter_mut().zip(bias).for_each(|(z, b)| *z += b);
            }
        }
    }
}

/// `out = a b^T`: `a [rows, d]`, `b [columns, d]`, `out [rows, columns]`, all row-major.
pub(crate) fn product_nt(
    a: &[f32],
    b: &[f32],
    d: usize,
    out: &mut [f32],
    parallelism: Parallelism,
) {
    let (rows, columns) = (a.len() / d, b.len() / d);
    assert!(a.len() == rows * d && b.len() == columns * d && out.len() == rows * columns);
    let (out_row, d_row) = (columns as isize, d as isize);
    // SAFETY: the three slices have exactly the extents that the sizes and strides describe, as just
    // asserted, and `out`, being borrowed mutably, overlaps neither input.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            d,
            out.as_mut_ptr(),
            1,
            out_row,
            false,
            a.as_ptr(),
            1,
            d_row,
            b.as_ptr(),
            d_row,
            1,
            0.0f32,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::SparseValue;

    /// Numbers without a pattern that a grid would have.
    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn blocks_panels_and_threads_change_no_bit() {
        let (rows, latents, d) = (37, 1301, 19);
        let (queries, dictionary) = (noise(rows * d, 1), noise(latents * d, 2));
        let thresholds = vec![0.4; latents];
        let input = Input {
            queries: &queries,
            dictionary: &dictionary,
            bias: &[],
            thresholds: &thresholds,
            mask: &[],
            width: d,
        };
        for selection in [
            Selection::Sparsemax(SparseValue::Probability),
            Selection::Threshold(0.2),
            Selection::TopK(7),
            Selection::BatchTopK(7),
            Selection::JumpRelu { bandwidth: 0.2 },
        ] {
            let simd = Simd::detect();
            let whole = encode_in_blocks(&input, selection, rows, latents, simd);
            assert!(!whole.pattern.is_empty());
            for (block, panel) in [(10, 512), (16, 64), (19, 100), (37, 33)] {
                let cut = encode_in_blocks(&input, selection, block, panel, simd);
                assert_eq!(
                    cut.pattern.indices(),
                    whole.pattern.indices(),
                    "{selection:?}"
                );
                let bits = |e: &Encoded| e.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&cut), bits(&whole), "{selection:?} {block} {panel}");
            }
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let there = pool.expect("a pool").install(|| encode(&input, selection));
                assert_eq!(
                    there.values,
                    encode(&input, selection).values,
                    "{selection:?}"
                );
            }
        }
    }
}
