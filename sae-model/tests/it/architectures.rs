//! Checks every architecture of the list against central differences and through saved files, and some by hand.

use std::cell::RefCell;

use burn::tensor::{Device, Tensor, TensorData};
use sae_model::architectures::{BatchTopK, Gated, JumpRelu, TopK};
use sae_model::config::ProjectionInit;
use sae_model::loss::{Coefficients, Loss, Step, Term};
use sae_model::{AnyArchitecture, Architecture, Forward, Mode, Sae, SaeConfig, parameters};

use crate::{values, with};

const WIDTH: usize = 6;
const LATENTS: usize = 20;
const ROWS: usize = 5;

fn config(architecture: &AnyArchitecture) -> SaeConfig {
    let architecture = with(architecture, "k", 4);
    let architecture = with(&architecture, "bandwidth", 0.3);
    SaeConfig::new(architecture, WIDTH, LATENTS)
}

/// Values in (-1, 1) without ties.
fn noise(len: usize, seed: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 7919 + seed * 104_729 + i * i * 31) % 20_011) as f32 / 10_005.5 - 1.0)
        .collect()
}

fn vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn matrix(values: Vec<f32>, width: usize, device: &Device) -> Tensor<2> {
    let shape = [values.len() / width, width];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A model whose biases and projections differ from their initial values.
fn moved_from_start(config: &SaeConfig, device: &Device) -> Sae {
    let mut sae = Sae::init(config, 3, &noise(WIDTH, 2), device);
    for (name, seed) in [("b_enc", 4), ("b_gate", 4), ("r_mag", 5), ("b_mag", 6)] {
        if sae.parameters.vector(name).is_some() {
            let small = noise(LATENTS, seed).into_iter().map(|v| 0.1 * v).collect();
            sae.parameters.set_vector(name, vector(small, device));
        }
    }
    // Close to the identity, because the rounding of large activations would hide the slope.
    for (name, seed) in [("W_Q", 11), ("W_K", 12), ("W_V", 13)] {
        if sae.parameters.matrix(name).is_some() {
            let noise = matrix(noise(WIDTH * WIDTH, seed), WIDTH, device);
            let near = Tensor::<2>::eye(WIDTH, device) + noise * 0.2;
            sae.parameters.set_matrix(name, near);
        }
    }
    sae
}

/// The terms that the architecture adds to the loss of a batch.
fn terms(
    (sae, x, forward): (&Sae, &Tensor<2>, &Forward),
    (mask, dead): (&[f32], &[u32]),
    coefficients: &Coefficients,
    distance: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<1>,
) -> Vec<Term> {
    let dead = || dead.to_vec();
    let step = Step::new(
        (sae, x, forward),
        (mask, &|| 0),
        coefficients,
        &dead,
        distance,
    );
    sae.config().architecture.losses(&step)
}

/// The model and loss to differentiate.
#[derive(Clone, Debug)]
struct Case {
    architecture: AnyArchitecture,
    /// With W_Q, W_K and W_V.
    projections: bool,
    /// With the auxiliary loss, if there is one.
    auxiliary: bool,
}

impl Case {
    fn config(&self) -> SaeConfig {
        let mut config = config(&self.architecture);
        config.query_projection = self.projections;
        config.key_projection = self.projections;
        config.value_projection = self.projections;
        config.init.projections = ProjectionInit::Identity;
        config
    }

    fn model(&self, device: &Device) -> Sae {
        moved_from_start(&self.config(), device)
    }

    /// The loss that training minimises, with weights of order one, and the support, which must not change for the loss
    /// to be smooth. The targets of reconstructions are constants of the backward pass. They are taken from
    /// `constants`, or computed if there are none, and returned.
    fn objective(&self, sae: &Sae, device: &Device, constants: Option<Vec<Vec<f32>>>) -> Objective {
        let coefficients = Coefficients::default()
            .with("sparsity_coefficient", 0.7)
            .with("sparsity_warmup_steps", 1.0)
            .with("target_l0", 6.0)
            .with("aux_coefficient", if self.auxiliary { 0.5 } else { 0.0 })
            .with("aux_k", 2.0);
        let x = matrix(noise(ROWS * WIDTH, 1), WIDTH, device);
        let forward = sae.forward(x.clone(), &Mode::training());
        let mut loss = Loss::Fvu.forward(x.clone(), forward.x_hat.clone(), 2.0);
        let mut value = fvu(x.clone(), forward.x_hat.clone());
        let seen = RefCell::new((Vec::new(), Vec::new()));
        let distance = |found: Tensor<2>, reconstruction: Tensor<2>| {
            let (targets, distances) = &mut *seen.borrow_mut();
            let constant = match &constants {
                Some(constants) => constants[targets.len()].clone(),
                None => values(found),
            };
            let target = matrix(constant.clone(), WIDTH, device);
            targets.push(constant);
            distances.push(fvu(target.clone(), reconstruction.clone()));
            Loss::Fvu.forward(target, reconstruction, 2.0)
        };
        let batch = (sae, &x, &forward);
        let terms = terms(batch, (&[], &[1, 7, 8, 15]), &coefficients, &distance);
        let has_auxiliary = terms.iter().any(|term| term.name == "auxiliary_loss");
        for term in terms {
            if term.name == "sparsity_loss" {
                value += term.value.clone().into_scalar::<f64>();
            }
            loss = loss + term.value;
        }
        let (targets, mut distances) = seen.into_inner();
        if has_auxiliary {
            *distances.last_mut().expect("one distance") *= 0.5; // its coefficient; it comes last
        }
        value += distances.iter().sum::<f64>();
        let active = dense(forward.encoded.latents);
        Objective {
            loss,
            value,
            support: active.iter().map(|a| *a != 0.0).collect(),
            targets,
        }
    }

    /// Compares a gradient with the slope of the objective along a direction.
    fn check<const D: usize>(
        &self,
        name: &str,
        get: impl Fn(&Sae) -> Tensor<D>,
        set: impl Fn(&mut Sae, Tensor<D>),
    ) {
        const STEP: f64 = 2e-4;
        let differentiable = Device::flex().autodiff();
        let sae = self.model(&differentiable);
        let here = self.objective(&sae, &differentiable, None);
        let gradient = get(&sae).grad(&here.loss.backward());
        let gradient = gradient.unwrap_or_else(|| panic!("{self:?}: {name} has a gradient"));
        let shape = gradient.dims();
        let direction = noise(shape.iter().product(), 9);
        let direction = Tensor::<D>::from_data(TensorData::new(direction, shape), &Device::flex());
        let expected: f64 = (gradient * direction.clone()).sum().into_scalar();
        let at = |step: f64| {
            let mut sae = self.model(&Device::flex());
            let moved = get(&sae) + direction.clone() * step;
            set(&mut sae, moved);
            let there = self.objective(&sae, &Device::flex(), Some(here.targets.clone()));
            assert_eq!(
                there.support, here.support,
                "{self:?} {name}: the support must not change, or the slope means nothing"
            );
            there.value
        };
        let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        assert!(
            (slope - expected).abs() < 5e-3 * expected.abs().max(0.05),
            "{self:?} {name}: slope {slope}, gradient {expected}"
        );
    }
}

/// The FVU of rows with variance 2, added up in float64.
fn fvu(x: Tensor<2>, x_hat: Tensor<2>) -> f64 {
    let (x, x_hat) = (values(x), values(x_hat));
    let errors = x.iter().zip(x_hat).map(|(x, y)| f64::from(y - x).powi(2));
    errors.sum::<f64>() / (ROWS as f64 * 2.0)
}

struct Objective {
    loss: Tensor<1>,
    /// The loss, added up in float64.
    value: f64,
    support: Vec<bool>,
    targets: Vec<Vec<f32>>,
}

/// All architectures but attention, whose gradients `gradients.rs` checks.
fn baselines() -> Vec<AnyArchitecture> {
    let mut all = AnyArchitecture::all();
    all.retain(|architecture| architecture.name() != "attention");
    all
}

#[test]
fn gradients_against_central_differences() {
    for (architecture, projections) in baselines()
        .into_iter()
        .flat_map(|a| [(a.clone(), false), (a, true)])
    {
        let case = Case {
            architecture,
            projections,
            auxiliary: true,
        };
        // The auxiliary loss of Gated has no gradient for the decoder, but it has a slope (see below).
        let decoder = Case {
            auxiliary: case.architecture.name() != "gated",
            ..case.clone()
        };
        for parameter in parameters::table(&case.config()) {
            let name = parameter.name;
            // The thresholds of JumpReLU learn from a gradient that is not a slope.
            if !parameter.trained || name == "threshold" {
                continue;
            }
            let case = match name {
                "W_dec" | "W_V" | "b_dec" => &decoder,
                _ => &case,
            };
            match parameter.shape.dims(&case.config()).len() {
                1 => case.check(
                    name,
                    |sae| sae.parameters.vector(name).expect("a vector"),
                    |sae, value| sae.parameters.set_vector(name, value),
                ),
                _ => case.check(
                    name,
                    |sae| sae.parameters.matrix(name).expect("a matrix"),
                    |sae, value| sae.parameters.set_matrix(name, value),
                ),
            }
        }
    }
}

#[test]
fn names_of_parameters_and_terms_are_those_of_the_tables() {
    for architecture in AnyArchitecture::all() {
        let config = config(&architecture);
        let sae = Sae::init(&config, 0, &[0.0; WIDTH], &Device::flex());
        let mut names: Vec<&str> = parameters::table(&config).iter().map(|p| p.name).collect();
        let mut found: Vec<&str> = sae
            .parameters
            .to_data()
            .iter()
            .map(|(name, _)| *name)
            .collect();
        names.sort_unstable();
        found.sort_unstable();
        assert_eq!(names, found);
        let mut coefficients = Coefficients::default().with("sparsity_warmup_steps", 1.0);
        for coefficient in architecture.coefficients() {
            coefficients = coefficients.with(coefficient.name, 1.0);
        }
        let x = matrix(noise(ROWS * WIDTH, 1), WIDTH, &Device::flex());
        let forward = sae.forward(x.clone(), &Mode::training());
        let distance = |x, x_hat| Loss::Fvu.forward(x, x_hat, 1.0);
        let terms = terms(
            (&sae, &x, &forward),
            (&[], &[1, 7]),
            &coefficients,
            &distance,
        );
        let terms: Vec<&str> = terms.iter().map(|term| term.name).collect();
        assert_eq!(terms, architecture.terms(), "{}", architecture.name());
        let own = architecture.switches();
        let explained = architecture.meanings().iter().map(|(key, _)| *key);
        assert!(
            explained.eq(explained_order(architecture.meanings(), &own)),
            "{own:?}"
        );
        assert!(!architecture.source().is_empty());
    }
}

/// The explained keys that exist; there must be as many explanations as keys.
fn explained_order<'a>(
    meanings: &'a [(&str, &str)],
    own: &'a serde_json::Map<String, serde_json::Value>,
) -> impl Iterator<Item = &'a str> {
    assert_eq!(meanings.len(), own.len());
    meanings
        .iter()
        .map(|(key, _)| *key)
        .filter(|key| own.contains_key(*key))
}

