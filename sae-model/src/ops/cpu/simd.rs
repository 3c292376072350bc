//! Vector loops, written once in plain Rust and compiled three times: for AVX-512, for AVX2 with FMA, and for the
//! target's baseline. The best that the machine supports is chosen at run time.
//!
//! `unsafe` covers two things: calls of functions compiled for features of the processor, which need a [`Simd`] that
//! only [`Simd::available`] makes, after asking the processor; and two loads in the one loop written with intrinsics.

use crate::ops::adam::AdamStep;

/// The instruction set that the loops run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Simd(Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Simd {
    /// The best instruction set of this processor (the standard library caches the answer).
    pub(crate) fn detect() -> Self {
        Self::available().next().unwrap_or(Self(Isa::Portable))
    }

    /// All instruction sets of this processor, best first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let vector = {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            [(avx512, Isa::Avx512), (avx2, Isa::Avx2)]
        };
        #[cfg(not(target_arch = "x86_64"))]
        let vector: [(bool, Isa); 0] = [];
        let found = vector.into_iter().filter(|(there, _)| *there);
        found.map(|(_, isa)| Self(isa)).chain([Self(Isa::Portable)])
    }
}

/// `a * b + c`, fused if the instruction set can (in software, it would be a slow function call).
#[inline(always)]
fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Compiles a loop for every instruction set. The generated function takes a [`Simd`] first.
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident<$fma:ident>($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn $name(simd: Simd, $($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn plain<const $fma: bool>($($arg: $type),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $type),*) $(-> $out)? {
                plain::<true>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $type),*) $(-> $out)? {
                plain::<true>($($arg),*)
            }

            match simd.0 {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Simd::available` makes this value only where it has found these features.
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                Isa::Portable => plain::<false>($($arg),*),
            }
        }
    };
}

/// Returns whether a score is above a bound, or NaN, which must not be lost.
#[inline(always)]
pub(crate) fn passes(z: f32, bound: f32) -> bool {
    z > bound || z.is_nan()
}

/// Number of floats processed at once: one AVX-512 register.
const LANES: usize = 16;

/// Row `index` of a matrix of rows of length `d`.
#[inline(always)]
fn row(rows: &[f32], index: u32, d: usize) -> &[f32] {
    &rows[index as usize * d..][..d]
}

vectorised! {
    /// `out += sum_e weights[e] * rows[indices[e]]`, rows of the length of `out`.
    fn add_weighted_rows<FMA>(out: &mut [f32], weights: &[f32], indices: &[u32], rows: &[f32]) {
        let d = out.len();
        // Eight rows at a time, so that `out` is read and written an eighth as often.
        let (eights, rest) = indices.as_chunks::<8>();
        let (weight_eights, weight_rest) = weights.as_chunks::<8>();
        for (i, w) in eights.iter().zip(weight_eights) {
            let [r0, r1, r2, r3, r4, r5, r6, r7] = i.map(|i| row(rows, i, d));
            for k in 0..d {
                let low = mul_add::<FMA>(w[1], r1[k], mul_add::<FMA>(w[0], r0[k], out[k]));
                let low = mul_add::<FMA>(w[3], r3[k], mul_add::<FMA>(w[2], r2[k], low));
                let high = mul_add::<FMA>(w[5], r5[k], w[4] * r4[k]);
                let high = mul_add::<FMA>(w[7], r7[k], mul_add::<FMA>(w[6], r6[k], high));
                out[k] = low + high;
            }
        }
        for (i, w) in rest.iter().zip(weight_rest) {
            for (o, r) in out.iter_mut().zip(row(rows, *i, d)) {
                *o = mul_add::<FMA>(*w, *r, *o);
            }
        }
    }
}

vectorised! {
    /// `out[e] = x . rows[indices[e]]`, rows of the length of `x`.
    fn dot_rows<FMA>(out: &mut [f32], x: &[f32], indices: &[u32], rows: &[f32]) {
        let d = x.len();
        let (x_lanes, x_rest) = x.as_chunks::<LANES>();
        for (o, i) in out.iter_mut().zip(indices) {
            let (r_lanes, r_rest) = row(rows, *i, d).as_chunks::<LANES>();
            // Two chains of additions, so that one does not wait for the other.
            let mut sums = [[0.0f32; LANES]; 2];
            let (x_pairs, x_last) = x_lanes.as_chunks::<2>();
            let (r_pairs, r_last) = r_lanes.as_chunks::<2>();
            for (x, r) in x_pairs.iter().zip(r_pairs) {
                for lane in 0..LANES {
                    sums[0][lane] = mul_add::<FMA>(x[0][lane], r[0][lane], sums[0][lane]);
                }
                for lane in 0..LANES {
                    sums[1][lane] = mul_add::<FMA>(x[1][lane], r[1][lane], sums[1][lane]);
                }
            }
            for (x, r) in x_last.iter().zip(r_last) {
                for lane in 0..LANES {
                    sums[0][lane] = mul_add::<FMA>(x[lane], r[lane], sums[0][lane]);
                }
            }
            let mut total: f32 = sums.as_flattened().iter().sum();
            for (x, r) in x_rest.iter().zip(r_rest) {
                total = mul_add::<FMA>(*x, *r, total);
            }
            *o = total;
        }
    }
}

/// Appends every score that is above `bound` or NaN, with its index counted from `first`.
pub(crate) fn keep_above(
    simd: Simd,
    scores: &[f32],
    bound: f32,
    first: u32,
    values: &mut Vec<f32>,
    indices: &mut Vec<u32>,
) {
    match simd.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Simd::available` makes this value only where it has found AVX-512.
        Isa::Avx512 => unsafe { x86::keep_above_avx512(scores, bound, first, values, indices) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above, for AVX2.
        Isa::Avx2 => unsafe { x86::keep_above_avx2(scores, bound, first, values, indices) },
        Isa::Portable => keep_where(scores, first, values, indices, |chunk| {
            let bit = |lane: usize| u32::from(passes(chunk[lane], bound)) << lane;
            (0..LANES).map(bit).sum()
        }),
    }
}

/// [`keep_above`] with a given comparison of a chunk, which returns one bit per lane. The last, partial chunk is
/// padded.
#[inline(always)]
fn keep_where(
    scores: &[f32],
    first: u32,
    values: &mut Vec<f32>,
    indices: &mut Vec<u32>,
    above: impl Fn(&[f32; LANES]) -> u32,
) {
    let (chunks, rest) = scores.as_chunks::<LANES>();
    let mut last = [f32::NEG_INFINITY; LANES]; // above no bound
    last[..rest.len()].copy_from_slice(rest);
    let mut keep = |chunk: &[f32; LANES], start: usize, mut hits: u32| {
        while hits != 0 {
            let lane = hits.trailing_zeros() as usize;
            values.push(chunk[lane]);
            indices.push(first + (start + lane) as u32);
            hits &= hits - 1;
        }
    };
    for (c, chunk) in chunks.iter().enumerate() {
        keep(chunk, c * LANES, above(chunk));
    }
    keep(&last, chunks.len() * LANES, above(&last));
}

/// The one loop that the compiler does not vectorise by itself: it turns comparisons of lanes into the bits of a
/// number.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, keep_where};

    #[target_feature(enable = "avx512f")]
    pub(super) fn keep_above_avx512(
        scores: &[f32],
        bound: f32,
        first: u32,
        values: &mut Vec<f32>,
        indices: &mut Vec<u32>,
    ) {
        let bounds = _mm512_set1_ps(bound);
        keep_where(scores, first, values, indices, |chunk: &[f32; LANES]| {
            // SAFETY: a chunk is 16 floats, which is what an unaligned load of 512 bits reads.
            let scores = unsafe { _mm512_loadu_ps(chunk.as_ptr()) };
            u32::from(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(scores, bounds))
        });
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn keep_above_avx2(
        scores: &[f32],
        bound: f32,
        first: u32,
        values: &mut Vec<f32>,
        indices: &mut Vec<u32>,
    ) {
        let bounds = _mm256_set1_ps(bound);
        keep_where(scores, first, values, indices, |chunk: &[f32; LANES]| {
            let (halves, _) = chunk.as_chunks::<8>();
            let above = |half: &[f32; 8]| {
                // SAFETY: a half is 8 floats, which is what an unaligned load of 256 bits reads.
                let scores = unsafe { _mm256_loadu_ps(half.as_ptr()) };
                _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLE_UQ>(scores, bounds)) as u32
            };
            above(&halves[0]) | above(&halves[1]) << 8
        });
    }
}

