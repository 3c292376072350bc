//! How many kernels a step launches on a GPU, and how long each takes there: from the log that CubeCL writes when it is asked to.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::contestants::Contestant;
use super::worker::Worker;
use crate::files::At;

/// The kernels of a step of a contestant of ours.
#[derive(Debug, Serialize)]
pub(super) struct Launches {
    pub(super) name: String,
    /// Launches per step.
    pub(super) launches: f64,
    /// Launches and milliseconds per step by kernel, the longest first.
    pub(super) kernels: Vec<(String, f64, f64)>,
}

/// Takes two turns of `times` steps with the log on, and counts in the second.
pub(super) fn count(contestant: Contestant, times: u32) -> Result<Launches> {
    let log = std::env::temp_dir().join(format!("sae-bench-launches-{}", std::process::id()));
    let mut command = contestant.command;
    command.env("CUBECL_DEBUG_LOG", &log);
    command.env("CUBECL_DEBUG_OPTION", "profile");
    let counted = counted(command, &log);
    let removed = fs::remove_file(&log).at(&log);
    let (kernels, steps) = (counted?, f64::from(times));
    removed?;
    ensure!(!kernels.is_empty(), "the log has no kernels");
    let per_step = |(name, (launches, seconds)): (String, (u32, f64))| {
        (name, f64::from(launches) / steps, 1e3 * seconds / steps)
    };
    let mut kernels: Vec<_> = kernels.into_iter().map(per_step).collect();
    kernels.sort_by(|a, b| b.2.total_cmp(&a.2));
    Ok(Launches {
        name: contestant.name,
        launches: kernels.iter().map(|(_, launches, _)| launches).sum(),
        kernels,
    })
}

/// Launches and seconds by kernel.
type Kernels = BTreeMap<String, (u32, f64)>;

fn counted(command: std::process::Command, log: &Path) -> Result<Kernels> {
    let mut worker = Worker::start(command)?;
    worker.turn()?;
    let before = fs::read_to_string(log).at(log)?.len();
    worker.turn()?;
    let text = fs::read_to_string(log).at(log)?;
    let mut kernels = Kernels::new();
    for (kernel, seconds) in text[before..].lines().filter_map(launch) {
        let (launches, total) = kernels.entry(kernel).or_default();
        *launches += 1;
        *total += seconds;
    }
    Ok(kernels)
}

/// Kernel and seconds of a line of the log, `| 1.004ms  | SliceAssignKernel_71c4a44a`, if it is that of a launch.
fn launch(line: &str) -> Option<(String, f64)> {
    let mut columns = line.strip_prefix('|')?.split('|').map(str::trim);
    let time = columns.next()?;
    let digits = time.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &time[digits.len()..] {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        "ns" => 1e-9,
        _ => return None,
    };
    let seconds = digits.parse::<f64>().ok()? * unit;
    let name = columns.collect::<Vec<_>>().join(" ");
    let name = name
        .rsplit_once('_')
        .map_or(name.as_str(), |(name, _)| name);
    Some((name.into(), seconds))
}

impl Launches {
    /// The numbers of launches, and the kernels that take the most time.
    pub(super) fn table(&self) -> String {
        let mut out = format!(
            "\n{}: {:.0} launches per step\n\n| kernel | launches per step | ms per step |\n|---|---:|---:|\n",
            self.name, self.launches
        );
        for (kernel, launches, milliseconds) in self.kernels.iter().take(12) {
            out += &format!("| {kernel} | {launches:.1} | {milliseconds:.2} |\n");
        }
        out
    }
}

/// The kernels of our steps at one shape, of all contestants that are ours and train.
pub(super) fn of_steps(contestants: Vec<Contestant>, times: u32) -> Result<Vec<Launches>> {
    let steps = contestants
        .into_iter()
        .filter(|of| ["step", "topk-step"].contains(&of.id));
    let count = |of: Contestant| {
        let name = of.name.clone();
        count(of, times).with_context(|| format!("counting the launches of {name}"))
    };
    steps.map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_launches_are_read() {
        for (line, expected) in [
            ("| 1.5ms  | RowNorms_5779fe6d", Some(("RowNorms", 1.5e-3))),
            (
                "| 12.25µs | KernelBinop | MulOp_cac4",
                Some(("KernelBinop MulOp", 12.25e-6)),
            ),
            ("| 2s | A_B_0", Some(("A_B", 2.0))),
            ("let v = a | b;", None),
            ("| x | y", None),
            ("|", None),
        ] {
            let found = launch(line);
            let found = found
                .as_ref()
                .map(|(name, seconds)| (name.as_str(), *seconds));
            let close = match (found, expected) {
                (Some((a, b)), Some((c, d))) => a == c && (b - d).abs() < 1e-12,
                (None, None) => true,
                _ => false,
            };
            assert!(close, "{line}: {found:?}");
        }
    }
}
