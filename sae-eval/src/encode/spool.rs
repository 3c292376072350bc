//! Safetensors shards. The header has the number of entries, and one tensor lies behind the other, but how many rows and
//! entries a shard gets is known only at its end. So the three tensors grow in nameless files beside it, which vanish
//! with the process, and are put together at the end. No shard is ever in memory.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::failure::Failure;
use super::index::Shard;
use super::keep::Entries;
use super::shards::{CodeShard, Dtype, Hashed, header};

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 18;

/// A safetensors shard that is being written.
pub(crate) struct SpooledShard {
    path: PathBuf,
    dtype: Dtype,
    offsets: BufWriter<File>,
    indices: BufWriter<File>,
    values: BufWriter<File>,
    rows: usize,
    entries: usize,
}

impl SpooledShard {
    /// Begins the shard `path`.
    ///
    /// # Errors
    /// [`Failure::Unwritten`]
    pub(crate) fn create(path: PathBuf, dtype: Dtype) -> Result<Self, Failure> {
        let spool = || {
            let dir = path.parent().unwrap_or(Path::new("."));
            let file = tempfile::tempfile_in(dir).map_err(Failure::writing(&path))?;
            Ok::<_, Failure>(BufWriter::with_capacity(PIECE, file))
        };
        let mut offsets = spool()?;
        let first = offsets.write_all(&0u64.to_le_bytes());
        first.map_err(Failure::writing(&path))?;
        Ok(Self {
            offsets,
            indices: spool()?,
            values: spool()?,
            path,
            dtype,
            rows: 0,
            entries: 0,
        })
    }

    fn put(&mut self, entries: &Entries, rows: Range<usize>) -> io::Result<()> {
        let before = self.entries;
        let first = entries.offsets[rows.start];
        let ends = &entries.offsets[rows.start + 1..=rows.end];
        let ends = ends.iter().map(|end| (before + end - first) as u64);
        let bytes: Vec<u8> = ends.flat_map(u64::to_le_bytes).collect();
        self.offsets.write_all(&bytes)?;
        let range = first..entries.offsets[rows.end];
        let indices = entries.latents[range.clone()].iter();
        let bytes: Vec<u8> = indices.flat_map(|j| j.to_le_bytes()).collect();
        self.indices.write_all(&bytes)?;
        let bytes = self.dtype.bytes(&entries.values[range.clone()]);
        self.values.write_all(&bytes)?;
        self.rows += rows.len();
        self.entries += range.len();
        Ok(())
    }

    fn assemble(self) -> io::Result<Shard> {
        let (rows, entries) = (self.rows, self.entries);
        // The widest numbers come first, so that every tensor is aligned.
        let tensors = [
            ("offsets", safetensors::Dtype::U64, vec![rows + 1]),
            ("indices", safetensors::Dtype::U32, vec![entries]),
            ("values", self.dtype.of_tensor(), vec![entries]),
        ];
        let mut shard = Hashed::create(self.path)?;
        shard.write_all(&header(&tensors, 0)?)?;
        for spool in [self.offsets, self.indices, self.values] {
            append(spool, &mut shard)?;
        }
        shard.commit(rows, entries)
    }
}

/// Appends all that was written to `spool`.
fn append(spool: BufWriter<File>, to: &mut Hashed) -> io::Result<()> {
    let mut file = spool.into_inner().map_err(|error| error.into_error())?;
    file.rewind()?;
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(()),
            count => to.write_all(&piece[..count])?,
        }
    }
}

impl CodeShard for SpooledShard {
    fn add(&mut self, entries: &Entries, rows: Range<usize>) -> Result<(), Failure> {
        let put = self.put(entries, rows);
        put.map_err(Failure::writing(&self.path))
    }

    fn finish(self: Box<Self>) -> Result<Shard, Failure> {
        let path = self.path.clone();
        self.assemble().map_err(Failure::writing(&path))
    }
}
