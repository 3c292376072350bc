//! The documents that the rest of a model goes on with: all of their tokens, from position 0 on.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sae_data::config::HeldOut;
use sae_data::{ActivationData, DataConfig, Meanings};

use super::file::{Kind, Tail};

/// The key of the documents in a config.
const KEY: &str = "eval.tail.data";
/// Rows whose documents are looked up at a time.
const AT_ONCE: usize = 1 << 16;

/// Documents of whole texts or images.
pub(super) struct Documents {
    data: ActivationData,
    meanings: Meanings,
    /// The rows of each document.
    pub(super) rows: Vec<Range<usize>>,
    /// Whether position 0 stays as it is.
    pub(super) first_stays: bool,
}

/// One document.
pub(super) struct Document {
    /// Its number among those that are judged.
    pub(super) number: usize,
    /// Its hidden state `[tokens, d]`.
    pub(super) hidden: Vec<f32>,
    /// Its token ids, if the tail needs them.
    pub(super) tokens: Vec<i64>,
    /// Its class, if the data has labels.
    pub(super) label: Option<usize>,
}

impl Documents {
    /// The documents of `path`, or those that the run has held out; at most `most` of them.
    pub(super) fn open(
        path: Option<&Path>,
        config: &DataConfig,
        tail: &Tail,
        most: Option<usize>,
    ) -> Result<Self> {
        let data = match path {
            Some(path) => whole(config).open_other(KEY, path, None, None)?,
            None => held_out(config)?,
        };
        let at = data.path().display();
        ensure!(
            data.width() == tail.width,
            "{at}: its rows have width {}, the tail {} goes on from width {}",
            data.width(),
            tail.path.display(),
            tail.width
        );
        check_origin(&data, tail)?;
        let mut rows = documents(&data)?;
        rows.truncate(most.unwrap_or(usize::MAX));
        ensure!(rows.len() >= 2, "{at}: fewer than two documents");
        let longest = rows.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        ensure!(
            longest <= tail.context,
            "{at}: a document has {longest} rows, and the tail {} takes {} tokens at most; export it with a longer --context",
            tail.path.display(),
            tail.context
        );
        let meanings = data.meanings()?;
        Ok(Self {
            data,
            meanings,
            rows,
            first_stays: tail.kind == Kind::Decoder || config.drop_first_token,
        })
    }

    /// Reads a document.
    pub(super) fn read(&self, number: usize) -> Result<Document> {
        let rows = self.rows[number].clone();
        let about = || format!("{}: document {number}", self.data.path().display());
        if let Some(positions) = self.meanings.row_positions(rows.clone())? {
            ensure!(
                (0..).zip(&positions).all(|(at, position)| at == *position),
                "{}: its positions are {}, and the rest of the model needs all tokens from position 0 on; export without \
                 --drop-first, and set data.drop_first_token = true to train without position 0",
                about(),
                said(&positions)
            );
        }
        let labels = self.data.labels(rows.clone())?;
        let label = labels.as_ref().and_then(|labels| labels.first().copied());
        ensure!(
            labels.iter().flatten().all(|one| Some(*one) == label),
            "{}: its rows have different labels",
            about()
        );
        let hidden = self.data.read(rows.clone())?;
        ensure!(
            hidden.iter().all(|x| x.is_finite()),
            "{} has NaN or infinity",
            about()
        );
        Ok(Document {
            number,
            hidden,
            tokens: self.meanings.token_ids(rows)?.unwrap_or_default(),
            label,
        })
    }

    /// The rows of a document that may be replaced, with their positions.
    pub(super) fn own_rows<'a>(
        &self,
        document: &'a Document,
    ) -> impl Iterator<Item = (usize, &'a [f32])> {
        let rows = document.hidden.chunks_exact(self.data.width());
        rows.enumerate().skip(usize::from(self.first_stays))
    }

    /// The data set.
    pub(super) fn data(&self) -> &ActivationData {
        &self.data
    }

    /// Whether its rows say which tokens they are of.
    pub(super) fn has_tokens(&self) -> bool {
        self.meanings.has_tokens()
    }

    /// Number of rows of all documents.
    pub(super) fn tokens(&self) -> usize {
        self.rows.iter().map(ExactSizeIterator::len).sum()
    }

    /// Documents that are judged together: as many as have this number of rows, or one for each processor.
    pub(super) fn groups(&self, from: usize, rows: usize) -> impl Iterator<Item = Range<usize>> {
        let mut next = from;
        std::iter::from_fn(move || {
            let start = next;
            let mut taken = 0;
            while let Some(document) = self.rows.get(next)
                && (taken + document.len() <= rows || next - start < rayon::current_num_threads())
            {
                taken += document.len();
                next += 1;
            }
            (next > start).then_some(start..next)
        })
    }
}

