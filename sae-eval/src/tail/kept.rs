//! Documents that are done, one line each, so that an evaluation that was stopped goes on where it was, and one with the same
//! settings computes nothing again.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Name of the file in the directory of the report.
const NAME: &str = "tail.jsonl";

/// The file. Without one (none was wanted, or it cannot be written) nothing is kept, and nothing else changes.
pub(super) struct Kept(Option<File>);

impl Kept {
    /// What an earlier evaluation with the same `about` has kept in `dir`, and the file to go on with.
    pub(super) fn open<T: DeserializeOwned>(
        dir: Option<&Path>,
        about: &serde_json::Value,
    ) -> (Self, Vec<T>) {
        let Some(dir) = dir else {
            return (Self(None), Vec::new());
        };
        let path = dir.join(NAME);
        let (whole, done) = read(&path, about);
        let file = fs::create_dir_all(dir).and_then(|()| begin(&path, about, whole));
        if let Err(error) = &file {
            tracing::warn!(
                "{}: {error}; if this evaluation is stopped, its documents are computed again",
                path.display()
            );
        }
        (Self(file.ok()), done)
    }

    /// Keeps documents that are done.
    pub(super) fn add<T: Serialize>(&mut self, done: &[T]) {
        let Some(file) = &mut self.0 else {
            return;
        };
        let line = |one: &T| serde_json::to_string(one).map(|line| line + "\n");
        let lines: Result<String, _> = done.iter().map(line).collect();
        let written = lines
            .map_err(Into::into)
            .and_then(|lines| file.write_all(lines.as_bytes()));
        if written.is_err() {
            self.0 = None; // a line may be there in part, and nothing may follow it
        }
    }
}

/// The bytes of whole lines, and what they say; none if they are about something else.
fn read<T: DeserializeOwned>(path: &Path, about: &serde_json::Value) -> (usize, Vec<T>) {
    let text = fs::read_to_string(path).unwrap_or_default();
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
        let Ok(one) = serde_json::from_str(line) else {
            break;
        };
        whole += line.len();
        done.push(one);
    }
    (whole, done)
}

/// Cuts the file after what is whole, or begins it.
fn begin(path: &Path, about: &serde_json::Value, whole: usize) -> std::io::Result<File> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.set_len(whole as u64)?;
    if whole == 0 {
        writeln!(file, "{about}")?;
    }
    Ok(file)
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
        drop(kept);
        let path = dir.path().join(NAME);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push('3'); // killed within a line
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
