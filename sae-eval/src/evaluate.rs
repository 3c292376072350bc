//! The passes over the data: one over the held-out split for everything that is judged, and one over the
//! training split for what top-n classification learns about classes.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use sae_data::ActivationFile;
use sae_model::stats::{MomentStats, ReconstructionStats, SparsityStats};
use sae_model::{Encoded, Sae, SparseValue};

use crate::Arguments;
use crate::head::{Accuracy, Head};
use crate::ranking::Ranking;
use crate::report::{ClassAccuracy, Report, TopN, TopNRow};
use crate::run::Run;

/// Latent activations computed at a time: 1024 rows at 8192 latents, 32 MB.
const MAX_CODES: usize = 1 << 23;

/// Evaluates a run.
pub(crate) fn report(run: &Run, arguments: &Arguments, device: &Device) -> Result<Report> {
    let started = Instant::now();
    let model = &run.config.model;
    let batch = match arguments.batch_size {
        Some(rows) => rows as usize,
        None => (MAX_CODES / model.n_latents).clamp(1, 1024),
    };
    let threshold = arguments.fire_threshold.unwrap_or(match model.value {
        SparseValue::Score => 0.2,
        SparseValue::Probability => 0.0,
    });
    let passes = Passes {
        run,
        device,
        batch,
        threshold,
        top_n: &arguments.top_n,
    };
    let mut reconstruction = ReconstructionStats::new(model.d_in);
    let mut sparsity = SparsityStats::new(model.n_latents);
    let trained = passes.judge(&run.sae, |x, encoded, x_hat| {
        reconstruction.add(x, &host(x_hat));
        sparsity.add(&host(encoded.activations));
    })?;
    let untrained = if arguments.no_untrained || trained.is_none() {
        None
    } else {
        let mean = mean(&run.train, batch)?;
        let sae = Sae::init(model, run.config.seed, &mean, device);
        passes.judge(&sae, |_, _, _| {})?
    };
    Ok(Report::new(
        run,
        &arguments.device,
        reconstruction.metrics(),
        &sparsity,
        top_n(run, threshold, trained, untrained),
        started.elapsed().as_secs_f64(),
    ))
}

/// Mean of a data set, as training computes it.
fn mean(file: &ActivationFile, block: usize) -> Result<Vec<f32>> {
    let mut moments = MomentStats::default();
    for block in file.blocks(block) {
        moments.add(&block?, file.width());
    }
    Ok(moments.mean().iter().map(|m| *m as f32).collect())
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}

/// What all passes share.
struct Passes<'a> {
    run: &'a Run,
    device: &'a Device,
    batch: usize,
    threshold: f32,
    top_n: &'a [usize],
}

/// Accuracies of one model.
struct Judged {
    original: Accuracy,
    /// For each n, then for all: n, on, off.
    rows: Vec<(Option<usize>, Accuracy, Accuracy)>,
}

impl Passes<'_> {
    /// Walks a data set in batches: first row, rows as read, rows on the device.
    fn walk(
        &self,
        file: &ActivationFile,
        mut visit: impl FnMut(usize, &[f32], Tensor<2>) -> Result<()>,
    ) -> Result<()> {
        let _span = tracing::debug_span!("pass", rows = file.rows()).entered();
        let mut start = 0;
        for block in file.blocks(self.batch) {
            let block = block?;
            let rows = block.len() / file.width();
            let data = TensorData::new(block.clone(), [rows, file.width()]);
            visit(start, &block, Tensor::from_data(data, self.device))?;
            start += rows;
        }
        Ok(())
    }

    /// Ranks the latents of each class on the training split.
    fn rank(&self, sae: &Sae, head: &Head) -> Result<Ranking> {
        let mut ranking = Ranking::new(head.classes(), sae.config().n_latents, self.threshold);
        self.walk(&self.run.train, |start, _, x| {
            let labels = head.labels(&self.run.train, start, x.dims()[0])?;
            ranking.add(&host(sae.encode(x).activations), &labels);
            Ok(())
        })?;
        Ok(ranking)
    }

    /// One pass over the held-out split: `observe(x, encoding, x_hat)` sees each batch, and if there is a
    /// head, top-n classification is judged on it.
    fn judge(
        &self,
        sae: &Sae,
        mut observe: impl FnMut(&[f32], Encoded, Tensor<2>),
    ) -> Result<Option<Judged>> {
        let mut classes = match &self.run.head {
            Ok(head) => Some(ClassPass::new(self, sae, head)?),
            Err(_) => None,
        };
        self.walk(&self.run.held_out, |start, rows, x| {
            let r = sae.reconstruct(x.clone(), None);
            if let Some(classes) = &mut classes {
                let labels = classes
                    .head
                    .labels(&self.run.held_out, start, x.dims()[0])?;
                classes.add(x, &r.encoded, r.x_hat.clone(), &labels);
            }
            observe(rows, r.encoded, r.x_hat);
            Ok(())
        })?;
        Ok(classes.map(|classes| classes.judged))
    }
}

