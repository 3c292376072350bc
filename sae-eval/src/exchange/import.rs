//! `sae-eval import`: a dictionary of another program, or a saved model of ours, as a run directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use clap::Args;
use sae_data::config::{HeldOut, Split};
use sae_data::{ActivationData, DataConfig, Fingerprint, Summary};
use sae_model::saved;
use sae_model::{Architecture, Sae};
use sae_run::sealed::checksum;
use sae_run::{Origin, Provenance, RunDir, Sides};
use serde_json::{Map, Value, json};

use super::cfg::Cfg;
use super::error::ForeignError;
use super::export::say;
use super::folded::Folded;
use super::placed::{self, Placed};
use super::{Failure, plain, saelens, sparsify};

/// Largest difference between the model and the formula of the dictionary, in parts of x_hat.
const MOST: f64 = 1e-4;
/// Name of the file that says where an imported model comes from.
pub(super) const IMPORT_FILE: &str = "import.json";

/// Make a run directory of a dictionary of SAELens or sparsify, or of a saved model of ours.
///
/// DIR is recognised by its content. RUN gets the model, a config.toml, and import.json, which says where it comes from. With
/// --train, sae-eval RUN makes the report of its held-out rows; without, sae-eval RUN --data PATH --output DIR that of other
/// rows. sae-train --from RUN goes on training it. No pickle is ever opened. docs/INTEROP.md says what can be taken over.
///
/// Exit codes: 0 done; 1 RUN could not be written; 2 the dictionary, the data or an option is wrong. RUN is whole or absent.
#[derive(Args, Debug)]
pub(crate) struct ImportArguments {
    /// The directory of the dictionary.
    dir: PathBuf,
    /// The run directory to make: a new or an empty one.
    run: PathBuf,
    /// Activations that the dictionary is to be evaluated with, as data.train of a run has them.
    #[arg(long, value_name = "PATH")]
    train: Option<PathBuf>,
    /// Held-out activations. Default: a tenth of --train.
    #[arg(long, value_name = "PATH", requires = "train")]
    held_out: Option<PathBuf>,
    /// Name of the activation tensor or column of --train. Default: the only candidate.
    #[arg(long, value_name = "NAME", requires = "train")]
    tensor: Option<String>,
    /// Number of the layer, for saev shards with several layers.
    #[arg(long, value_name = "N", requires = "train", allow_hyphen_values = true)]
    layer: Option<i64>,
    /// Leave out position 0 of each example of --train.
    #[arg(long, requires = "train")]
    drop_first_token: bool,
}

/// What was found at DIR.
pub(super) struct Found {
    pub(super) sae: Sae,
    seed: u64,
    /// The program whose dictionary it is.
    format: &'static str,
    /// The directory that it is in, and its file of weights.
    dir: PathBuf,
    weights: &'static str,
    /// What the file says of the rows that it was trained on.
    metadata: Map<String, Value>,
}

/// The rows that the run is evaluated with.
struct Rows {
    config: DataConfig,
    train: ActivationData,
    held_out: ActivationData,
}

/// Makes the run directory.
pub(super) fn import(arguments: &ImportArguments) -> Result<(), Failure> {
    placed::check_free(&arguments.run)?;
    let found = found(&arguments.dir)?;
    let rows = arguments.rows(found.sae.config().d_in)?;
    let origin = origin(&found)?;
    let files = [
        ("config.toml", config(&found, &origin, rows.as_ref())?),
        (IMPORT_FILE, import_file(&found, &origin)?),
    ];
    let provenance = rows.as_ref().map(|rows| provenance(rows, &found, &origin));
    let provenance = provenance.transpose()?;
    let written = write(&arguments.run, &found, &files, provenance.as_ref());
    written.map_err(Failure::Unwritten)?;
    let config = found.sae.config();
    say(&format!(
        "{}: {}, {} latents, width {}, from {} ({})",
        arguments.run.display(),
        config.architecture.describe(),
        config.n_latents,
        config.d_in,
        origin.path.display(),
        found.format
    ));
    say(&next(arguments));
    Ok(())
}

/// What can be done with the run.
fn next(arguments: &ImportArguments) -> String {
    let run = arguments.run.display();
    match arguments.train {
        Some(_) => format!("evaluate it: sae-eval {run}"),
        None => format!(
            "it has no data of its own; evaluate it: sae-eval {run} --data PATH --output DIR"
        ),
    }
}

