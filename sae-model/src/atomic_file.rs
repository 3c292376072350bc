//! Files that are whole or absent: temporary name, fsync, rename.
//!
//! Every call has a temporary file of its own, which it holds locked, so that any number of processes may write the
//! same file: one of them wins, with all of its bytes. A temporary file that nobody holds was left by a process
//! that died, and the next call removes it.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys;

/// How often a call begins again whose temporary file was taken for a dead process's.
const TRIES: usize = 16;

/// Writes `bytes` to `path` so that a reader finds the old file or the new one, never a part.
///
/// # Errors
/// Whatever the file system answers; the temporary file is removed, and `path` is left as it was.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    remove_stale(path);
    for _ in 1..TRIES {
        match attempt(path, bytes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && has_parent(path) => {}
            written => return written,
        }
    }
    attempt(path, bytes)
}

fn attempt(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    let mut file = File::create_new(&temporary)?;
    let written = (|| {
        // Not every file system has locks; without them nothing is taken for stale either.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(io::ErrorKind::NotFound.into()); // it is being removed
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name beside `path` that no other call has: `<name>.<process>-<call>.tmp`.
fn temporary(path: &Path) -> PathBuf {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{call}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Whether `name` is one that [`temporary`] gives for the file `of`.
fn is_temporary(name: &OsStr, of: &OsStr) -> bool {
    let rest = name.as_encoded_bytes().strip_prefix(of.as_encoded_bytes());
    let numbers = rest.and_then(|rest| rest.strip_prefix(b".")?.strip_suffix(b".tmp"));
    let numbers = numbers.and_then(|numbers| std::str::from_utf8(numbers).ok()?.split_once('-'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(process, call)| is_number(process) && is_number(call))
}

/// Removes temporary files of `path` that nobody holds.
fn remove_stale(path: &Path) {
    let name = path.file_name().unwrap_or_default();
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if is_temporary(&entry.file_name(), name)
            && let Ok(file) = File::options().write(true).open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn has_parent(path: &Path) -> bool {
    path.parent()
        .is_none_or(|parent| parent.as_os_str().is_empty() || parent.is_dir())
}

/// Makes the name `path` durable: a rename is once its directory is.
///
/// # Errors
/// Whatever the file system answers.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sys::sync_directory(parent),
        _ => Ok(()),
    }
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
    fn what_dead_processes_left_is_removed_and_nothing_else() {
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
}
