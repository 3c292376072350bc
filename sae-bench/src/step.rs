//! Workers for the training step, for its parts, and for the plain operations that are the units of their times.

use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use clap::ValueEnum;
use sae_data::synthetic::Synthetic;
use sae_model::architectures::{Attention, TopK};
use sae_model::device::DeviceName;
use sae_model::ops::{self, EncodeOptions, Precision, Selection, set_precision};
use sae_model::stats::MomentStats;
use sae_model::{AnyArchitecture, Architecture, Mode, Sae, SaeConfig, SparseCodes};
use sae_train::TrainingStep;
use serde_json::json;

use crate::protocol::Job;

/// The work of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// One plain product `q C^T`, `[B, d] [d, M]`: the yardstick.
    Sgemm,
    /// One pass over a dictionary `[M, d]` that writes another: what memory allows.
    Copy,
    /// One operation on one number: what it costs to launch a kernel.
    Launch,
    /// Encoding a batch with TopK, k = 32.
    Encode,
    /// Encoding and decoding a batch with the default preset.
    Forward,
    /// One training step of the default preset: forward, backward, Adam, counters.
    Step,
    /// One training step of TopK, k = 32.
    TopkStep,
}

#[derive(clap::Args)]
pub(crate) struct Arguments {
    work: Work,
    batch: usize,
    width: usize,
    latents: usize,
    /// Where the work is done.
    #[arg(long, default_value = "cpu")]
    device: DeviceName,
    /// Numbers of the product that looks for candidates on a GPU.
    #[arg(long, default_value = "f32", value_parser = precision)]
    precision: Precision,
    /// How often the work is done in a turn. The device is waited for at its end, so that short work is not measured by how long
    /// it takes to ask for it.
    #[arg(long, default_value_t = 1)]
    times: u32,
}

fn precision(text: &str) -> Result<Precision, serde_json::Error> {
    serde_json::from_value(text.into())
}

/// Number of batches that a worker cycles through.
const BATCHES: usize = 4;
/// Number of steps before the first measurement, so that about as many latents are active as in a trained model.
const WARM_UP: usize = 40;
const LEARNING_RATE: f64 = 1e-3;
/// TopK's k.
const K: usize = 32;
/// Launches that are timed together.
const LAUNCHES: usize = 1000;

/// Work that returns the mean number of active latents per row, if it has latents.
type Once = Box<dyn FnMut() -> Option<f64>>;

/// Builds the job for the arguments.
pub(crate) fn job(arguments: &Arguments) -> Result<Job> {
    let shape = [arguments.batch, arguments.width, arguments.latents];
    let device = arguments.device.open()?;
    set_precision(arguments.precision);
    let mut once = match arguments.work {
        Work::Sgemm if arguments.device.is_gpu() => product_on(shape, &device),
        Work::Sgemm => sgemm(shape),
        Work::Copy => copy(shape, &device),
        Work::Launch => launch(&device),
        Work::Encode => encode(shape, &device),
        Work::Forward => forward(shape, &device),
        Work::Step => step(shape, Attention::default(), &device),
        Work::TopkStep => step(shape, TopK::default(), &device),
    };
    once(); // makes what a first time makes: kernels, buffers
    device.sync().context("waiting for the device")?;
    let times = arguments.times.max(1);
    Ok(Box::new(move || {
        let start = Instant::now();
        let mut l0 = None;
        for _ in 0..times {
            l0 = once();
        }
        device.sync().context("waiting for the device")?;
        let seconds = start.elapsed().as_secs_f64() / f64::from(times);
        let memory = device.memory_pool_usage();
        let reserved = memory.map(|memory| memory.bytes_reserved);
        Ok(json!({ "seconds": seconds, "l0": l0, "device_bytes": reserved }))
    }))
}

/// Numbers between -0.5 and 0.5.
fn numbers(shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::random(shape, Distribution::Uniform(-0.5, 0.5), device)
}

/// Burn's product on a device.
fn product_on([batch, d, latents]: [usize; 3], device: &Device) -> Once {
    let (q, c) = (numbers([batch, d], device), numbers([latents, d], device));
    Box::new(move || {
        let _scores = q.clone().matmul(c.clone().transpose());
        None
    })
}

fn copy([_, d, latents]: [usize; 3], device: &Device) -> Once {
    let c = numbers([latents, d], device);
    Box::new(move || {
        let _copy = c.clone() * 2.0;
        None
    })
}

fn launch(device: &Device) -> Once {
    let number = Tensor::<1>::zeros([1], device);
    Box::new(move || {
        for _ in 0..LAUNCHES {
            let _next = number.clone() * 2.0;
        }
        None
    })
}

fn sgemm([batch, d, latents]: [usize; 3]) -> Once {
    let fill = |n: usize, step: usize| -> Vec<f32> {
        (0..n)
            .map(|i| (i * step % 1013) as f32 / 1013.0 - 0.5)
            .collect()
    };
    let (q, c) = (fill(batch * d, 7), fill(latents * d, 11));
    let mut out = vec![0.0; batch * latents];
    Box::new(move || {
        dense_product(&q, &c, d, &mut out);
        None
    })
}

