//! A model spread over processes is the model of one process: the same supports, and up to rounding the same numbers and gradients.
//! The processes are threads.

use std::thread;

use burn::tensor::{Device, TensorData};

use super::*;
use crate::Sae;
use crate::architectures::{AnyArchitecture, Architecture, Attention, Preset};
use crate::config::SaeConfig;
use crate::loss::{Coefficients, Loss, Step};
use crate::parameters::table;
use crate::scores::Mode;

const D: usize = 12;
const ROWS: usize = 40;
const M: usize = 50;

/// What a training step and a look at held-out rows give.
#[derive(Debug, PartialEq)]
struct Seen {
    /// `(row, latent, activation)`, of training and of inference.
    entries: [Vec<(usize, usize, f32)>; 2],
    /// x_hat of both.
    x_hat: [Vec<f32>; 2],
    loss: f32,
    observed: Option<f32>,
    /// By name; of parameters with a row per latent those of this process.
    gradients: Vec<(&'static str, bool, Vec<f32>)>,
}

fn noise(seed: usize) -> impl Iterator<Item = f32> {
    (0..).map(move |i: usize| {
        let mixed = (i * 2_654_435_761 + seed * 40_503) % 1_000_003;
        mixed as f32 / 500_001.5 - 1.0
    })
}

fn rows() -> Tensor<2> {
    let values = noise(1).take(ROWS * D).collect();
    Tensor::from_data(TensorData::new(values, [ROWS, D]), &Device::flex())
}

/// Every architecture with its default switches, and sparse attention as the paper has it.
fn configs() -> Vec<SaeConfig> {
    let mut all = AnyArchitecture::all();
    all.push(Attention::from(Preset::Paper).into());
    let config = |architecture: AnyArchitecture| {
        let mut config = SaeConfig::new(architecture, D, M);
        config.pre_bias = true;
        config.input_scale = 0.7;
        config
    };
    let small = |architecture: AnyArchitecture| match architecture.asked_l0() {
        Some(_) => {
            let k = serde_json::Map::from_iter([("k".into(), 3.into())]);
            architecture.with(k).unwrap()
        }
        None => architecture,
    };
    all.into_iter().map(small).map(config).collect()
}

fn numbers<const N: usize>(x: Tensor<N>) -> Vec<f32> {
    x.into_data().iter().collect()
}

fn entries(codes: &SparseCodes, first: usize) -> Vec<(usize, usize, f32)> {
    let values = codes.host_values();
    let of_row = |row: usize| {
        let pattern = codes.pattern.clone();
        pattern.row(row).map(move |entry| (row, entry))
    };
    let all = (0..codes.pattern.rows()).flat_map(of_row);
    let latent = |entry: usize| first + codes.pattern.indices()[entry] as usize;
    all.map(|(row, entry)| (row, latent(entry), values[entry]))
        .collect()
}

/// What process `comm` of a model sees; `dead` are latents of all.
fn seen(config: &SaeConfig, comm: Arc<dyn Comm>, dead: &[usize]) -> Seen {
    let device = Device::flex().autodiff();
    let across = Across::new(comm, M);
    let own = across.own();
    let mean: Vec<f32> = noise(2).take(D).collect();
    let sae = Sae::init_across(config, 5, &mean, &device, across.clone());
    let mask: Vec<f32> = own.clone().map(|j| f32::from(j % 17 != 3)).collect();
    let mode = Mode::Training {
        mask: mask.clone().into(),
    };
    let x = Tensor::from_inner(rows());
    let forward = sae.forward(x.clone(), &mode);
    let dead: Vec<u32> = dead
        .iter()
        .filter(|j| own.contains(j))
        .map(|j| (j - own.start) as u32)
        .collect();
    let mut coefficients = Coefficients::default();
    for (name, value) in [
        ("aux_coefficient", 0.5),
        ("aux_k", 4.0),
        ("sparsity_coefficient", 0.3),
        ("target_l0", 6.0),
    ] {
        coefficients = coefficients.with(name, value);
    }
    let distance = |target, other| Loss::Fvu.forward(target, other, 4.0);
    let (of_dead, done) = (|| dead.clone(), || 10);
    let step = Step::new(
        (&sae, &x, &forward),
        (&mask, &done),
        &coefficients,
        &of_dead,
        &distance,
    );
    let terms = config.architecture.losses(&step);
    let loss = distance(x.clone(), forward.x_hat.clone());
    let loss = terms.into_iter().fold(loss, |sum, term| sum + term.value);
    let observed = across.least(config.architecture.observe(&forward.encoded));
    let gradients = loss.backward();
    let gradient = |name: &'static str, of_latents: bool| {
        let matrix = sae.parameters.matrix(name);
        let of_matrix = matrix.map(|matrix| matrix.grad(&gradients).map(numbers));
        let of_vector = || {
            let vector = sae.parameters.vector(name).expect("of the table");
            vector.grad(&gradients).map(numbers)
        };
        let values = of_matrix.unwrap_or_else(of_vector).unwrap_or_default();
        (name, of_latents, values)
    };
    let held_out = sae.forward(x, &Mode::Inference);
    let each = [&forward, &held_out];
    Seen {
        entries: each.map(|forward| entries(&forward.encoded.latents, own.start)),
        x_hat: each.map(|forward| numbers(forward.x_hat.clone())),
        loss: loss.into_scalar(),
        observed: observed.map(|observed| observed.into_scalar()),
        gradients: table(config)
            .iter()
            .map(|parameter| gradient(parameter.name, parameter.shape.is_of_latents()))
            .collect(),
    }
}