fn said(positions: &[usize]) -> String {
    let some: Vec<String> = positions.iter().take(3).map(usize::to_string).collect();
    some.join(", ") + ", ..."
}

/// The data of a run, with position 0.
fn whole(config: &DataConfig) -> DataConfig {
    DataConfig {
        drop_first_token: false,
        ..config.clone()
    }
}

/// The documents that a run has held out, with all of their rows.
fn held_out(config: &DataConfig) -> Result<ActivationData> {
    if let HeldOut::Path(path) = &config.held_out {
        let labels = config.held_out_labels.as_deref();
        return Ok(whole(config).open_other("data.held_out", path, None, labels)?);
    }
    ensure!(
        !config.drop_first_token,
        "this run leaves out position 0 and has held out a part of data.train; name the documents of the tail: export those \
         that were held out on their own"
    );
    Ok(config.open()?.held_out)
}

/// Fails if the data set says that it is of another model or layer.
fn check_origin(data: &ActivationData, tail: &Tail) -> Result<()> {
    let index = data.path().join("index.json");
    let Some(origin) = read_origin(&index) else {
        return Ok(()); // only our exporter writes it
    };
    let at = data.path().display();
    if let Some(layer) = &origin.layer {
        ensure!(
            *layer == format!("layer {}", tail.layer),
            "{at}: its rows are of {layer}, the tail {} goes on from layer {}",
            tail.path.display(),
            tail.layer
        );
    }
    let name = |model: &str| Path::new(model).file_name().map(PathBuf::from);
    if let Some(model) = &origin.model
        && name(model) != name(&tail.model)
    {
        bail!(
            "{at}: its rows are of the model {model}, the tail {} is of {}",
            tail.path.display(),
            tail.model
        );
    }
    Ok(())
}

/// Fails if the data set has a list of its classes (`classes.json`, which the exporter writes) that is another than the tail's.
pub(super) fn check_classes(data: &ActivationData, names: &[String]) -> Result<()> {
    const MAX_CLASSES: u64 = 16 << 20;
    let path = data.path().join("classes.json");
    let Ok(text) = sae_run::read_text(&path, MAX_CLASSES) else {
        return Ok(());
    };
    let own: Vec<String> = serde_json::from_str(&text)
        .with_context(|| format!("{}: not a JSON list of names", path.display()))?;
    let differs = own.iter().zip(names).position(|(own, name)| own != name);
    ensure!(
        own.len() == names.len() && differs.is_none(),
        "{}: its {} classes are not the {} classes of the tail{}; give both the same classes in the same order",
        path.display(),
        own.len(),
        names.len(),
        differs.map_or(String::new(), |at| format!(
            " (number {at} is {:?} here and {:?} there)",
            own[at], names[at]
        ))
    );
    Ok(())
}

struct Origin {
    layer: Option<String>,
    model: Option<String>,
}

fn read_origin(index: &Path) -> Option<Origin> {
    const MAX_INDEX: u64 = 16 << 20;
    let text = sae_run::read_text(index, MAX_INDEX).ok()?;
    let index: serde_json::Value = serde_json::from_str(&text).ok()?;
    let of = |key: &str| {
        let text = index.pointer(&format!("/metadata/{key}"))?.as_str()?;
        Some(text.to_string())
    };
    Some(Origin {
        // a negative layer counts from the end of a model that is not known here
        layer: of("place").filter(|place| place.starts_with("layer ") && !place.contains('-')),
        model: of("model"),
    })
}

/// The rows of each document.
fn documents(data: &ActivationData) -> Result<Vec<Range<usize>>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut last = None;
    for start in (0..data.rows()).step_by(AT_ONCE) {
        let rows = start..(start + AT_ONCE).min(data.rows());
        let documents = data.documents(rows.clone()).with_context(|| {
            format!(
                "{}: its rows belong to no documents, so the rest of a model cannot go on with them",
                data.path().display()
            )
        })?;
        for (row, document) in rows.zip(documents) {
            match found.last_mut() {
                Some(range) if last == Some(document) => range.end = row + 1,
                _ => found.push(row..row + 1),
            }
            last = Some(document);
        }
    }
    Ok(found)
}
