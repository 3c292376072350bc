//! Tells the program what it was built from: the commit of the source tree (`SAE_REVISION`, with `+` if what is
//! compiled differs from it, empty outside a git checkout of ours) and Burn's version (`SAE_BURN`).
//!
//! Runs again when the commit or one of the files that it looks at changes, when this crate is compiled anyway.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The files that the program is compiled from, relative to the workspace.
const SOURCES: [&str; 10] = [
    "sae-train/src",
    "sae-train/build.rs",
    "sae-train/Cargo.toml",
    "sae-run/src",
    "sae-run/Cargo.toml",
    "sae-model/src",
    "sae-model/Cargo.toml",
    "sae-data/src",
    "sae-data/Cargo.toml",
    "Cargo.lock",
];

fn main() {
    let package = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
    let workspace = package.parent().unwrap_or(&package);
    for source in SOURCES {
        watch(&workspace.join(source));
    }
    println!(
        "cargo::rustc-env=SAE_REVISION={}",
        revision(workspace).unwrap_or_default()
    );
    let burn = [workspace, &package]
        .iter()
        .find_map(|dir| locked(&dir.join("Cargo.lock"), "burn"));
    println!(
        "cargo::rustc-env=SAE_BURN={}",
        burn.unwrap_or("unknown".into())
    );
}

/// Only what exists: a path that does not would run this again every time.
fn watch(path: &Path) {
    if path.exists() {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

fn git(workspace: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command
        .arg("--no-optional-locks")
        .arg("-C")
        .arg(workspace)
        .args(arguments);
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
    output.status.success().then_some(text)
}

fn revision(workspace: &Path) -> Option<String> {
    // An unpacked package may lie in a repository that is none of ours.
    git(
        workspace,
        &["ls-files", "--error-unmatch", "sae-train/build.rs"],
    )?;
    let head = git(workspace, &["symbolic-ref", "--quiet", "HEAD"]);
    let head = head.as_deref().into_iter().chain(["HEAD", "packed-refs"]);
    for name in head {
        let path = git(workspace, &["rev-parse", "--git-path", name])?;
        watch(&workspace.join(path));
    }
    let revision = git(workspace, &["rev-parse", "HEAD"])?;
    let status = ["status", "--porcelain", "--untracked-files=normal", "--"];
    let changed = git(workspace, &[&status[..], &SOURCES].concat())?;
    Some(if changed.is_empty() {
        revision
    } else {
        revision + "+"
    })
}

/// The version of a package in a lock file.
fn locked(path: &Path, package: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let name = format!("name = \"{package}\"");
    let mut lines = text.lines().skip_while(|line| *line != name);
    let version = lines.nth(1)?.strip_prefix("version = \"")?;
    version.strip_suffix('"').map(String::from)
}
