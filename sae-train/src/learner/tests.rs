//! The learner by itself: counters, what they switch, and the weights of the loss's terms.

use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::tensor::TensorData;
use sae_data::synthetic::Synthetic;
use sae_model::architectures::{Attention, BatchTopK, Gated, Relu, TopK};
use sae_model::ops::Adam;
use sae_model::{AnyArchitecture, SaeConfig};

use super::*;
use crate::numbers::Number;
use crate::shards::Shards;

const WIDTH: usize = 6;
const LATENTS: usize = 12;
const ROWS: usize = 20;

fn settings() -> Settings {
    Settings {
        loss: Loss::Fvu,
        variance: 2.0,
        row_limit: f64::INFINITY,
        held_out_variance: 4.0,
        frequency_cutoff: 1.0,
        dead_window: 3,
        coefficients: Coefficients::default(),
    }
}

fn topk() -> TopK {
    TopK {
        k: 2,
        ..TopK::default()
    }
}

fn learner(architecture: impl Into<AnyArchitecture>, settings: Settings) -> SaeLearner {
    let config = SaeConfig::new(architecture, WIDTH, LATENTS);
    let device = Device::flex().autodiff();
    let sae = Sae::init(&config, 0, &[0.0; WIDTH], &device);
    SaeLearner::new(sae, settings, &device)
}

fn batch() -> ActivationBatch {
    let source = Synthetic {
        width: WIDTH,
        concepts: 9,
        active: 2,
        noise: 0.1,
        seed: 1,
    };
    // long enough for the scores at which latents of the baselines fire
    let rows = source
        .rows(ROWS)
        .into_iter()
        .map(|x| 4.0 * x)
        .collect::<Vec<f32>>();
    let data = TensorData::new(rows, [ROWS, WIDTH]);
    ActivationBatch {
        activations: Tensor::from_data(data, &Device::flex().autodiff()),
    }
}

/// `learner` after batches in which each latent fired on these parts of the rows.
fn counted(mut learner: SaeLearner, batches: &[[f32; LATENTS]]) -> SaeLearner {
    for fired in batches {
        learner = learner.count(Tensor::from_data(*fired, &Device::flex()));
    }
    learner
}

fn values(tensor: Tensor<1>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}

/// Parts of the rows: latent 0 always, latent 1 on half of them, latent 2 as given, the others never.
fn fired(third: f32) -> [f32; LATENTS] {
    let mut fired = [0.0; LATENTS];
    fired[..3].copy_from_slice(&[1.0, 0.5, third]);
    fired
}

#[test]
fn counters_are_means_and_steps_since_a_latent_fired() {
    let learner = learner(Attention::default(), settings());
    let learner = counted(learner, &[fired(0.25), fired(0.0), fired(0.5), fired(0.0)]);
    assert_eq!(learner.steps_done(), 4);
    let frequency = values(learner.frequency.val());
    let expected = [1.0, 0.5, 0.75 / 4.0, 0.0];
    for (found, expected) in frequency.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{frequency:?}");
    }
    assert_eq!(values(learner.silent.val())[..4], [0.0, 0.0, 1.0, 4.0]);
}

#[test]
fn dead_are_those_that_were_silent_for_the_window() {
    let after = |batches: usize| {
        let mut all = vec![fired(0.5)];
        all.resize(batches, fired(0.0));
        counted(learner(topk(), settings()), &all)
    };
    let dead = |batches| after(batches).dead();
    assert_eq!(dead(2), [0; 0], "two silent steps of three");
    assert_eq!(dead(3), (3..LATENTS as u32).collect::<Vec<_>>());
    assert_eq!(
        dead(4),
        (2..LATENTS as u32).collect::<Vec<_>>(),
        "three since latent 2"
    );
    let model = after(4);
    let output = TrainStep::step(&model, batch());
    assert_eq!(output.item.number(Number::Dead), 10.0);
    let again = counted(model, &[fired(0.1)]);
    assert_eq!(
        again.dead(),
        (3..LATENTS as u32).collect::<Vec<_>>(),
        "it lives again"
    );
}