/// What `ranks` processes see together; all have the same bits of what is not of latents.
fn together(config: &SaeConfig, ranks: usize, dead: &[usize]) -> Seen {
    let all: Vec<Seen> = thread::scope(|scope| {
        let start = |comm| scope.spawn(move || seen(config, comm, dead));
        let started: Vec<_> = sae_comm::threads(ranks).into_iter().map(start).collect();
        let ended = started.into_iter().map(|thread| thread.join().unwrap());
        ended.collect()
    });
    let mut all = all.into_iter();
    let mut whole = all.next().unwrap();
    for other in all {
        assert_eq!(whole.x_hat, other.x_hat);
        assert_eq!((whole.loss, whole.observed), (other.loss, other.observed));
        for (whole, other) in whole.entries.iter_mut().zip(other.entries) {
            whole.extend(other);
        }
        for ((name, of_latents, whole), (_, _, other)) in
            whole.gradients.iter_mut().zip(other.gradients)
        {
            match of_latents {
                true => whole.extend(other),
                false => assert_eq!(*whole, other, "{name}"),
            }
        }
    }
    for entries in &mut whole.entries {
        entries.sort_by_key(|(row, latent, _)| (*row, *latent));
    }
    whole
}

fn assert_close(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let scale = a.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
    for (a, b) in a.iter().zip(b) {
        assert!(
            (a - b).abs() <= 2e-5 * scale,
            "{what}: {a} and {b}, of {scale}"
        );
    }
}

#[test]
fn every_architecture_is_the_model_of_one_process() {
    let first = [0, 1, 2, 3, 4, 5]; // all of one process
    let some = [4, 9, 30, 31, 44, 49];
    for config in configs() {
        let name = config.architecture.describe();
        for dead in [&first[..], &some, &[]] {
            let one = together(&config, 1, dead);
            assert!(
                one.entries.iter().all(|entries| entries.len() > ROWS / 2),
                "{name}"
            );
            for ranks in [2, 3, 7] {
                let name = format!("{name}, {ranks} processes, dead {dead:?}");
                let several = together(&config, ranks, dead);
                for i in 0..2 {
                    let support = |seen: &Seen| -> Vec<(usize, usize)> {
                        seen.entries[i]
                            .iter()
                            .map(|(row, j, _)| (*row, *j))
                            .collect()
                    };
                    let values =
                        |seen: &Seen| -> Vec<f32> { seen.entries[i].iter().map(|e| e.2).collect() };
                    assert_eq!(support(&one), support(&several), "{name}");
                    assert_close(&name, &values(&one), &values(&several));
                    assert_close(&name, &one.x_hat[i], &several.x_hat[i]);
                }
                assert_close(&name, &[one.loss], &[several.loss]);
                let observed =
                    |seen: &Seen| seen.observed.map_or(vec![], |observed| vec![observed]);
                assert_close(&name, &observed(&one), &observed(&several));
                for ((parameter, _, one), (_, _, several)) in
                    one.gradients.iter().zip(&several.gradients)
                {
                    assert_close(&format!("{name}: {parameter}"), one, several);
                }
            }
        }
    }
}

/// Equal scores: the latent with the lower index wins, wherever it is. A row that holds NaN is NaN, and leaves its neighbours alone.
#[test]
fn ties_and_nan() {
    let dictionary: Vec<f32> = (0..6 * 2).map(|i| [1.0, 0.0][i % 2]).collect();
    let queries = [1.0f32, 0.5, f32::NAN, 0.0, 2.0, 1.0];
    let codes = |comm: Arc<dyn Comm>, selection| {
        let across = Across::new(comm, 6);
        let own = across.own();
        let device = Device::flex();
        let rows = dictionary[own.start * 2..own.end * 2].to_vec();
        let rows = Tensor::<2>::from_data(TensorData::new(rows, [own.len(), 2]), &device);
        let queries = Tensor::<2>::from_data(TensorData::new(queries.to_vec(), [3, 2]), &device);
        let codes = across.encode(queries, rows, EncodeOptions::default(), selection);
        let entries = entries(&codes, own.start).into_iter();
        let of_row = entries.map(|(row, j, a)| (row, j, a.is_finite().then_some(a)));
        of_row.collect::<Vec<_>>()
    };
    for selection in [
        Selection::TopK(2),
        Selection::BatchTopK(1),
        Selection::Sparsemax(SparseValue::Probability),
        Selection::Sparsemax(SparseValue::Score),
        Selection::Threshold(0.0),
    ] {
        let one = codes(Arc::new(Local), selection);
        for ranks in [2, 4, 6] {
            let mut all: Vec<_> = thread::scope(|scope| {
                let codes = &codes;
                let start = |comm| scope.spawn(move || codes(comm, selection));
                let started: Vec<_> = sae_comm::threads(ranks).into_iter().map(start).collect();
                let ended = started.into_iter();
                ended.flat_map(|thread| thread.join().unwrap()).collect()
            });
            all.sort_by_key(|(row, latent, _)| (*row, *latent));
            assert_eq!(all, one, "{selection:?}, {ranks} processes");
        }
    }
}
