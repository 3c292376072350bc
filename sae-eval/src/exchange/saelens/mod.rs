//! SAELens (6.54): `cfg.json`, `sae_weights.safetensors` and, where frequencies are known, `sparsity.safetensors`.
//!
//! `cfg.json` is one object: `architecture`, `d_in`, `d_sae`, `dtype`, `device`, `apply_b_dec_to_input`,
//! `normalize_activations`, `reshape_activations`, `metadata`, and the fields of the class. Tensors, row-major, `x W`:
//!
//! | architecture | tensors | z = x0 W_enc + b_enc, and then |
//! |---|---|---|
//! | all but `gated` | `W_enc [d, M]`, `b_enc [M]`, `W_dec [M, d]`, `b_dec [d]` | |
//! | `standard` | | `a = max(z, 0)` |
//! | `topk` (k) | | the k largest, as far as they are positive |
//! | `jumprelu` | `threshold [M]` | `a = max(z, 0) 1[z > threshold]` |
//! | `gated` | no `b_enc`; `b_gate`, `r_mag`, `b_mag [M]` | `a = max(x0 W_enc exp(r_mag) + b_mag, 0) 1[x0 W_enc + b_gate > 0]` |
//! | `sparsemax`, of our Python module | `act_scale [M]` | as `folded.rs` says |
//! | `batchtopk`, `matryoshka_batchtopk`: checkpoints of training | `topk_threshold []` | as jumprelu, at inference |
//!
//! `x0 = x - b_dec`, or x without `apply_b_dec_to_input`; `x_hat = a W_dec + b_dec`. With `rescale_acts_by_decoder_norm`, z
//! is multiplied by the length of the latent's row of W_dec before the selection, and divided by it after. Files from before
//! version 6 have the metadata among the keys of the class, and `activation_fn`.

mod read;
mod write;

use super::folded::{Folded, Rule, Sparsemax};
use super::plain;

pub(super) use write::{files, sparsity};

/// Name of the format in messages.
pub(super) const NAME: &str = "SAELens";
/// The version whose files these are.
pub(super) const VERSION: &str = "6.54.12";
/// Name of the file of keys.
pub(super) const CFG_FILE: &str = "cfg.json";
/// Name of the file of weights.
pub(super) const WEIGHTS_FILE: &str = "sae_weights.safetensors";
/// Name of the file of firing frequencies.
pub(super) const SPARSITY_FILE: &str = "sparsity.safetensors";

/// A dictionary as SAELens has saved it.
#[derive(Clone, Debug)]
pub(super) struct SaeLens {
    d_in: usize,
    n_latents: usize,
    /// W_enc `[M, d]`: turned.
    w_enc: Vec<f32>,
    /// b_enc, or b_gate.
    b_enc: Vec<f32>,
    w_dec: Vec<f32>,
    b_dec: Vec<f32>,
    class: Class,
    /// Whether the encoder sees `x - b_dec`.
    subtracts: bool,
    /// By what activations are multiplied before, and reconstructions divided after.
    factor: f64,
    /// `rescale_acts_by_decoder_norm`
    rescales: bool,
}

/// The class, with what only this class has.
#[derive(Clone, Debug)]
enum Class {
    Standard,
    TopK {
        k: usize,
    },
    JumpRelu {
        threshold: Vec<f32>,
    },
    BatchTopK {
        k: usize,
        threshold: f32,
        parts: Vec<f64>,
    },
    Gated {
        r_mag: Vec<f32>,
        b_mag: Vec<f32>,
    },
    Sparsemax(Sparsemax),
}

