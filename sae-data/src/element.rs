//! Element types in files and their conversion to float32, the inner loop of the loader.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Element type of activations, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Element {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision, rounded to the nearest float32.
    F64,
}

impl Element {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Name in safetensors.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
            Self::F64 => "F64",
        }
    }

    /// Converts little-endian elements to float32.
    ///
    /// # Panics
    /// If `bytes` does not hold exactly `out.len()` elements.
    pub fn to_f32(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.size(), "one element each");
        self.convert(bytes, out);
        fence();
    }

    /// Converts rows of `row_bytes` bytes, each into its place, if it has one.
    ///
    /// # Panics
    /// If a place has another length than a row.
    pub(crate) fn rows_to_f32<'a, 'b: 'a>(
        self,
        bytes: &[u8],
        row_bytes: usize,
        places: impl Iterator<Item = &'a mut Option<&'b mut [f32]>>,
    ) {
        for (row, place) in bytes.chunks_exact(row_bytes.max(1)).zip(places) {
            if let Some(out) = place {
                assert_eq!(row.len(), out.len() * self.size(), "one element each");
                self.convert(row, out);
            }
        }
        fence();
    }

    fn convert(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F16 => half_to_f32(bytes, out),
            Self::Bf16 => words(bytes, out, |w| bf16::from_le_bytes(w).to_f32()),
            Self::F32 => words(bytes, out, f32::from_le_bytes),
            Self::F64 => words(bytes, out, |w| f64::from_le_bytes(w) as f32),
        }
    }

    /// Appends float32 values as little-endian elements, rounded to the nearest.
    pub(crate) fn write_f32(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F16 => {
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                out.extend(halves.iter().flat_map(|v| v.to_le_bytes()));
            }
            Self::Bf16 => {
                let mut halves = vec![bf16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                out.extend(halves.iter().flat_map(|v| v.to_le_bytes()));
            }
            Self::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::F64 => out.extend(values.iter().flat_map(|v| f64::from(*v).to_le_bytes())),
        }
    }

    /// The smallest magnitude that is rounded to infinity: half a unit above the largest value.
    pub(crate) fn overflows_at(self) -> f32 {
        match self {
            Self::F16 => 65_520.0,
            Self::Bf16 => f32::from_bits(0x7f7f_8000),
            Self::F32 | Self::F64 => f32::INFINITY,
        }
    }
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Converts element by element; the compiler vectorizes this for all types but f16.
fn words<const N: usize>(bytes: &[u8], out: &mut [f32], to_f32: impl Fn([u8; N]) -> f32) {
    let words = bytes.as_chunks::<N>().0;
    out.iter_mut().zip(words).for_each(|(o, w)| *o = to_f32(*w));
}

/// Converts f16, which is fast only with an instruction of the processor: 16 at a time with AVX-512, otherwise by `half`.
fn half_to_f32(bytes: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if out.len() >= 2 * LANES && std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512F; `bytes` and `out` are of one length (`rows_to_f32` asserts it).
        return unsafe { half_to_f32_avx512(bytes, out) };
    }
    match bytemuck::try_cast_slice::<u8, f16>(bytes) {
        Ok(values) if cfg!(target_endian = "little") => values.convert_to_f32_slice(out),
        _ => words(bytes, out, |w| f16::from_le_bytes(w).to_f32()), // not aligned
    }
}

/// Elements of a vector.
#[cfg(target_arch = "x86_64")]
const LANES: usize = 16;

/// Writes whole cache lines past the cache, because a window is larger than the cache and is read much later. The ends,
/// which share cache lines with other rows, are written normally. Other threads may see the values only after a [`fence`].
///
/// # Safety
/// `bytes` has two bytes for each of `out`, which has at least `2 * LANES`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn half_to_f32_avx512(bytes: &[u8], out: &mut [f32]) {
    use std::arch::x86_64::{
        __m512, _mm256_loadu_si256, _mm512_cvtph_ps, _mm512_mask_storeu_ps, _mm512_stream_ps,
    };
    let (input, len) = (bytes.as_ptr(), out.len());
    let out = out.as_mut_ptr();
    let load = |at: usize| -> __m512 {
        // SAFETY: every call has `at + LANES <= len`, so there are 32 bytes to read; they need no alignment.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(input.add(2 * at).cast())) }
    };
    let head = out.align_offset(64).min(LANES);
    let tail = (len - head) % LANES;
    // SAFETY: every vector begins at most `len - LANES` elements in; those that are streamed are aligned, as
    // `head` and the size of a vector make them.
    unsafe {
        _mm512_mask_storeu_ps(out, ((1u32 << head) - 1) as u16, load(0));
        for at in (head..len - tail).step_by(LANES) {
            _mm512_stream_ps(out.add(at), load(at));
        }
        let last = !((1u32 << (LANES - tail)) - 1) as u16;
        _mm512_mask_storeu_ps(out.add(len - LANES), last, load(len - LANES));
    }
}

/// Completes writes past the cache before other threads are told of them.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Equal, or both NaN.
    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    #[test]
    fn every_f16_and_bf16_converts_as_in_the_crate_half() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
        let mut out = vec![0.0; bits.len()];
        Element::F16.to_f32(&bytes, &mut out);
        assert!(
            bits.iter()
                .zip(&out)
                .all(|(b, o)| same(f16::from_bits(*b).to_f32(), *o))
        );
        Element::Bf16.to_f32(&bytes, &mut out);
        assert!(
            bits.iter()
                .zip(&out)
                .all(|(b, o)| same(bf16::from_bits(*b).to_f32(), *o))
        );
    }

    #[test]
    fn values_overflow_at_the_documented_limit() {
        for element in [Element::F16, Element::Bf16] {
            let limit = element.overflows_at();
            let below = f32::from_bits(limit.to_bits() - 1);
            let (mut bytes, mut out) = (Vec::new(), [0.0; 2]);
            element.write_f32(&[below, limit], &mut bytes);
            element.to_f32(&bytes, &mut out);
            assert!(
                out[0].is_finite() && out[1].is_infinite(),
                "{element}: {out:?}"
            );
        }
    }

    proptest! {
        /// Lengths that do not fill a vector, and bytes at any alignment.
        #[test]
        fn any_length_and_alignment(values in prop::collection::vec(-1e4f32..1e4, 0..70), shift in 0usize..8) {
            for element in [Element::F16, Element::Bf16, Element::F32, Element::F64] {
                let mut bytes = vec![0xaa; shift];
                element.write_f32(&values, &mut bytes);
                let mut out = vec![0.0; values.len()];
                element.to_f32(&bytes[shift..], &mut out);
                let expected: Vec<f32> = values.iter().map(|v| match element {
                    Element::F16 => f16::from_f32(*v).to_f32(),
                    Element::Bf16 => bf16::from_f32(*v).to_f32(),
                    _ => *v,
                }).collect();
                prop_assert_eq!(out, expected);
            }
        }
    }
}