#[test]
fn the_cutoff_switches_off_what_fires_more_often() {
    let off = |cutoff| {
        let settings = Settings {
            frequency_cutoff: cutoff,
            ..settings()
        };
        counted(learner(Attention::default(), settings), &[fired(0.25)])
    };
    assert!(off(1.0).mask().is_empty(), "nothing is switched off");
    let mut expected = [1.0; LATENTS];
    expected[0] = 0.0;
    assert_eq!(
        off(0.5).mask(),
        expected,
        "exactly at the cutoff is not above it"
    );
    expected[1] = 0.0;
    assert_eq!(off(0.25).mask(), expected);
    // and they do not fire in a step
    let fires = |learner: &SaeLearner| {
        let mut output = TrainStep::step(learner, batch());
        values(output.grads.remove::<1>(learner.frequency.id).unwrap())
    };
    assert!(fires(&off(1.0))[..2].iter().all(|part| *part > 0.0));
    assert_eq!(fires(&off(0.25))[..2], [0.0, 0.0]);
}

#[test]
fn a_step_counts_its_own_batch() {
    let model = learner(Attention::default(), settings());
    let output = TrainStep::step(&model, batch());
    let l0 = output.item.number(Number::L0);
    let adam = Adam {
        beta_1: 0.9,
        beta_2: 0.999,
        epsilon: 1e-8,
        unit_rows: false,
    };
    let mut optimizer = ModuleOptimizer::from(adam);
    let lr = ModuleLearningRate::from(1e-3);
    let model = model.optimize(&mut optimizer, lr, output.grads);
    assert_eq!(model.steps_done(), 1);
    let frequency: f32 = values(model.frequency.val()).iter().sum();
    assert!(
        l0 > 0.0 && (f64::from(frequency) - l0).abs() < 1e-5,
        "{frequency} {l0}"
    );
}

#[test]
fn the_penalty_rises_to_its_coefficient() {
    let at = |warmup: u32, steps: usize| {
        let settings = Settings {
            coefficients: Coefficients::default()
                .with("sparsity_coefficient", 3.0)
                .with("sparsity_warmup_steps", f64::from(warmup)),
            ..settings()
        };
        let model = learner(Relu::default(), settings);
        let model = counted(model, &vec![fired(0.0); steps]);
        let output = TrainStep::step(&model, batch());
        term(&output.item, "sparsity_loss")
    };
    let whole = at(0, 0);
    assert!(whole > 0.0);
    for (steps, expected) in [(0, 0.75), (1, 1.5), (2, 2.25), (3, 3.0), (7, 3.0)] {
        let loss = at(4, steps);
        assert!(
            (loss - whole * expected / 3.0).abs() < 1e-6 * whole,
            "{steps}"
        );
    }
}

/// A term of the loss; 0 where there is none.
fn term(output: &StepOutput, name: &str) -> f64 {
    output.term(name).unwrap_or(0.0)
}

/// `(loss, its terms)` of a step.
fn losses(architecture: AnyArchitecture, aux_coefficient: f64, batches: usize) -> (f64, [f64; 3]) {
    let settings = Settings {
        coefficients: Coefficients::default()
            .with("aux_coefficient", aux_coefficient)
            .with("aux_k", 3.0)
            .with("sparsity_coefficient", 0.5),
        ..settings()
    };
    let model = counted(learner(architecture, settings), &vec![fired(0.5); batches]);
    let item = TrainStep::step(&model, batch()).item;
    let (sparsity, auxiliary) = (term(&item, "sparsity_loss"), term(&item, "auxiliary_loss"));
    let reconstruction = item.number(Number::ReconstructionLoss);
    (
        item.number(Number::Loss),
        [reconstruction, sparsity, auxiliary],
    )
}

