//! The run directory: where `sae-train` leaves everything that a run produces, and where `sae-eval` finds it.
//!
//! ```text
//! runs/<run>/  lock             held by the process that works here
//!              provenance.json  versions, git revision, device, threads, seed, data fingerprints
//!              start/           the saved model that the run started from, if it did not start from fresh parameters
//!              config.toml      the config with every default written out; written last: with it, the run has begun
//!              checkpoint/      step-00000300/, ...
//!              metrics.jsonl    one record per step and per validation
//!              tensorboard/     the same records as TensorBoard's event files, if they were asked for
//!              train.log        the log
//!              model/           cfg.json, sae.safetensors, BLAKE3SUMS
//!              usage.json       time and memory of the process that finished the run
//!              reports/         report.json, report.md and report.html, written by sae-eval
//! ```

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::atomic_file;
use crate::sealed::STAGING_SUFFIX;
use crate::{Provenance, Usage};

/// Length in bytes of the longest config or provenance that is read.
const MAX_TEXT: u64 = 16 << 20;

/// A file of a run directory that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The reason.
    pub source: io::Error,
}

/// The path of a run directory, which need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(PathBuf);

macro_rules! entries {
    ($($(#[$doc:meta])* $name:ident = $entry:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> PathBuf {
            self.0.join($entry)
        }
    )*};
}

impl RunDir {
    entries! {
        /// The file that the process working here holds locked.
        lock = "lock";
        /// Where the numbers of the run come from, a [`Provenance`].
        provenance = "provenance.json";
        /// The config with every default written out.
        config = "config.toml";
        /// The saved model that the run started from, a sealed directory.
        start = "start";
        /// The directory of checkpoints.
        checkpoints = "checkpoint";
        /// One JSON record per step and per validation.
        metrics = "metrics.jsonl";
        /// TensorBoard's event files, one directory per split.
        tensorboard = "tensorboard";
        /// The log.
        log = "train.log";
        /// The trained model, a sealed directory.
        model = "model";
        /// Time and memory of the process that finished the run, a [`Usage`].
        usage = "usage.json";
        /// The directory of reports.
        reports = "reports";
        /// The report as data.
        report_json = "reports/report.json";
    }

    /// The run directory at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The run directories that a path means: the path itself if a run has begun there, otherwise the runs in that directory,
    /// in the order of their names; empty if there is none.
    pub fn all_in(path: &Path) -> Vec<Self> {
        let own = Self::new(path);
        if own.has_begun() {
            return vec![own];
        }
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let runs = entries.map(|entry| Self::new(entry.path()));
        let mut runs: Vec<Self> = runs.filter(Self::has_begun).collect();
        runs.sort_by(|a, b| a.0.cmp(&b.0));
        runs
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns true if a run has begun here.
    pub fn has_begun(&self) -> bool {
        self.config().exists()
    }

    /// The name of an entry that is not a leftover of a process that died before its run had begun.
    pub fn foreign_entry(&self) -> Option<String> {
        let ours = [self.lock(), self.provenance(), self.start()];
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let foreign = entries.filter(|entry| !ours.contains(&entry.path()));
        let mut names = foreign.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.find(|name| !name.ends_with(STAGING_SUFFIX))
    }

    /// Reads the config.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be read, is not UTF-8, or is far longer than a config can be.
    pub fn read_config(&self) -> Result<String, FileError> {
        read(self.config(), Ok)
    }

    /// Replaces the config, unless the file has this content already.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be written.
    pub fn write_config(&self, toml: &str) -> Result<(), FileError> {
        let path = self.config();
        if fs::read(&path).is_ok_and(|old| old == toml.as_bytes()) {
            return Ok(());
        }
        write(path, Ok(toml.into()))
    }

    /// Reads the provenance, or a part of it: [`Provenance`] or [`Sides`](crate::Sides).
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be read, is far too long, or does not parse as `P`.
    pub fn read_provenance<P: DeserializeOwned>(&self) -> Result<P, FileError> {
        read(self.provenance(), |text| Ok(serde_json::from_str(&text)?))
    }

    /// Writes the provenance.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be written.
    pub fn write_provenance<D: Serialize>(
        &self,
        provenance: &Provenance<D>,
    ) -> Result<(), FileError> {
        let json = serde_json::to_string_pretty(provenance).map_err(io::Error::from);
        write(self.provenance(), json.map(|json| json + "\n"))
    }
}

impl RunDir {
    /// Reads what the run needed.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be read, is far too long, or does not parse.
    pub fn read_usage(&self) -> Result<Usage, FileError> {
        read(self.usage(), |text| Ok(serde_json::from_str(&text)?))
    }

    /// Writes what the run needed.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be written.
    pub fn write_usage(&self, usage: &Usage) -> Result<(), FileError> {
        let json = serde_json::to_string_pretty(usage).map_err(io::Error::from);
        write(self.usage(), json.map(|json| json + "\n"))
    }
}

/// Reads a text file. One that is longer than `most` bytes is refused before it fills the memory.
///
/// # Errors
/// Any error of the file system; also if the file is too long or not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let reason = format!("longer than {} MiB", most >> 20);
        return Err(io::Error::other(reason));
    }
    String::from_utf8(bytes).map_err(io::Error::other)
}

fn read<T>(path: PathBuf, parse: impl FnOnce(String) -> io::Result<T>) -> Result<T, FileError> {
    let text = read_text(&path, MAX_TEXT);
    text.and_then(parse)
        .map_err(|source| FileError { path, source })
}

fn write(path: PathBuf, text: io::Result<String>) -> Result<(), FileError> {
    text.and_then(|text| atomic_file::write(&path, text.as_bytes()))
        .map_err(|source| FileError { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_run_that_has_not_begun_leaves_is_not_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        for name in ["lock", "provenance.json", "config.toml.1-2.tmp"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(run.foreign_entry(), None);
        fs::write(run.log(), "").unwrap();
        assert_eq!(run.foreign_entry().as_deref(), Some("train.log"));
        assert_eq!(RunDir::new(dir.path().join("none")).foreign_entry(), None);
    }

    #[test]
    fn a_path_means_a_run_or_the_runs_in_it() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a", "not-a-run"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("compare.json"), "").unwrap();
        let [a, b] = ["a", "b"].map(|name| RunDir::new(dir.path().join(name)));
        for run in [&a, &b] {
            run.write_config("seed = 0").unwrap();
        }
        assert_eq!(RunDir::all_in(dir.path()), [a.clone(), b]);
        assert_eq!(RunDir::all_in(a.path()), [a]);
        assert_eq!(RunDir::all_in(&dir.path().join("not-a-run")), []);
        assert_eq!(RunDir::all_in(&dir.path().join("compare.json")), []);
    }

    #[test]
    fn a_config_that_is_far_too_long_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let file = File::create(run.config()).unwrap();
        file.set_len(MAX_TEXT + 1).unwrap();
        let error = run.read_config().unwrap_err();
        assert!(
            error.source.to_string().contains("longer than 16 MiB"),
            "{error:?}"
        );
    }
}
