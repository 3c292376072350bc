//! Burn is compiled once for all programs.
//!
//! Cargo compiles a crate again if something asks for other features of it, and everything that uses it with it. A dependency of
//! one program that asks for one feature more of a crate below Burn makes every newcomer wait for Burn twice. Nothing but the time
//! would show it, so it is looked for here.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use crate::programs::{cargo, finish};

/// The crate with all of Burn's tree below it, and a program that uses it.
const BURN: &str = "burn";
const FIRST: [&str; 2] = ["--package", "sae-train"];
/// What else users build. `ndarray`, `wgpu` and `cuda` are backends of Burn: with them it is another Burn.
const OTHERS: [&[&str]; 6] = [
    &["--package", "sae-eval"],
    &["--package", "sae-data"],
    &["--package", "sae-bench"],
    &["--package", "sae-train", "--features", "parquet"],
    &["--package", "sae-eval", "--features", "parquet,tail"],
    &["--workspace"],
];

/// The sets of features that each crate is compiled with; several, if build scripts use it, too.
type Features = BTreeMap<String, BTreeSet<String>>;

/// The crates that Burn would be compiled again for.
pub(crate) fn violations() -> Result<Vec<String>> {
    let below = features(&["--package", BURN])?;
    let first = features(&FIRST)?;
    let mut found = Vec::new();
    for selection in OTHERS {
        found.extend(differences(
            &below,
            &first,
            &features(selection)?,
            selection,
        ));
    }
    Ok(found)
}

fn differences(
    below: &Features,
    first: &Features,
    other: &Features,
    selection: &[&str],
) -> Vec<String> {
    let differs = |(name, features): &(&String, &BTreeSet<String>)| {
        let others = other.get(*name);
        others.is_some_and(|others| !features.is_subset(others))
    };
    let of_burn = first.iter().filter(|(name, _)| below.contains_key(*name));
    let said = |(name, features): (&String, &BTreeSet<String>)| {
        format!(
            "Burn is compiled again for {}: {name} has the features {:?}, with {} it has {features:?}; ask for the same features in \
             every program (the end of the dependencies in Cargo.toml)",
            selection.join(" "),
            other[name],
            FIRST.join(" ")
        )
    };
    of_burn.filter(differs).map(said).collect()
}

/// What cargo would compile for a selection of packages.
fn features(selection: &[&str]) -> Result<Features> {
    let mut command = cargo();
    command.args([
        "tree",
        "--edges",
        "no-dev,features",
        "--prefix",
        "none",
        "--format",
        "{p}\t{f}",
    ]);
    let output = finish(command.args(selection))?;
    let found = parsed(&String::from_utf8_lossy(&output.stdout));
    ensure!(
        !found.is_empty(),
        "cargo tree {} prints nothing",
        selection.join(" ")
    );
    Ok(found)
}

/// Lines such as `rand v0.10.4<TAB>default,std`; those without a tab are features themselves.
fn parsed(tree: &str) -> Features {
    let mut found = Features::new();
    for line in tree.lines() {
        let Some((package, features)) = line.trim_end_matches(" (*)").split_once('\t') else {
            continue;
        };
        let package = package.trim_end_matches(" (proc-macro)");
        found
            .entry(package.into())
            .or_default()
            .insert(features.into());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_more_below_burn_is_found() {
        let first = parsed(
            "rand v1\tstd\nburn v1\tstd (*)\nserde v1\tstd\nclap v1\tstd\nrand feature \"std\"",
        );
        let below = parsed("burn v1\tstd\nrand v1\tstd\nserde v1\tstd");
        // serde has a second set for build scripts; clap is not Burn's.
        let other = parsed(
            "rand v1\tdefault,std\nburn v1\tstd\nserde v1\tstd\nserde v1\tderive\nclap v1\tcolor",
        );
        let found = differences(&below, &first, &other, &["--package", "x"]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("for --package x: rand v1"), "{found:?}");
        assert!(differences(&below, &first, &first, &[]).is_empty());
    }
}