vectorised! {
    /// [`keep_above`] with one bound per score.
    fn keep_above_each<_FMA>(scores: &[f32], bounds: &[f32], first: u32, values: &mut Vec<f32>, indices: &mut Vec<u32>) {
        for (i, (z, bound)) in scores.iter().zip(bounds).enumerate() {
            if passes(*z, *bound) {
                values.push(*z);
                indices.push(first + i as u32);
            }
        }
    }
}

vectorised! {
    /// The largest score; NaN is ignored.
    fn maximum<_FMA>(scores: &[f32]) -> f32 {
        let (chunks, rest) = scores.as_chunks::<LANES>();
        let mut max = [f32::NEG_INFINITY; LANES];
        for chunk in chunks {
            for lane in 0..LANES {
                max[lane] = if chunk[lane] > max[lane] { chunk[lane] } else { max[lane] };
            }
        }
        let of_rest = rest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        max.into_iter().fold(of_rest, f32::max)
    }
}

vectorised! {
    /// `(sum, count)` of `z - origin` over the scores `z` above `origin + bound`.
    fn sum_above<_FMA>(scores: &[f32], origin: f32, bound: f32) -> (f32, f32) {
        let (chunks, rest) = scores.as_chunks::<LANES>();
        let (mut sum, mut count) = ([0.0f32; LANES], [0.0f32; LANES]);
        for chunk in chunks {
            for lane in 0..LANES {
                let c = chunk[lane] - origin;
                sum[lane] += if c > bound { c } else { 0.0 };
                count[lane] += if c > bound { 1.0 } else { 0.0 };
            }
        }
        for z in rest.iter().filter(|z| **z - origin > bound) {
            sum[0] += z - origin;
            count[0] += 1.0;
        }
        (sum.iter().sum(), count.iter().sum())
    }
}

