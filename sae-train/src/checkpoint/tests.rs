//! Tests every state that a process can leave behind when it dies while writing, and what is found then.

use std::fs;
use std::path::Path;

use super::*;

fn checkpoints(dir: &Path, keep: usize) -> Checkpoints {
    Checkpoints::new(dir.to_path_buf(), "this".into(), keep)
}

fn metrics() -> MetricsPosition {
    MetricsPosition {
        bytes: 0,
        blake3: blake3::hash(b"").to_hex().to_string(),
        seconds: 1.0,
    }
}

/// The files of a checkpoint, unsealed, in the order in which they are written.
fn write_files(checkpoints: &Checkpoints, step: usize, fvu: Option<f64>, dir: &Path) {
    let position = checkpoints.position(step, fvu.is_some(), fvu, metrics(), Streak::default());
    fs::write(dir.join(POSITION), serde_json::to_vec(&position).unwrap()).unwrap();
    for name in [MODEL, OPTIMIZER, SCHEDULER] {
        fs::write(dir.join(name), format!("{name} of {step}")).unwrap();
    }
}

fn save(checkpoints: &Checkpoints, step: usize, fvu: Option<f64>) {
    let target = checkpoints.path(step);
    let staging = sealed::staging(&target).unwrap();
    write_files(checkpoints, step, fvu, &staging);
    sealed::seal(&staging, &target).unwrap();
}

fn newest(checkpoints: &Checkpoints) -> Option<usize> {
    checkpoints
        .look()
        .unwrap()
        .newest
        .map(|position| position.step)
}

#[test]
fn whatever_a_dead_process_left_the_one_before_is_found() {
    let names = [POSITION, MODEL, OPTIMIZER, SCHEDULER, sealed::SUMS_FILE];
    for written in 0..=names.len() {
        for cut in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let checkpoints = checkpoints(dir.path(), 2);
            save(&checkpoints, 10, None);
            // the process died after `written` files, of which the last may be truncated
            save(&checkpoints, 20, None);
            let staging = dir.path().join("step-00000020.tmp");
            fs::rename(checkpoints.path(20), &staging).unwrap();
            for name in &names[written..] {
                fs::remove_file(staging.join(name)).unwrap();
            }
            if let (true, Some(last)) = (cut, written.checked_sub(1)) {
                fs::write(staging.join(names[last]), b"").unwrap();
            }
            assert_eq!(newest(&checkpoints), Some(10));
            checkpoints.tidy(&[]).unwrap();
            assert!(!staging.exists(), "what was half-written is gone");
            save(&checkpoints, 20, None);
            assert_eq!(newest(&checkpoints), Some(20));
        }
    }
}

#[test]
fn damaged_ones_are_named_moved_aside_and_passed_over() {
    type Damage = fn(&Checkpoints);
    let damage: [(Damage, &str); 5] = [
        (
            |c| fs::write(c.path(20).join(MODEL), b"x").unwrap(),
            "model.bpk: its BLAKE3",
        ),
        (
            |c| fs::remove_file(c.path(20).join(OPTIMIZER)).unwrap(),
            "optimizer.bpk: it is missing",
        ),
        (
            |c| fs::remove_file(c.path(20).join(sealed::SUMS_FILE)).unwrap(),
            "has no BLAKE3SUMS",
        ),
        (
            |c| {
                // one checkpoint under the name of another
                fs::remove_dir_all(c.path(20)).unwrap();
                save(c, 15, None);
                fs::rename(c.path(15), c.path(20)).unwrap();
            },
            "it is of step 15",
        ),
        (
            |c| {
                let other = Checkpoints {
                    run: "other".into(),
                    ..c.clone()
                };
                save(&other, 20, None);
            },
            "belongs to another run",
        ),
    ];
    for (damage, expected) in damage {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(dir.path(), 2);
        save(&checkpoints, 10, None);
        save(&checkpoints, 20, None);
        damage(&checkpoints);
        let found = checkpoints.look().unwrap();
        assert_eq!(found.newest.map(|position| position.step), Some(10));
        let [(path, problem)] = &found.damaged[..] else {
            panic!("{:?}", found.damaged)
        };
        assert_eq!(*path, checkpoints.path(20));
        assert!(problem.contains(expected), "{problem}");
        checkpoints.tidy(&found.damaged).unwrap();
        assert!(dir.path().join("damaged-step-00000020-0").is_dir());
    }
}

#[test]
fn if_none_is_whole_all_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(dir.path(), 2);
    assert_eq!(newest(&checkpoints), None);
    for step in [10, 20] {
        save(&checkpoints, step, None);
        fs::write(checkpoints.path(step).join(MODEL), b"x").unwrap();
    }
    let failure = checkpoints.look().unwrap_err();
    assert_eq!(failure.code(), 9);
    let message = failure.to_string();
    assert!(
        message.contains("step-00000010") && message.contains("step-00000020"),
        "{message}"
    );
}

#[test]
fn the_newest_and_the_best_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(dir.path(), 2);
    let saved = [
        (1, Some(0.9)),
        (2, Some(0.3)),
        (3, None),
        (4, Some(0.5)),
        (5, None),
        (6, Some(0.4)),
    ];
    for (step, fvu) in saved {
        save(&checkpoints, step, fvu);
        checkpoints.prune().unwrap();
    }
    assert_eq!(checkpoints.steps(), [6, 5, 2]);
    save(&checkpoints, 7, Some(0.3)); // as good, and newer
    checkpoints.prune().unwrap();
    assert_eq!(checkpoints.steps(), [7, 6]);
    assert!(
        fs::read_dir(dir.path()).unwrap().count() == 2,
        "nothing else is left"
    );
}

#[test]
fn a_large_or_strange_position_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(dir.path(), 2);
    for text in [
        vec![b' '; 1 << 17],
        b"[".repeat(1000),
        b"{}".to_vec(),
        b"\xff".to_vec(),
    ] {
        let target = checkpoints.path(3);
        let staging = sealed::staging(&target).unwrap();
        write_files(&checkpoints, 3, None, &staging);
        fs::write(staging.join(POSITION), text).unwrap();
        sealed::seal(&staging, &target).unwrap();
        let message = checkpoints.look().unwrap_err().to_string();
        assert!(message.contains("checkpoint.json"), "{message}");
    }
}
