//! Latents that fire on the same rows, by the codes of a sample of rows.

use rayon::prelude::*;

use super::decoder::{Near, insert};
use crate::criteria::sample::{Labels, Sample};

/// Latents that are kept for each.
const NEAREST: usize = 5;
/// Rows of the sample on which both must fire.
const LEAST: u32 = 2;
/// Latents that a thread takes at a time.
const CHUNK: usize = 256;

/// For each latent those with the largest Jaccard index `#{ both fire } / #{ one of them fires }` over the sampled rows.
pub(super) fn together(sample: Sample, latents: usize) -> Vec<Vec<Near>> {
    let rows = sample.rows().len();
    let mut offsets = vec![0; rows + 1];
    let mut by_row = Vec::new();
    for (row, latent) in sample.active() {
        by_row.push(latent);
        offsets[row as usize + 1] = by_row.len();
    }
    for row in 1..=rows {
        offsets[row] = offsets[row].max(offsets[row - 1]); // rows without an active latent
    }
    let columns = sample.into_columns(latents, Labels::new(vec![0; rows], 1));
    let fired: Vec<u32> = (0..latents).map(|j| columns.of(j).len() as u32).collect();
    let all: Vec<usize> = (0..latents).collect();
    all.par_chunks(CHUNK)
        .flat_map_iter(|chunk| {
            let (mut both, mut touched) = (vec![0u32; latents], Vec::new());
            let mut of = |j: usize| {
                for (row, _) in columns.of(j) {
                    let row = *row as usize;
                    for other in &by_row[offsets[row]..offsets[row + 1]] {
                        if both[*other as usize] == 0 {
                            touched.push(*other);
                        }
                        both[*other as usize] += 1;
                    }
                }
                touched.sort_unstable();
                let mut near = Vec::new();
                for other in touched.drain(..) {
                    let n = std::mem::take(&mut both[other as usize]);
                    let either = fired[j] + fired[other as usize] - n;
                    if other as usize != j && n >= LEAST {
                        insert(&mut near, (other, n as f32 / either as f32), NEAREST);
                    }
                }
                near
            };
            chunk.iter().map(|j| of(*j)).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let mut sample = Sample::new(5, 5);
        sample.push(0, &[0, 1], &[1.0, 1.0]);
        sample.push(1, &[], &[]);
        sample.push(2, &[0, 1, 2], &[1.0, 0.5, 2.0]);
        sample.push(3, &[0, 2], &[1.0, 0.0]);
        sample.push(4, &[2, 3], &[1.0, 1.0]);
        let near = together(sample, 5);
        assert_eq!(near[0], [(1, 2.0 / 3.0)]);
        assert_eq!(near[1], [(0, 2.0 / 3.0)]);
        assert_eq!(near[2], [], "once is no more than chance");
        assert_eq!(near[4], []);
    }
}