#[test]
fn the_auxiliary_loss_has_its_weight() {
    for architecture in [
        topk().into(),
        AnyArchitecture::from(BatchTopK {
            k: 2,
            ..BatchTopK::default()
        }),
        Gated::default().into(),
    ] {
        let (without, [reconstruction, sparsity, none]) = losses(architecture.clone(), 0.0, 5);
        assert_eq!(none, 0.0);
        assert!((without - reconstruction - sparsity).abs() < 1e-6 * without);
        let (one, [same, _, whole]) = losses(architecture.clone(), 1.0, 5);
        assert_eq!(same, reconstruction, "{architecture:?}");
        assert!(whole > 0.0, "{architecture:?}");
        assert!(
            (one - without - whole).abs() < 1e-5 * one,
            "{architecture:?}"
        );
        let (_, [_, _, quarter]) = losses(architecture.clone(), 0.25, 5);
        assert!(
            (quarter - whole / 4.0).abs() < 1e-6 * whole,
            "{architecture:?}"
        );
    }
    // no latent is dead yet, so there is nothing for TopK's to do
    assert_eq!(losses(topk().into(), 1.0, 1).1[2], 0.0);
}

#[test]
fn a_validation_is_measured_by_its_own_variance_and_by_reconstruction_alone() {
    let settings = Settings {
        coefficients: Coefficients::default().with("sparsity_coefficient", 9.0),
        ..settings()
    };
    let model = learner(Relu::default(), settings);
    let trained = TrainStep::step(&model, batch()).item;
    let valid = model.valid();
    let x = batch().activations.inner();
    let output = InferenceStep::step(&valid, ActivationBatch { activations: x });
    // the same rows, twice the variance
    assert!((2.0 * output.fvu() - trained.fvu()).abs() < 1e-6);
    assert_eq!(
        output.number(Number::Loss),
        output.number(Number::ReconstructionLoss)
    );
    assert_eq!(output.term("sparsity_loss"), None);
    assert!(trained.term("sparsity_loss").is_some());
}

/// The gradients of a step whose batch is taken in parts, and its numbers.
fn in_parts(learner: &SaeLearner, parts: usize) -> (Vec<Vec<f32>>, [f64; 5]) {
    struct Reading<'a>(&'a GradientsParams, Vec<Vec<f32>>);
    impl ModuleVisitor for Reading<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let values = self.0.get::<D>(param.id);
            let values = values.map(|values| values.into_data().iter().collect());
            self.1.push(values.unwrap_or_default());
        }
    }
    let output = Shards::alone(parts).train_step(learner, batch());
    let mut reading = Reading(&output.grads, Vec::new());
    learner.visit(&mut reading);
    let numbers = [
        Number::Loss,
        Number::SquaredError,
        Number::L0,
        Number::Dead,
        Number::SquaredGradients,
    ];
    (reading.1, numbers.map(|number| output.item.number(number)))
}

/// Rules that look at each row by itself: parts give the gradient of the batch, within rounding.
#[test]
fn the_mean_over_parts_is_that_of_the_batch() {
    let architectures: [AnyArchitecture; 4] = [
        Attention::default().into(),
        Relu::default().into(),
        topk().into(),
        Gated::default().into(),
    ];
    for architecture in architectures {
        let learner = learner(architecture, settings());
        let (whole, numbers) = in_parts(&learner, 1);
        assert!(whole.iter().flatten().any(|g| *g != 0.0));
        for parts in [2, 4, 5, 10] {
            let (other, others) = in_parts(&learner, parts);
            assert_eq!(whole.len(), other.len());
            for (a, b) in whole.iter().zip(&other) {
                assert_eq!(a.len(), b.len());
                for (a, b) in a.iter().zip(b) {
                    assert!((a - b).abs() <= 1e-5 * a.abs().max(0.1), "{parts}: {a} {b}");
                }
            }
            for (a, b) in numbers.iter().zip(others) {
                assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "{parts}: {a} {b}");
            }
        }
    }
}

/// A part without an active latent has nothing to observe: the others' mean counts.
#[test]
fn parts_without_a_number_leave_it_to_the_others() {
    let learner = learner(
        BatchTopK {
            k: 1,
            ..BatchTopK::default()
        },
        settings(),
    );
    let (whole, _) = in_parts(&learner, 4);
    let silent = whole.last().expect("counters");
    assert_eq!(silent.len(), 1, "the smallest active latent");
    assert!(silent[0].is_finite() && silent[0] > 0.0, "{silent:?}");
}
