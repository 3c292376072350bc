//! Workers for the training step, for its forward pass, and for the dense product that is the unit of their times.

use burn::tensor::{Device, Tensor, TensorData};
use clap::ValueEnum;
use sae_data::synthetic::Synthetic;
use sae_model::architectures::{Attention, TopK};
use sae_model::stats::MomentStats;
use sae_model::{AnyArchitecture, Architecture, Mode, Sae, SaeConfig};
use sae_train::TrainingStep;

use crate::protocol::{Job, timed};

/// The work of one turn.
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

#[derive(clap::Args)]
pub(crate) struct Arguments {
    work: Work,
    batch: usize,
    width: usize,
    latents: usize,
}

/// Number of batches that a worker cycles through.
const BATCHES: usize = 4;
/// Number of steps before the first measurement, so that about as many latents are active as in a trained model.
const WARM_UP: usize = 40;
const LEARNING_RATE: f64 = 1e-3;

/// Builds the job for the arguments.
pub(crate) fn job(arguments: &Arguments) -> Job {
    let shape = [arguments.batch, arguments.width, arguments.latents];
    match arguments.work {
        Work::Sgemm => sgemm(shape),
        Work::Forward => forward(shape),
        Work::Step => step(shape, Attention::default()),
        Work::TopkStep => step(shape, TopK::default()),
    }
}

fn sgemm([batch, d, latents]: [usize; 3]) -> Job {
    let fill = |n: usize, step: usize| -> Vec<f32> {
        (0..n)
            .map(|i| (i * step % 1013) as f32 / 1013.0 - 0.5)
            .collect()
    };
    let (q, c) = (fill(batch * d, 7), fill(latents * d, 11));
    let mut out = vec![0.0; batch * latents];
    Box::new(move || {
        timed(|| {
            dense_product(&q, &c, d, &mut out);
            None
        })
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

fn forward(shape: [usize; 3]) -> Job {
    let device = Device::flex();
    let data = Data::new(shape, &device);
    let sae = data.model(shape, Attention::default(), &device);
    let mut next = data.cycle();
    Box::new(move || {
        timed(|| {
            // as in training, without the refinement of inference
            let r = sae.forward(next(), &Mode::training());
            let fired = r.encoded.latents.firing_frequency();
            Some(fired.sum().into_scalar::<f64>())
        })
    })
}

fn step(shape: [usize; 3], architecture: impl Into<AnyArchitecture>) -> Job {
    let inner = Device::flex();
    let data = Data::new(shape, &inner);
    let sae = data.model(shape, architecture, &inner.autodiff());
    let mut step = TrainingStep::new(sae, data.variance, LEARNING_RATE);
    let mut next = data.cycle();
    let mut once = move || step.take(Tensor::from_inner(next()));
    for _ in 0..WARM_UP {
        once();
    }
    Box::new(move || timed(|| Some(once())))
}
