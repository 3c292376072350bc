//! Fingerprints: whether a run is continued with, and evaluated on, the data that it was started with.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::ActivationData;
use crate::error::DataError;
use crate::source::ReadAt;

/// Identifies one side of a data set without reading all of it.
///
/// Labels are not part of it: they may be added later. A field that an earlier version did not record is `None`, which
/// equals anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Path as configured.
    pub path: PathBuf,
    /// Format of the files.
    pub format: String,
    /// Element type in the files.
    pub dtype: String,
    /// Name of the tensor or column, if it has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// Number of the layer, if there are layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<i64>,
    /// Whether position 0 of each example is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_first_token: Option<bool>,
    /// Number of rows of this side within `data.max_norm`.
    pub rows: usize,
    /// Number of rows of this side that `data.max_norm` leaves out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<usize>,
    /// BLAKE3 of the row numbers: the first row and the row after the last of each stretch, as little-endian u64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_blake3: Option<String>,
    /// Width of a row.
    pub width: usize,
    /// Number of files, without files that hold only labels.
    pub files: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// BLAKE3 of the names and sizes of the files and of 4 KiB of their bytes at each of 256 evenly spaced places.
    pub sample_blake3: String,
}

impl Fingerprint {
    /// Whether the files are the same, at these paths or others, as far as a sample of their bytes tells. The selected rows may
    /// differ.
    pub fn same_files(&self, now: &Self) -> bool {
        let what = |of: &Self| (of.width, of.files, of.bytes, of.sample_blake3.clone());
        what(self) == what(now)
    }

    /// Whether it is the same data, at this path or another.
    pub fn same_data(&self, now: &Self) -> bool {
        self.difference(now).is_none()
    }

    /// How the data `now` differs from this, in words that continue "data.train is not what it was: "; `None` if it is the
    /// same data, at this path or another.
    pub fn difference(&self, now: &Self) -> Option<String> {
        let then = self;
        let number = |of: &'static str| {
            move |then: &usize, now: &usize| format!("it had {then} {of}, now {now}")
        };
        let differences = [
            changed(&then.format, &now.format, |then, now| {
                format!("it had the format {then}, now {now}")
            }),
            changed(&then.dtype, &now.dtype, |then, now| {
                format!("it had values of type {then}, now {now}")
            }),
            changed(&then.width, &now.width, |then, now| {
                format!("it had rows of width {then}, now {now}")
            }),
            known(&then.tensor, &now.tensor, |then, now| {
                format!("it was the tensor {then:?}, now {now:?}")
            }),
            known(&then.layer, &now.layer, |then, now| {
                format!("it was layer {then}, now {now}")
            }),
            known(&then.drop_first_token, &now.drop_first_token, |_, now| {
                let (was, is) = match now {
                    true => ("is", "it was not before"),
                    false => ("was", "it is not now"),
                };
                format!("position 0 of each example {was} left out, {is}")
            }),
            known(&then.left_out, &now.left_out, |then, now| {
                format!("{then} rows were left out for their norm, now {now} are")
            }),
            changed(&then.rows, &now.rows, number("rows")),
            changed(&then.files, &now.files, number("files")),
            changed(&then.bytes, &now.bytes, |then, now| {
                format!("its files had {then} bytes, now {now}")
            }),
            changed(&then.sample_blake3, &now.sample_blake3, |_, _| {
                "its files have other names or contents".into()
            }),
            known(&then.rows_blake3, &now.rows_blake3, |_, _| {
                "it has as many rows of the same files, but other rows: the split has changed"
                    .into()
            }),
        ];
        differences.into_iter().flatten().next()
    }
}

fn changed<T: PartialEq>(then: &T, now: &T, words: impl Fn(&T, &T) -> String) -> Option<String> {
    (then != now).then(|| words(then, now))
}

/// As [`changed`], where both are known.
fn known<T: PartialEq>(
    then: &Option<T>,
    now: &Option<T>,
    words: impl Fn(&T, &T) -> String,
) -> Option<String> {
    changed(then.as_ref()?, now.as_ref()?, words)
}

impl ActivationData {
    /// The fingerprint of this data.
    ///
    /// # Errors
    /// As [`ActivationData::read`].
    pub fn fingerprint(&self) -> Result<Fingerprint, DataError> {
        let info = self.info();
        let mut rows = blake3::Hasher::new();
        for range in self.ranges() {
            rows.update(&(range.start as u64).to_le_bytes());
            rows.update(&(range.end as u64).to_le_bytes());
        }
        Ok(Fingerprint {
            path: info.path.clone(),
            format: info.format.into(),
            dtype: info.element.to_string(),
            tensor: info.tensor.clone(),
            layer: info.layer,
            drop_first_token: Some(info.drop_first_token),
            rows: self.rows(),
            left_out: Some(self.rows_left_out()),
            rows_blake3: Some(rows.finalize().to_hex().to_string()),
            width: info.width,
            files: info.files.len(),
            bytes: info.files.iter().map(|file| file.bytes).sum(),
            sample_blake3: self.sample()?.to_hex().to_string(),
        })
    }

    /// BLAKE3 of the names and sizes of the files and of a megabyte of their bytes.
    fn sample(&self) -> Result<blake3::Hash, DataError> {
        const PLACES: u64 = 256;
        const PIECE: u64 = 4096;
        let files = &self.info().files;
        let bytes: u64 = files.iter().map(|file| file.bytes).sum();
        let mut hasher = blake3::Hasher::new();
        let mut before = 0;
        for file in files {
            let name = file.path.file_name().unwrap_or_default();
            hasher.update(name.as_encoded_bytes());
            hasher.update(&file.bytes.to_le_bytes());
            let place = |i: u64| (u128::from(i) * u128::from(bytes) / u128::from(PLACES)) as u64;
            let in_file = |i: &u64| (before..before + file.bytes).contains(&place(*i));
            let mut open = file.open()?;
            for i in (0..PLACES).filter(in_file) {
                let offset = place(i) - before;
                let mut piece = vec![0; PIECE.min(file.bytes - offset) as usize];
                open.read_at(offset, &mut piece)?;
                hasher.update(&piece);
            }
            before += file.bytes;
        }
        Ok(hasher.finalize())
    }
}
