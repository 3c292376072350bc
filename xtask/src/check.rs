//! `cargo xtask check`: the dependency arrows between the crates of the workspace.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Which crate may use which: everything else is an error.
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
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("running cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
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

/// Arrows that are not allowed, and crates that the table does not know.
fn violations(metadata: &Value) -> Vec<String> {
    let packages: Vec<&Value> = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
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