#[test]
fn the_gates_auxiliary_loss_leaves_the_decoder_alone() {
    let device = Device::flex().autodiff();
    let case = Case {
        architecture: Gated::default().into(),
        projections: true,
        auxiliary: true,
    };
    let sae = case.model(&device);
    let x = matrix(noise(ROWS * WIDTH, 1), WIDTH, &device);
    let forward = sae.forward(x.clone(), &Mode::training());
    let coefficients = Coefficients::default().with("aux_coefficient", 1.0);
    let distance = |x, x_hat| Loss::Fvu.forward(x, x_hat, 2.0);
    let terms = terms((&sae, &x, &forward), (&[], &[]), &coefficients, &distance);
    let auxiliary = terms.into_iter().find(|term| term.name == "auxiliary_loss");
    let grads = auxiliary.expect("the term").value.backward();
    let matrix = |name| sae.parameters.matrix(name).expect("a matrix");
    assert!(matrix("W_dec").grad(&grads).is_none());
    assert!(matrix("W_V").grad(&grads).is_none());
    assert!(matrix("W_enc").grad(&grads).is_some());
}

/// A model with one weight per latent, so that scores are the input times the encoder.
fn tiny(architecture: impl Into<AnyArchitecture>, device: &Device) -> Sae {
    let config = SaeConfig::new(architecture, 1, 3);
    let mut sae = Sae::init(&config, 0, &[0.0], device);
    let decoder = matrix(vec![1.0, 1.0, -1.0], 1, device);
    sae.parameters.set_matrix("W_dec", decoder);
    let encoder = matrix(vec![1.0, 2.0, -1.0], 1, device);
    sae.parameters.set_matrix("W_enc", encoder);
    sae
}

