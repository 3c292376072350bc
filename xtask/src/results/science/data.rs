//! Where the data sets lie, and what tells one from another.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use toml::Value;

use super::plan::{Data, Judged, Plan};

/// Bytes of a file that are looked at in one place, and in how many places.
const BLOCK: u64 = 1 << 16;
const PLACES: u64 = 64;

impl Plan {
    /// Applies `--data NAME=DIR`: DIR holds `train`, `validation` and `heldout`, each a directory or one file
    /// (`train.safetensors`).
    pub(super) fn place(&mut self, places: &[String]) -> Result<()> {
        for place in places {
            let (name, dir) = place
                .split_once('=')
                .with_context(|| format!("--data {place}: write NAME=DIR"))?;
            let names: Vec<&String> = self.data.keys().collect();
            let names = format!("{names:?}");
            let data = self.data.get_mut(name);
            let data = data
                .with_context(|| format!("--data {place}: the plan has the data sets {names}"))?;
            let split =
                |name: &str| split(Path::new(dir), name).with_context(|| format!("--data {place}"));
            data.train = Some(split("train")?);
            data.validation = Some(text(&split("validation")?));
            data.heldout = Some(text(&split("heldout")?));
        }
        Ok(())
    }
}

fn text(path: &Path) -> Value {
    path.display().to_string().into()
}

/// The directory of a split, or its only file.
fn split(dir: &Path, name: &str) -> Result<PathBuf> {
    if dir.join(name).is_dir() {
        return Ok(dir.join(name));
    }
    let entries = fs::read_dir(dir).with_context(|| format!("{}", dir.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    found.retain(|path| path.is_file() && path.file_stem().is_some_and(|stem| stem == name));
    match found.len() {
        1 => Ok(found.remove(0)),
        n => bail!(
            "{n} files called {name}.*, and no directory {name}; put the split's shards into a directory {}, or its \
             only file at {}.safetensors",
            dir.join(name).display(),
            dir.join(name).display()
        ),
    }
}

impl Data {
    /// Whether all three splits are there.
    pub(super) fn is_placed(&self) -> bool {
        self.train.is_some() && self.validation.is_some() && self.heldout.is_some()
    }

    /// The config of a run that is judged on a split.
    pub(super) fn config(&self, judged: Judged) -> Result<String> {
        let mut keys = toml::Table::from_iter(self.keys.clone());
        let train = self.train.as_deref().context("the data set has no place")?;
        let held_out = match judged {
            Judged::Validation => &self.validation,
            Judged::Heldout => &self.heldout,
        };
        keys.insert("train".into(), text(train));
        keys.insert(
            "held_out".into(),
            held_out.clone().context("the data set has no place")?,
        );
        let config = toml::Table::from_iter([("data".to_string(), keys.into())]);
        Ok(toml::to_string(&config)?)
    }

    /// BLAKE3 of the sizes and of 64 places of every file, in the order of their names, and of every key that is
    /// not a place; the same wherever the files lie.
    pub(super) fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let paths = [
            self.train.clone().map(|path| text(&path)),
            self.validation.clone(),
            self.heldout.clone(),
        ];
        for (name, value) in ["train", "validation", "heldout"].iter().zip(paths) {
            hasher.update(name.as_bytes());
            match value.context("the data set has no place")? {
                Value::String(path) => add_files(&mut hasher, Path::new(&path))?,
                part => drop(hasher.update(part.to_string().as_bytes())),
            }
        }
        for (key, value) in &self.keys {
            hasher.update(format!("\n{key} = {value}").as_bytes());
        }
        Ok(hasher.finalize().to_hex()[..16].into())
    }
}

fn add_files(hasher: &mut blake3::Hasher, path: &Path) -> Result<()> {
    let about = || format!("{}", path.display());
    if !path.is_dir() {
        return add_file(hasher, path).with_context(about);
    }
    let mut files: Vec<PathBuf> = fs::read_dir(path)
        .with_context(about)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    // what describes the shards (index.json) may say when and where they were made
    files.retain(|file| file.is_file() && file.extension().is_none_or(|end| end != "json"));
    files.sort();
    ensure!(!files.is_empty(), "{}: no data files", path.display());
    files
        .iter()
        .try_for_each(|file| add_file(hasher, file).with_context(|| format!("{}", file.display())))
}

fn add_file(hasher: &mut blake3::Hasher, path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    hasher.update(&size.to_le_bytes());
    let places = if size <= BLOCK * PLACES {
        size.div_ceil(BLOCK)
    } else {
        PLACES
    };
    let mut bytes = Vec::new();
    for place in 0..places {
        let start = if places < PLACES {
            place * BLOCK
        } else {
            (size - BLOCK) * place / (PLACES - 1)
        };
        file.seek(SeekFrom::Start(start))?;
        bytes.clear();
        file.by_ref().take(BLOCK).read_to_end(&mut bytes)?;
        hasher.update(&bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::science::plan::tests::PLAN;

    #[test]
    fn a_fingerprint_is_of_the_content() {
        let root = crate::results::science::tests::scratch("fingerprint");
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
        let root = crate::results::science::tests::scratch("splits");
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
