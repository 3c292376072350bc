//! Windows, which opens no directories as files and makes names durable by itself.

use std::io;
use std::path::Path;

/// Nothing to do here.
pub(crate) fn sync_directory(_directory: &Path) -> io::Result<()> {
    Ok(())
}
