//! One run in several processes, which `mpirun` starts: the bytes of one process, and what is said when something is wrong.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::{Workspace, checkpoints, same_model, wait_for_steps};

/// Every architecture, and the settings that it needs here.
pub(crate) const ARCHITECTURES: [&[&str]; 9] = [
    &["model.architecture=attention"],
    &["model.architecture=attention_relu"],
    &["model.architecture=mlp_sparsemax"],
    &["model.architecture=relu"],
    &[
        "model.architecture=topk",
        "model.k=3",
        "training.dead_window=5",
    ],
    &["model.architecture=batch_topk", "model.k=3"],
    &["model.architecture=jumprelu"],
    &["model.architecture=gated"],
    &["model.architecture=matryoshka", "model.k=3"],
];

pub(crate) fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    command
        .arg("--oversubscribe")
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1") // in a container
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

/// The words of `sae-train` for a run.
pub(crate) fn words(w: &Workspace, run: &str, settings: &[&str]) -> Vec<String> {
    let mut words = vec![
        env!("CARGO_BIN_EXE_sae-train").to_string(),
        w.path("small.toml").display().to_string(),
        "--distributed".into(),
    ];
    let run = format!("run={run}");
    for setting in settings.iter().copied().chain([&*run]) {
        words.extend(["--set".into(), setting.into()]);
    }
    words
}

impl Workspace {
    /// Trains in so many processes, which must succeed; returns the run.
    pub(crate) fn together(
        &self,
        ranks: usize,
        run: &str,
        settings: &[&str],
        more: &[&str],
    ) -> PathBuf {
        let output = mpirun()
            .args(["-n", &ranks.to_string()])
            .args(words(self, run, settings))
            .args(more)
            .output()
            .expect("mpirun, of Debian's openmpi-bin");
        assert!(output.status.success(), "{}", told(&output));
        self.path("runs").join(run)
    }

    pub(crate) fn in_one(&self, run: &str, settings: &[&str]) -> PathBuf {
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        self.trained(run, &settings.collect::<Vec<_>>())
    }
}

pub(crate) fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fails unless two runs have the same model and the same records.
pub(crate) fn same(a: &Path, b: &Path) {
    same_model(a, b);
    let records = |run: &Path| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let record = |line| {
            let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
            record.as_object_mut().unwrap().remove("seconds");
            record
        };
        text.lines().map(record).collect()
    };
    assert_eq!(records(a), records(b));
}

#[test]
fn every_architecture_has_the_bytes_of_one_process() {
    let w = Workspace::new();
    for (i, own) in ARCHITECTURES.iter().enumerate() {
        // neither a power of two nor latents that the parts divide
        let settings = [*own, &["training.shards=10", "training.steps=12"]].concat();
        let one = w.in_one(&format!("one-{i}"), &settings);
        for ranks in [2, 5] {
            let run = w.together(ranks, &format!("{ranks}-{i}"), &settings, &[]);
            same(&one, &run);
        }
    }
    // as many latents as the rows are wide: every parameter has a row per latent
    let square = [
        "training.shards=2",
        "training.steps=12",
        "model.n_latents=24",
    ];
    let square = [
        &square[..],
        &["model.query_projection=true", "model.pre_bias=true"],
    ]
    .concat();
    let one = w.in_one("square-one", &square);
    same(&one, &w.together(2, "square", &square, &[]));
    let settings = ["training.shards=2", "training.steps=12"];
    let one = w.in_one("one", &settings);
    for transport in ["self,tcp", "self,vader"] {
        let output = mpirun()
            .args(["-n", "2", "--mca", "btl", transport])
            .args(words(&w, transport, &settings))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", told(&output));
        same(&one, &w.path("runs").join(transport));
    }
}

#[test]
fn rounded_gradients_have_the_bytes_of_one_process_and_learn_as_well() {
    let w = Workspace::new();
    const BF16: &str = "training.part_gradients=bf16";
    for (i, own) in ARCHITECTURES.iter().enumerate() {
        // as many processes as parts send bf16, fewer send sums; odd numbers of gradients (M = 9, d = 24, a bias of 9)
        let settings = [
            "training.shards=4",
            "training.steps=12",
            "training.batch_size=48",
        ];
        let settings = [&settings[..], own, &["model.n_latents=9"]].concat();
        let exact = w.in_one(&format!("exact-{i}"), &settings);
        let settings = [&settings[..], &[BF16]].concat();
        let one = w.in_one(&format!("one-{i}"), &settings);
        for ranks in [2, 4] {
            let run = w.together(ranks, &format!("{ranks}-{i}"), &settings, &[]);
            same(&one, &run);
        }
        let losses = [&exact, &one].map(|run| *losses(run).last().unwrap());
        assert_ne!(losses[0], losses[1], "{own:?}: rounding changes something");
        let apart = (losses[0] - losses[1]).abs() / losses[0];
        assert!(apart < 1e-2, "{own:?}: {losses:?}");
    }
    let output = w.train(&["--set", BF16]);
    assert_eq!(output.status.code(), Some(2));
    let text = told(&output);
    assert!(
        text.contains("must be more than 1 where training.part_gradients is bf16"),
        "{text}"
    );
}

