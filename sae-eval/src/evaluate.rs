//! The passes over the data: one over the held-out split for everything that is judged, and one over the
//! training split for what top-n classification learns about classes. A quick one before, without the model, finds the
//! mean of the held-out rows, which one toolkit's definition needs beforehand.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use sae_data::{ActivationData, Summary};
use sae_model::ops::{self, Pattern};
use sae_model::stats::{MomentStats, ReconstructionStats, SparsityStats, ToolkitStats};
use sae_model::{Activations, Input, Sae, SparseCodes, SparseValue};

use crate::Arguments;
use crate::head::{Accuracy, Head};
use crate::ranking::Ranking;
use crate::report::{ClassAccuracy, Report, TopN, TopNRow};
use crate::run::Run;

/// Rows evaluated at a time on the CPU, where codes are sparse.
const ROWS: usize = 1024;
/// Latent activations computed at a time on a GPU, where they are dense: 1024 rows at 8192 latents, 32 MB.
const MAX_DENSE: usize = 1 << 23;

/// Evaluates a run.
pub(crate) fn report(run: &Run, arguments: &Arguments, device: &Device) -> Result<Report> {
    let started = Instant::now();
    let model = &run.config.model;
    let batch = match arguments.batch_size {
        Some(rows) => rows as usize,
        None if ops::is_cpu(device) => ROWS,
        None => (MAX_DENSE / model.n_latents).clamp(1, ROWS),
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
    let mean = passes.mean(&run.held_out)?;
    let mut toolkits = ToolkitStats::new(model.d_in, model.n_latents, Some(mean));
    let trained = passes.judge(&run.sae, |x, codes, x_hat| {
        let (x_hat, values) = (host(x_hat), codes.host_values());
        let (latents, lengths) = (codes.pattern.indices(), || codes.pattern.row_lengths());
        reconstruction.add(x, &x_hat);
        sparsity.add(latents, &values, lengths());
        toolkits.add((x, &x_hat), (latents, &values), lengths());
    })?;
    let untrained = if arguments.no_untrained || trained.is_none() {
        None
    } else {
        let mean = Summary::of(&run.train, run.check_rows, |_| {})?.mean;
        let sae = Sae::init(model, run.config.seed, &mean, device);
        passes.judge(&sae, |_, _, _| {})?
    };
    Ok(Report::new(
        run,
        &arguments.device,
        reconstruction.metrics(),
        &sparsity,
        toolkits.metrics(),
        top_n(run, threshold, trained, untrained),
        started.elapsed().as_secs_f64(),
    ))
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
        file: &ActivationData,
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

    /// Mean of the rows of a data set.
    fn mean(&self, file: &ActivationData) -> Result<Vec<f64>> {
        let mut moments = MomentStats::default();
        for block in file.blocks(self.batch) {
            moments.add(&block?, file.width());
        }
        Ok(moments.mean())
    }

    /// Ranks the latents of each class on the training split.
    fn rank(&self, sae: &Sae, head: &Head) -> Result<Ranking> {
        let mut ranking = Ranking::new(head.classes(), sae.config().n_latents, self.threshold);
        self.walk(&self.run.train, |start, _, x| {
            let labels = head.labels(&self.run.train, start, x.dims()[0])?;
            ranking.add(&sae.encode(x).activations.into_codes(), &labels);
            Ok(())
        })?;
        Ok(ranking)
    }

    /// One pass over the held-out split: `observe(x, encoding, x_hat)` sees each batch, and if there is a
    /// head, top-n classification is judged on it.
    fn judge(
        &self,
        sae: &Sae,
        mut observe: impl FnMut(&[f32], &SparseCodes, Tensor<2>),
    ) -> Result<Option<Judged>> {
        let mut classes = match &self.run.head {
            Ok(head) => Some(ClassPass::new(self, sae, head)?),
            Err(_) => None,
        };
        self.walk(&self.run.held_out, |start, rows, x| {
            let r = sae.reconstruct(x.clone());
            let (input, codes) = (r.encoded.input, r.encoded.activations.into_codes());
            if let Some(classes) = &mut classes {
                let labels = classes
                    .head
                    .labels(&self.run.held_out, start, x.dims()[0])?;
                classes.add(x, &codes, &input, r.x_hat.clone(), &labels);
            }
            observe(rows, &codes, r.x_hat);
            Ok(())
        })?;
        Ok(classes.map(|classes| classes.judged))
    }
}

/// Top-n classification of the batches of one pass.
struct ClassPass<'a> {
    sae: &'a Sae,
    head: &'a Head,
    /// For each n, whether a latent is kept for a class `[classes, M]`; none for all of them.
    masks: Vec<Option<Vec<bool>>>,
    judged: Judged,
}

impl<'a> ClassPass<'a> {
    fn new(passes: &Passes, sae: &'a Sae, head: &'a Head) -> Result<Self> {
        let ranking = passes.rank(sae, head)?;
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
            masks: ns.iter().map(|n| n.map(|n| ranking.masks(n))).collect(),
            judged: Judged {
                original: accuracy(),
                rows: ns
                    .into_iter()
                    .map(|n| (n, accuracy(), accuracy()))
                    .collect(),
            },
        })
    }

    /// Adds a batch `x [B, d]` with its codes, input and full reconstruction.
    fn add(
        &mut self,
        x: Tensor<2>,
        codes: &SparseCodes,
        input: &Input,
        x_hat: Tensor<2>,
        labels: &[usize],
    ) {
        self.judged.original.add(&self.head.classify(x), labels);
        let latents = self.sae.config().n_latents;
        let decode = |keep: &dyn Fn(usize, u32) -> bool| {
            let activations = Activations::Sparse(filtered(codes, keep));
            self.sae.decode(&activations, input)
        };
        for ((_, on, off), mask) in self.judged.rows.iter_mut().zip(&self.masks) {
            let (kept, dropped) = match mask {
                Some(mask) => {
                    let of_class = |row: usize, j: u32| mask[labels[row] * latents + j as usize];
                    (decode(&of_class), decode(&|row, j| !of_class(row, j)))
                }
                None => (x_hat.clone(), decode(&|_, _| false)),
            };
            on.add(&self.head.classify(kept), labels);
            off.add(&self.head.classify(dropped), labels);
        }
    }
}

/// The codes of which `keep(row, latent)` is true.
fn filtered(codes: &SparseCodes, keep: impl Fn(usize, u32) -> bool) -> SparseCodes {
    let (mut offsets, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
    let all = codes.host_values();
    for row in 0..codes.pattern.rows() {
        for entry in codes.pattern.row(row) {
            let latent = codes.pattern.indices()[entry];
            if keep(row, latent) {
                indices.push(latent);
                values.push(all[entry]);
            }
        }
        offsets.push(indices.len());
    }
    let pattern = Pattern::new(codes.pattern.latents(), offsets, indices);
    SparseCodes::new(values, pattern, &codes.values.device())
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
