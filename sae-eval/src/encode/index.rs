//! `index.json`: what the shards of an encoding are, and of what. It is written last, so a directory that has it is
//! complete; until then the same content is in `index.json.partial`, with the shards that are whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sae_data::{Fingerprint, IndexedShard, ShardIndex};
use sae_run::{atomic_file, read_text};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::failure::Failure;

/// Value of [`Index::format`].
pub(crate) const FORMAT: &str = "dynamic-sae.codes";
/// Name of the index.
pub(crate) const INDEX: &str = "index.json";
/// Name of the state of an unfinished encoding.
pub(crate) const PARTIAL: &str = "index.json.partial";
/// Directory of the reconstructed rows.
pub(crate) const RECONSTRUCTION: &str = "reconstruction";
/// Bytes of the longest index that is read.
const MAX_INDEX: u64 = 1 << 30;

/// The content of `index.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Index {
    /// [`FORMAT`].
    pub(crate) format: String,
    /// 1.
    pub(crate) version: u32,
    /// Rows of all shards.
    pub(crate) rows: usize,
    /// Number of latents M of the model.
    pub(crate) latents: usize,
    /// Type of the values, as safetensors names it.
    pub(crate) dtype: String,
    /// The model.
    pub(crate) model: ModelPrint,
    /// The data.
    pub(crate) data: Fingerprint,
    /// Rows of the data set that were encoded, if not all: the first row and the row after the last of each stretch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data_rows: Option<Vec<[usize; 2]>>,
    /// The options.
    pub(crate) options: Options,
    /// The shards, in the order of their rows.
    pub(crate) shards: Vec<Shard>,
    /// Shards of `reconstruction/`, whose own index is written at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) reconstruction: Vec<IndexedShard>,
}

/// A shard of codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shard {
    /// Name of the file, beside the index.
    pub(crate) file: String,
    /// Its rows.
    pub(crate) rows: usize,
    /// Its entries.
    pub(crate) entries: usize,
    /// Its size.
    pub(crate) bytes: u64,
    /// BLAKE3 of the whole file, in hexadecimal.
    pub(crate) blake3: String,
}

/// Identifies a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ModelPrint {
    /// Path of the saved model.
    pub(crate) path: PathBuf,
    /// Its architecture, in words.
    pub(crate) architecture: String,
    /// BLAKE3 of its `cfg.json`.
    pub(crate) config_blake3: String,
    /// BLAKE3 of its `sae.safetensors`.
    pub(crate) weights_blake3: String,
}

/// What was asked for and changes what is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Options {
    /// `safetensors` or `parquet`.
    pub(crate) file_format: String,
    /// The device, on which the last bits depend.
    pub(crate) device: String,
    /// Latents that are kept, if not all.
    pub(crate) latents: Option<Vec<u32>>,
    /// Number of entries that are kept of each row, if not all.
    pub(crate) top: Option<usize>,
    /// Whether rows are reconstructed, too.
    pub(crate) reconstruct: bool,
    /// Largest size of a shard in MiB.
    pub(crate) shard_mb: usize,
}

impl Index {
    /// Number of rows in whole shards.
    pub(crate) fn rows_done(&self) -> usize {
        self.shards.iter().map(|shard| shard.rows).sum()
    }

    /// Number of entries in whole shards.
    pub(crate) fn entries(&self) -> usize {
        self.shards.iter().map(|shard| shard.entries).sum()
    }

    /// Bytes of all whole shards.
    pub(crate) fn bytes(&self) -> u64 {
        let codes = self.shards.iter().map(|shard| shard.bytes);
        codes
            .chain(self.reconstruction.iter().map(|shard| shard.bytes))
            .sum()
    }

