//! Gradients of parts in bf16: half of the bytes of a gradient on the wire.
//!
//! ```text
//! v = g + e        g: the gradient of a part; e: what rounding took away from its last one, at first 0
//! handed on: bf16(v), to the nearest, ties to even;   e = v - bf16(v)
//! ```
//!
//! So nothing is lost, it comes a step late ("error feedback": Seide et al. 2014, Interspeech; Karimireddy et al. 2019, arXiv 1901.09847).
//! e belongs to a part, whichever process has it: the bytes of a run depend on the number of parts alone, and e is saved in every
//! checkpoint. A step whose numbers are not finite sets every e to zero.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::gradients::CHUNK;
use crate::checkpoint::rounding_of;
use crate::failure::Failure;
use crate::learner::SaeLearner;

/// Bytes of a number.
const FLOAT: usize = size_of::<f32>();

/// What rounding has taken away from the gradients of this process's parts: per part and parameter.
#[derive(Debug, Default)]
pub(super) struct Rounding(Mutex<BTreeMap<usize, Vec<Vec<f32>>>>);

impl Rounding {
    fn left(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<Vec<f32>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rounds the gradients of a part: one per parameter of the learner, empty where the part has none. What training counts stays as it is.
    pub(super) fn round(&self, part: usize, learner: &SaeLearner, gradients: &mut [Vec<f32>]) {
        let mut left = self.left();
        let left = left.entry(part).or_insert_with(|| nothing(learner));
        for (gradient, left) in gradients.iter_mut().zip(left) {
            if !left.is_empty() {
                round(gradient, left);
            }
        }
    }

    /// Forgets what was taken away.
    pub(super) fn forget(&self) {
        let mut left = self.left();
        let all = left.values_mut().flatten();
        all.for_each(|values| values.fill(0.0));
    }

    /// Writes what was taken away from this part's gradients into a checkpoint.
    pub(super) fn write(
        &self,
        dir: &Path,
        part: usize,
        learner: &SaeLearner,
    ) -> Result<(), Failure> {
        let mut left = self.left();
        let left = left.entry(part).or_insert_with(|| nothing(learner));
        let path = dir.join(rounding_of(part));
        let write = || {
            let mut file = BufWriter::new(File::create(&path)?);
            let mut numbers = left.iter().flatten();
            numbers.try_for_each(|number| file.write_all(&number.to_le_bytes()))?;
            file.flush()
        };
        write().map_err(Failure::write(&path))
    }

    /// Reads it.
    ///
    /// # Errors
    /// If the file cannot be read, or is not of this model; with its path.
    pub(super) fn read(
        &self,
        dir: &Path,
        part: usize,
        learner: &SaeLearner,
    ) -> Result<(), (PathBuf, String)> {
        let path = dir.join(rounding_of(part));
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Err((path, error.to_string())),
        };
        let mut left = nothing(learner);
        let wanted: usize = left.iter().map(Vec::len).sum();
        if bytes.len() != wanted * FLOAT {
            let has = bytes.len();
            return Err((path, format!("{has} bytes, not {}", wanted * FLOAT)));
        }
        let (numbers, _) = bytes.as_chunks::<FLOAT>();
        let places = left.iter_mut().flatten();
        places
            .zip(numbers)
            .for_each(|(place, number)| *place = f32::from_le_bytes(*number));
        self.left().insert(part, left);
        Ok(())
    }
}

/// Adds to `gradient` what was taken away, rounds it, and keeps what is taken away now.
fn round(gradient: &mut [f32], left: &mut [f32]) {
    let chunks = gradient
        .par_chunks_mut(CHUNK)
        .zip(left.par_chunks_mut(CHUNK));
    chunks.for_each(|(gradient, left)| {
        for (gradient, left) in gradient.iter_mut().zip(left) {
            let value = *gradient + *left;
            *gradient = half::bf16::from_f32(value).to_f32();
            *left = value - *gradient;
        }
    });
}

/// Numbers that are bf16 already, two in the place of one. The last of an odd number has a zero beside it.
pub(super) fn packed(numbers: &[f32]) -> Vec<f32> {
    let upper = |number: Option<&f32>| number.map_or(0, |number| number.to_bits() >> 16);
    let pairs = numbers.chunks(2);
    let pairs = pairs.map(|pair| f32::from_bits(upper(pair.get(1)) << 16 | upper(pair.first())));
    pairs.collect()
}

/// The numbers that [`packed`] took.
pub(super) fn unpacked(words: &[f32]) -> impl Iterator<Item = f32> {
    let both = |word: &f32| [word.to_bits() << 16, word.to_bits() & 0xFFFF_0000];
    words.iter().flat_map(both).map(f32::from_bits)
}

/// Zeros for every trained parameter, and an empty list for what training counts.
fn nothing(learner: &SaeLearner) -> Vec<Vec<f32>> {
    let mut zeros = Zeros(Vec::new());
    learner.visit(&mut zeros);
    zeros.0
}

struct Zeros(Vec<Vec<f32>>);

impl ModuleVisitor for Zeros {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let length = match tensor.is_require_grad() {
            true => tensor.dims().iter().product(),
            false => 0,
        };
        self.0.push(vec![0.0; length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounding_takes_away_comes_later() {
        // a bf16 has 8 bits: 257 of 256 is lost, and comes back when there is enough of it
        let (gradient, mut left) = (1.0 + 1.0 / 256.0, [0.0f32]);
        let mut total = 0.0f64;
        for step in 1..=1000 {
            let mut rounded = [gradient];
            round(&mut rounded, &mut left);
            assert_eq!(rounded[0].to_bits() & 0xFFFF, 0, "a bf16");
            total += f64::from(rounded[0]);
            let exact = f64::from(gradient) * f64::from(step);
            assert_eq!(total + f64::from(left[0]), exact, "nothing is lost");
            assert!((total - exact).abs() <= 1.0 / 128.0);
        }
    }

    #[test]
    fn two_numbers_in_the_place_of_one() {
        for numbers in [
            &[][..],
            &[1.0],
            &[1.0, -2.5],
            &[-0.0, f32::INFINITY, 3.0e-39],
        ] {
            let rounded: Vec<f32> = numbers
                .iter()
                .map(|number| half::bf16::from_f32(*number).to_f32())
                .collect();
            let words = packed(&rounded);
            assert_eq!(words.len(), numbers.len().div_ceil(2));
            let back: Vec<u32> = unpacked(&words).map(f32::to_bits).collect();
            let bits: Vec<u32> = rounded.iter().map(|number| number.to_bits()).collect();
            assert_eq!(back[..bits.len()], bits);
            assert!(back[bits.len()..].iter().all(|bits| *bits == 0));
        }
    }
}
