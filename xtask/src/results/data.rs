//! Where the data sets lie, and what tells one from another.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use toml::Value;

use super::plan::{Judged, Plan};
use crate::files::{At, entries};

/// Bytes of a file that are looked at in one place, and in how many places.
const BLOCK: u64 = 1 << 16;
const PLACES: u64 = 64;
/// The rest of a model in the directory of a data set.
const TAIL: &str = "tail.onnx";

/// A data set: three splits.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Data {
    /// Its name in the tables.
    pub(super) title: String,
    /// How to get it.
    pub(super) how: String,
    /// File or directory to train on; absent where the repository does not ship it.
    pub(super) train: Option<PathBuf>,
    /// `data.held_out` of the runs that choose learning rates.
    pub(super) validation: Option<Value>,
    /// `data.held_out` of all others.
    pub(super) heldout: Option<Value>,
    /// The rest of the model that the data is from, where `PATH` holds one: it goes on from the reconstructions of `heldout`.
    #[serde(skip)]
    pub(super) tail: Option<PathBuf>,
    /// Fingerprints of exports that count as one data set: of the same texts by the same model, but from another version of the
    /// exporter (which writes tokens beside the rows) or another processor (whose sums end in other bits).
    pub(super) exports: Vec<String>,
    /// Other keys of the config's `[data]`.
    #[serde(flatten)]
    pub(super) keys: BTreeMap<String, Value>,
}

impl Plan {
    /// Applies `--data NAME=PATH`. PATH is the file or directory to train on if the plan says which part of it is held out;
    /// otherwise it holds `train`, `heldout` and, where learning rates are chosen, `validation`, each a directory or one file
    /// (`train.safetensors`); and `tail.onnx`, if the report is to say what the rest of the model makes of reconstructions.
    pub(super) fn place(&mut self, places: &[String]) -> Result<()> {
        for place in places {
            let parts = place.split_once('=');
            let (name, path) = parts.with_context(|| format!("--data {place}: write NAME=PATH"))?;
            let names = format!("{:?}", self.data.keys());
            let data = self.data.get_mut(name);
            let data = data
                .with_context(|| format!("--data {place}: the plan has the data sets {names}"))?;
            if data.heldout.is_some() && data.validation.is_none() {
                data.train = Some(path.into());
                continue;
            }
            let split =
                |name: &str| split(path.as_ref(), name).with_context(|| format!("--data {place}"));
            data.train = Some(split("train")?);
            data.heldout = Some(text(&split("heldout")?));
            let chooses = self.methods.iter().any(|method| !method.lr.is_empty());
            let validation = chooses.then(|| split("validation")).transpose()?;
            data.validation = validation.as_deref().map(text);
            data.tail = Some(Path::new(path).join(TAIL)).filter(|tail| tail.exists());
        }
        Ok(())
    }
}

fn text(path: &Path) -> Value {
    path.display().to_string().into()
}

/// The directory of a split, or its only file.
fn split(dir: &Path, name: &str) -> Result<PathBuf> {
    let shards = dir.join(name);
    if shards.is_dir() {
        return Ok(shards);
    }
    let mut found = entries(dir)?;
    found.retain(|path| path.is_file() && path.file_stem().is_some_and(|stem| stem == name));
    match found.len() {
        1 => Ok(found.remove(0)),
        n => bail!(
            "{n} files called {name}.*, and no directory {name}; put the split's shards into a directory {0}, or its \
             only file at {0}.safetensors",
            shards.display()
        ),
    }
}

impl Data {
    /// The data set of a config's `[data]`.
    pub(crate) fn of_config(mut keys: toml::Table) -> Result<Self> {
        let train = keys.remove("train").context("data.train is missing")?;
        let train = train.as_str().context("data.train is not a path")?;
        Ok(Self {
            train: Some(train.into()),
            heldout: keys.remove("held_out"),
            keys: keys.into_iter().collect(),
            ..Self::default()
        })
    }