    /// How the encoding `now` differs from this one, in words that follow "it has codes of "; `None` if it is the same.
    fn difference(&self, now: &Self) -> Option<String> {
        let prints = |of: &Self| {
            (
                of.model.config_blake3.clone(),
                of.model.weights_blake3.clone(),
            )
        };
        if prints(self) != prints(now) {
            return Some(format!("another model ({})", self.model.path.display()));
        }
        if let Some(difference) = self.data.difference(&now.data) {
            return Some(format!("other data ({difference})"));
        }
        let facts = |of: &Self| {
            let options = &of.options;
            let number = |top: Option<usize>| top.map_or("all".into(), |top| top.to_string());
            [
                ("--format", options.file_format.clone()),
                ("--dtype", of.dtype.to_lowercase()),
                ("--device", options.device.clone()),
                ("--top", number(options.top)),
                ("--shard-mb", options.shard_mb.to_string()),
                ("--reconstruct", options.reconstruct.to_string()),
            ]
        };
        let pairs = facts(self).into_iter().zip(facts(now));
        let mut differing = pairs.filter(|(then, now)| then != now);
        if let Some(((option, then), (_, now))) = differing.next() {
            return Some(format!("other options ({option} was {then}, now {now})"));
        }
        let differs = self.options.latents != now.options.latents;
        differs.then(|| "other options (--latents)".into())
    }
}

/// The directory that an encoding is written to, held by one process.
pub(crate) struct Output {
    /// The directory.
    pub(crate) dir: PathBuf,
    /// The encoding, with the shards that are whole.
    pub(crate) index: Index,
    /// Whether all of it is there.
    pub(crate) is_complete: bool,
    /// Held as long as this process works here. Some file systems have no locks.
    _lock: Option<File>,
}

impl Output {
    /// Begins an encoding, or goes on with one; `fresh` is the encoding without any shard.
    ///
    /// # Errors
    /// [`Failure::Wrong`] if the directory has something else, [`Failure::Unwritten`] if it cannot be written to.
    pub(crate) fn begin(dir: &Path, fresh: Index) -> Result<Self, Failure> {
        if dir.exists() && !dir.is_dir() {
            let reason = "it is a file; name a new directory for the codes";
            return Err(anyhow!("{}: {reason}", dir.display()).into());
        }
        fs::create_dir_all(dir).map_err(Failure::writing(dir))?;
        let lock = File::open(dir).ok();
        let taken = lock.as_ref().map(File::try_lock);
        if let Some(Err(fs::TryLockError::WouldBlock)) = taken {
            let reason =
                "another process encodes into it; wait for its end, or name another directory";
            return Err(anyhow!("{}: {reason}", dir.display()).into());
        }
        let known = known(dir, &fresh)?;
        let is_complete = matches!(known, Known::Complete(_));
        let is_fresh = matches!(known, Known::Nothing);
        let output = Self {
            dir: dir.into(),
            index: match known {
                Known::Complete(index) | Known::Partial(index) => *index,
                Known::Nothing => fresh,
            },
            is_complete,
            _lock: lock,
        };
        if output.index.options.reconstruct {
            let dir = output.reconstruction();
            fs::create_dir_all(&dir).map_err(Failure::writing(&dir))?;
        }
        if is_fresh {
            output.save(PARTIAL)?;
        }
        Ok(output)
    }

    /// The directory of reconstructed rows.
    pub(crate) fn reconstruction(&self) -> PathBuf {
        self.dir.join(RECONSTRUCTION)
    }

    /// Records a shard that is whole.
    ///
    /// # Errors
    /// [`Failure::Unwritten`]
    pub(crate) fn add(
        &mut self,
        shard: Shard,
        reconstructed: Option<IndexedShard>,
    ) -> Result<(), Failure> {
        self.index.shards.push(shard);
        self.index.reconstruction.extend(reconstructed);
        self.save(PARTIAL)
    }

