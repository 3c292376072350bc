//! What a user must be told about a run that went wrong without failing: the trainer says it when a run ends, the report
//! says it again.

use crate::config::{Architecture, SaeConfig};

/// Part of the latents that may be dead before it is worth a sentence.
const MOST: f64 = 0.5;
/// Batches after which what BatchTopK's running threshold started from counts for less than one per cent (0.99^460).
const SETTLED_AFTER: usize = 460;
/// How far the mean L0 at inference may be from k, as a part of k.
const NEAR_K: f64 = 0.1;

/// What is known at the end of a run.
#[derive(Clone, Debug)]
pub struct RunFacts<'a> {
    /// The model.
    pub model: &'a SaeConfig,
    /// Optimizer steps taken.
    pub steps: usize,
    /// Steps of linear warm-up that were asked for.
    pub warmup_steps: usize,
    /// Mean number of active latents per held-out row.
    pub l0_mean: f64,
    /// Latents that count as dead.
    pub dead: u64,
}

impl RunFacts<'_> {
    /// One sentence for each thing that makes the numbers of this run mean less than they seem to.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let (steps, warmup) = (self.steps, self.warmup_steps);
        if warmup >= steps {
            notes.push(format!(
                "the warm-up of {warmup} steps is not shorter than the run of {steps}: the learning rate only ever rose \
                 (lower training.warmup_steps or train longer)"
            ));
        }
        if self.l0_mean == 0.0 {
            notes.push(
                "no latent is active on any held-out row: the model has collapsed to its pre-bias"
                    .into(),
            );
        }
        let latents = self.model.n_latents;
        if self.dead as f64 > MOST * latents as f64 {
            let dead = self.dead;
            notes.push(format!("{dead} of {latents} latents are dead"));
        }
        if let (Architecture::BatchTopK, Some(k)) = (self.model.architecture, self.model.k) {
            let l0 = self.l0_mean;
            if steps < SETTLED_AFTER {
                notes.push(format!(
                    "the threshold that replaces the batch at inference is a running mean over {SETTLED_AFTER} steps and more, \
                     and has seen {steps}: it has not settled (L0 is {l0:.1}, k = {k})"
                ));
            } else if (l0 - k as f64).abs() > NEAR_K * k as f64 {
                notes.push(format!(
                    "the threshold that replaces the batch at inference has not settled: L0 is {l0:.1}, k = {k}"
                ));
            }
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Preset;

    fn notes(architecture: Architecture, steps: usize, l0_mean: f64, dead: u64) -> Vec<String> {
        let model = architecture.config(Preset::Default, 8, 100);
        let facts = RunFacts {
            model: &model,
            steps,
            warmup_steps: 150,
            l0_mean,
            dead,
        };
        facts.notes()
    }

    #[test]
    fn a_run_that_went_well_has_no_notes() {
        assert!(notes(Architecture::Attention, 600, 30.0, 50).is_empty());
        assert!(notes(Architecture::BatchTopK, 600, 33.0, 0).is_empty());
    }

    #[test]
    fn each_trouble_has_its_sentence() {
        for (found, expected) in [
            (
                notes(Architecture::Relu, 150, 3.0, 0),
                "the warm-up of 150 steps",
            ),
            (
                notes(Architecture::Relu, 600, 0.0, 0),
                "no latent is active",
            ),
            (
                notes(Architecture::TopK, 600, 3.0, 51),
                "51 of 100 latents are dead",
            ),
            (notes(Architecture::BatchTopK, 200, 32.0, 0), "has seen 200"),
            (
                notes(Architecture::BatchTopK, 600, 40.0, 0),
                "L0 is 40.0, k = 32",
            ),
        ] {
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(expected), "{found:?}");
        }
    }
}
