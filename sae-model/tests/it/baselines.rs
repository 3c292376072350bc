//! What the baselines have of their own, by hand and against central differences.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use sae_model::config::ProjectionInit;
use sae_model::loss::Loss;
use sae_model::{Activations, Architecture, Preset, Sae, SaeConfig, Training};

use crate::values;

const WIDTH: usize = 6;
const LATENTS: usize = 20;
const ROWS: usize = 5;

fn config(architecture: Architecture) -> SaeConfig {
    let mut config = architecture.config(Preset::Default, WIDTH, LATENTS);
    config.k = config.k.map(|_| 4);
    config.bandwidth = config.bandwidth.map(|_| 0.3);
    config
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

/// A model whose parameters are all away from their start.
fn model(architecture: Architecture, device: &Device) -> Sae {
    moved_from_start(&config(architecture), device)
}

fn moved_from_start(config: &SaeConfig, device: &Device) -> Sae {
    let mut sae = Sae::init(config, 3, &noise(WIDTH, 2), device);
    let small = |seed| {
        let values = noise(LATENTS, seed).into_iter().map(|v| 0.1 * v).collect();
        Param::from_tensor(vector(values, device))
    };
    sae.encoder_bias = sae.encoder_bias.map(|_| small(4));
    sae.magnitude_scale = sae.magnitude_scale.map(|_| small(5));
    sae.magnitude_bias = sae.magnitude_bias.map(|_| small(6));
    sae
}

/// What is differentiated.
#[derive(Clone, Copy, Debug)]
struct Case {
    architecture: Architecture,
    /// With W_Q, W_K and W_V.
    projections: bool,
    /// With the auxiliary loss, where there is one.
    auxiliary: bool,
}

impl Case {
    fn model(self, device: &Device) -> Sae {
        let mut config = config(self.architecture);
        if self.projections {
            config.query_projection = true;
            config.key_projection = true;
            config.value_projection = true;
            config.init.projections = ProjectionInit::Identity;
        }
        let mut sae = moved_from_start(&config, device);
        // About the identity: large activations would drown the slope in their rounding.
        let near = |seed| {
            let noise = matrix(noise(WIDTH * WIDTH, seed), WIDTH, device);
            let projection = Tensor::<2>::eye(WIDTH, device) + noise * 0.2;
            Param::from_tensor(projection)
        };
        sae.w_q = sae.w_q.map(|_| near(11));
        sae.w_k = sae.w_k.map(|_| near(12));
        sae.w_v = sae.w_v.map(|_| near(13));
        sae
    }

    /// Everything that training minimises, with weights of order one, and what must stay for it to be smooth: which
    /// latents are active. The auxiliary loss's target is a constant of the backward pass, and so it is `target`,
    /// unless that is to be found out; it is returned.
    fn objective(self, sae: &Sae, device: &Device, target: Option<Vec<f32>>) -> Objective {
        let x = matrix(noise(ROWS * WIDTH, 1), WIDTH, device);
        let r = sae.reconstruct_training(x.clone(), &Training::default());
        let mut loss = Loss::Fvu.forward(x.clone(), r.x_hat.clone(), 2.0);
        let mut value = fvu(x.clone(), r.x_hat.clone());
        if let Some(penalty) = sae.penalty(&r.encoded, 6.0) {
            value += 0.7 * penalty.clone().into_scalar::<f64>();
            loss = loss + penalty * 0.7;
        }
        let dead = [1, 7, 8, 15];
        let auxiliary = sae.auxiliary(&x, &r.x_hat, &r.encoded, &dead, 2);
        let mut constant = None;
        if let (true, Some((found, reconstruction))) = (self.auxiliary, auxiliary) {
            let values = target.unwrap_or_else(|| values(found));
            constant = Some(values.clone());
            let target = matrix(values, WIDTH, device);
            value += 0.5 * fvu(target.clone(), reconstruction.clone());
            loss = loss + Loss::Fvu.forward(target, reconstruction, 2.0) * 0.5;
        }
        let active = dense(r.encoded.activations);
        Objective {
            loss,
            value,
            support: active.iter().map(|a| *a != 0.0).collect(),
            target: constant,
        }
    }

    /// Compares a gradient with the slope of the objective along a direction; says whether there is such a parameter.
    fn check<const D: usize>(
        self,
        name: &str,
        get: impl Fn(&Sae) -> Option<Param<Tensor<D>>>,
        set: impl Fn(&mut Sae, Param<Tensor<D>>),
    ) -> bool {
        const STEP: f64 = 2e-4;
        let differentiable = Device::flex().autodiff();
        let sae = self.model(&differentiable);
        let Some(parameter) = get(&sae) else {
            return false;
        };
        let here = self.objective(&sae, &differentiable, None);
        let gradient = parameter.val().grad(&here.loss.backward());
        let gradient = gradient.expect("a gradient");
        let shape = gradient.dims();
        let direction = noise(shape.iter().product(), 9);
        let direction = Tensor::<D>::from_data(TensorData::new(direction, shape), &Device::flex());
        let expected: f64 = (gradient * direction.clone()).sum().into_scalar();
        let at = |step: f64| {
            let mut sae = self.model(&Device::flex());
            let moved = get(&sae).expect("the parameter").val() + direction.clone() * step;
            set(&mut sae, Param::from_tensor(moved));
            let there = self.objective(&sae, &Device::flex(), here.target.clone());
            assert_eq!(
                there.support, here.support,
                "{self:?} {name}: the support must stay for the slope to mean anything"
            );
            there.value
        };
        let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        assert!(
            (slope - expected).abs() < 5e-3 * expected.abs().max(0.05),
            "{self:?} {name}: slope {slope}, gradient {expected}"
        );
        true
    }
}

/// The FVU of rows of variance 2, added up in float64.
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
    target: Option<Vec<f32>>,
}