    /// Writes the index, when all shards are whole; `width` is that of a reconstructed row.
    ///
    /// # Errors
    /// [`Failure::Unwritten`]
    pub(crate) fn finish(&mut self, width: usize) -> Result<(), Failure> {
        if self.index.options.reconstruct {
            let source = format!(
                "reconstructions of {} by {}",
                self.index.data.path.display(),
                self.index.model.path.display()
            );
            let index = ShardIndex {
                format: ShardIndex::FORMAT.into(),
                version: 1,
                rows: self.index.rows,
                width,
                dtype: self.index.dtype.clone(),
                shards: self.index.reconstruction.clone(),
                image: None,
                metadata: serde_json::Map::from_iter([("source".to_string(), source.into())]),
            };
            write_json(&self.reconstruction().join(INDEX), &index)?;
        }
        self.save(INDEX)?;
        let partial = self.dir.join(PARTIAL);
        fs::remove_file(&partial).map_err(Failure::writing(&partial))?;
        self.is_complete = true;
        Ok(())
    }

    fn save(&self, name: &str) -> Result<(), Failure> {
        write_json(&self.dir.join(name), &self.index)
    }
}

/// State of a directory.
enum Known {
    Nothing,
    Partial(Box<Index>),
    Complete(Box<Index>),
}

/// The encoding that is in `dir`, if it is the same as `fresh`.
fn known(dir: &Path, fresh: &Index) -> Result<Known> {
    let wrong = |reason: String| anyhow!("{}: {reason}", dir.display());
    let (complete, partial) = (dir.join(INDEX), dir.join(PARTIAL));
    let (path, is_complete) = match (complete.exists(), partial.exists()) {
        (true, _) => (complete, true),
        (false, true) => (partial, false),
        (false, false) => {
            let names = fs::read_dir(dir).into_iter().flatten().flatten();
            let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
            // a process that died before it wrote anything leaves at most a file with a temporary name
            return match names.find(|name| !name.ends_with(".tmp")) {
                Some(name) => Err(wrong(format!(
                    "it is not empty (there is {name}) and has no codes; name a new directory"
                ))),
                None => Ok(Known::Nothing),
            };
        }
    };
    let index: Index = read_index(&path)?;
    if index.shards.is_empty() {
        return Ok(Known::Nothing);
    }
    if let Some(difference) = index.difference(fresh) {
        return Err(wrong(format!(
            "it has codes of {difference}; name another directory, or remove this one"
        )));
    }
    let codes = index.shards.iter().map(|s| (dir.join(&s.file), s.bytes));
    let rows = index.reconstruction.iter();
    let rows = rows.map(|s| (dir.join(RECONSTRUCTION).join(&s.file), s.bytes));
    for (path, bytes) in codes.chain(rows) {
        let size = fs::metadata(&path).map(|metadata| metadata.len());
        ensure!(
            size.is_ok_and(|size| size == bytes),
            "{}: it is missing or was changed since it was written; remove {} and start again",
            path.display(),
            dir.display()
        );
    }
    let index = Box::new(index);
    Ok(match is_complete {
        true => Known::Complete(index),
        false => Known::Partial(index),
    })
}

/// Reads the index of an encoding; one of something else is an error.
fn read_index(path: &Path) -> Result<Index> {
    #[derive(Deserialize)]
    struct Header {
        format: String,
        version: u32,
    }
    let text = read_text(path, MAX_INDEX).with_context(|| format!("{}", path.display()))?;
    let remedy = "name another directory, or remove this one";
    let header = parse::<Header>(&text).map(|header| (header.format, header.version));
    match header {
        Ok((format, 1)) if format == FORMAT => {
            parse(&text).with_context(|| format!("{}: damaged; {remedy}", path.display()))
        }
        Ok((format, version)) => bail!(
            "{}: it is the index of something else (format {format:?}, version {version}); {remedy}",
            path.display()
        ),
        Err(_) => bail!(
            "{}: it is not the index of an encoding; {remedy}",
            path.display()
        ),
    }
}

fn parse<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(text)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    atomic_file::write(path, &text).map_err(Failure::writing(path))
}
