//! The passes over the data. The first, without the model, finds the mean of the held-out rows, which some metrics need
//! beforehand. The training split is then read to rank latents and to sample rows, and the held-out split to measure
//! everything.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use sae_data::{ActivationData, Summary};
use sae_model::device::DeviceName;
use sae_model::stats::{
    LargestRows, Metric, MomentStats, ReconstructionStats, SparsityStats, ToolkitStats,
};
use sae_model::{Sae, SparseCodes};

use crate::all_rows::AllRows;
use crate::classes::{self, ClassPass, Judged, Setting};
use crate::cli::Arguments;
use crate::criteria::{self, Side};
use crate::model::{Model, host_of, values};
use crate::page::{Findings, Gather};
use crate::ranking::Rule;
use crate::recovery;
use crate::report::{AllRowsSection, Measured, Report, TopN};
use crate::run::Run;
use crate::through::Through;

/// Rows per batch.
const ROWS: usize = 1024;

/// Evaluates a run.
pub(crate) fn report(
    run: &Run,
    arguments: &Arguments,
    rule: Rule,
    device: &Device,
) -> Result<(Report, Option<Findings>)> {
    let started = Instant::now();
    let name = arguments.device.parse::<DeviceName>();
    let card = name.ok().and_then(|name| name.card(device));
    let model = Model::new(run.sae.clone(), device);
    let batch = rows_at_once(arguments.batch_size);
    let passes = Passes::new(run, device, batch);
    let through = Through::open(run, arguments)?;
    let setting = match (&run.data.head, &run.data.train) {
        (Ok(head), Ok(train)) => Ok(Setting::new(head, rule, &arguments.top_n, train)?),
        (Err(reason), _) | (_, Err(reason)) => Err(reason.clone()),
    };
    let mut gathered = Gathered::new(&passes)?;
    let mut train = Side::train(run.data.train.as_ref().ok());
    let mut held_out = Side::held_out(run);
    let mut page = (!arguments.no_html).then(|| Gather::new(run)).transpose()?;
    let mut observe_train =
        |rows: &[usize], x: &[f32], codes: &SparseCodes| train.add(rows, x, codes);
    let trained = passes.judge(
        &model,
        setting.as_ref().ok(),
        &mut observe_train,
        |x, codes, x_hat| {
            let x_hat = values(x_hat);
            gathered.add(x, codes, &x_hat);
            held_out.add_next(x, codes);
            page.iter_mut()
                .try_for_each(|page| page.add(x, codes, &x_hat))
        },
    )?;
    let recovery = recovery::measure(run, &held_out.codes, gathered.alive())?;
    let criteria = criteria::measure(&passes, &model, train, held_out)?;
    let (metrics, all_rows) = gathered.reconstruction(&passes, &model)?;
    let untrained = match &setting {
        Ok(setting) if !arguments.no_untrained => passes.untrained(setting, device)?,
        _ => None,
    };
    let tail = through.map(|through| through.judge(&passes, &model, rule));
    let tail = tail.transpose()?;
    let findings = page.map(|page| page.finish(&passes, &model, trained.as_ref()));
    let top_n = top_n(setting, trained, untrained);
    let report = Report::new(
        run,
        (&arguments.device, card),
        Measured {
            reconstruction: metrics,
            all_rows,
            sparsity: &gathered.sparsity,
            toolkits: gathered.toolkits.metrics(),
            top_n,
            criteria,
            recovery,
            tail,
        },
        started.elapsed().as_secs_f64(),
    );
    Ok((report, findings.transpose()?))
}

/// Sums that the pass over the held-out rows collects.
struct Gathered {
    reconstruction: ReconstructionStats,
    largest: LargestRows,
    sparsity: SparsityStats,
    toolkits: ToolkitStats,
    /// Set if some rows are beyond `data.max_norm`.
    all_rows: Option<AllRows>,
}

impl Gathered {
    fn new(passes: &Passes) -> Result<Self> {
        let (held_out, config) = (&passes.run.data.held_out, &passes.run.config.model);
        let mean = passes.mean(held_out)?;
        let all_rows = held_out
            .left_out()
            .map(|left_out| AllRows::new(passes, &mean, left_out));
        Ok(Self {
            reconstruction: ReconstructionStats::new(config.d_in),
            largest: LargestRows::new(held_out.rows(), mean.clone()),
            sparsity: SparsityStats::new(config.n_latents),
            toolkits: ToolkitStats::new(config.d_in, config.n_latents, Some(mean)),
            all_rows: all_rows.transpose()?,
        })
    }

    fn add(&mut self, x: &[f32], codes: &SparseCodes, x_hat: &[f32]) {
        let values = codes.host_values();
        let (latents, lengths) = (codes.pattern.indices(), || codes.pattern.row_lengths());
        self.reconstruction.add(x, x_hat);
        self.largest.add(x);
        self.sparsity.add(latents, &values, lengths());
        self.toolkits.add((x, x_hat), (latents, &values), lengths());
        if let Some(all_rows) = &mut self.all_rows {
            all_rows.largest.add(x);
        }
    }

