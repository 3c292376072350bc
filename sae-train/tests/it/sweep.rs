//! Sweeps: each run of one has the bytes of the run trained alone, whatever happens to it or to the others.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{
    TURNING_AT_FULL_RATE, Workspace, checkpoints, ended, recorded, same_model, wait_for_steps,
};

/// Appended to the config: three architectures, one of them at two k.
const TABLES: &str = "[[sweep]]\nmodel.architecture = 'attention'\n[[sweep]]\nmodel.architecture = ['topk', 'batch_topk']\n\
                      model.k = [3, 5]\n";
/// The runs of these tables.
const RUNS: [&str; 5] = [
    "attention",
    "topk,k=3",
    "topk,k=5",
    "batch_topk,k=3",
    "batch_topk,k=5",
];

impl Workspace {
    /// A sweep over more settings of the small config; its runs lie in `runs/NAME`.
    fn sweep(&self, name: &str, text: &str, arguments: &[&str]) -> Output {
        self.sweep_command(name, text, arguments)
            .output()
            .expect("sae-train runs")
    }

    fn sweep_command(&self, name: &str, text: &str, arguments: &[&str]) -> Command {
        let small = std::fs::read_to_string(self.path("small.toml")).unwrap();
        let config = self.path(&format!("{name}.toml"));
        std::fs::write(&config, small + text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sae-train"));
        command.arg(config).args(arguments);
        command
    }

    fn of_sweep(&self, sweep: &str, run: &str) -> PathBuf {
        self.path("runs").join(sweep).join(run)
    }
}

/// The settings that make a run alone, from its name.
fn settings(run: &str) -> Vec<String> {
    let setting = |part: &str| match part.split_once('=') {
        Some(("seed", value)) => format!("seed={value}"),
        Some(("k", value)) => format!("model.k={value}"),
        Some((key, value)) => format!("training.{key}={value}"),
        None => format!("model.architecture={part}"),
    };
    let with_set = |part| ["--set".to_string(), setting(part)];
    run.split(',').flat_map(with_set).collect()
}

/// The tensors of a record. Burn gives parameters random identities, in every process others: they are left out.
fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let reader = burn_pack::Reader::from_file(path).unwrap();
    let tensors = reader.into_tensors().unwrap().into_iter();
    let named = |tensor: burn_pack::Tensor| {
        let name = tensor.name.trim_start_matches(|c: char| c.is_ascii_digit());
        let name = format!("{name} {:?}", tensor.shape);
        (name, tensor.to_bytes().unwrap().to_vec())
    };
    let mut all: Vec<_> = tensors.map(named).collect();
    all.sort();
    assert!(!all.is_empty());
    all
}

/// What a run leaves, but for its name and its times: `config.toml`, `provenance.json`, `metrics.jsonl`, `model/` and
/// `checkpoint/`.
fn contents(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for dir in std::fs::read_dir(run.join("checkpoint")).unwrap() {
        let dir = dir.unwrap().path();
        let inside = dir.strip_prefix(run).unwrap().display().to_string();
        for name in ["scheduler.bpk", "cfg.json"] {
            let bytes = std::fs::read(dir.join(name)).unwrap();
            all.push((format!("{inside}/{name}"), bytes));
        }
        for name in ["model.bpk", "optimizer.bpk"] {
            let tensors = tensors(&dir.join(name)).into_iter();
            all.extend(
                tensors.map(|(tensor, bytes)| (format!("{inside}/{name}: {tensor}"), bytes)),
            );
        }
    }
    for name in ["sae.safetensors", "cfg.json", "BLAKE3SUMS"] {
        let bytes = std::fs::read(run.join("model").join(name)).unwrap();
        all.push((name.into(), bytes));
    }
    let text = |name| std::fs::read_to_string(run.join(name)).unwrap();
    let config = text("config.toml");
    let config = config.lines().filter(|line| !line.starts_with("run"));
    all.push(("config.toml".into(), config.collect::<String>().into()));
    all.push(("provenance.json".into(), text("provenance.json").into()));
    let records = text("metrics.jsonl");
    let records = records.lines().map(|line| {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        record.as_object_mut().unwrap().remove("seconds");
        format!("{record}\n")
    });
    all.push(("metrics.jsonl".into(), records.collect::<String>().into()));
    all.sort();
    all
}