/// `out = a b^T` on every core: `a [B, d]`, `b [M, d]`, `out [B, M]`, row-major.
fn dense_product(a: &[f32], b: &[f32], d: usize, out: &mut [f32]) {
    let (rows, columns) = (a.len() / d, b.len() / d);
    assert!(a.len() == rows * d && b.len() == columns * d && out.len() == rows * columns);
    let (out_row, d_row) = (columns as isize, d as isize);
    let cores = gemm::Parallelism::Rayon(0);
    // SAFETY: the three slices have exactly the extents that the sizes and strides describe, as just asserted, and
    // `out`, being borrowed mutably, overlaps neither input.
    unsafe {
        let (out, a, b) = (out.as_mut_ptr(), a.as_ptr(), b.as_ptr());
        gemm::gemm(
            rows, columns, d, out, 1, out_row, false, a, 1, d_row, b, d_row, 1, 0.0, 1.0, false,
            false, false, cores,
        );
    }
}

/// Batches `[B, d]` of sparse sums of concepts, with their mean and variance.
struct Data {
    batches: Vec<Tensor<2>>,
    mean: Vec<f32>,
    variance: f64,
}

impl Data {
    fn new([batch, d, _]: [usize; 3], device: &Device) -> Self {
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
        let tensor =
            |rows: &[f32]| Tensor::from_data(TensorData::new(rows.to_vec(), [batch, d]), device);
        Self {
            batches: rows.chunks_exact(batch * d).map(tensor).collect(),
            mean: moments.mean().iter().map(|m| *m as f32).collect(),
            variance: moments.variance(),
        }
    }

    /// Creates an untrained model for this data.
    fn model(
        &self,
        [_, d, latents]: [usize; 3],
        of: impl Into<AnyArchitecture>,
        device: &Device,
    ) -> Sae {
        let mut config = SaeConfig::new(of, d, latents);
        config.input_scale = config.architecture.input_scale(d, self.variance);
        Sae::init(&config, 0, &self.mean, device)
    }

    /// Yields the batches in an endless cycle.
    fn cycle(self) -> impl FnMut() -> Tensor<2> {
        let mut turns = (0..self.batches.len()).cycle();
        move || self.batches[turns.next().unwrap_or(0)].clone()
    }
}

/// The part of a TopK step that selects latents.
fn encode([batch, d, latents]: [usize; 3], device: &Device) -> Once {
    let c = numbers([latents, d], device);
    let mut next = Data::new([batch, d, latents], device).cycle();
    Box::new(move || {
        let (options, rule) = (EncodeOptions::default(), Selection::TopK(K));
        Some(l0(&ops::encode(next(), c.clone(), options, rule)))
    })
}

fn forward(shape: [usize; 3], device: &Device) -> Once {
    let data = Data::new(shape, device);
    let sae = data.model(shape, Attention::default(), device);
    let mut next = data.cycle();
    Box::new(move || {
        let forward = sae.forward(next(), &Mode::training());
        Some(l0(&forward.encoded.latents))
    })
}

fn l0(codes: &SparseCodes) -> f64 {
    codes.firing_frequency().sum().into_scalar::<f64>()
}

fn step(shape: [usize; 3], architecture: impl Into<AnyArchitecture>, device: &Device) -> Once {
    step_after(shape, architecture, device, WARM_UP)
}

/// A step, after so many.
fn step_after(
    shape: [usize; 3],
    architecture: impl Into<AnyArchitecture>,
    device: &Device,
    before: usize,
) -> Once {
    let data = Data::new(shape, device);
    let sae = data.model(shape, architecture, &device.clone().autodiff());
    let mut step = TrainingStep::new(sae, data.variance, LEARNING_RATE);
    let mut next = data.cycle();
    let mut once = move || step.take(Tensor::from_inner(next()));
    for _ in 0..before {
        once();
    }
    Box::new(move || Some(once()))
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;

    /// In a process of its own: the pool of a device is that of all who use it.
    #[test]
    fn a_step_on_a_gpu_holds_no_matrix_of_all_scores() {
        let [batch, width, latents] = [2048, 16, 65_536];
        let Ok(device) = DeviceName::Wgpu(None).open() else {
            eprintln!("skipped: no graphics adapter");
            return;
        };
        let mut once = step_after([batch, width, latents], TopK::default(), &device, 1);
        once();
        device.sync().expect("the step ends");
        let usage = device.memory_pool_usage().expect("wgpu counts");
        let config = SaeConfig::new(TopK::default(), width, latents);
        let predicted = sae_train::device_memory(&config, batch, K);
        let scores = 4 * (batch * latents) as u64;
        assert!(predicted < scores / 4, "{predicted} of {scores}");
        assert!(
            usage.bytes_reserved <= predicted,
            "{usage:?}, predicted {predicted}"
        );
        let large = SaeConfig::new(Attention::default(), 768, 131_072);
        println!(
            "4096 x 768 x 131072: {}",
            sae_train::device_memory(&large, 4096, 128)
        );
    }
}