    /// Number of latents that are active on some row.
    fn alive(&self) -> usize {
        let frequencies = self.sparsity.frequencies();
        frequencies.filter(|part| *part > 0.0).count()
    }

    /// Metrics of the rows within the limit, and the section on all rows, for which the rows beyond it are
    /// reconstructed.
    fn reconstruction(
        &mut self,
        passes: &Passes,
        model: &Model,
    ) -> Result<(Vec<Metric>, Option<AllRowsSection>)> {
        let mut metrics = self.reconstruction.metrics();
        metrics.push(self.largest.metric());
        let section = self
            .all_rows
            .take()
            .map(|all_rows| all_rows.section(passes, model, self.reconstruction.clone()));
        Ok((metrics, section.transpose()?))
    }
}

/// The section on top-n classification, or why there is none.
fn top_n(
    setting: Result<Setting, String>,
    trained: Option<Judged>,
    untrained: Option<Judged>,
) -> Result<TopN, String> {
    match (setting, trained) {
        (Ok(setting), Some(trained)) => {
            Ok(classes::section(&setting, &trained, untrained.as_ref()))
        }
        (Err(reason), _) => Err(reason),
        (Ok(_), None) => Err("there is no zero-shot head".into()),
    }
}

/// Rows per batch.
pub(crate) fn rows_at_once(asked: Option<u32>) -> usize {
    asked.map_or(ROWS, |rows| rows as usize)
}

/// A callback for batches of training rows: their indices, `x [B, d]` and their codes.
pub(crate) type ObserveTrain<'a> = dyn FnMut(&[usize], &[f32], &SparseCodes) + 'a;

/// State that all passes share.
pub(crate) struct Passes<'a> {
    pub(crate) run: &'a Run,
    /// The device of rows and codes.
    host: Device,
    /// Rows per batch.
    pub(crate) batch: usize,
}

impl<'a> Passes<'a> {
    /// Passes over the data of `run` by a model on `device`, `batch` rows at a time.
    pub(crate) fn new(run: &'a Run, device: &Device, batch: usize) -> Self {
        let host = host_of(device);
        Self { run, host, batch }
    }

    /// Walks a data set in batches; `visit` gets the index of a batch's first row, and its rows.
    pub(crate) fn walk(
        &self,
        file: &ActivationData,
        mut visit: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let _span = tracing::debug_span!("pass", rows = file.rows()).entered();
        let mut start = 0;
        for block in file.blocks(self.batch) {
            let block = block?;
            visit(start, &block)?;
            start += block.len() / file.width();
        }
        Ok(())
    }

    /// Rows as a tensor, `[count, d]`.
    pub(crate) fn tensor(&self, rows: &[f32], count: usize) -> Tensor<2> {
        let data = TensorData::new(rows.to_vec(), [count, rows.len() / count]);
        Tensor::from_data(data, &self.host)
    }

    /// Mean of the rows of a data set.
    pub(crate) fn mean(&self, file: &ActivationData) -> Result<Vec<f64>> {
        let mut moments = MomentStats::default();
        for block in file.blocks(self.batch) {
            moments.add(&block?, file.width());
        }
        Ok(moments.mean())
    }

    /// Top-n classification by the model before its training.
    fn untrained(&self, setting: &Setting, device: &Device) -> Result<Option<Judged>> {
        let run = self.run;
        let sae = match &run.start {
            Some(start) => start.clone(),
            None => {
                let rows = Summary::of(setting.train, Some(run.data.check_rows), |_| {})?;
                let (config, mean) = (&run.config, rows.typical.mean);
                Sae::init(&config.model, config.seed, &mean, &self.host)
            }
        };
        let model = Model::new(sae, device);
        self.judge(&model, Some(setting), &mut |_, _, _| {}, |_, _, _| Ok(()))
    }

    /// Walks the held-out split once; `observe(x, codes, x_hat)` sees each batch. With a `setting`, it first ranks
    /// latents on the training split, whose batches `observe_train` sees, and then judges top-n classification on the
    /// held-out batches.
    fn judge(
        &self,
        model: &Model,
        setting: Option<&Setting>,
        observe_train: &mut ObserveTrain,
        mut observe: impl FnMut(&[f32], &SparseCodes, Tensor<2>) -> Result<()>,
    ) -> Result<Option<Judged>> {
        let held_out = &self.run.data.held_out;
        let mut classes = match setting {
            Some(setting) => Some(ClassPass::new(self, model, setting, observe_train)?),
            None => None,
        };
        self.walk(held_out, |start, rows| {
            let x = self.tensor(rows, rows.len() / held_out.width());
            let (encoded, x_hat) = model.reconstruct(x.clone());
            if let Some(classes) = &mut classes {
                classes.add(held_out, start, x, &encoded, x_hat.clone())?;
            }
            observe(rows, &encoded.codes, x_hat)
        })?;
        Ok(classes.map(|classes| classes.judged))
    }
}