/// The dictionary at `dir`.
pub(super) fn found(dir: &Path) -> Result<Found> {
    let of_run = RunDir::new(dir).model();
    let dir = match of_run.join(saved::CONFIG_FILE).exists() {
        true => of_run.as_path(),
        false => dir,
    };
    let cfg_path = dir.join(saelens::CFG_FILE);
    if cfg_path.exists() && dir.join(saelens::WEIGHTS_FILE).exists() {
        let (foreign, metadata) = saelens::SaeLens::read(dir)?;
        let sae = model(dir, &foreign.clone().fold())?;
        let formula = |x: &[f64]| foreign.reconstructed(x);
        check_same(dir, plain::difference(&sae, foreign.b_dec(), formula))?;
        let (format, weights) = (saelens::NAME, saelens::WEIGHTS_FILE);
        return Ok(Found::new(sae, format, dir, weights, metadata));
    }
    if cfg_path.exists() && dir.join(sparsify::WEIGHTS_FILE).exists() {
        let cfg = Cfg::read(&cfg_path)?;
        if !cfg.has("format") && sparsify::recognises(&cfg) {
            let folded = sparsify::read(dir, &cfg)?;
            let sae = model(dir, &folded)?;
            let formula = |x: &[f64]| sparsify::reconstructed(&folded, x);
            check_same(dir, plain::difference(&sae, &folded.b_dec, formula))?;
            let (format, weights) = (sparsify::NAME, sparsify::WEIGHTS_FILE);
            return Ok(Found::new(sae, format, dir, weights, Map::new()));
        }
        let sae = saved::load(dir, &Device::flex())?;
        let (format, weights) = (saved::FORMAT, saved::WEIGHTS_FILE);
        return Ok(Found {
            seed: saved::load_config(dir)?.seed,
            ..Found::new(sae, format, dir, weights, Map::new())
        });
    }
    Err(unknown(dir).into())
}

impl Found {
    fn new(
        sae: Sae,
        format: &'static str,
        dir: &Path,
        weights: &'static str,
        metadata: Map<String, Value>,
    ) -> Self {
        Self {
            sae,
            seed: 0,
            format,
            dir: dir.into(),
            weights,
            metadata,
        }
    }
}

/// Our model that does what the dictionary in `dir` does.
fn model(dir: &Path, folded: &Folded) -> Result<Sae, ForeignError> {
    let sae = folded.to_sae(&Device::flex());
    sae.map_err(|source| ForeignError::Config {
        path: dir.join(saelens::CFG_FILE),
        source,
    })
}

/// Fails if the model's reconstructions differ by more than float32 does.
fn check_same(dir: &Path, difference: f64) -> Result<(), ForeignError> {
    match difference < MOST {
        true => Ok(()),
        false => Err(ForeignError::Different {
            path: dir.into(),
            difference,
        }),
    }
}

/// Why `dir` holds no dictionary: a pickle is named.
fn unknown(dir: &Path) -> ForeignError {
    const PICKLES: [&str; 5] = ["pt", "pth", "pkl", "pickle", "bin"];
    let is_pickle = |path: &Path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| PICKLES.contains(&extension))
    };
    if dir.is_file() && is_pickle(dir) {
        return ForeignError::Pickle {
            path: dir.into(),
            dir: dir.parent().unwrap_or(dir).into(),
        };
    }
    if dir.is_file() {
        return ForeignError::NotRecognised {
            path: dir.into(),
            found: "it is a file".into(),
        };
    }
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(source) => return ForeignError::io(dir)(source),
    };
    let mut names: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    names.sort();
    match names.iter().find(|path| is_pickle(path)) {
        Some(path) => ForeignError::Pickle {
            path: path.clone(),
            dir: dir.into(),
        },
        None => ForeignError::NotRecognised {
            path: dir.into(),
            found: listed(&names),
        },
    }
}

/// The first names, for a message.
fn listed(paths: &[PathBuf]) -> String {
    const MOST: usize = 5;
    let names = paths.iter().take(MOST).filter_map(|path| path.file_name());
    let names: Vec<String> = names.map(|name| format!("{name:?}")).collect();
    match paths.len() {
        0 => "it is empty".into(),
        n if n > MOST => format!("it has {} and {} more", names.join(", "), n - MOST),
        _ => format!("it has {}", names.join(", ")),
    }
}