fn dense(latents: sae_model::SparseCodes) -> Vec<f32> {
    values(latents.on_host().to_dense(&Device::flex()))
}

/// The (target, reconstruction) pairs of the auxiliary loss of a row, if there is one, and the terms.
fn auxiliary(sae: &Sae, forward: &Forward, x: f32, dead: &[u32]) -> (Vec<(f32, f32)>, Vec<Term>) {
    let coefficients = Coefficients::default()
        .with("sparsity_coefficient", 1.0)
        .with("aux_coefficient", 1.0)
        .with("aux_k", 1.0);
    let seen = RefCell::new(Vec::new());
    let distance = |target: Tensor<2>, reconstruction: Tensor<2>| {
        let pair = (values(target.clone())[0], values(reconstruction.clone())[0]);
        seen.borrow_mut().push(pair);
        Loss::Mse.forward(target, reconstruction, 1.0)
    };
    let x = matrix(vec![x], 1, &Device::flex());
    let terms = terms((sae, &x, forward), (&[], dead), &coefficients, &distance);
    (seen.into_inner(), terms)
}

fn of_one_row(sae: &Sae, x: f32) -> Forward {
    sae.forward(matrix(vec![x], 1, &Device::flex()), &Mode::training())
}

#[test]
fn gated_by_hand() {
    let device = Device::flex();
    let mut sae = tiny(Gated::default(), &device);
    for (name, of_latents) in [
        ("b_gate", [0.5, -3.0, 0.0]),
        ("r_mag", [2f32.ln(), 0.0, 0.0]),
        ("b_mag", [0.25, 9.0, 0.0]),
    ] {
        let value = vector(of_latents.to_vec(), &device);
        sae.parameters.set_vector(name, value);
    }
    // x = 1: gates 1.5, -1, -1, so only latent 0 is open, with magnitude 2 * 1 + 0.25
    let forward = of_one_row(&sae, 1.0);
    assert_eq!(dense(forward.encoded.latents.clone()), [2.25, 0.0, 0.0]);
    let (seen, terms) = auxiliary(&sae, &forward, 1.0, &[]);
    let penalty: f32 = terms[0].value.clone().into_scalar();
    assert_eq!(penalty, 1.5, "the gate's pre-activation");
    assert_eq!(seen, [(1.0, 1.5)]);
}

