//! Shards of reconstructed rows, in the format that `sae-data` reads and `sae-data convert` writes.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sae_data::IndexedShard;
use sae_run::atomic_file::AtomicFile;
use sae_run::sealed::checksum;

use super::failure::Failure;
use super::shards::{Dtype, header};

/// Bytes of the header: longer than any that is needed.
const HEADER: usize = 256;
/// Bytes that are written at a time.
const PIECE: usize = 1 << 18;

/// A shard that is being written. The number of its rows is known at its end, so its header is written then.
pub(crate) struct RowShard {
    path: PathBuf,
    file: BufWriter<AtomicFile>,
    dtype: Dtype,
    width: usize,
    rows: usize,
}

impl RowShard {
    /// Begins the shard with this number in `dir`, of rows of this width.
    ///
    /// # Errors
    /// [`Failure::Unwritten`]
    pub(crate) fn create(
        dir: &Path,
        number: usize,
        dtype: Dtype,
        width: usize,
    ) -> Result<Self, Failure> {
        let path = dir.join(format!("shard-{number:05}.safetensors"));
        let file = AtomicFile::create(&path).map_err(Failure::writing(&path))?;
        let mut file = BufWriter::with_capacity(PIECE, file);
        let header = file.write_all(&[b' '; HEADER]);
        header.map_err(Failure::writing(&path))?;
        Ok(Self {
            path,
            file,
            dtype,
            width,
            rows: 0,
        })
    }

    /// Adds rows `[n, width]`.
    ///
    /// # Errors
    /// [`Failure::Unwritten`]
    pub(crate) fn add(&mut self, rows: &[f32]) -> Result<(), Failure> {
        self.rows += rows.len() / self.width;
        let written = self.file.write_all(&self.dtype.bytes(rows));
        written.map_err(Failure::writing(&self.path))
    }

    /// Syncs the shard and gives it its name.
    ///
    /// # Errors
    /// [`Failure::Unwritten`]
    pub(crate) fn finish(self) -> Result<IndexedShard, Failure> {
        let failed = || Failure::writing(&self.path);
        let shape = vec![self.rows, self.width];
        let header = header(&[("activations", self.dtype.of_tensor(), shape)], HEADER);
        let header = header.map_err(failed())?;
        let file = self.file.into_inner().map_err(|error| error.into_error());
        let mut file = file.map_err(failed())?;
        let written = file
            .seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(&header))
            .and_then(|()| file.commit());
        written.map_err(failed())?;
        let name = self.path.file_name().unwrap_or_default();
        Ok(IndexedShard {
            file: name.to_string_lossy().into_owned(),
            rows: self.rows,
            bytes: (HEADER + self.rows * self.width * self.dtype.size()) as u64,
            blake3: checksum(&self.path).map_err(failed())?,
        })
    }
}
