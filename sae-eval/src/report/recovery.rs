//! The report's section on known concepts, as data and as Markdown.

use serde::{Deserialize, Serialize};

use super::criteria::{Estimate, SampleOf, estimates};
use super::escape::name;
use super::markdown::line;

/// How much of the known concepts was recovered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recovery {
    /// `optimal`, or `greedy` if there are too many concepts and latents for that.
    pub(crate) matching: String,
    /// Number of true concepts G.
    pub(crate) concepts: usize,
    /// Number of latents A that are active on a held-out row.
    pub(crate) alive_latents: usize,
    /// Number of draws of held-out rows behind the interval of `firing_f1`.
    pub(crate) resamples: usize,
    /// The rows of `firing_f1`; `None` if the true strengths are not known.
    pub(crate) held_out: Option<SampleOf>,
    pub(crate) metrics: Vec<Estimate>,
    /// One entry per true concept.
    pub(crate) matches: Vec<Match>,
}

/// The latent that was assigned to a true concept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Match {
    pub(crate) latent: Option<u32>,
    pub(crate) cosine: Option<f64>,
    /// F1 of the latent as a detector of the concept.
    pub(crate) firing_f1: Option<f64>,
}

/// Renders the section; nothing if the true concepts are not known.
pub(super) fn render(out: &mut String, recovery: Option<&Recovery>) {
    let Some(recovery) = recovery else {
        return;
    };
    line(
        out,
        format!(
            "\n## Recovery of known concepts\n\n\
             {} true concepts, each given a latent of its own (matching: {}); {} latents are active on a held-out row. Cosines \
             are signed, and have no interval, because no row has a part in them.\n",
            recovery.concepts,
            name(&recovery.matching),
            recovery.alive_latents,
        ),
    );
    estimates(out, &recovery.metrics);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_renders_as_it_did() {
        let json = r#"{
            "matching": "opti|mal", "concepts": 3, "alive_latents": 9, "resamples": 200, "held_out": null,
            "metrics": [{ "name": "mcc", "value": 0.75, "low": null, "high": null, "formula": "mean |cos|" }],
            "matches": [{ "latent": 1, "cosine": 0.75, "firing_f1": null }]
        }"#;
        let recovery =
            serde_json::from_str(json).expect("a section of this schema version stays readable");
        let mut out = String::new();
        render(&mut out, None);
        assert_eq!(out, "");
        render(&mut out, Some(&recovery));
        assert_eq!(
            out,
            "\n## Recovery of known concepts\n\n3 true concepts, each given a latent of its own (matching: opti\\|mal); 9 latents \
             are active on a held-out row. Cosines are signed, and have no interval, because no row has a part in them.\n\n\
             | metric | value | 95 % interval | formula |\n|---|---:|---:|---|\n| mcc | 0.7500 | - | mean \\|cos\\| |\n"
        );
    }
}
