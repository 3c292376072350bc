//! Files that are whole or absent: written under a temporary name, synced, then renamed.
//!
//! Each [`AtomicFile`] has a temporary file of its own and holds it locked, so that any number of processes may write
//! the same file: one of them wins, with all of its bytes. A temporary file that nobody holds was left by a process
//! that died; the next writer of the same file removes it.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How many temporary files a writer tries to create while other processes remove them as stale.
const TRIES: usize = 16;

/// Returns true if a write failed because the disk or a quota is full.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Writes `bytes` to `path` so that a reader finds the old file or the new one, never a part.
///
/// # Errors
/// Any error of the file system; the temporary file is removed, and `path` is left as it was.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

/// A file that gets its name when it is [committed](Self::commit). Dropping it before that removes it.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    committed: bool,
}

impl AtomicFile {
    /// Creates the temporary file beside `path`.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn create(path: &Path) -> io::Result<Self> {
        remove_stale(path);
        for _ in 0..TRIES {
            let temporary = temporary(path);
            let file = File::create_new(&temporary)?;
            // Another process may have removed the file as stale before it was locked. Some file systems have no locks;
            // there no file counts as stale.
            let is_taken = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
            if !is_taken && temporary.exists() {
                return Ok(Self {
                    path: path.into(),
                    temporary,
                    file,
                    committed: false,
                });
            }
        }
        Err(io::Error::other(
            "other processes remove its temporary files",
        ))
    }

    /// Syncs the file and gives it its name.
    ///
    /// # Errors
    /// Any error of the file system; the temporary file is removed.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        self.committed = true;
        sync_parent(&self.path)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// For a header whose content is known at the end.
impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A name beside `path` that no other writer has: `<name>.<process>-<call>.tmp`.
fn temporary(path: &Path) -> PathBuf {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{call}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Returns true if `name` is one that [`temporary`] gives for the file `of`.
fn is_temporary(name: &OsStr, of: &OsStr) -> bool {
    let rest = name.as_encoded_bytes().strip_prefix(of.as_encoded_bytes());
    let numbers = rest.and_then(|rest| rest.strip_prefix(b".")?.strip_suffix(b".tmp"));
    let numbers = numbers.and_then(|numbers| std::str::from_utf8(numbers).ok()?.split_once('-'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(process, call)| is_number(process) && is_number(call))
}

/// Removes temporary files of `path` that no process holds locked.
fn remove_stale(path: &Path) {
    let name = path.file_name().unwrap_or_default();
    let parent = parent(path).unwrap_or(Path::new("."));
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if is_temporary(&entry.file_name(), name)
            && let Ok(file) = File::options().write(true).open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The directory of `path`, unless that is the current one.
fn parent(path: &Path) -> Option<&Path> {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
}

/// Makes the name `path` durable: a rename is durable once its directory is synced.
///
/// # Errors
/// Any error of the file system.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    parent(path).map_or(Ok(()), sync_directory)
}

/// Makes the names in `directory` durable.
#[cfg(unix)]
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Windows does not open directories as files and makes names durable by itself.
#[cfg(not(unix))]
fn sync_directory(_directory: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn many_writers_of_one_file_never_mix_and_never_fail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        std::thread::scope(|scope| {
            for writer in 0..8u8 {
                let path = &path;
                scope.spawn(move || {
                    for i in 0..40 {
                        let bytes = vec![b'a' + writer; 1000 + i];
                        write(path, &bytes).unwrap();
                        let read = fs::read(path).unwrap();
                        assert!(read.len() >= 1000 && read.iter().all(|b| *b == read[0]));
                    }
                });
            }
        });
        assert_eq!(names(dir.path()), ["report.json"]);
    }

    #[test]
    fn leftovers_of_dead_processes_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let others = [
            "a.json.tmp",
            "b.json.1-2.tmp",
            "a.json.1-x.tmp",
            "a.json.1-.tmp",
        ];
        for name in others.iter().chain(&["a.json.1-2.tmp", "a.json.3-4.tmp"]) {
            fs::write(at(name), "x").unwrap();
        }
        let held = File::open(at("a.json.3-4.tmp")).unwrap();
        held.lock().unwrap();
        write(&at("a.json"), b"new").unwrap();
        assert!(!at("a.json.1-2.tmp").exists());
        for name in others.iter().chain(&["a.json.3-4.tmp"]) {
            assert!(at(name).exists(), "{name}");
        }
        drop(held);
        write(&at("a.json"), b"new").unwrap();
        assert!(!at("a.json.3-4.tmp").exists());
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        fs::create_dir(&target).unwrap(); // a rename onto a directory fails
        assert!(write(&target, b"new").is_err());
        assert_eq!(names(dir.path()), ["a"]);
        let error = write(&dir.path().join("none/a"), b"new").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_is_not_committed_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert!(names(dir.path()).is_empty());
    }
}
