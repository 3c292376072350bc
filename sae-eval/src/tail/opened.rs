//! The rest of a model, opened: everything that can be wrong with it and its documents is found here, before anything runs.

use anyhow::{Result, anyhow, ensure};
use sae_data::{ActivationData, MaxNorm};

use super::answers::Classes;
use super::documents::{Documents, check_classes};
use super::file::{Kind, Tail};
use super::network::Network;
use super::survey::Survey;
use crate::ranking::Rule;
use crate::ranking_pass::RankedOn;
use crate::run::Run;
use crate::tail_arguments::TailArguments;

/// The rest of a model, its documents, and what is asked about them.
pub(crate) struct Opened {
    pub(super) network: Network,
    pub(super) documents: Documents,
    pub(super) classes: Option<Classes>,
    pub(super) ranked_on: Option<ActivationData>,
    pub(super) survey: Survey,
}

impl Opened {
    /// Opens the tail that is asked for; `None` if none is.
    pub(crate) fn open(run: &Run, arguments: &TailArguments) -> Result<Option<Self>> {
        let Some(file) = &arguments.file else {
            return Ok(None);
        };
        let tail = Tail::open(file)?;
        let documents = Documents::open(
            arguments.data.as_deref(),
            &run.data_config,
            &tail,
            arguments.documents,
        )?;
        ensure!(
            tail.width == run.config.model.d_in,
            "the tail {} goes on from width {}, the model was trained on width {}",
            tail.path.display(),
            tail.width,
            run.config.model.d_in
        );
        let classes = classes(&tail, &documents, arguments)?;
        let ranked_on = classes
            .as_ref()
            .map(|_| ranked_on(run, arguments))
            .transpose()?;
        if let Some(classes) = classes.as_ref().filter(|_| tail.kind == Kind::Classifier) {
            check_classes(documents.data(), &classes.names)?;
            ranked_on
                .iter()
                .try_for_each(|data| check_classes(data, &classes.names))?;
        }
        if let (Some(data), Some(classes)) = (&ranked_on, &classes) {
            RankedOn::new(data, classes.names.len(), Rule::Firing, 0)?; // reads all labels
        }
        let max_norm = arguments.max_norm.unwrap_or(MaxNorm::None);
        let survey = Survey::of(&documents, &tail, classes.as_ref(), max_norm)?;
        Ok(Some(Self {
            network: Network::new(tail)?,
            documents,
            classes,
            ranked_on,
            survey,
        }))
    }
}

/// The classes that the tail answers with; none for a decoder. The documents must say what their kind needs.
fn classes(
    tail: &Tail,
    documents: &Documents,
    arguments: &TailArguments,
) -> Result<Option<Classes>> {
    let at = documents.data().path().display();
    if tail.kind == Kind::Decoder {
        ensure!(
            documents.has_tokens(),
            "{at}: its rows do not say which tokens they are of, and losses need the next token; tools/export_activations.py \
             writes them"
        );
        return Ok(None);
    }
    ensure!(
        documents.data().has_labels(),
        "{at}: its documents have no labels, and the tail {} answers with classes",
        tail.path.display()
    );
    Classes::of(tail, arguments).map(Some)
}

/// The rows on which the latents of a class are ranked.
fn ranked_on(run: &Run, arguments: &TailArguments) -> Result<ActivationData> {
    let data = match &arguments.ranked_on {
        Some(path) => {
            let key = "eval.tail.ranked_on";
            run.data_config.open_other(key, path, None, None)?
        }
        None => run.data.train.clone().map_err(|why| anyhow!(why))?,
    };
    ensure!(
        data.has_labels(),
        "{}: its rows have no labels, so the latents of a class cannot be ranked; name labelled activations by eval.tail.ranked_on (--tail-ranked-on)",
        data.path().display()
    );
    ensure!(
        data.width() == run.config.model.d_in,
        "{}: its rows have width {}, not {}",
        data.path().display(),
        data.width(),
        run.config.model.d_in
    );
    Ok(data)
}
