//! Leaves out rows of huge norm.
//!
//! A language model gives a few tokens (attention sinks, mostly the first of a text) activations with a hundred times the
//! usual norm. In SmolLM2 they are one row in ten thousand and have most of the variance; they would dominate the loss,
//! every scale and the report. The limit is a number, or a multiple of the median norm, which such rows do not change. It
//! becomes a number once, from the training data, so that training, validation and later evaluations use the same limit.

use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::ActivationData;
use crate::error::DataError;

/// Default limit, as a multiple of the median norm.
pub(crate) const MEDIANS: f64 = 10.0;
/// Number of evenly spread rows for the median.
const MEDIAN_ROWS: usize = 16_384;
/// Bytes of float32 that are read at a time.
const PIECE: usize = 4 << 20;
/// Pieces that are in memory at a time.
const AT_ONCE: usize = 16;

/// `data.max_norm`: largest `||x||` of a row that is used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
#[non_exhaustive]
pub enum MaxNorm {
    /// This norm.
    Norm(f64),
    /// This multiple of the median norm of the training rows: `"10x median"`.
    Medians(f64),
    /// No row is left out: `"none"`.
    None,
}

impl Default for MaxNorm {
    fn default() -> Self {
        Self::Medians(MEDIANS)
    }
}

/// Form in a config.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a norm such as 1500.0, a multiple of the median norm such as \"10x median\", or \"none\""
)]
enum Raw {
    Number(f64),
    Text(String),
}

impl TryFrom<Raw> for MaxNorm {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        let limit = match raw {
            Raw::Number(norm) => Some(Self::Norm(norm)),
            Raw::Text(text) if text == "none" => Some(Self::None),
            Raw::Text(text) => {
                let multiple = text.strip_suffix("x median");
                let multiple = multiple.and_then(|multiple| multiple.trim().parse().ok());
                multiple.map(Self::Medians)
            }
        };
        let positive = |limit: &Self| match limit {
            Self::Norm(number) | Self::Medians(number) => *number > 0.0 && number.is_finite(),
            Self::None => true,
        };
        limit.filter(positive).ok_or_else(|| {
            "must be a positive norm such as 1500.0, a multiple of the median norm such as \"10x median\", or \"none\""
                .into()
        })
    }
}

impl From<MaxNorm> for Raw {
    fn from(limit: MaxNorm) -> Self {
        match limit {
            MaxNorm::Norm(norm) => Self::Number(norm),
            other => Self::Text(other.to_string()),
        }
    }
}

impl fmt::Display for MaxNorm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Norm(norm) => write!(f, "{norm}"),
            Self::Medians(multiple) => write!(f, "{multiple}x median"),
            Self::None => write!(f, "none"),
        }
    }
}

impl MaxNorm {
    /// The limit for these training rows as a number, [`MaxNorm::Norm`], or [`MaxNorm::None`] if no limit is wanted or the
    /// median norm is zero.
    ///
    /// # Errors
    /// As [`ActivationData::read`].
    pub(crate) fn resolved(self, train: &ActivationData) -> Result<Self, DataError> {
        let Self::Medians(multiple) = self else {
            return Ok(self);
        };
        let median = train.median_norm()?.filter(|median| *median > 0.0);
        Ok(median.map_or(Self::None, |median| Self::Norm(multiple * median)))
    }

    /// The number of a resolved limit.
    pub fn number(self) -> Option<f64> {
        match self {
            Self::Norm(norm) => Some(norm),
            _ => None,
        }
    }
}

/// `||x||`, summed in f64.
pub fn norm(row: &[f32]) -> f64 {
    row.iter()
        .map(|x| f64::from(*x).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Median; the mean of the middle two for an even count, `None` for no values.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        _ if values.is_empty() => None,
        1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

impl ActivationData {
    /// Median of `||x||` over the rows without NaN or infinity among at most 16,384 evenly spread rows
    /// ([`ActivationData::spread`]); `None` if there is no such row.
    ///
    /// # Errors
    /// As [`ActivationData::read`].
    pub(crate) fn median_norm(&self) -> Result<Option<f64>, DataError> {
        let mut norms = Vec::new();
        self.spread(MEDIAN_ROWS).norms(|_, norm| norms.push(norm))?;
        norms.retain(|norm| norm.is_finite());
        Ok(median(norms))
    }

    /// The rows with a norm of at most `limit`, found in one pass; [`ActivationData::left_out`] returns the others. Rows with
    /// NaN or infinity stay, so that later checks find them. `progress` is called with the number of rows after each step.
    ///
    /// # Errors
    /// As [`ActivationData::read`].
    pub fn within(&self, limit: f64, mut progress: impl FnMut(usize)) -> Result<Self, DataError> {
        let mut beyond = Vec::new();
        self.norms(|row, norm| {
            progress(1);
            if norm.is_finite() && norm > limit {
                beyond.push(row);
            }
        })?;
        Ok(self.without(&beyond))
    }

    /// `visit(row, ||x||)` for each row, in order.
    fn norms(&self, mut visit: impl FnMut(usize, f64)) -> Result<(), DataError> {
        let unit = (PIECE / (4 * self.width())).max(1);
        let piece = self.together(unit);
        let starts: Vec<usize> = (0..self.rows()).step_by(piece).collect();
        for starts in starts.chunks(AT_ONCE) {
            let norms: Vec<Vec<f64>> = starts
                .par_iter()
                .map(|start| {
                    let values = self.read(*start..(start + piece).min(self.rows()))?;
                    Ok(values.chunks_exact(self.width()).map(norm).collect())
                })
                .collect::<Result<_, DataError>>()?;
            let rows = norms.into_iter().flatten();
            (starts[0]..)
                .zip(rows)
                .for_each(|(row, norm)| visit(row, norm));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_survives_writing_and_reading() {
        for (text, limit) in [
            ("1500", MaxNorm::Norm(1500.0)),
            ("1531.0403", MaxNorm::Norm(1531.0403)),
            ("\"10x median\"", MaxNorm::Medians(10.0)),
            ("\"2.5 x median\"", MaxNorm::Medians(2.5)),
            ("\"none\"", MaxNorm::None),
        ] {
            assert_eq!(serde_json::from_str::<MaxNorm>(text).unwrap(), limit);
            let written = serde_json::to_string(&limit).unwrap();
            assert_eq!(serde_json::from_str::<MaxNorm>(&written).unwrap(), limit);
        }
        for wrong in [
            "0",
            "-1.0",
            "\"off\"",
            "\"0x median\"",
            "\"infx median\"",
            "true",
        ] {
            let read = serde_json::from_str::<MaxNorm>(wrong);
            let message = read.unwrap_err().to_string();
            assert!(message.contains("\"10x median\", or \"none\""), "{message}");
        }
    }

    #[test]
    fn medians_computed_by_hand() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }
}
