//! One run whose latents are spread over processes, which `mpirun` starts: up to rounding the run of one process, and exactly resumed.

use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::distributed::{ARCHITECTURES, ended_early, mpirun, refused, same, told, words};
use crate::faults::with_a_hidden_nan;
use crate::{WEIGHTS, Workspace, checkpoints};

/// The words of `sae-train` for a run whose latents are spread.
fn spread(w: &Workspace, run: &str, settings: &[&str], more: &[&str]) -> Vec<String> {
    let mut words = words(w, run, settings);
    let more = ["--shard", "latents"].iter().chain(more);
    words.extend(more.map(|word| word.to_string()));
    words
}

/// Trains so; returns the run.
fn trained(w: &Workspace, ranks: usize, run: &str, settings: &[&str], more: &[&str]) -> PathBuf {
    let output = mpirun()
        .args(["-n", &ranks.to_string()])
        .args(spread(w, run, settings, more))
        .output()
        .expect("mpirun, of Debian's openmpi-bin");
    assert!(output.status.success(), "{}", told(&output));
    w.path("runs").join(run)
}

fn records(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Names, shapes and values of a model's parameters.
fn parameters(run: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(run.join(WEIGHTS)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| {
        let (numbers, _) = data.as_chunks::<4>();
        numbers
            .iter()
            .map(|four| f32::from_le_bytes(*four))
            .collect()
    };
    let all = file.iter().map(|(name, view)| {
        let shape = view.shape().to_vec();
        (name.to_string(), shape, values(view.data()))
    });
    let mut all: Vec<_> = all.collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Fails unless two runs differ by rounding alone: 12 steps of Adam, whose first steps have the size of the learning rate whatever the
/// gradient, turn it into some 1e-4.
fn close(name: &str, one: &Path, several: &Path) {
    let (one_records, several_records) = (records(one), records(several));
    assert_eq!(one_records.len(), several_records.len(), "{name}");
    // of 50 rows: the same number of active latents
    let first = |records: &[Value]| (50.0 * records[0]["l0"].as_f64().unwrap()).round();
    assert_eq!(first(&one_records), first(&several_records), "{name}");
    for (a, b) in one_records.iter().zip(&several_records) {
        for (key, a) in a.as_object().unwrap() {
            let b = &b[key];
            match (a.as_f64(), b.as_f64()) {
                _ if key == "seconds" => {}
                (Some(a), Some(b)) => {
                    let near = (a - b).abs() <= 1e-3 * a.abs().max(1e-3);
                    assert!(near, "{name}: {key}: {a} and {b}");
                }
                _ => assert_eq!(a, b, "{name}: {key}"),
            }
        }
    }
    let permissions = |run: &Path| run.join(WEIGHTS).metadata().unwrap().permissions();
    assert_eq!(permissions(one), permissions(several), "{name}");
    for ((parameter, shape, a), (_, other, b)) in parameters(one).iter().zip(parameters(several)) {
        assert_eq!(*shape, other, "{name}: {parameter}");
        let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
        let off = off.fold(0f32, f32::max);
        assert!(off < 2e-3, "{name}: {parameter} differs by {off}");
    }
}

#[test]
fn every_architecture_is_the_run_of_one_process() {
    let w = Workspace::new();
    let paper: &[&str] = &["model.preset=paper"];
    for (i, own) in ARCHITECTURES.iter().chain([&paper]).enumerate() {
        // latents that 3 does not divide, and validations of some of the held-out rows
        let settings = [*own, &["training.steps=12", "training.validate_rows=90"]].concat();
        let alone = settings.iter().flat_map(|setting| ["--set", setting]);
        let one = w.trained(&format!("one-{i}"), &alone.collect::<Vec<_>>());
        for ranks in [2, 3] {
            let run = trained(&w, ranks, &format!("{ranks}-{i}"), &settings, &[]);
            close(&format!("{own:?}, {ranks} processes"), &one, &run);
        }
    }
}

#[test]
fn a_run_goes_on_where_it_was() {
    let w = Workspace::new();
    let settings = [
        "model.architecture=topk",
        "model.k=3",
        "training.dead_window=5",
        "training.steps=400",
        "training.checkpoint_every=5",
    ];
    let unbroken = trained(&w, 2, "unbroken", &settings, &[]);
    let run = w.path("runs").join("run");
    for (stop, until) in [(true, 20), (false, 120)] {
        let words = spread(&w, "run", &settings, &["--resume"]);
        ended_early(2, &words, (&run, until), stop);
    }
    let stopped_at = *checkpoints(&run).last().unwrap();
    assert!(stopped_at < 400, "{stopped_at}");
    // another number of processes, or one
    let more = spread(&w, "run", &settings, &["--resume"]);
    let output = mpirun().args(["-n", "3"]).args(more).output().unwrap();
    let text = told(&output);
    assert!(text.contains("training.latent_shards: 2 -> 3"), "{text}");
    let alone = settings.iter().flat_map(|setting| ["--set", setting]);
    let alone: Vec<&str> = alone.chain(["--set", "run=run", "--resume"]).collect();
    let text = told(&w.train(&alone));
    assert!(
        text.contains("training.latent_shards: 2 -> (absent)"),
        "{text}"
    );
    // a checkpoint is a model, whole
    let export = |run: &Path, out: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_sae-train"))
            .arg("export")
            .arg(run)
            .args(["--checkpoint", "newest", "--out"])
            .arg(w.path(out))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", told(&output));
    };
    export(&run, "newest");
    trained(&w, 2, "run", &settings, &["--resume"]);
    same(&unbroken, &run);
    export(&run, "last");
    let weights = |of: PathBuf| std::fs::read(of).unwrap();
    let last = weights(w.path("last").join("sae.safetensors"));
    assert_eq!(last, weights(run.join(WEIGHTS)));
    assert_ne!(last, weights(w.path("newest").join("sae.safetensors")));
    // without the part of one process a checkpoint is not whole
    let newest = run.join("checkpoint/step-00000400");
    std::fs::remove_file(newest.join("optimizer-1.bpk")).unwrap();
    let more = spread(&w, "run", &settings, &["--resume"]);
    let output = mpirun().args(["-n", "2"]).args(more).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    same(&unbroken, &run);
    assert!(run.join("checkpoint/damaged-step-00000400-0").exists());
}

#[test]
fn what_cannot_be_spread_does_not_start() {
    let w = Workspace::new();
    let of = |settings: &[&str]| spread(&w, "run", settings, &[]);
    let twice = |words: Vec<String>| [words.clone(), words];
    refused(
        &w,
        &twice(of(&["training.shards=2"])),
        2,
        &["training.latent_shards = 2", "training.shards is 2"],
    );
    refused(
        &w,
        &twice(of(&["model.n_latents=1"])),
        2,
        &["training.latent_shards = 2", "model.n_latents, 1"],
    );
    let words = words(&w, "run", &["training.latent_shards=3"]);
    refused(
        &w,
        &twice(words),
        2,
        &["training.latent_shards = 3", "these are 2"],
    );
    for (arguments, says) in [
        (&["--set", "training.latent_shards=2"][..], "mpirun -n 2"),
        (&["--shard", "latents"], "--distributed"),
        (
            &["--set", "training.latent_shards=2", "--sweep", "seed=1,2"],
            "mpirun -n 2",
        ),
    ] {
        let output = w.train(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(told(&output).contains(says), "{}", told(&output));
    }
    assert!(!w.path("runs").exists());
}

#[test]
fn a_step_that_is_not_finite_is_passed_over_by_all() {
    let w = Workspace::new();
    let train = with_a_hidden_nan(&w);
    let settings = [
        &train,
        "data.check_rows=11",
        "training.batch_size=1000",
        "training.on_nonfinite=skip",
    ];
    let passed_over = |run: &Path| {
        let losses = records(run).into_iter();
        losses
            .filter(|record| record["loss"].is_null() && record["split"] == "train")
            .count()
    };
    for precision in ["f32", "bf16"] {
        // what rounding took away from a NaN is forgotten
        let gradients = format!("training.part_gradients={precision}");
        let rows = [&settings[..], &["training.shards=2", &gradients]].concat();
        let one = w.in_one(&format!("one-{precision}"), &rows);
        let together = w.together(2, &format!("rows-{precision}"), &rows, &[]);
        same(&one, &together);
        let log = std::fs::read_to_string(together.join("train.log")).unwrap();
        let told = log.lines().filter(|line| line.contains("rows 9777 of"));
        assert_eq!(
            told.count(),
            passed_over(&one),
            "whoever has the row: {log}"
        );
        assert!(
            (2..=3).contains(&passed_over(&one)),
            "thirty steps, twelve a pass"
        );
    }
    let spread = trained(&w, 2, "spread", &settings, &[]);
    assert!(
        (2..=3).contains(&passed_over(&spread)),
        "thirty steps, twelve a pass"
    );
    for (name, _, values) in parameters(&spread) {
        assert!(values.iter().all(|value| value.is_finite()), "{name}");
    }
}

#[test]
fn a_step_that_is_not_finite_ends_all_processes() {
    let w = Workspace::new();
    let settings = ["training.lr=1e30", "training.warmup_steps=0"];
    let output = mpirun()
        .args(["-n", "2"])
        .args(spread(&w, "run", &settings, &[]))
        .output()
        .unwrap();
    let text = told(&output);
    let errors: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{text}");
    let alone = w.train(&[
        "--set",
        "run=one",
        "--set",
        settings[0],
        "--set",
        settings[1],
    ]);
    assert_eq!(output.status.code(), alone.status.code(), "{text}");
    let says = told(&alone);
    let says = says
        .lines()
        .find(|line| line.starts_with("error: "))
        .unwrap();
    assert_eq!(errors[0], says);
}