/// The training losses of a run.
fn losses(run: &Path) -> Vec<f64> {
    let records = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let record = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let records = records.lines().map(record);
    let trained = records.filter(|record| record["split"] == "train");
    trained
        .map(|record| record["loss"].as_f64().unwrap())
        .collect()
}

/// Starts processes, and when the run has so many steps asks process 0 to stop, or kills the last.
pub(crate) fn ended_early(
    ranks: usize,
    words: &[String],
    (run, steps): (&Path, usize),
    asked: bool,
) {
    let mut launcher = mpirun()
        .args(["-n", &ranks.to_string()])
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_steps(run, steps);
    let pid = launcher.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let mut children = children.split_whitespace();
    let (signal, pid) = match asked {
        true => ("-TERM", children.next().unwrap()),
        false => ("-KILL", children.last().unwrap()),
    };
    Command::new("kill").args([signal, pid]).status().unwrap();
    let status = launcher.wait().unwrap();
    assert!(!status.success());
    if asked {
        assert_eq!(status.code(), Some(143));
    }
}

#[test]
fn a_run_goes_on_in_another_number_of_processes() {
    for more in [&[][..], &["training.part_gradients=bf16"]] {
        goes_on_in_another_number_of_processes(more);
    }
}

fn goes_on_in_another_number_of_processes(more: &[&str]) {
    let w = Workspace::new();
    let settings = [
        "training.shards=4",
        "training.batch_size=48",
        "training.steps=400",
    ];
    let settings = [&settings[..], more].concat();
    let settings = [&settings[..], &["training.checkpoint_every=5"]].concat();
    let one = w.in_one("one", &settings);
    let run = w.path("runs").join("run");
    let mut steps = Vec::new();
    for (ranks, until) in [(2, 20), (4, 120), (1, 220)] {
        let mut words = words(&w, "run", &settings);
        words.push("--resume".into());
        ended_early(ranks, &words, (&run, until), ranks != 4);
        steps.push(*checkpoints(&run).last().unwrap());
    }
    assert!(
        steps.is_sorted_by(|a, b| a < b) && steps[2] < 400,
        "{steps:?}"
    );
    w.together(4, "run", &settings, &["--resume"]);
    same(&one, &run);
}

/// Fails unless the processes, of which each has command lines of its own, end with this code and say this once, one line of theirs
/// among those of `mpirun`.
pub(crate) fn refused(w: &Workspace, of_ranks: &[Vec<String>], code: i32, says: &[&str]) {
    let mut command = mpirun();
    for (rank, words) in of_ranks.iter().enumerate() {
        if rank > 0 {
            command.arg(":");
        }
        command.args(["-n", "1"]).args(words);
    }
    let output = command.output().unwrap();
    let text = told(&output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let errors: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{text}");
    assert!(says.iter().all(|part| errors[0].contains(part)), "{text}");
    assert!(!w.path("runs").join("run/metrics.jsonl").exists(), "{text}");
}

#[test]
fn processes_that_do_not_fit_together_do_not_start() {
    let w = Workspace::new();
    let of = |settings: &[&str]| words(&w, "run", settings);
    let shards = "training.shards=2";
    refused(
        &w,
        &[of(&[shards]), of(&[shards, "training.lr=1e-3"])],
        2,
        &[
            "process 1 has another config than process 0",
            "training.lr: 0.003 -> 0.001",
        ],
    );
    refused(
        &w,
        &[of(&[shards]), of(&[shards, "training.lr=fast"])],
        2,
        &["process 1 of 2", "training.lr = \"fast\""],
    );
    refused(
        &w,
        &[of(&[]), of(&[])],
        2,
        &[
            "training.shards = 1",
            "2 processes",
            "--set training.shards=2",
        ],
    );
    refused(
        &w,
        &[of(&["training.shards=5"]), of(&["training.shards=5"])],
        2,
        &["multiple of 2", "training.shards=2"],
    );
    let data = format!("data.train={:?}", w.path("heldout.safetensors"));
    refused(
        &w,
        &[of(&[shards]), of(&[shards, &data])],
        2,
        &["process 1"],
    );
    let mut nowhere = of(&[shards]);
    nowhere[1] = "nowhere.toml".into();
    refused(&w, &[nowhere.clone(), nowhere], 2, &["nowhere.toml"]);
    assert!(!w.path("runs").exists());
}

#[test]
fn without_a_launcher() {
    let w = Workspace::new();
    let output = w.train(&["--distributed"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(told(&output).lines().count(), 1, "{}", told(&output));
    assert!(told(&output).contains("mpirun -n 2"), "{}", told(&output));
}

#[test]
fn a_run_directory_that_is_not_shared() {
    let w = Workspace::new();
    let elsewhere = format!("runs_dir={:?}", w.path("elsewhere"));
    let of = |settings: &[&str]| words(&w, "run", settings);
    let shards = "training.shards=2";
    refused(
        &w,
        &[of(&[shards]), of(&[shards, &elsewhere])],
        1,
        &[
            "process 1",
            "is not the one that process 0 writes",
            "runs_dir",
        ],
    );
}