impl ImportArguments {
    /// The rows of --train, both sides.
    fn rows(&self, d_in: usize) -> Result<Option<Rows>> {
        let Some(train) = &self.train else {
            return Ok(None);
        };
        let mut config = DataConfig {
            tensor: self.tensor.clone(),
            layer: self.layer,
            drop_first_token: self.drop_first_token,
            ..DataConfig::of(train)
        };
        if let Some(path) = &self.held_out {
            config.held_out = HeldOut::Path(path.clone());
        }
        let config = config.absolute();
        let split = config.open()?;
        if split.train.width() != d_in {
            bail!(
                "--train {}: its activations have width {}, the dictionary takes width {d_in}; name activations of the place \
                 that it was trained on",
                train.display(),
                split.train.width()
            );
        }
        let (Split { train, held_out }, max_norm) = config.within_max_norm(split, |_| {})?;
        Ok(Some(Rows {
            config: DataConfig { max_norm, ..config },
            train,
            held_out,
        }))
    }
}

/// Where the dictionary lies, and what it is.
fn origin(found: &Found) -> Result<Origin> {
    let path = found.dir.join(found.weights);
    let sum = checksum(&path).with_context(|| format!("{}", path.display()))?;
    Ok(Origin {
        path: std::path::absolute(&found.dir)?,
        blake3: sum,
    })
}

/// The content of `config.toml`: the model, and the rows.
fn config(found: &Found, origin: &Origin, rows: Option<&Rows>) -> Result<Vec<u8>> {
    let mut config = toml::Table::new();
    let seed = i64::try_from(found.seed).unwrap_or(0);
    config.insert("seed".into(), seed.into());
    config.insert("model".into(), model_section(found.sae.config())?.into());
    if let Some(rows) = rows {
        config.insert("data".into(), toml::Value::try_from(&rows.config)?);
    }
    let path = origin.path.display().to_string();
    let text = format!(
        "# Imported from {path:?} ({}), whose weights have the BLAKE3 checksum\n# {}. This model was not trained by sae-train \
         here.\n{}",
        found.format,
        origin.blake3,
        toml::to_string(&config)?
    );
    Ok(text.into_bytes())
}

/// `[model]`, as sae-train writes it.
fn model_section(model: &sae_model::SaeConfig) -> Result<toml::Table> {
    let mut section = toml::Table::try_from(model)?;
    section.remove("d_in");
    if let Some(toml::Value::Table(init)) = section.remove("init") {
        section.extend(
            init.into_iter()
                .map(|(key, value)| (format!("init_{key}"), value)),
        );
    }
    if let Some(toml::Value::Table(mut own)) = section.remove("architecture") {
        let name = own.remove("name").unwrap_or("".into());
        section.insert("architecture".into(), name);
        section.extend(own);
    }
    Ok(section)
}

/// The content of `import.json`.
fn import_file(found: &Found, origin: &Origin) -> Result<Vec<u8>> {
    let import = json!({
        "format": "dynamic-sae.import",
        "version": 1,
        "from": origin.path,
        "program": found.format,
        "weights_file": found.weights,
        "weights_blake3": origin.blake3,
        "metadata": found.metadata,
    });
    let mut json = serde_json::to_vec_pretty(&import)?;
    json.push(b'\n');
    Ok(json)
}

/// The provenance of the run: its rows, so that an evaluation finds out if they change, and its model.
fn provenance(rows: &Rows, found: &Found, origin: &Origin) -> Result<Provenance<Fingerprint>> {
    let sample = rows.config.resolved_check_rows(&Split {
        train: rows.train.clone(),
        held_out: rows.held_out.clone(),
    });
    let variance = |side: &ActivationData| Summary::of(side, Some(sample), |_| {});
    Ok(Provenance {
        version: format!("(imported by sae-eval {})", env!("CARGO_PKG_VERSION")),
        burn: "none".into(),
        git_revision: None,
        device: "cpu".into(),
        card: None,
        threads: rayon::current_num_threads(),
        seed: found.seed,
        data: Sides {
            train: rows.train.fingerprint()?,
            held_out: rows.held_out.fingerprint()?,
        },
        variances: [
            variance(&rows.train)?.variance,
            variance(&rows.held_out)?.variance,
        ],
        from: Some(origin.clone()),
        raised: Vec::new(),
    })
}

/// Writes the run directory, whole or not at all.
fn write(
    run: &Path,
    found: &Found,
    files: &[(&str, Vec<u8>)],
    provenance: Option<&Provenance<Fingerprint>>,
) -> Result<()> {
    let placed = Placed::begin(run)?;
    let staged = RunDir::new(placed.path());
    saved::save(&found.sae, found.seed, &staged.model())?;
    if let Some(provenance) = provenance {
        staged.write_provenance(provenance)?;
    }
    for (name, bytes) in files {
        placed.write(name, bytes)?;
    }
    placed.finish()
}
