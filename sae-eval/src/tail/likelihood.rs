//! Probabilities of the next token, from logits over a whole vocabulary.
//!
//! A language model has some fifty thousand tokens, and each prediction is computed in several versions: with a call of the
//! library's `exp` per token, this would take three times as long as the rest of the model itself. The loops here are plain
//! arithmetic, which the compiler turns into vector instructions.

/// Numbers that are computed together.
const BLOCK: usize = 64;

/// `e^x` for `x <= 0`, within 2e-7 of it; below -87 it is that of -87, 1.6e-38.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, and `e^r` by a polynomial (Cephes, `expf`).
fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: a number of this size has no digits behind the point, so adding it rounds.
    const ROUND: f32 = 12_582_912.0;
    const COEFFICIENTS: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
    let x = x.max(-87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4; // ln 2 in two parts
    let polynomial = COEFFICIENTS.iter().fold(0.0, |sum, c| sum * r + c);
    let power = rounded
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127)
        << 23;
    (polynomial * r * r + r + 1.0) * f32::from_bits(power)
}

/// `max`, and `log sum exp` of a row of logits.
pub(super) fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let block = |some: &[f32]| {
        let exps: [f32; BLOCK] =
            std::array::from_fn(|at| some.get(at).map_or(0.0, |x| exp(x - max)));
        exps.iter().map(|e| f64::from(*e)).sum::<f64>()
    };
    f64::from(max) + row.chunks(BLOCK).map(block).sum::<f64>().ln()
}

/// The distribution of the model as it is, which others are compared with.
pub(super) struct Clean {
    logits: Vec<f32>,
    log_sum_exp: f64,
    p: Vec<f32>,
}

impl Clean {
    pub(super) fn new(logits: &[f32]) -> Self {
        let log_sum_exp = log_sum_exp(logits);
        let shift = log_sum_exp as f32;
        Self {
            p: logits.iter().map(|x| exp(x - shift)).collect(),
            logits: logits.into(),
            log_sum_exp,
        }
    }

    pub(super) fn log_sum_exp(&self) -> f64 {
        self.log_sum_exp
    }

    /// KL(p || q) in nats; `q` has these logits, with this `log_sum_exp`.
    pub(super) fn kl(&self, logits: &[f32], log_sum_exp: f64) -> f64 {
        // log p - log q is taken from the logits, and the probabilities add up to one up to rounding
        let shift = (log_sum_exp - self.log_sum_exp) as f32;
        let blocks = self
            .p
            .chunks(BLOCK)
            .zip(self.logits.chunks(BLOCK))
            .zip(logits.chunks(BLOCK));
        let block = |((p, own), other): ((&[f32], &[f32]), &[f32])| {
            let mut terms = [0.0f32; BLOCK];
            let each = terms.iter_mut().zip(p).zip(own.iter().zip(other));
            each.for_each(|((term, p), (own, other))| *term = p * (own - other + shift));
            terms.iter().map(|term| f64::from(*term)).sum::<f64>()
        };
        blocks.map(block).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_library() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) / 1e4;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / expected - 1.0).abs());
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::NAN).is_nan() || exp(f32::NAN) < 1e-37);
    }

    #[test]
    fn sums_and_divergences_are_those_of_float64() {
        let logits = |seed: u64| -> Vec<f32> {
            let mut state = seed;
            let next = |_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                20.0 * ((state >> 40) as f32 / (1 << 24) as f32) - 10.0
            };
            (0..1001).map(next).collect()
        };
        let (own, other) = (logits(1), logits(2));
        let exact = |row: &[f32]| row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&own) - exact(&own)).abs() < 1e-6);
        let log = |row: &[f32], at: usize| f64::from(row[at]) - exact(row);
        let term = |at: usize| log(&own, at).exp() * (log(&own, at) - log(&other, at));
        let expected: f64 = (0..own.len()).map(term).sum();
        let clean = Clean::new(&own);
        let kl = |row: &[f32]| clean.kl(row, log_sum_exp(row));
        assert!(
            (kl(&other) - expected).abs() < 1e-5 * expected,
            "{} {expected}",
            kl(&other)
        );
        assert!(kl(&own).abs() < 1e-9);
        // large logits do not overflow
        assert_eq!(log_sum_exp(&[1e4, 0.0, -1e4]), 1e4);
    }
}
