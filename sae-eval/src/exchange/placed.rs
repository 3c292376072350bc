//! A directory of another program's files: whole or absent, as [`sae_run::sealed`] makes ours, but without a file of
//! checksums among files that other programs list.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sae_run::{atomic_file, sealed};

/// A directory that is being written beside its final name. Dropping it removes what has been written.
pub(super) struct Placed {
    staging: PathBuf,
    target: PathBuf,
}

/// Fails unless there is nothing at `target`, or an empty directory.
pub(super) fn check_free(target: &Path) -> Result<()> {
    ensure!(
        target.file_name().is_some(),
        "{}: name a new directory",
        target.display()
    );
    match fs::read_dir(target) {
        Ok(mut entries) => ensure!(
            entries.next().is_none(),
            "{}: it is not empty; name a new directory",
            target.display()
        ),
        Err(_) => ensure!(
            fs::symlink_metadata(target).is_err(),
            "{}: this is not a directory; name a new one",
            target.display()
        ),
    }
    Ok(())
}

impl Placed {
    /// Begins the directory.
    pub(super) fn begin(target: &Path) -> Result<Self> {
        Ok(Self {
            staging: sealed::staging(target)?,
            target: target.into(),
        })
    }

    /// Where to write.
    pub(super) fn path(&self) -> &Path {
        &self.staging
    }

    /// Writes a file.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.staging.join(name);
        let written = fs::write(&path, bytes).and_then(|()| File::open(&path)?.sync_all());
        written.with_context(|| {
            format!(
                "{}: it cannot be written; make room, or name another directory",
                path.display()
            )
        })
    }

    /// Gives the directory its name.
    pub(super) fn finish(self) -> Result<()> {
        let named = || -> io::Result<()> {
            fs::rename(&self.staging, &self.target)?; // an empty directory gives way
            atomic_file::sync_parent(&self.target)
        };
        named().with_context(|| format!("{}: it cannot be made", self.target.display()))
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.staging); // gone, if it has its name
    }
}
