//! Files that chores read and write.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Says which file or directory an error is about.
pub(crate) trait At<T> {
    fn at(self, path: &Path) -> Result<T>;
}

impl<T, E> At<T> for Result<T, E>
where
    Self: Context<T, E>,
{
    fn at(self, path: &Path) -> Result<T> {
        self.with_context(|| path.display().to_string())
    }
}

/// The paths in a directory, in their order.
pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(dir).at(dir)?.map(|entry| Ok(entry?.path()));
    let mut paths = paths.collect::<Result<Vec<_>>>().at(dir)?;
    paths.sort();
    Ok(paths)
}

/// The head of a `.npy` file of `[rows, width]` values of the NumPy type `dtype`.
pub(crate) fn npy_head(dtype: &str, rows: usize, width: usize) -> Vec<u8> {
    let text =
        format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    let mut head = b"\x93NUMPY\x01\x00".to_vec();
    head.extend(118u16.to_le_bytes()); // 128 bytes in all, so that the values are aligned
    head.extend(format!("{text:117}\n").bytes());
    head
}
