//! The workers behind `cargo xtask bench`: each does one thing again whenever a line comes in on stdin, and
//! says how long it took. The conductor alternates between workers, ours and others'.

use std::io::BufRead;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::ModuleOptimizer;
use burn::tensor::{Device, Tensor, TensorData};
use burn::train::TrainStep;
use clap::ValueEnum;
use sae_data::ActivationBatch;
use sae_data::synthetic::Synthetic;
use sae_model::architectures::{Attention, TopK};
use sae_model::loss::{Coefficients, Loss};
use sae_model::ops::Adam;
use sae_model::stats::MomentStats;
use sae_model::{AnyArchitecture, Architecture, Mode, Sae, SaeConfig, ops};

use crate::learner::{SaeLearner, Settings};
use crate::output::say;

/// What a worker does each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// One plain product `q C^T`, `[B, d] [d, M]`, on every core: the yardstick.
    Sgemm,
    /// Encoding and decoding a batch with the default preset.
    Forward,
    /// One training step of the default preset: forward, backward, Adam, counters.
    Step,
    /// One training step of TopK, k = 32.
    TopkStep,
}

/// Batches that a worker goes round.
const BATCHES: usize = 4;
/// Steps before the first measurement, so that about as many latents are active as in a trained model.
const WARM_UP: usize = 40;
const LEARNING_RATE: f64 = 1e-3;

/// Runs a worker for the shape `[B, d, M]` until stdin ends.
pub(crate) fn worker(work: Work, shape: &[usize]) -> Result<()> {
    let shape: [usize; 3] = shape.try_into().context("--shape B D M")?;
    let mut job = match work {
        Work::Sgemm => sgemm(shape),
        Work::Forward => forward(shape),
        Work::Step => step(shape, Attention::default().into()),
        Work::TopkStep => step(shape, TopK::default().into()),
    };
    let report = |line: serde_json::Value| say(line.to_string());
    report(serde_json::json!({ "ready": true }));
    for line in std::io::stdin().lock().lines() {
        line.context("reading stdin")?;
        let start = Instant::now();
        let l0 = job();
        let seconds = start.elapsed().as_secs_f64();
        report(serde_json::json!({ "seconds": seconds, "l0": l0, "peak_bytes": peak_bytes() }));
    }
    Ok(())
}

/// Peak resident memory of this process, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Does the work once; returns L0 where there is one.
type Job = Box<dyn FnMut() -> Option<f64>>;

fn sgemm([batch, d, latents]: [usize; 3]) -> Job {
    let fill = |n: usize, step: usize| -> Vec<f32> {
        (0..n)
            .map(|i| (i * step % 1013) as f32 / 1013.0 - 0.5)
            .collect()
    };
    let (q, c) = (fill(batch * d, 7), fill(latents * d, 11));
    let mut out = vec![0.0; batch * latents];
    Box::new(move || {
        ops::dense_product(&q, &c, d, &mut out);
        None
    })
}

/// Batches `[B, d]` of sparse sums of concepts, their mean and their variance.
fn data([batch, d, _]: [usize; 3], device: &Device) -> (Vec<Tensor<2>>, Vec<f32>, f64) {
    let synthetic = Synthetic {
        width: d,
        concepts: 4 * d,
        active: 32,
        noise: 0.05,
        seed: 0,
    };
    let rows = synthetic.rows(BATCHES * batch);
    let mut moments = MomentStats::default();
    moments.add(&rows, d);
    let mean = moments.mean().iter().map(|m| *m as f32).collect();
    let tensor =
        |rows: &[f32]| Tensor::from_data(TensorData::new(rows.to_vec(), [batch, d]), device);
    let batches = rows.chunks_exact(batch * d).map(tensor).collect();
    (batches, mean, moments.variance())
}

fn learner(
    [_, d, latents]: [usize; 3],
    architecture: AnyArchitecture,
    mean: &[f32],
    variance: f64,
    device: &Device,
) -> SaeLearner {
    let mut config = SaeConfig::new(architecture.clone(), d, latents);
    config.input_scale = architecture.input_scale(d, variance);
    let settings = Settings {
        loss: Loss::Fvu,
        variance,
        row_limit: f64::INFINITY,
        held_out_variance: variance,
        frequency_cutoff: 1.0,
        dead_window: usize::MAX,
        coefficients: Coefficients::default(),
    };
    SaeLearner::new(Sae::init(&config, 0, mean, device), settings, device)
}

fn forward(shape: [usize; 3]) -> Job {
    let device = Device::flex();
    let (batches, mean, variance) = data(shape, &device);
    let sae = learner(shape, Attention::default().into(), &mean, variance, &device).sae;
    let mut turns = (0..batches.len()).cycle();
    Box::new(move || {
        let x = batches[turns.next().unwrap_or(0)].clone();
        let forward = sae.forward(x, &Mode::training()); // without refinement, which is inference's
        let fired = forward.encoded.latents.firing_frequency();
        Some(fired.sum().into_scalar::<f64>())
    })
}

fn step(shape: [usize; 3], architecture: AnyArchitecture) -> Job {
    let inner = Device::flex();
    let device = inner.clone().autodiff();
    let (batches, mean, variance) = data(shape, &inner);
    let mut model = Some(learner(shape, architecture, &mean, variance, &device));
    let adam = Adam {
        beta_1: 0.9,
        beta_2: 0.999,
        epsilon: 1e-8,
    };
    let mut optimizer = ModuleOptimizer::from(adam);
    let mut turns = (0..batches.len()).cycle();
    let mut once = move || {
        let activations = Tensor::from_inner(batches[turns.next().unwrap_or(0)].clone());
        let learner = model.take()?;
        let output = TrainStep::step(&learner, ActivationBatch { activations });
        // As Burn's trainer does, which keeps the old model while the new one is made.
        let old = learner.clone();
        let lr = ModuleLearningRate::from(LEARNING_RATE);
        model = Some(old.optimize(&mut optimizer, lr, output.grads));
        drop(learner);
        Some(output.item.l0.into_scalar::<f64>())
    };
    for _ in 0..WARM_UP {
        once();
    }
    Box::new(once)
}
