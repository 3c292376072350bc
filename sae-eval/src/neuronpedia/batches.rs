//! Features in files that one request each can carry. One file is in memory at a time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use data_encoding::HEXLOWER;
use sae_run::atomic_file;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Failure;

/// Most features of a request.
const MOST_FEATURES: usize = 128;
/// Most tokens of a passage.
pub(super) const MOST_TOKENS: usize = 1024;
/// Bytes of a file that has more than one feature. Neuronpedia names no limit, but servers of its kind refuse requests of
/// more than 4.5 MB.
const MOST_BYTES: usize = 4_000_000;

/// The model and the source that a request is about.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    pub(super) model_id: String,
    pub(super) source: String,
}

/// A latent.
#[derive(Debug, Serialize)]
pub(super) struct Feature {
    pub(super) index: u32,
    /// Part of the rows on which it is active.
    pub(super) density: f64,
    /// Its strongest rows, strongest first.
    pub(super) activations: Vec<Activation>,
}

/// A passage: its tokens and the latent's activation on each.
#[derive(Debug, Serialize)]
pub(super) struct Activation {
    pub(super) tokens: Vec<String>,
    pub(super) values: Vec<f32>,
}

/// An entry of `index.json`.
#[derive(Debug, Serialize)]
struct File {
    file: String,
    features: usize,
    first: u32,
    last: u32,
    bytes: usize,
    sha256: String,
}

/// The files of a directory.
pub(super) struct Batches {
    dir: PathBuf,
    header: Header,
    /// Features of the file that is next, each as JSON.
    waiting: Vec<(u32, String)>,
    bytes: usize,
    files: Vec<File>,
}

/// Fails if there is something at `dir` already.
pub(super) fn check_empty(dir: &Path) -> Result<()> {
    match fs::read_dir(dir) {
        Ok(mut entries) => ensure!(
            entries.next().is_none(),
            "{}: it is not empty; name a new directory",
            dir.display()
        ),
        Err(_) => ensure!(!dir.exists(), "{}: this is not a directory", dir.display()),
    }
    Ok(())
}

impl Batches {
    pub(super) fn begin(dir: &Path, header: Header) -> Self {
        Self {
            dir: dir.into(),
            header,
            waiting: Vec::new(),
            bytes: 0,
            files: Vec::new(),
        }
    }

    /// Adds the next feature.
    pub(super) fn add(&mut self, feature: &Feature) -> Result<(), Failure> {
        let json = serde_json::to_string(feature)?;
        let full = self.waiting.len() == MOST_FEATURES || self.bytes + json.len() > MOST_BYTES;
        if full {
            self.flush()?;
        }
        self.bytes += json.len() + 1;
        self.waiting.push((feature.index, json));
        Ok(())
    }

    /// Writes the features that wait to a file.
    fn flush(&mut self) -> Result<(), Failure> {
        let waiting = std::mem::take(&mut self.waiting);
        self.bytes = 0;
        let (Some(first), Some(last)) = (waiting.first(), waiting.last()) else {
            return Ok(());
        };
        let (first, last) = (first.0, last.0);
        let features: Vec<&str> = waiting.iter().map(|(_, json)| json.as_str()).collect();
        let header = serde_json::to_string(&self.header)?;
        let text = format!(
            "{},\"features\":[\n{}\n]}}\n",
            header.trim_end_matches('}'),
            features.join(",\n")
        );
        let file = format!("features-{:05}.json", self.files.len());
        self.write(&file, &text)?;
        self.files.push(File {
            file,
            features: features.len(),
            first,
            last,
            bytes: text.len(),
            sha256: HEXLOWER.encode(&Sha256::digest(&text)),
        });
        Ok(())
    }

    /// Writes the last file and the index; returns the number of files.
    pub(super) fn finish(&mut self, rows: usize, silent: usize) -> Result<usize, Failure> {
        self.flush()?;
        if self.files.is_empty() {
            let error =
                anyhow!("none of these latents is active on a row, so there is nothing to send");
            return Err(Failure::Wrong(error));
        }
        let index = serde_json::json!({
            "format": "dynamic-sae.neuronpedia",
            "version": 1,
            "modelId": self.header.model_id,
            "source": self.header.source,
            "rows": rows,
            "silent_latents": silent,
            "files": self.files,
        });
        let text = serde_json::to_string_pretty(&index)? + "\n";
        self.write("index.json", &text)?;
        Ok(self.files.len())
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.dir.join(name);
        fs::create_dir_all(&self.dir)
            .and_then(|()| atomic_file::write(&path, text.as_bytes()))
            .with_context(|| {
                format!(
                    "{}: it cannot be written, so the files in {} are not complete; remove them before you start again",
                    path.display(),
                    self.dir.display()
                )
            })
            .map_err(Failure::Unwritten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(index: u32, tokens: usize) -> Feature {
        Feature {
            index,
            density: 0.25,
            activations: vec![Activation {
                tokens: vec!["</script>\"\n".into(); tokens],
                values: vec![0.1; tokens],
            }],
        }
    }

    fn written(features: impl IntoIterator<Item = Feature>) -> Vec<serde_json::Value> {
        let dir = tempfile::tempdir().unwrap();
        let header = Header {
            model_id: "m".into(),
            source: "5-s".into(),
        };
        let mut batches = Batches::begin(dir.path(), header);
        for feature in features {
            assert!(batches.add(&feature).is_ok());
        }
        let count = batches.finish(8, 0).unwrap_or_else(|_| panic!("finished"));
        let read = |i| fs::read_to_string(dir.path().join(format!("features-{i:05}.json")));
        let files = (0..count).map(|i| read(i).unwrap());
        files
            .map(|text| {
                assert!(text.len() < 4_500_000);
                serde_json::from_str(&text).unwrap()
            })
            .collect()
    }

    #[test]
    fn a_file_has_at_most_128_features() {
        let files = written((0..300).map(|index| feature(index, 2)));
        let counts = files
            .iter()
            .map(|file| file["features"].as_array().unwrap().len());
        assert_eq!(counts.collect::<Vec<_>>(), [128, 128, 44]);
        assert_eq!(files[2]["features"][43]["index"], 299);
        assert_eq!(files[0]["modelId"], "m");
        let activation = &files[0]["features"][0]["activations"][0];
        assert_eq!(activation["tokens"][0], "</script>\"\n");
        assert_eq!(activation["values"][1].as_f64().unwrap() as f32, 0.1);
    }

    #[test]
    fn a_file_has_at_most_four_megabytes() {
        let files = written((0..20).map(|index| feature(index, 40_000)));
        assert!(files.len() > 1, "{}", files.len());
        let all: usize = files
            .iter()
            .map(|f| f["features"].as_array().unwrap().len())
            .sum();
        assert_eq!(all, 20);
    }

    #[test]
    fn a_directory_that_has_files_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_empty(dir.path()).is_ok());
        assert!(check_empty(&dir.path().join("new")).is_ok());
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(
            check_empty(dir.path())
                .unwrap_err()
                .to_string()
                .contains("not empty")
        );
        assert!(
            check_empty(&file)
                .unwrap_err()
                .to_string()
                .contains("not a directory")
        );
    }
}
