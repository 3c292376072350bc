//! Documents that are done, one line each, so that an evaluation that was stopped goes on where it was, and one with the same
//! settings runs no document again.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Error, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Name of the file in the directory of the report.
const NAME: &str = "tail.jsonl";

/// The file, locked. Without one (none was wanted, it cannot be written, or another evaluation writes it) nothing is kept, and
/// nothing else changes.
pub(super) struct Kept {
    file: Option<File>,
    path: PathBuf,
    /// Number of documents in it.
    documents: usize,
}

impl Kept {
    /// What an earlier evaluation with the same `about` has kept in `dir`, and the file to go on with.
    pub(super) fn open<T: DeserializeOwned>(
        dir: Option<&Path>,
        about: &serde_json::Value,
    ) -> (Self, Vec<T>) {
        let path = dir.map(|dir| dir.join(NAME)).unwrap_or_default();
        let mut kept = Self {
            file: None,
            path,
            documents: 0,
        };
        let Some(dir) = dir else {
            return (kept, Vec::new());
        };
        let opened = fs::create_dir_all(dir).and_then(|()| begin(&kept.path, about));
        let mut done = Vec::new();
        match opened {
            Ok((file, found)) => (kept.file, done) = (Some(file), found),
            Err(error) => kept.warn(&error),
        }
        kept.documents = done.len();
        (kept, done)
    }

    /// Keeps the next documents, which are done.
    pub(super) fn add<T: Serialize>(&mut self, done: &[T]) {
        let Some(mut file) = self.file.take() else {
            return;
        };
        let numbered = (self.documents..).zip(done);
        let lines: Result<String, _> = numbered
            .map(|one| serde_json::to_string(&one).map(|line| line + "\n"))
            .collect();
        let written = lines
            .map_err(Error::from)
            .and_then(|lines| file.write_all(lines.as_bytes()));
        match written {
            Ok(()) => {
                self.documents += done.len();
                self.file = Some(file);
            }
            Err(error) => self.warn(&error), // a line may be there in part, and nothing may follow it
        }
    }

    fn warn(&self, error: &Error) {
        tracing::warn!(
            "{}: {error}; if this evaluation is stopped, its documents are computed again",
            self.path.display()
        );
    }
}

/// Opens and locks the file; cuts it after what is whole, or begins it.
fn begin<T: DeserializeOwned>(
    path: &Path,
    about: &serde_json::Value,
) -> std::io::Result<(File, Vec<T>)> {
    let mut options = OpenOptions::new();
    let mut file = options.create(true).read(true).append(true).open(path)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(Error::other("another evaluation writes it")),
        Ok(()) | Err(TryLockError::Error(_)) => {} // some file systems have no locks
    }
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap_or_default(); // what is not text is not whole
    let (whole, done) = read(&text, about);
    file.set_len(whole as u64)?;
    if whole == 0 {
        writeln!(file, "{about}")?;
    }
    Ok((file, done))
}

/// The bytes of whole lines, and what they say; none if they are about something else.
fn read<T: DeserializeOwned>(text: &str, about: &serde_json::Value) -> (usize, Vec<T>) {
    let mut lines = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    let Some(first) = lines.next() else {
        return (0, Vec::new());
    };
    if serde_json::from_str(first).ok().as_ref() != Some(about) {
        return (0, Vec::new());
    }
    let (mut whole, mut done) = (first.len(), Vec::new());
    for line in lines {
        match serde_json::from_str::<(usize, T)>(line) {
            Ok((number, one)) if done.len() == number => done.push(one),
            _ => break,
        }
        whole += line.len();
    }
    (whole, done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_after_the_last_whole_line_of_the_same_evaluation() {
        let dir = tempfile::tempdir().unwrap();
        let about = serde_json::json!({"tail": "a"});
        let open = |about| Kept::open::<usize>(Some(dir.path()), about);
        let (mut kept, done) = open(&about);
        assert!(done.is_empty());
        kept.add(&[1, 2]);
        let (mut other, done) = open(&about);
        assert!(done.is_empty(), "another evaluation writes it");
        other.add(&[7]);
        drop((kept, other));
        let path = dir.path().join(NAME);
        let mut text = fs::read_to_string(&path).unwrap();
        text += "[3,70]\n[2,"; // a document that is not the next, and one that was killed within its line
        fs::write(&path, text).unwrap();
        let (mut kept, done) = open(&about);
        assert_eq!(done, [1, 2]);
        kept.add(&[30]);
        drop(kept);
        assert_eq!(open(&about).1, [1, 2, 30]);
        assert!(
            open(&serde_json::json!({"tail": "b"})).1.is_empty(),
            "something else"
        );
    }
}