impl SaeLens {
    /// Lengths of the rows of W_dec, where z is multiplied by them; else 1.
    fn rescaling(&self) -> Vec<f64> {
        let length = |row: &[f32]| {
            row.iter()
                .map(|v| f64::from(*v).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        match self.rescales {
            // a row of zeros writes nothing, whatever its latent is
            true => self.w_dec.chunks_exact(self.d_in).map(length).collect(),
            false => vec![1.0; self.n_latents],
        }
    }

    /// The same with everything folded in that our models do not have.
    pub(super) fn fold(self) -> Folded {
        let (d, factor, lengths) = (self.d_in, self.factor, self.rescaling());
        let inverse = |length: f64| if length > 0.0 { 1.0 / length } else { 0.0 };
        // sparsemax reads rows of any unit alike: x0 / n, with s in the same unit
        let of_row = match self.class {
            Class::Sparsemax(_) => 1.0,
            _ => factor,
        };
        let read: Vec<f64> = lengths.iter().map(|length| length * of_row).collect();
        let write: Vec<f64> = lengths.iter().map(|l| inverse(*l) / of_row).collect();
        let shifts = self.shifts();
        let b_enc = self.b_enc.iter().zip(&shifts).zip(&lengths);
        let b_enc = b_enc.map(|((b, shift), length)| ((f64::from(*b) + shift) * length) as f32);
        Folded {
            d_in: d,
            n_latents: self.n_latents,
            b_enc: b_enc.collect(),
            b_dec: self
                .b_dec
                .iter()
                .map(|b| (f64::from(*b) / factor) as f32)
                .collect(),
            rule: self.class.fold(&shifts, factor),
            w_enc: each_row(self.w_enc, d, &read),
            w_dec: each_row(self.w_dec, d, &write),
        }
    }

    /// `b_dec W_enc`, by which biases grow where the encoder sees x and not `x - b_dec`; else 0.
    fn shifts(&self) -> Vec<f64> {
        let dot = |row: &[f32]| -> f64 {
            let products = row.iter().zip(&self.b_dec);
            products.map(|(w, b)| f64::from(*w) * f64::from(*b)).sum()
        };
        match self.subtracts {
            true => vec![0.0; self.n_latents],
            false => self.w_enc.chunks_exact(self.d_in).map(dot).collect(),
        }
    }
}

impl Class {
    fn fold(self, shifts: &[f64], factor: f64) -> Rule {
        match self {
            Self::Standard => Rule::Relu,
            Self::TopK { k } => Rule::TopK { k },
            // its ReLU comes first
            Self::JumpRelu { threshold } => Rule::JumpRelu {
                threshold: threshold.into_iter().map(|t| t.max(0.0)).collect(),
            },
            // never measured: ReLU is what is left of it at inference
            Self::BatchTopK { threshold, .. } if threshold <= 0.0 => Rule::Relu,
            Self::BatchTopK {
                k,
                threshold,
                parts,
            } => Rule::BatchTopK {
                k,
                threshold,
                parts,
            },
            Self::Gated { r_mag, b_mag } => Rule::Gated {
                b_mag: b_mag
                    .iter()
                    .zip(&r_mag)
                    .zip(shifts)
                    .map(|((b, r), shift)| (f64::from(*b) + f64::from(*r).exp() * shift) as f32)
                    .collect(),
                r_mag,
            },
            Self::Sparsemax(rule) => Rule::Sparsemax(Sparsemax {
                input_scale: rule.input_scale / factor,
                ..rule
            }),
        }
    }
}

/// What the class does, by plain loops in f64: the formulas at the top, for a test of what was folded.
impl SaeLens {
    /// x_hat of a row.
    pub(super) fn reconstructed(&self, x: &[f64]) -> Vec<f64> {
        let subtracted = |b: f32| if self.subtracts { f64::from(b) } else { 0.0 };
        let x0 = x.iter().zip(&self.b_dec);
        let x0: Vec<f64> = x0.map(|(x, b)| x * self.factor - subtracted(*b)).collect();
        let acts = self.latents(&x0);
        let mut x_hat: Vec<f64> = self.b_dec.iter().map(|b| f64::from(*b)).collect();
        for (row, a) in self.w_dec.chunks_exact(self.d_in).zip(acts) {
            plain::add(&mut x_hat, row, a);
        }
        x_hat.iter().map(|v| v / self.factor).collect()
    }

    /// The latents, as W_dec is multiplied by them.
    fn latents(&self, x0: &[f64]) -> Vec<f64> {
        let read: Vec<f64> = self
            .w_enc
            .chunks_exact(x0.len())
            .map(|w| plain::dot(w, x0))
            .collect();
        let lengths = self.rescaling();
        let z = read.iter().zip(&self.b_enc).zip(&lengths);
        let z: Vec<f64> = z
            .map(|((z, b), length)| (z + f64::from(*b)) * length)
            .collect();
        let above = |j: usize, threshold: f32| z[j] > f64::from(threshold).max(0.0);
        let kept = |keeps: &dyn Fn(usize) -> bool| -> Vec<f64> {
            let kept = (0..z.len()).map(|j| if keeps(j) { z[j].max(0.0) } else { 0.0 });
            let unscaled = kept.zip(&lengths);
            unscaled
                .map(|(a, l)| if *l > 0.0 { a / l } else { 0.0 })
                .collect()
        };
        match &self.class {
            Class::Standard => kept(&|_| true),
            Class::TopK { k } => {
                let largest = plain::largest(&z, *k);
                kept(&|j| largest.contains(&j))
            }
            Class::JumpRelu { threshold } => kept(&|j| above(j, threshold[j])),
            Class::BatchTopK { threshold, .. } => kept(&|j| above(j, *threshold)),
            Class::Gated { r_mag, b_mag } => {
                let magnitude =
                    |j: usize| f64::from(r_mag[j]).exp() * read[j] + f64::from(b_mag[j]);
                let gated = |j| {
                    if z[j] > 0.0 {
                        magnitude(j).max(0.0)
                    } else {
                        0.0
                    }
                };
                (0..z.len()).map(gated).collect()
            }
            Class::Sparsemax(rule) => {
                plain::sparse_attention(rule, x0, (&read, &self.b_enc), &self.w_dec)
            }
        }
    }

    /// The pre-bias, around which rows lie.
    pub(super) fn b_dec(&self) -> &[f32] {
        &self.b_dec
    }
}

/// Each row times a factor of its own, rounded once.
fn each_row(mut rows: Vec<f32>, d: usize, factors: &[f64]) -> Vec<f32> {
    for (row, factor) in rows.chunks_exact_mut(d).zip(factors) {
        if *factor != 1.0 {
            row.iter_mut()
                .for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
    }
    rows
}
