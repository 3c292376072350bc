//! `cargo xtask check`: the dependency arrows between the crates of the workspace, files that documents name, and one build of Burn.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::one_build;
use crate::programs::{cargo, finish};

/// The crates that each crate may use; any other use is an error.
const ARROWS: [(&str, &[&str]); 8] = [
    ("sae-comm", &[]),
    ("sae-run", &[]),
    ("sae-model", &["sae-comm", "sae-run"]),
    ("sae-data", &["sae-run"]),
    (
        "sae-train",
        &["sae-comm", "sae-model", "sae-data", "sae-run"],
    ),
    ("sae-eval", &["sae-model", "sae-data", "sae-run"]),
    ("sae-bench", &["sae-model", "sae-data", "sae-train"]),
    ("xtask", &["sae-run"]),
];

pub(crate) fn run() -> Result<ExitCode> {
    let output = finish(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let mut violations = violations(&metadata);
    let root = metadata["workspace_root"].as_str().unwrap_or(".");
    violations.extend(missing_files(Path::new(root))?);
    violations.extend(one_build::violations()?);
    for violation in &violations {
        eprintln!("{violation}");
    }
    if violations.is_empty() {
        println!(
            "dependency arrows: {} crates, all as allowed; every file that CONTRIBUTING.md names is there; Burn \
             is compiled once",
            ARROWS.len()
        );
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

/// The arrows that are not allowed, and the crates that the table lacks.
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
        // Tests and examples may use any crate.
        let used = used.filter(|dependency| dependency["kind"] != "dev");
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

/// Files that CONTRIBUTING.md names and that do not exist: paths in backticks, except those with a NAME to be filled
/// in.
fn missing_files(root: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join("CONTRIBUTING.md")).context("CONTRIBUTING.md")?;
    let quoted = text.split('`').skip(1).step_by(2);
    let is_path =
        |name: &&str| name.contains('/') && !name.contains([' ', '<']) && !name.contains("NAME");
    // Paths may be relative to a folder that the text has named: `source/format.rs` is in `sae-data/src`.
    let folders = ["", "sae-model/src", "sae-data/src", "sae-data"];
    let missing = |name: &&str| {
        !folders
            .iter()
            .any(|folder| root.join(folder).join(name).exists())
    };
    let missing = quoted.filter(is_path).filter(missing);
    Ok(missing
        .map(|name| format!("CONTRIBUTING.md names {name}, which does not exist"))
        .collect())
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