/// Top-n classification of the batches of one pass.
struct ClassPass<'a> {
    sae: &'a Sae,
    head: &'a Head,
    /// For each n, the latents kept for each class `[classes, M]`, on the device; none for all of them.
    masks: Vec<Option<Tensor<2>>>,
    judged: Judged,
}

impl<'a> ClassPass<'a> {
    fn new(passes: &Passes, sae: &'a Sae, head: &'a Head) -> Result<Self> {
        let ranking = passes.rank(sae, head)?;
        let shape = [head.classes(), sae.config().n_latents];
        let mask = |n| Tensor::from_data(TensorData::new(ranking.masks(n), shape), passes.device);
        let accuracy = || Accuracy::new(head.classes());
        let ns: Vec<Option<usize>> = passes
            .top_n
            .iter()
            .copied()
            .map(Some)
            .chain([None])
            .collect();
        Ok(Self {
            sae,
            head,
            masks: ns.iter().map(|n| n.map(mask)).collect(),
            judged: Judged {
                original: accuracy(),
                rows: ns
                    .into_iter()
                    .map(|n| (n, accuracy(), accuracy()))
                    .collect(),
            },
        })
    }

    /// Adds a batch `x [B, d]` with its encoding and full reconstruction.
    fn add(&mut self, x: Tensor<2>, encoded: &Encoded, x_hat: Tensor<2>, labels: &[usize]) {
        let a = &encoded.activations; // [B, M]
        let device = a.device();
        let classes: Vec<i64> = labels.iter().map(|label| *label as i64).collect();
        let classes = Tensor::<1, burn::tensor::Int>::from_data(
            TensorData::from(classes.as_slice()),
            &device,
        );
        self.judged.original.add(&self.head.classify(x), labels);
        let decode = |a: Tensor<2>| self.sae.decode(a, encoded.norms.clone());
        for ((_, on, off), mask) in self.judged.rows.iter_mut().zip(&self.masks) {
            let (kept, dropped) = match mask {
                Some(mask) => {
                    let kept = a.clone() * mask.clone().select(0, classes.clone()); // [B, M]
                    (decode(kept.clone()), decode(a.clone() - kept))
                }
                None => (x_hat.clone(), decode(a.zeros_like())),
            };
            on.add(&self.head.classify(kept), labels);
            off.add(&self.head.classify(dropped), labels);
        }
    }
}

/// The report's section on top-n classification, or why there is none.
fn top_n(
    run: &Run,
    threshold: f32,
    trained: Option<Judged>,
    untrained: Option<Judged>,
) -> Result<TopN, String> {
    let head = run.head.as_ref().map_err(String::clone)?;
    let trained = trained.ok_or("there is no zero-shot head")?;
    let rows = |judged: &Judged| {
        let row = |(n, on, off): &(Option<usize>, Accuracy, Accuracy)| TopNRow {
            n: n.map_or("all".into(), |n| n.to_string()),
            on: on.over_classes(),
            off: off.over_classes(),
        };
        judged.rows.iter().map(row).collect()
    };
    let full = trained.rows.last().map(|(_, on, _)| on);
    let per_class = (0..head.classes()).map(|class| {
        let (rows, original) = trained.original.of_class(class);
        let reconstructed = full.and_then(|full| full.of_class(class).1);
        ClassAccuracy {
            class: head.names[class].clone(),
            rows,
            original,
            reconstructed,
        }
    });
    Ok(TopN {
        definition: TopN::DEFINITION.into(),
        fire_threshold: threshold,
        original_over_classes: trained.original.over_classes(),
        original_over_rows: trained.original.over_rows(),
        trained: rows(&trained),
        untrained: untrained.as_ref().map(rows),
        per_class: per_class.collect(),
    })
}