    /// The three splits by their names.
    fn splits(&self) -> [(&'static str, Option<Value>); 3] {
        [
            ("train", self.train.as_deref().map(text)),
            ("validation", self.validation.clone()),
            ("heldout", self.heldout.clone()),
        ]
    }

    /// The config of a run that is judged on a split.
    pub(super) fn config(&self, judged: Judged) -> Result<String> {
        let [train, validation, heldout] = self.splits().map(|(_, value)| value);
        let held_out = match judged {
            Judged::Validation => Some(validation.context("the data set has no validation split")?),
            Judged::Heldout => heldout,
        };
        let mut keys = toml::Table::from_iter(self.keys.clone());
        keys.extend(train.map(|train| ("train".to_string(), train)));
        keys.extend(held_out.map(|held_out| ("held_out".to_string(), held_out)));
        let mut config = toml::Table::from_iter([("data".to_string(), keys.into())]);
        if let (Some(tail), Judged::Heldout) = (&self.tail, judged) {
            let file = toml::Table::from_iter([("file".to_string(), text(tail))]);
            let tail = toml::Table::from_iter([("tail".to_string(), file.into())]);
            config.insert("eval".into(), tail.into());
        }
        Ok(toml::to_string(&config)?)
    }

    /// The fingerprint by which runs on an export are known: that of the first export which counts as the same.
    pub(super) fn known_as(&self, fingerprint: String) -> String {
        match self.exports.first() {
            Some(first) if self.exports.contains(&fingerprint) => first.clone(),
            _ => fingerprint,
        }
    }

    /// BLAKE3 of the sizes and of 64 places of every file, in the order of their names, of the tail, and of every key that
    /// is not a place; the same wherever the files lie.
    pub(super) fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for (name, value) in self.splits() {
            hasher.update(name.as_bytes());
            match value {
                Some(Value::String(path)) => add_files(&mut hasher, path.as_ref())?,
                Some(part) => drop(hasher.update(part.to_string().as_bytes())),
                None => {}
            }
        }
        if let Some(tail) = &self.tail {
            add_files(&mut hasher, tail)?;
        }
        for (key, value) in &self.keys {
            hasher.update(format!("\n{key} = {value}").as_bytes());
        }
        Ok(hasher.finalize().to_hex()[..16].into())
    }
}

fn add_files(hasher: &mut blake3::Hasher, path: &Path) -> Result<()> {
    if !path.is_dir() {
        return add_file(hasher, path).at(path);
    }
    let mut files = entries(path)?;
    // what describes the shards (index.json) may say when and where they were made
    files.retain(|file| file.is_file() && file.extension().is_none_or(|end| end != "json"));
    ensure!(!files.is_empty(), "{}: no data files", path.display());
    files
        .iter()
        .try_for_each(|file| add_file(hasher, file).at(file))
}

fn add_file(hasher: &mut blake3::Hasher, path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    hasher.update(&size.to_le_bytes());
    let places = size.div_ceil(BLOCK).min(PLACES);
    for place in 0..places {
        let start = if places < PLACES {
            place * BLOCK
        } else {
            (size - BLOCK) * place / (PLACES - 1)
        };
        file.seek(SeekFrom::Start(start))?;
        hasher.update_reader(file.by_ref().take(BLOCK))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::results::plan::tests::PLAN;

    #[test]
    fn a_fingerprint_is_of_the_content() {
        let root = crate::results::tests::scratch("fingerprint");
        let print = |dir: &str, byte: u8, size: usize| {
            let dir = root.join(dir);
            fs::create_dir_all(dir.join("train")).unwrap();
            let mut bytes = vec![1; size];
            bytes[size - 1] = byte;
            fs::write(dir.join("train/0.bin"), &bytes).unwrap();
            fs::write(dir.join("train/index.json"), format!("{dir:?}")).unwrap();
            fs::write(dir.join("validation.npy"), "v").unwrap();
            fs::write(dir.join("heldout.npy"), "h").unwrap();
            let mut plan = Plan::parse(PLAN).unwrap();
            plan.place(&[format!("small={}", dir.display())]).unwrap();
            plan.data["small"].fingerprint().unwrap()
        };
        let small = print("a", 1, 100);
        assert_eq!(small, print("b", 1, 100), "another place, the same data");
        assert_ne!(small, print("a", 2, 100));
        let large = print("a", 1, 6 << 20);
        assert_ne!(large, print("a", 2, 6 << 20), "the last block is looked at");
        assert_ne!(large, print("a", 1, (6 << 20) + 1));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_split_that_is_missing_is_named() {
        let root = crate::results::tests::scratch("splits");
        for name in ["train-0.npy", "train-1.npy"] {
            fs::write(root.join(name), "x").unwrap();
        }
        let mut plan = Plan::parse(PLAN).unwrap();
        let error = plan
            .place(&[format!("small={}", root.display())])
            .unwrap_err();
        assert!(
            format!("{error:#}").contains("0 files called train.*"),
            "{error:#}"
        );
        fs::remove_dir_all(root).unwrap();
    }
}
