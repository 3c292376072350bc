//! Processes that `mpirun` starts.

#![cfg(feature = "mpi")]

use std::process::{Command, Output};

fn mpirun(ranks: usize, arguments: &[&str]) -> Output {
    Command::new("mpirun")
        .args(["-n", &ranks.to_string(), "--oversubscribe"])
        .args(arguments)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1") // for CI; what runs is this test alone
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .output()
        .expect("mpirun, of Debian's openmpi-bin")
}

#[test]
fn messages_arrive_whole_and_in_place() {
    for ranks in [1, 2, 3, 4] {
        for transport in [&[][..], &["--mca", "btl", "self,tcp"]] {
            let arguments = [transport, &[env!("CARGO_BIN_EXE_comm-check")]].concat();
            let output = mpirun(ranks, &arguments);
            let text = String::from_utf8_lossy(&output.stdout);
            let right = text.lines().filter(|line| *line == "right").count();
            assert!(output.status.success() && right == ranks, "{output:?}");
        }
    }
}

#[test]
fn one_that_gives_up_ends_all_with_its_code() {
    let output = mpirun(3, &[env!("CARGO_BIN_EXE_comm-check"), "abort"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("too far"));
}