#[test]
fn gradients_against_central_differences() {
    let baselines = Architecture::ALL
        .into_iter()
        .filter(|a| *a != Architecture::Attention);
    for (architecture, projections) in baselines.flat_map(|a| [(a, false), (a, true)]) {
        let case = Case {
            architecture,
            projections,
            auxiliary: true,
        };
        // Gated: the auxiliary loss has no gradient for the decoder, which its slope would show (see below).
        let decoder = Case {
            auxiliary: architecture != Architecture::Gated,
            ..case
        };
        assert!(decoder.check("C", |s| Some(s.concepts.clone()), |s, p| s.concepts = p));
        decoder.check("b", |s| s.pre_bias.clone(), |s, p| s.pre_bias = Some(p));
        let value = decoder.check("W_V", |s| s.w_v.clone(), |s, p| s.w_v = Some(p));
        let query = case.check("W_Q", |s| s.w_q.clone(), |s, p| s.w_q = Some(p));
        let key = case.check("W_K", |s| s.w_k.clone(), |s, p| s.w_k = Some(p));
        assert_eq!([query, key, value], [projections; 3]);
        case.check("E", |s| s.encoder.clone(), |s, p| s.encoder = Some(p));
        case.check(
            "bias",
            |s| s.encoder_bias.clone(),
            |s, p| s.encoder_bias = Some(p),
        );
        case.check(
            "r_mag",
            |s| s.magnitude_scale.clone(),
            |s, p| s.magnitude_scale = Some(p),
        );
        case.check(
            "b_mag",
            |s| s.magnitude_bias.clone(),
            |s, p| s.magnitude_bias = Some(p),
        );
    }
}

#[test]
fn the_gates_auxiliary_loss_leaves_the_decoder_alone() {
    let device = Device::flex().autodiff();
    let case = Case {
        architecture: Architecture::Gated,
        projections: true,
        auxiliary: true,
    };
    let sae = case.model(&device);
    let x = matrix(noise(ROWS * WIDTH, 1), WIDTH, &device);
    let r = sae.reconstruct(x.clone());
    let (target, frozen) = sae.auxiliary(&x, &r.x_hat, &r.encoded, &[], 0).unwrap();
    let grads = Loss::Fvu.forward(target, frozen, 2.0).backward();
    assert!(sae.concepts.val().grad(&grads).is_none());
    assert!(sae.w_v.unwrap().val().grad(&grads).is_none());
    assert!(sae.encoder.unwrap().val().grad(&grads).is_some());
}

/// A model with one weight a latent, so that scores are the input times the encoder.
fn tiny(architecture: Architecture, device: &Device) -> Sae {
    let mut config = architecture.config(Preset::Default, 1, 3);
    config.k = config.k.map(|_| 1);
    config.bandwidth = config.bandwidth.map(|_| 0.5);
    let mut sae = Sae::init(&config, 0, &[0.0], device);
    sae.concepts = Param::from_tensor(matrix(vec![1.0, 1.0, -1.0], 1, device));
    sae.encoder = sae
        .encoder
        .map(|_| Param::from_tensor(matrix(vec![1.0, 2.0, -1.0], 1, device)));
    sae
}

