//! Who is measured, and by which command.

use std::path::Path;
use std::process::Command;

use super::{Arguments, Shape};

/// The device that needs no other build and no other settings.
pub(super) const CPU: &str = "cpu";

/// Our works on the CPU: as `sae-bench step` calls them, and what they are.
const OURS: [(&str, &str); 4] = [
    ("sgemm", "one sgemm q C^T (gemm crate)"),
    ("forward", "our forward pass"),
    ("step", "our training step"),
    ("topk-step", "our TopK step, k = 32"),
];
/// The same on another device; true for those that a precision changes.
const OURS_ON_DEVICE: [(&str, &str, bool); 7] = [
    ("copy", "a copy of a dictionary [M, d] (Burn)", false),
    ("launch", "1,000 launches of an empty kernel (Burn)", false),
    ("sgemm", "one product q C^T (Burn, float32)", false),
    ("encode", "our encoding, TopK, k = 32", true),
    ("forward", "our forward pass", true),
    ("step", "our training step", true),
    ("topk-step", "our TopK step, k = 32", true),
];
const PEERS: [(&str, &str); 4] = [
    ("torch-sgemm", "one sgemm q C^T (torch)"),
    ("torch-released", "dense torch step, released model"),
    ("torch-topk", "dense torch step, TopK"),
    ("saelens-topk", "SAELens TopK step"),
];
const PEERS_ON_DEVICE: [(&str, &str, bool); 6] = [
    ("torch-copy", "a copy of a dictionary [M, d] (torch)", false),
    ("torch-sgemm", "one product q C^T (torch)", true),
    ("torch-released", "dense torch step, released model", true),
    ("torch-topk", "dense torch step, TopK", true),
    ("torch-topk-compiled", "the same, compiled", true),
    ("saelens-topk", "SAELens TopK step", true),
];

/// Somebody who is measured.
pub(super) struct Contestant {
    /// Its work, as its command calls it.
    pub(super) id: &'static str,
    pub(super) name: String,
    /// The numbers that it multiplies, where they can be chosen.
    pub(super) precision: Option<String>,
    pub(super) command: Command,
}

/// Where contestants come from.
pub(super) struct Programs<'a> {
    /// The binary of `sae-bench`.
    pub(super) ours: &'a Path,
    /// The Python of the peers, if they take part.
    pub(super) python: Option<&'a Path>,
}

/// All contestants at a shape.
pub(super) fn contestants(
    shape: Shape,
    arguments: &Arguments,
    programs: &Programs,
) -> Vec<Contestant> {
    let sizes = [shape.batch, shape.width, shape.latents].map(|size| size.to_string());
    let ours = |work: &str| {
        let mut command = Command::new(programs.ours);
        command.args(["step", work]).args(&sizes);
        command
    };
    let theirs = |peer: &str| {
        programs.python.map(|python| {
            let mut command = Command::new(python);
            command
                .arg(arguments.peers_dir.join("worker.py"))
                .arg(peer)
                .args(&sizes);
            command
        })
    };
    if arguments.device == CPU {
        let all =
            |work: &&(&str, &str)| !arguments.step_only || ["sgemm", "step"].contains(&work.0);
        let of_cpu = |(id, name): &(&'static str, &str), command| Contestant {
            id,
            name: (*name).into(),
            precision: None,
            command,
        };
        let us = OURS
            .iter()
            .filter(all)
            .map(|work| of_cpu(work, ours(work.0)));
        let peers = PEERS
            .iter()
            .filter_map(|peer| Some(of_cpu(peer, theirs(peer.0)?)));
        return us.chain(peers).collect();
    }
    let us = OURS_ON_DEVICE.iter().map(|of| (of, Some(ours(of.0))));
    let peers = PEERS_ON_DEVICE.iter().map(|of| (of, theirs(of.0)));
    let mut found = Vec::new();
    for ((id, name, varies), command) in us.chain(peers) {
        let Some(mut command) = command else { continue };
        command.args(["--device", &arguments.device]);
        command.args(["--times", &arguments.times.to_string()]);
        if !varies {
            let (name, precision) = ((*name).into(), None);
            found.push(Contestant {
                id,
                name,
                precision,
                command,
            });
            continue;
        }
        for precision in &arguments.precision {
            let mut one = Command::new(command.get_program());
            one.args(command.get_args())
                .args(["--precision", precision]);
            found.push(Contestant {
                id,
                name: format!("{name}, {precision}"),
                precision: Some(precision.clone()),
                command: one,
            });
        }
    }
    found
}