fn jumprelu() -> JumpRelu {
    JumpRelu { bandwidth: 0.5 }
}

#[test]
fn jumprelu_penalty_counts_and_pulls_at_thresholds() {
    let device = Device::flex().autodiff();
    let mut sae = tiny(jumprelu(), &device);
    let thresholds = vector(vec![0.9, 1.0, 0.5], &device);
    sae.parameters.set_vector("threshold", thresholds);
    // x = 1: scores 1, 2, -1; active: 0 and 1; within a quarter of its threshold: only 0
    let x = matrix(vec![1.0], 1, &device);
    let forward = sae.forward(x.clone(), &Mode::training());
    assert_eq!(dense(forward.encoded.latents.clone()), [1.0, 2.0, 0.0]);
    // L0 is 2; aiming at 4 the penalty is (2 / 4 - 1)^2
    let coefficients = Coefficients::default()
        .with("sparsity_coefficient", 1.0)
        .with("target_l0", 4.0);
    let distance = |x, x_hat| Loss::Fvu.forward(x, x_hat, 1.0);
    let terms = terms((&sae, &x, &forward), (&[], &[]), &coefficients, &distance);
    let penalty = terms[0].value.clone();
    assert_eq!(penalty.clone().into_scalar::<f32>(), 0.25);
    let grads = penalty.backward();
    let thresholds = sae.parameters.vector("threshold").expect("thresholds");
    let gradient = values(thresholds.grad(&grads).expect("a gradient"));
    // 2 (L0 / 4 - 1) / 4 * dL0/dtheta, and dL0/dtheta = -1 / 0.5: too few are active, so the threshold falls
    assert!((gradient[0] - 0.5).abs() < 1e-5, "{gradient:?}");
    assert_eq!(gradient[1..], [0.0, 0.0]);
}

#[test]
fn jumprelu_thresholds_stay_at_zero_or_above() {
    let device = Device::flex().autodiff();
    let mut sae = tiny(jumprelu(), &device);
    let below = vector(vec![-0.5, 0.0, 0.25], &device);
    sae.parameters.set_vector("threshold", below);
    let sae = sae.after_update(None);
    let thresholds = sae.parameters.vector("threshold").expect("thresholds");
    assert!(thresholds.is_require_grad(), "they must stay trainable");
    assert_eq!(values(thresholds), [0.0, 0.0, 0.25]);
}

fn topk() -> TopK {
    TopK {
        k: 1,
        ..TopK::default()
    }
}

fn batch_topk() -> BatchTopK {
    BatchTopK {
        k: 1,
        ..BatchTopK::default()
    }
}

