//! Shards of codes: what one row costs, and the writers of the formats.
//!
//! A shard is closed before the first row with which it, or the shard of reconstructed rows beside it, would exceed
//! `--shard-mb`. Where shards end therefore depends on the codes alone, not on batches or interruptions.

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use half::f16;
use sae_run::atomic_file::AtomicFile;
use safetensors::tensor::{Metadata, TensorInfo};

use super::failure::Failure;
use super::index::Shard;
use super::keep::Entries;
#[cfg(feature = "parquet")]
use super::parquet::ParquetShard;
use super::spool::SpooledShard;

/// The format of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tensors values, indices (u32) and offsets (u64).
    Safetensors,
    /// Columns row (u64), latent (u32) and value (f32); needs the feature parquet.
    Parquet,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::Parquet => "parquet",
        })
    }
}

/// The type of written values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    F32,
    F16,
}

impl Dtype {
    /// The type as safetensors has it.
    pub(crate) fn of_tensor(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::F16 => safetensors::Dtype::F16,
        }
    }

    /// Bytes per value.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// The nearest value of this type; infinite if there is none.
    pub(crate) fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
        }
    }

    /// The values in this type, little-endian.
    pub(crate) fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => {
                let halves = values.iter().map(|v| f16::from_f32(*v));
                halves.flat_map(f16::to_le_bytes).collect()
            }
        }
    }
}

/// How shards are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) format: Format,
    pub(crate) dtype: Dtype,
    /// Width of the rows that are reconstructed beside the codes, if they are.
    pub(crate) reconstructed: Option<usize>,
    /// Largest size of a shard in bytes, without its header; a single row may exceed it.
    pub(crate) limit: usize,
}

impl Layout {
    /// Fails if this program cannot write this.
    pub(crate) fn check(&self) -> Result<()> {
        if self.format == Format::Parquet && self.dtype == Dtype::F16 {
            bail!("--dtype f16: the values of --format parquet are f32; leave one of the two out");
        }
        if self.format == Format::Parquet && !cfg!(feature = "parquet") {
            bail!(
                "--format parquet: this program was built without it; start it with cargo run -p sae-eval --features parquet"
            );
        }
        Ok(())
    }

    /// Number of the next rows of a shard that fit into it behind `used` bytes of codes and `rows` rows; at least one
    /// if it is empty. Also the bytes of their codes.
    pub(crate) fn fitting(
        &self,
        entries: &Entries,
        rows: Range<usize>,
        (used, before): (usize, usize),
    ) -> (usize, usize) {
        let most = self
            .reconstructed
            .map_or(usize::MAX, |width| self.limit / (width * self.dtype.size()));
        let (mut bytes, mut count) = (0, 0);
        for row in rows {
            let row = self.row_bytes(entries.offsets[row + 1] - entries.offsets[row]);
            let is_first = before + count == 0;
            if !is_first && (used + bytes + row > self.limit || before + count >= most) {
                break;
            }
            bytes += row;
            count += 1;
        }
        (count, bytes)
    }

    /// Bytes of the codes of a row; of Parquet before it is compressed.
    fn row_bytes(&self, entries: usize) -> usize {
        match self.format {
            Format::Safetensors => 8 + entries * (4 + self.dtype.size()),
            Format::Parquet => entries * (8 + 4 + 4),
        }
    }

    /// Begins the shard with this number in `dir`; `row` is the number of its first row.
    pub(crate) fn create(
        &self,
        dir: &Path,
        number: usize,
        row: usize,
    ) -> Result<Box<dyn CodeShard>, Failure> {
        let path = dir.join(format!("codes-{number:05}.{}", self.format));
        match self.format {
            Format::Safetensors => Ok(Box::new(SpooledShard::create(path, self.dtype)?)),
            #[cfg(feature = "parquet")]
            Format::Parquet => Ok(Box::new(ParquetShard::create(path, row)?)),
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => unreachable!("Layout::check has refused row {row}"),
        }
    }
}

/// A shard of codes that is being written; dropping it leaves nothing.
pub(crate) trait CodeShard {
    /// Adds rows of `entries`.
    ///
    /// # Errors
    /// [`Failure::Unwritten`]
    fn add(&mut self, entries: &Entries, rows: Range<usize>) -> Result<(), Failure>;