fn dense(activations: Activations) -> Vec<f32> {
    values(activations.into_codes().to_dense(&Device::flex()))
}

#[test]
fn gated_by_hand() {
    let device = Device::flex();
    let mut sae = tiny(Architecture::Gated, &device);
    sae.encoder_bias = Some(Param::from_tensor(vector(vec![0.5, -3.0, 0.0], &device)));
    sae.magnitude_scale = Some(Param::from_tensor(vector(
        vec![2f32.ln(), 0.0, 0.0],
        &device,
    )));
    sae.magnitude_bias = Some(Param::from_tensor(vector(vec![0.25, 9.0, 0.0], &device)));
    // x = 1: gates 1.5, -1, -1, so latent 0 alone is open, with magnitude 2 * 1 + 0.25
    let r = sae.reconstruct(matrix(vec![1.0], 1, &device));
    assert_eq!(dense(r.encoded.activations.clone()), [2.25, 0.0, 0.0]);
    let penalty: f32 = sae
        .penalty(&r.encoded, 1.0)
        .expect("a penalty")
        .into_scalar();
    assert_eq!(penalty, 1.5, "the gate's pre-activation");
    let x = matrix(vec![1.0], 1, &device);
    let (target, frozen) = sae
        .auxiliary(&x, &r.x_hat, &r.encoded, &[], 0)
        .expect("an auxiliary");
    assert_eq!((values(target), values(frozen)), (vec![1.0], vec![1.5]));
}

#[test]
fn jumprelu_penalty_counts_and_pulls_at_thresholds() {
    let device = Device::flex().autodiff();
    let mut sae = tiny(Architecture::JumpRelu, &device);
    sae.thresholds = Some(Param::from_tensor(vector(vec![0.9, 1.0, 0.5], &device)));
    // x = 1: scores 1, 2, -1; active: 0 and 1; within a quarter of its threshold: 0 alone
    let r = sae.reconstruct(matrix(vec![1.0], 1, &device));
    assert_eq!(dense(r.encoded.activations.clone()), [1.0, 2.0, 0.0]);
    // L0 is 2; aiming at 4 the penalty is (2 / 4 - 1)^2
    let penalty = sae.penalty(&r.encoded, 4.0).expect("a penalty");
    assert_eq!(penalty.clone().into_scalar::<f32>(), 0.25);
    let grads = penalty.backward();
    let thresholds = sae.thresholds.expect("thresholds").val();
    let gradient = values(thresholds.grad(&grads).expect("a gradient"));
    // 2 (L0 / 4 - 1) / 4 * dL0/dtheta, and dL0/dtheta = -1 / 0.5: too few are active, so the threshold falls
    assert!((gradient[0] - 0.5).abs() < 1e-5, "{gradient:?}");
    assert_eq!(gradient[1..], [0.0, 0.0]);
}

#[test]
fn jumprelu_thresholds_stay_at_zero_or_above() {
    let device = Device::flex().autodiff();
    let mut sae = tiny(Architecture::JumpRelu, &device);
    sae.thresholds = Some(Param::from_tensor(vector(vec![-0.5, 0.0, 0.25], &device)));
    let sae = sae.with_thresholds_above_zero();
    let thresholds = sae.thresholds.expect("thresholds").val();
    assert!(thresholds.is_require_grad(), "and go on learning");
    assert_eq!(values(thresholds), [0.0, 0.0, 0.25]);
}

#[test]
fn topk_explains_what_is_left_with_dead_latents_alone() {
    let device = Device::flex();
    let sae = tiny(Architecture::TopK, &device);
    let x = matrix(vec![3.0], 1, &device);
    // scores 3, 6, -3: the model takes latent 1 and says 6; of the dead (0 and 2), 0 scores 3
    let r = sae.reconstruct(x.clone());
    assert_eq!(dense(r.encoded.activations.clone()), [0.0, 6.0, 0.0]);
    assert!(sae.auxiliary(&x, &r.x_hat, &r.encoded, &[], 1).is_none());
    let (left, explained) = sae
        .auxiliary(&x, &r.x_hat, &r.encoded, &[0, 2], 1)
        .expect("an auxiliary");
    assert_eq!((values(left), values(explained)), (vec![-3.0], vec![3.0]));
}

