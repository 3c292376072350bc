//! The true concepts of synthetic data, against which recovery is measured.

use std::path::Path;

use crate::config::{self, DataConfig, DataConfigError, HeldOut, Split};
use crate::data::ActivationData;
use crate::source::Options;

const CONCEPTS: &str = "data.true_concepts";
const CODES: &str = "data.true_codes";

/// True concepts, and optionally their strengths in the held-out rows.
#[derive(Clone, Debug)]
pub struct Truth {
    /// Concepts `[G, d]`, no row of zeros.
    pub concepts: Vec<f32>,
    /// Number of concepts G.
    pub count: usize,
    /// Strengths `[rows, G]` for all rows of the held-out data set, including rows that are left out; zero where a row does
    /// not contain a concept.
    pub codes: Option<ActivationData>,
}

impl DataConfig {
    /// The true concepts of the data, if the config names them.
    ///
    /// # Errors
    /// [`DataConfigError`] with the key whose file cannot be read or does not fit: concepts of another width or without a
    /// direction, strengths for another number of concepts or rows, or strengths without a held-out path.
    pub fn truth(&self, split: &Split) -> Result<Option<Truth>, DataConfigError> {
        let Some(path) = &self.true_concepts else {
            let Some(codes) = &self.true_codes else {
                return Ok(None);
            };
            let remedy = "there are no concepts that these could be of; give data.true_concepts, too, or leave it out";
            return Err(DataConfigError::about(CODES, codes, remedy));
        };
        let (concepts, count) = config::matrix(CONCEPTS, path, split)?;
        let width = split.train.width();
        let square = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>();
        let usable = |row: &[f32]| square(row).is_finite() && square(row) > 0.0;
        if let Some(row) = concepts.chunks_exact(width).position(|row| !usable(row)) {
            let remedy =
                format!("row {row} has no direction (zeros, NaN or infinity); leave it out");
            return Err(DataConfigError::about(CONCEPTS, path, remedy));
        }
        let codes = self.true_codes.as_deref();
        let codes = codes
            .map(|path| self.strengths(path, split, count))
            .transpose()?;
        Ok(Some(Truth {
            concepts,
            count,
            codes,
        }))
    }

    fn strengths(
        &self,
        path: &Path,
        split: &Split,
        count: usize,
    ) -> Result<ActivationData, DataConfigError> {
        let wrong = |remedy: String| DataConfigError::about(CODES, path, remedy);
        if !matches!(self.held_out, HeldOut::Path(_)) {
            let remedy = "it is about the rows of a held-out path; give data.held_out as a path, or leave it out";
            return Err(wrong(remedy.into()));
        }
        let codes = ActivationData::open(path, &Options::default());
        let codes = codes.map_err(DataConfigError::of(CODES, path))?;
        let expected = (split.held_out.info().rows, count);
        if (codes.rows(), codes.width()) != expected {
            return Err(wrong(format!(
                "it has {} rows of {} strengths; it needs {} rows, one per held-out row, of {} strengths, one per true \
                 concept",
                codes.rows(),
                codes.width(),
                expected.0,
                expected.1
            )));
        }
        Ok(codes)
    }
}