vectorised! {
    /// One step of Adam: updates both moments, and writes the new parameters to `out`.
    fn adam<FMA>(step: AdamStep, param: &[f32], grad: &[f32], m: &mut [f32], v: &mut [f32], out: &mut [f32]) {
        let AdamStep { beta_1, beta_2, epsilon, lr, correction_2, .. } = step;
        let n = out.len();
        let (param, grad, m, v) = (&param[..n], &grad[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let g = grad[i];
            m[i] = mul_add::<FMA>(beta_1, m[i] - g, g);
            v[i] = mul_add::<FMA>(beta_2, v[i] - g * g, g * g);
            out[i] = param[i] - lr * m[i] / ((v[i] * correction_2).sqrt() + epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0)
            .collect()
    }

    fn assert_close(a: &[f32], b: &[f32]) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} is not {b}");
        }
    }

    /// Every instruction set of this machine agrees with the portable loops, for every remainder.
    #[test]
    fn all_instruction_sets_agree() {
        let portable = Simd(Isa::Portable);
        for simd in Simd::available() {
            for d in (0..70).chain([384, 511]) {
                let rows = noise(9 * d.max(1), 1);
                let (x, weights) = (noise(d, 2), noise(7, 3));
                let indices = [8, 0, 3, 3, 5, 1, 7];
                let run = |simd| {
                    let mut sum = x.clone();
                    add_weighted_rows(simd, &mut sum, &weights, &indices, &rows);
                    let mut dots = vec![0.0; indices.len()];
                    dot_rows(simd, &mut dots, &x, &indices, &rows);
                    let (mut m, mut v, mut p) = (noise(d, 4), vec![0.5; d], vec![0.0; d]);
                    let step = AdamStep {
                        beta_1: 0.9,
                        beta_2: 0.99,
                        epsilon: 1e-8,
                        lr: 0.1,
                        correction_2: 2.0,
                        unit_rows: false,
                    };
                    adam(
                        simd,
                        step,
                        &x,
                        &weights.repeat(80)[..d],
                        &mut m,
                        &mut v,
                        &mut p,
                    );
                    let (above, count) = sum_above(simd, &x, 0.5, -0.75);
                    [sum, dots, m, v, p, vec![above, count, maximum(simd, &x)]]
                };
                for (a, b) in run(simd).iter().zip(&run(portable)) {
                    let finite =
                        |v: &[f32]| v.iter().map(|v| v.clamp(-9.0, 9.0)).collect::<Vec<_>>();
                    assert_close(&finite(a), &finite(b));
                }
                let keep = |simd, scores: &[f32]| {
                    let (mut values, mut indices) = (vec![], vec![]);
                    keep_above(simd, scores, 0.25, 7, &mut values, &mut indices);
                    keep_above_each(simd, scores, &noise(d, 5), 9, &mut values, &mut indices);
                    (values, indices)
                };
                assert_eq!(keep(simd, &x), keep(portable, &x));
            }
            let (mut values, mut indices) = (vec![], vec![]);
            let scores = [f32::NAN, 1.0, f32::NEG_INFINITY, 0.0, f32::INFINITY];
            keep_above(
                simd,
                &scores,
                f32::NEG_INFINITY,
                0,
                &mut values,
                &mut indices,
            );
            assert_eq!(indices, [0, 1, 3, 4], "NaN stays, minus infinity does not");
        }
    }
}
