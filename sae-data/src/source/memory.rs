//! Rows in memory as a data source: for programs that have made them.

use std::ops::Range;

use super::{Info, Source};
use crate::element::Element;
use crate::error::DataError;

/// Rows `[rows, width]`, row-major.
#[derive(Debug)]
pub(crate) struct Memory {
    info: Info,
    values: Vec<f32>,
}

impl Memory {
    /// # Panics
    /// If the values do not fill whole rows.
    pub(crate) fn new(values: Vec<f32>, width: usize) -> Self {
        assert!(
            width > 0 && values.len().is_multiple_of(width),
            "whole rows of {width} values"
        );
        let shape = [values.len() / width, width];
        Self {
            info: Info::new("memory", "rows in memory", Element::F32, shape),
            values,
        }
    }
}

impl Source for Memory {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read(
        &self,
        pieces: &[Range<usize>],
        _scratch: &mut Vec<u8>,
        out: &mut [Option<&mut [f32]>],
    ) -> Result<(), DataError> {
        let rows = pieces.iter().cloned().flatten();
        for (row, place) in rows.zip(out) {
            if let Some(place) = place {
                let start = row * self.info.width;
                place.copy_from_slice(&self.values[start..start + self.info.width]);
            }
        }
        Ok(())
    }

    fn labels(&self, _pieces: &[Range<usize>]) -> Result<Option<Vec<i64>>, DataError> {
        Ok(None)
    }
}