/// Fails unless two runs have the same bytes in everything.
fn same_run(alone: &Path, swept: &Path) {
    let [alone, of_sweep] = [alone, swept].map(contents);
    let names =
        |of: &[(String, Vec<u8>)]| of.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&alone), names(&of_sweep), "{}", swept.display());
    for ((name, alone), (_, of_sweep)) in alone.into_iter().zip(of_sweep) {
        assert!(alone == of_sweep, "{}: {name}", swept.display());
    }
}

fn succeeded(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn each_run_has_the_bytes_of_the_run_alone() {
    let w = Workspace::new();
    // validations of a part of the held-out rows, and a last look at all of them
    let common = ["--set", "training.validate_rows=70"];
    let varied = ["--sweep", "seed=0,1", "--sweep", "training.lr=1e-3,3e-3"];
    let said = succeeded(&w.sweep(
        "grid",
        TABLES,
        &[common, [varied[0], varied[1]], [varied[2], varied[3]]].concat(),
    ));
    assert!(
        said.contains("sweep grid: 20 runs, 2 passes over the data"),
        "{said}"
    );
    assert!(
        said.contains("data.order_seed = 0 gives all seeds one order"),
        "{said}"
    );
    assert!(
        said.contains("topk,k=3,seed=1,lr=1e-3: step 30/30  loss "),
        "{said}"
    );
    assert!(said.contains("sweep grid: 20 of 20 runs trained"), "{said}");
    let mut compared = 0;
    for run in RUNS {
        for rest in ["seed=0,lr=3e-3", "seed=1,lr=1e-3"] {
            let run = format!("{run},{rest}");
            let settings = settings(&run);
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            let alone = w.trained("alone", &[&settings[..], &common].concat());
            same_run(&alone, &w.of_sweep("grid", &run));
            std::fs::remove_dir_all(alone).unwrap();
            compared += 1;
        }
    }
    assert_eq!(compared, 10);
}

#[test]
fn seeds_share_a_pass_if_they_have_one_order() {
    let w = Workspace::new();
    let order = ["--set", "data.order_seed=7", "--threads", "6"];
    let said = succeeded(&w.sweep(
        "seeds",
        "",
        &[&order[..], &["--sweep", "seed=0,1,2"]].concat(),
    ));
    assert!(said.contains("3 runs, one pass over the data"), "{said}");
    let side_by_side = "up to 3 runs at a time, with 2 threads each";
    assert!(said.contains(side_by_side), "{said}");
    assert!(!said.contains("an order of its own"), "{said}");
    let alone = w.trained("alone", &[&order[..], &["--set", "seed=2"]].concat());
    same_run(&alone, &w.of_sweep("seeds", "seed=2"));
    let other = w.trained("other", &["--set", "seed=2"]);
    assert!(contents(&other) != contents(&alone), "the order matters");
}

/// Two lanes of one processor, for want of two cards.
#[test]
fn runs_on_several_devices_have_the_bytes_of_the_run_alone() {
    let w = Workspace::new();
    let varied = [
        "--sweep",
        "training.lr=1e-3,2e-3,3e-3",
        "--device",
        "cpu,cpu",
    ];
    let said = succeeded(&w.sweep("lanes", TABLES, &varied));
    assert!(said.contains("15 runs, one pass over the data"), "{said}");
    for run in RUNS {
        for lr in ["1e-3", "2e-3", "3e-3"] {
            let run = format!("{run},lr={lr}");
            let settings = settings(&run);
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            let alone = w.trained("alone", &settings);
            same_run(&alone, &w.of_sweep("lanes", &run));
            std::fs::remove_dir_all(alone).unwrap();
        }
    }
    let output = w.train(&["--device", "cpu,cpu"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("several are for a sweep"), "{errors}");
}

#[test]
fn runs_of_other_lengths_and_batches_and_all_options() {
    let w = Workspace::new();
    let varied = [
        "--sweep",
        "training.steps=10,25",
        "--sweep",
        "training.batch_size=[40, 50]",
        "--sweep",
        "training.validate_every={from=4,to=9,step=5}",
    ];
    let more = ["--at-once", "3", "--tensorboard", "--threads", "1"];
    let said = succeeded(&w.sweep("mixed", "", &[&varied[..], &more].concat()));
    assert!(said.contains("8 runs, 4 passes over the data"), "{said}");
    for run in [
        "batch_size=40,steps=10,validate_every=9",
        "batch_size=50,steps=25,validate_every=4",
    ] {
        let settings = settings(run);
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let alone = w.trained("alone", &[&settings[..], &["--threads", "1"]].concat());
        let swept = w.of_sweep("mixed", run);
        same_run(&alone, &swept);
        assert!(swept.join("tensorboard/train").is_dir());
        std::fs::remove_dir_all(alone).unwrap();
    }
}

#[test]
fn a_run_that_fails_ends_alone() {
    let w = Workspace::new();
    let varied = ["--sweep", "training.lr=3e-3,1e30,1e-3"];
    let output = w.sweep("bad", "", &[&TURNING_AT_FULL_RATE[..], &varied].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(10), "{errors}");
    assert!(errors.contains("lr=1e30: error: step "), "{errors}");
    assert!(
        errors.contains("error: 1 of 3 runs have failed: lr=1e30"),
        "{errors}"
    );
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("sweep bad: 2 of 3 runs trained"), "{said}");
    assert!(!w.of_sweep("bad", "lr=1e30").join("model").exists());
    for run in ["lr=3e-3", "lr=1e-3"] {
        let settings = settings(run);
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let alone = w.trained(run, &[&TURNING_AT_FULL_RATE[..], &settings].concat());
        same_run(&alone, &w.of_sweep("bad", run));
    }
    let log =
        |run: &str| std::fs::read_to_string(w.of_sweep("bad", run).join("train.log")).unwrap();
    assert!(log("lr=1e-3").contains("training ends") && !log("lr=1e-3").contains("ERROR"));
    assert!(log("lr=1e30").contains("ERROR"));
}

#[test]
fn a_killed_sweep_goes_on_with_every_run_where_it_stands() {
    let w = Workspace::new();
    let more = [
        "--set",
        "training.steps=150",
        "--set",
        "training.checkpoint_every=7",
        "--resume",
    ];
    let whole = w.sweep("whole", TABLES, &more);
    succeeded(&whole);
    for (i, steps) in [1, 20, 33, 90, 140].into_iter().enumerate() {
        let mut running = w
            .sweep_command("cut", TABLES, &more)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_for_steps(&w.of_sweep("cut", RUNS[i]), steps);
        running.kill().unwrap(); // SIGKILL
        running.wait().unwrap();
        if i == 2 {
            // one run lags by far, another begins again
            let run = w.of_sweep("cut", RUNS[1]);
            let kept = checkpoints(&run);
            for step in &kept[1..] {
                crate::forget(&run, *step);
            }
            std::fs::remove_dir_all(w.of_sweep("cut", RUNS[3])).unwrap();
        }
    }
    succeeded(&w.sweep("cut", TABLES, &more));
    for run in RUNS {
        same_model(&w.of_sweep("whole", run), &w.of_sweep("cut", run));
        for (split, key) in [("train", "loss"), ("train", "step"), ("held_out", "fvu")] {
            let [whole, cut] =
                ["whole", "cut"].map(|sweep| recorded(&w.of_sweep(sweep, run), split, key));
            assert_eq!(whole, cut, "{run} {key}");
        }
    }
    // a run of the sweep goes on alone, from its own config
    let alone = Command::new(env!("CARGO_BIN_EXE_sae-train"))
        .arg(w.of_sweep("cut", RUNS[2]).join("config.toml"))
        .args(["--resume", "--set", "training.steps=160"])
        .output()
        .unwrap();
    succeeded(&alone);
}

#[test]
#[cfg(unix)]
fn a_signal_stops_all_runs_with_checkpoints() {
    let w = Workspace::new();
    let long = [
        "--set",
        "training.steps=100000",
        "--sweep",
        "seed=0,1",
        "--set",
        "data.order_seed=0",
    ];
    let running = w
        .sweep_command("long", "", &long)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let runs = ["seed=0", "seed=1"].map(|run| w.of_sweep("long", run));
    wait_for_steps(&runs[1], 25);
    let kill = Command::new("kill")
        .args(["-TERM", &running.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let (code, errors) = ended(running);
    assert_eq!(code, Some(143), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(
        errors.contains("checkpoints are kept, continue with --resume"),
        "{errors}"
    );
    let steps = runs.each_ref().map(|run| *checkpoints(run).last().unwrap());
    assert!(
        steps.iter().all(|step| *step > 20) && steps[0].abs_diff(steps[1]) <= 8,
        "they train side by side or in turns of eight steps: {steps:?}"
    );
}

#[test]
fn mistakes_are_found_before_anything_is_written() {
    let w = Workspace::new();
    for (text, arguments, message) in [
        (
            "",
            &["--sweep", "training.lrr=1,2"][..],
            "run lrr=1 of the sweep: training.lrr = 1: there is no such key",
        ),
        (
            "[[sweep]]\ndata.window_mb = [1, 2]",
            &[],
            "sweep.data.window_mb = [1, 2]: the runs of a sweep may differ in",
        ),
        (
            "[[sweep]]\ntraining.lr = []",
            &[],
            "sweep.training.lr = []: an empty list",
        ),
        (
            "",
            &["--sweep", "training.lr=1e-3,0.001"],
            "sweep = lr=1e-3: two runs of this name",
        ),
        (
            "",
            &["--sweep", "training.lr=1e-3", "--set", "training.lr=2e-3"],
            "--set training.lr: the sweep varies this key",
        ),
        (
            "",
            &["--sweep", "model.k=2,3"],
            "run k=2 of the sweep: model.k = 2: model.architecture = \"attention\" has no use",
        ),
        (
            "",
            &["--sweep", "training.batch_size=50,5000"],
            "run batch_size=5000 of the sweep: training.batch_size = 5000",
        ),
        ("", &["--sweep", "model.init_concepts=../x"], "run"),
        (
            "",
            &["--sweep", "model.n_latents=64,1000000000000"],
            "run n_latents=1000000000000 of the sweep: model.n_latents",
        ),
        ("", &["--at-once", "2"], "--at-once is for a sweep"),
    ] {
        let output = w.sweep("wrong", text, arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.contains(message), "{errors}");
        assert!(!w.path("runs").exists());
    }
}

#[test]
#[cfg(target_os = "linux")] // where the memory that is left is known
fn runs_that_do_not_fit_together_are_told_how_many_do() {
    let w = Workspace::new();
    let n = [
        "--set",
        "model.n_latents=1000000",
        "--set",
        "data.order_seed=0",
    ];
    let many = ["--sweep", "seed={from=1,to=5000}"]; // parameters and moments of 1.4 TB
    let output = w.sweep("many", "", &[&n[..], &many].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains(
            "sweep = 5000 runs: runs that share a pass over the data need at least 1.4 TB"
        ),
        "{errors}"
    );
    assert!(errors.contains("of them at once (--at-once "), "{errors}");
    assert!(!w.path("runs").exists());
}

#[test]
fn a_sweep_is_not_overwritten_and_is_no_run() {
    let w = Workspace::new();
    let few = ["--sweep", "seed=0,1", "--set", "training.steps=3"];
    succeeded(&w.sweep("few", "", &few));
    let output = w.sweep("few", "", &few);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("exists; continue it with --resume"),
        "{errors}"
    );
    // more runs beside those that are there
    let more = [
        "--sweep",
        "seed=0,1,2",
        "--set",
        "training.steps=3",
        "--resume",
    ];
    succeeded(&w.sweep("few", "", &more));
    assert!(w.of_sweep("few", "seed=2").join("model").exists());
    let name = ["--set", "run=taken"];
    w.trained("taken", &[]);
    let output = w.sweep("few", "", &[&few[..], &name].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("is a run; the runs of a sweep lie in a directory of their own"),
        "{errors}"
    );
}
