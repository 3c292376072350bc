//! Fuzzes checkpoints with correct checksums and arbitrary contents: restoring one returns an error or a learner that
//! can go on, and never panics.
//!
//! Runs for half a second, or for SAE_FUZZ_SECONDS; limit the memory from outside (`ulimit -v 4000000`). A file that
//! makes restoring panic is kept under `target/fuzz/checkpoint`; move it to `sae-train/tests/corpus/checkpoint`, where
//! every test run tries it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::tensor::{Device, Tensor};
use burn::train::TrainStep;
use sae_data::ActivationBatch;
use sae_model::architectures::Attention;
use sae_model::loss::{Coefficients, Loss};
use sae_model::ops::Adam;
use sae_model::{Sae, SaeConfig};

use super::{MODEL, OPTIMIZER, SCHEDULER, restore};
use crate::learner::{SaeLearner, Settings};
use crate::schedule::{self, Factors, Schedule};

const WIDTH: usize = 5;
const LATENTS: usize = 9;
const PARTS: [&str; 3] = [MODEL, OPTIMIZER, SCHEDULER];

type State = (SaeLearner, ModuleOptimizer, ModuleLrScheduler);

fn fresh() -> State {
    let device = Device::flex().autodiff();
    let config = SaeConfig::new(Attention::default(), WIDTH, LATENTS);
    let settings = Settings {
        loss: Loss::Fvu,
        variance: 1.0,
        row_limit: f64::INFINITY,
        held_out_variance: 1.0,
        frequency_cutoff: 0.5,
        dead_window: 10,
        coefficients: Coefficients::default(),
    };
    let sae = Sae::init(&config, 0, &[0.1; WIDTH], &device);
    let adam = Adam {
        beta_1: 0.9,
        beta_2: 0.99,
        epsilon: 1e-8,
        unit_rows: false,
    };
    let factors = Factors {
        projections: 0.1,
        pre_bias: 1.0,
    };
    let schedule = Schedule::new(1e-3, 0, 0.0, 10);
    let scheduler = schedule::module_scheduler(&sae, schedule, factors);
    (
        SaeLearner::new(sae, settings, &device),
        ModuleOptimizer::from(adam),
        scheduler,
    )
}

/// One step of training.
fn step((learner, mut optimizer, mut scheduler): State) -> State {
    let device = Device::flex().autodiff();
    let activations = Tensor::<2>::from_data([[0.5; WIDTH], [-0.25; WIDTH]], &device);
    let output = TrainStep::step(&learner, ActivationBatch { activations });
    scheduler.step();
    let lr = ModuleLearningRate::from(1e-3);
    let learner = learner.optimize(&mut optimizer, lr, output.grads);
    (learner, optimizer, scheduler)
}

/// Writes the records of a run after its first step.
fn write(dir: &Path) {
    let (learner, optimizer, scheduler) = step(fresh());
    learner.into_record().save(dir.join(MODEL)).unwrap();
    optimizer.to_record().save(dir.join(OPTIMIZER)).unwrap();
    scheduler.to_record().save(dir.join(SCHEDULER)).unwrap();
}

/// Returns true if the checkpoint was restored; then checks that its learner can go on.
fn try_restore(dir: &Path) -> bool {
    let (learner, optimizer, scheduler) = fresh();
    match restore(dir, (1, 0), learner, optimizer, scheduler) {
        Ok(state) => {
            step(state);
            true
        }
        Err(error) => {
            assert!(!crate::failure::chain(&error).is_empty());
            false
        }
    }
}

fn damage(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    const WORDS: [u64; 7] = [0, 1, 0x7f, 0xffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];
    for _ in 0..rng.usize(1..4) {
        if bytes.is_empty() {
            return;
        }
        // mostly at the front, where the headers are
        let in_front = rng.u8(..4) > 0;
        let at = rng.usize(..bytes.len().min(if in_front { 700 } else { usize::MAX }));
        match rng.u8(..6) {
            0 => bytes[at] ^= 1 << rng.u8(..8),
            1 => bytes[at] = rng.u8(..),
            2 => bytes.truncate(at),
            3 | 4 => {
                let word = rng.choice(WORDS).unwrap_or(0).to_be_bytes(); // CBOR is big-endian
                let size = rng.choice([1, 2, 4, 8]).unwrap_or(1).min(bytes.len() - at);
                bytes[at..at + size].copy_from_slice(&word[8 - size..]);
            }
            _ => {
                let piece = bytes[at..(at + rng.usize(1..64)).min(bytes.len())].to_vec();
                let to = rng.usize(..bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
}

#[test]
fn records_from_elsewhere() {
    let seconds = std::env::var("SAE_FUZZ_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    assert!(try_restore(dir.path()), "what was not damaged is restored");
    let whole = PARTS.map(|name| std::fs::read(dir.path().join(name)).unwrap());
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut tried, mut taken) = (0, 0);
    let end = Instant::now() + Duration::from_secs_f64(seconds.unwrap_or(0.5));
    while Instant::now() < end {
        let which = rng.usize(..PARTS.len());
        let mut bytes = whole[which].clone();
        damage(&mut bytes, &mut rng);
        std::fs::write(dir.path().join(PARTS[which]), &bytes).unwrap();
        match catch_unwind(AssertUnwindSafe(|| try_restore(dir.path()))) {
            Ok(restored) => taken += usize::from(restored),
            Err(_) => {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz/checkpoint");
                std::fs::create_dir_all(&root).unwrap();
                let kept = root.join(format!("{tried}-{}", PARTS[which]));
                std::fs::write(&kept, &bytes).unwrap();
                panic!("restoring {} panics", kept.display());
            }
        }
        std::fs::write(dir.path().join(PARTS[which]), &whole[which]).unwrap();
        tried += 1;
    }
    println!("{tried} damaged checkpoints, {taken} of them restored");
    assert!(tried > 20 && taken < tried);
}

#[test]
fn records_that_were_found() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/checkpoint");
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let part = PARTS.into_iter().find(|part| name.ends_with(part)).unwrap();
        write(dir.path());
        std::fs::copy(&path, dir.path().join(part)).unwrap();
        try_restore(dir.path());
    }
}
