//! `cargo xtask check`: the dependency arrows between the crates of the workspace.

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::programs::{cargo, finish};

/// The crates that each crate may use; any other use is an error.
const ARROWS: [(&str, &[&str]); 7] = [
    ("sae-run", &[]),
    ("sae-model", &["sae-run"]),
    ("sae-data", &["sae-run"]),
    ("sae-train", &["sae-model", "sae-data", "sae-run"]),
    ("sae-eval", &["sae-model", "sae-data", "sae-run"]),
    ("sae-bench", &["sae-model", "sae-data", "sae-train"]),
    ("xtask", &["sae-run"]),
];

pub(crate) fn run() -> Result<ExitCode> {
    let output = finish(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let violations = violations(&metadata);
    for violation in &violations {
        eprintln!("{violation}");
    }
    if violations.is_empty() {
        println!("dependency arrows: {} crates, none astray", ARROWS.len());
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

/// The arrows that are not allowed, and the crates that are missing in the table.
fn violations(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let names: Vec<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut violations = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            violations.push(format!(
                "{name} is not in the table of xtask/src/check.rs; add it, with what it may use"
            ));
            continue;
        };
        let used = package["dependencies"].as_array().into_iter().flatten();
        for used in used.filter_map(|dependency| dependency["name"].as_str()) {
            if names.contains(&used) && !allowed.contains(&used) {
                violations.push(format!(
                    "{name} -> {used} is not allowed: {name} may use {allowed:?}"
                ));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stray_arrows_and_unknown_crates_are_found() {
        let metadata = json!({"packages": [
            {"name": "sae-model", "dependencies": [{"name": "burn"}, {"name": "sae-data"}]},
            {"name": "sae-data", "dependencies": []},
            {"name": "sae-extra", "dependencies": []},
        ]});
        let found = violations(&metadata);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("sae-model -> sae-data"));
        assert!(found[1].starts_with("sae-extra is not in the table"));
    }
}
