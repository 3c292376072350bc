//! Linux and macOS.

use std::fs::File;
use std::io;
use std::path::Path;

/// Makes the names in `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