#[test]
fn batch_topk_learns_the_threshold_that_it_uses_at_inference() {
    let device = Device::flex();
    let mut sae = tiny(Architecture::BatchTopK, &device);
    let x = || matrix(vec![1.0, 3.0], 1, &device);
    // k B = 2 of the scores 1, 2, -1 / 3, 6, -3: both of the second row
    let r = sae.reconstruct_training(x(), &Training::default());
    assert_eq!(
        dense(r.encoded.activations.clone()),
        [0.0, 0.0, 0.0, 3.0, 6.0, 0.0]
    );
    let smallest = sae
        .smallest_activation(&r.encoded)
        .expect("one is positive");
    assert_eq!(smallest.clone().into_scalar::<f32>(), 3.0);
    sae = sae.follow_threshold(smallest);
    let at_inference = sae.encode(x()).activations;
    assert_eq!(
        dense(at_inference),
        [0.0, 0.0, 0.0, 0.0, 6.0, 0.0],
        "above 3 alone"
    );
    sae = sae.follow_threshold(vector(vec![2.0], &device));
    let threshold = sae.batch_threshold.expect("a threshold").val();
    assert!(
        (threshold.into_scalar::<f32>() - 2.99).abs() < 1e-6,
        "0.99 * 3 + 0.01 * 2"
    );
}

#[test]
fn auxiliary_losses_decode_through_w_v() {
    let device = Device::flex();
    let twice = || Some(Param::from_tensor(matrix(vec![2.0], 1, &device)));
    let auxiliary = |architecture, x: f32| {
        let mut sae = tiny(architecture, &device);
        sae.w_v = twice();
        sae.encoder_bias = sae
            .encoder_bias
            .map(|_| Param::from_tensor(vector(vec![0.0; 3], &device)));
        let x = matrix(vec![x], 1, &device);
        let r = sae.reconstruct(x.clone());
        let (target, explained) = sae
            .auxiliary(&x, &r.x_hat, &r.encoded, &[0, 2], 1)
            .expect("an auxiliary");
        (values(target), values(explained))
    };
    // scores 3, 6, -3: the model takes latent 1 and says 12; of the dead (0 and 2), 0 scores 3
    for architecture in [Architecture::TopK, Architecture::BatchTopK] {
        assert_eq!(auxiliary(architecture, 3.0), (vec![-9.0], vec![6.0]));
    }
    // gates 1, 2, -1
    assert_eq!(auxiliary(Architecture::Gated, 1.0), (vec![1.0], vec![6.0]));
}

#[test]
fn batch_topk_keeps_k_a_row_until_its_threshold_was_measured() {
    let sae = tiny(Architecture::BatchTopK, &Device::flex());
    let x = matrix(vec![1.0, 3.0], 1, &Device::flex());
    // k = 1 of the scores 1, 2, -1 / 3, 6, -3
    let activations = sae.encode(x).activations;
    assert_eq!(dense(activations), [0.0, 2.0, 0.0, 0.0, 6.0, 0.0]);
}

#[test]
fn unit_concepts_and_gradients_across_them() {
    let device = Device::flex().autodiff();
    let mut sae = tiny(Architecture::TopK, &device);
    sae.concepts = Param::from_tensor(matrix(vec![3.0, 4.0], 2, &device));
    let sae = sae.with_unit_concepts();
    assert_eq!(values(sae.concepts.val()), [0.6, 0.8]);
    let across = sae.across_concepts(matrix(vec![1.0, 0.0], 2, &Device::flex()));
    for (a, e) in values(across).iter().zip([1.0 - 0.36, -0.48]) {
        assert!((a - e).abs() < 1e-6);
    }
}

#[test]
fn every_architecture_reads_back_as_itself() {
    for architecture in Architecture::ALL {
        let dir = tempfile::tempdir().unwrap();
        let mut sae = model(architecture, &Device::flex());
        if architecture == Architecture::BatchTopK {
            sae = sae.follow_threshold(vector(vec![0.25], &Device::flex()));
        }
        sae_model::saved::save(&sae, 1, dir.path()).unwrap();
        let again = sae_model::saved::load(dir.path(), &Device::flex()).unwrap();
        let x = || matrix(noise(ROWS * WIDTH, 1), WIDTH, &Device::flex());
        let (a, b) = (sae.reconstruct(x()), again.reconstruct(x()));
        assert_eq!(values(a.x_hat), values(b.x_hat), "{architecture:?}");
        let activations = dense(a.encoded.activations);
        assert!(activations.iter().any(|a| *a != 0.0), "{architecture:?}");
        assert_eq!(activations, dense(b.encoded.activations));
    }
}