    /// Syncs the shard and gives it its name.
    ///
    /// # Errors
    /// [`Failure::Unwritten`]
    fn finish(self: Box<Self>) -> Result<Shard, Failure>;
}

/// A file that counts and hashes what is written to it.
pub(crate) struct Hashed {
    pub(crate) path: PathBuf,
    file: AtomicFile,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Hashed {
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        Ok(Self {
            file: AtomicFile::create(&path)?,
            path,
            hasher: blake3::Hasher::new(),
            bytes: 0,
        })
    }

    /// Syncs the file and gives it its name.
    pub(crate) fn commit(self, rows: usize, entries: usize) -> io::Result<Shard> {
        self.file.commit()?;
        let name = self.path.file_name().unwrap_or_default();
        Ok(Shard {
            file: name.to_string_lossy().into_owned(),
            rows,
            entries,
            bytes: self.bytes,
            blake3: self.hasher.finalize().to_hex().to_string(),
        })
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The header of a safetensors file with these tensors one behind the other, with its length; at least `least` bytes.
pub(crate) fn header(
    tensors: &[(&str, safetensors::Dtype, Vec<usize>)],
    least: usize,
) -> io::Result<Vec<u8>> {
    let mut end = 0;
    let tensors = tensors.iter().map(|(name, dtype, shape)| {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let info = TensorInfo {
            dtype: *dtype,
            shape: shape.clone(),
            data_offsets: (start, end),
        };
        (name.to_string(), info)
    });
    let metadata = Metadata::new(None, tensors.collect()).map_err(io::Error::other)?;
    let mut json = serde_json::to_vec(&metadata)?;
    let length = (json.len() + 8).max(least).next_multiple_of(8) - 8;
    json.resize(length, b' ');
    let mut header = (length as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(reconstructed: Option<usize>) -> Layout {
        Layout {
            format: Format::Safetensors,
            dtype: Dtype::F32,
            reconstructed,
            limit: 100,
        }
    }

    fn entries(lengths: &[usize]) -> Entries {
        let mut offsets = vec![0];
        lengths
            .iter()
            .for_each(|n| offsets.push(offsets[offsets.len() - 1] + n));
        let count = offsets[lengths.len()];
        Entries {
            offsets,
            latents: vec![0; count],
            values: vec![1.0; count],
        }
    }

    #[test]
    fn a_shard_ends_before_the_row_that_exceeds_it() {
        let some = entries(&[4, 4, 5, 0, 20, 0]); // 40, 40, 48, 8, 168, 8 bytes
        let codes = layout(None);
        assert_eq!(codes.fitting(&some, 0..6, (0, 0)), (2, 80));
        assert_eq!(codes.fitting(&some, 2..6, (0, 0)), (2, 56));
        assert_eq!(codes.fitting(&some, 0..2, (20, 1)), (2, 80));
        assert_eq!(codes.fitting(&some, 0..2, (21, 1)), (1, 40));
        assert_eq!(codes.fitting(&some, 4..6, (0, 0)), (1, 168), "at least one");
        assert_eq!(codes.fitting(&some, 4..6, (8, 1)), (0, 0));
        let rows = layout(Some(8)); // 32 bytes: three rows
        assert_eq!(rows.fitting(&entries(&[0; 9]), 0..9, (0, 0)), (3, 24));
        assert_eq!(rows.fitting(&entries(&[0; 9]), 0..9, (16, 2)), (1, 8));
        assert_eq!(
            layout(Some(1000)).fitting(&entries(&[0; 9]), 0..9, (0, 0)),
            (1, 8)
        );
    }

    #[test]
    fn f16_is_the_nearest_value_and_little_endian() {
        assert_eq!(Dtype::F16.bytes(&[1.0, -2.5]), [0, 0x3c, 0, 0xc1]);
        assert_eq!(Dtype::F32.bytes(&[1.0]), [0, 0, 0x80, 0x3f]);
        assert_eq!(Dtype::F16.round(1e-9), 0.0);
        assert!(Dtype::F16.round(7e4).is_infinite());
        assert_eq!(Dtype::F16.round(0.1), 0.099_975_586);
    }
}