#[test]
fn topk_explains_what_is_left_with_dead_latents_alone() {
    let sae = tiny(topk(), &Device::flex());
    // scores 3, 6, -3: the model selects latent 1 and reconstructs 6; of the dead (0 and 2), 0 has score 3
    let forward = of_one_row(&sae, 3.0);
    assert_eq!(dense(forward.encoded.latents.clone()), [0.0, 6.0, 0.0]);
    assert!(auxiliary(&sae, &forward, 3.0, &[]).1.is_empty());
    assert_eq!(auxiliary(&sae, &forward, 3.0, &[0, 2]).0, [(-3.0, 3.0)]);
}

#[test]
fn batch_topk_learns_the_threshold_that_it_uses_at_inference() {
    let device = Device::flex();
    let mut sae = tiny(batch_topk(), &device);
    let x = || matrix(vec![1.0, 3.0], 1, &device);
    // k B = 2 of the scores 1, 2, -1 / 3, 6, -3: both of the second row
    let forward = sae.forward(x(), &Mode::training());
    assert_eq!(
        dense(forward.encoded.latents.clone()),
        [0.0, 0.0, 0.0, 3.0, 6.0, 0.0]
    );
    let smallest = sae.config().architecture.observe(&forward.encoded);
    let smallest = smallest.expect("one is positive");
    assert_eq!(smallest.clone().into_scalar::<f32>(), 3.0);
    sae = sae.after_update(Some(smallest));
    let at_inference = sae.encode(x()).latents;
    assert_eq!(
        dense(at_inference),
        [0.0, 0.0, 0.0, 0.0, 6.0, 0.0],
        "only above 3"
    );
    sae = sae.after_update(Some(vector(vec![2.0], &device)));
    let threshold = sae.parameters.vector("threshold").expect("a threshold");
    assert!(
        (threshold.into_scalar::<f32>() - 2.99).abs() < 1e-6,
        "0.99 * 3 + 0.01 * 2"
    );
}

#[test]
fn auxiliary_losses_decode_through_w_v() {
    let device = Device::flex();
    let seen = |architecture: AnyArchitecture, x: f32| {
        let mut config = SaeConfig::new(architecture, 1, 3);
        config.value_projection = true;
        let mut sae = Sae::init(&config, 0, &[0.0], &device);
        for (name, weights) in [
            ("W_dec", vec![1.0, 1.0, -1.0]),
            ("W_enc", vec![1.0, 2.0, -1.0]),
            ("W_V", vec![2.0]),
        ] {
            sae.parameters.set_matrix(name, matrix(weights, 1, &device));
        }
        if sae.parameters.vector("b_gate").is_some() {
            sae.parameters
                .set_vector("b_gate", vector(vec![0.0; 3], &device));
        }
        auxiliary(&sae, &of_one_row(&sae, x), x, &[0, 2]).0
    };
    // scores 3, 6, -3: the model selects latent 1 and reconstructs 12; of the dead (0 and 2), 0 has score 3
    assert_eq!(seen(topk().into(), 3.0), [(-9.0, 6.0)]);
    assert_eq!(seen(batch_topk().into(), 3.0), [(-9.0, 6.0)]);
    // gates 1, 2, -1
    assert_eq!(seen(Gated::default().into(), 1.0), [(1.0, 6.0)]);
}

#[test]
fn batch_topk_keeps_k_per_row_until_its_threshold_was_measured() {
    let sae = tiny(batch_topk(), &Device::flex());
    let x = matrix(vec![1.0, 3.0], 1, &Device::flex());
    // k = 1 of the scores 1, 2, -1 / 3, 6, -3
    let latents = sae.encode(x).latents;
    assert_eq!(dense(latents), [0.0, 2.0, 0.0, 0.0, 6.0, 0.0]);
}

#[test]
fn every_architecture_reads_back_as_itself() {
    for architecture in AnyArchitecture::all() {
        let dir = tempfile::tempdir().unwrap();
        let sae = moved_from_start(&config(&architecture), &Device::flex());
        let quarter = vector(vec![0.25], &Device::flex());
        let sae = sae.after_update(Some(quarter)); // the threshold of BatchTopK
        sae_model::saved::save(&sae, 1, dir.path()).unwrap();
        let again = sae_model::saved::load(dir.path(), &Device::flex()).unwrap();
        let x = || matrix(noise(ROWS * WIDTH, 1), WIDTH, &Device::flex());
        let forward = |sae: &Sae| sae.forward(x(), &Mode::Inference);
        let (a, b) = (forward(&sae), forward(&again));
        assert_eq!(values(a.x_hat), values(b.x_hat), "{architecture:?}");
        let latents = dense(a.encoded.latents);
        assert!(latents.iter().any(|a| *a != 0.0), "{architecture:?}");
        assert_eq!(latents, dense(b.encoded.latents));
    }
}
