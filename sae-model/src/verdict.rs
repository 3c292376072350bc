//! Warnings about a run that went wrong without an error. The trainer prints them at the end of a run, and the report
//! repeats them.

use crate::architectures::Architecture;
use crate::config::SaeConfig;

/// A larger fraction of dead latents is worth a note.
const MOST: f64 = 0.5;
/// A model with a lower L0 has collapsed, unless few latents were asked for.
const LEAST_L0: f64 = 2.0;
/// A model with a larger fraction of dead latents has collapsed.
const MOST_DEAD: f64 = 0.9;
/// Dead latents are a sign only if each latent would have fired this often, had all fired equally often.
const CHANCES: f64 = 10.0;

/// The numbers of a training step or an evaluation that can show a collapse.
#[derive(Clone, Debug)]
pub struct Signs<'a> {
    /// The model.
    pub model: &'a SaeConfig,
    /// The target L0 of the training, if there is one outside the model's config.
    pub target_l0: Option<f64>,
    /// Mean number of active latents per row.
    pub l0: f64,
    /// Fraction of variance unexplained, if it is meaningful.
    pub fvu: Option<f64>,
    /// Number of dead latents.
    pub dead: u64,
    /// Number of rows on which they have not fired.
    pub dead_rows: usize,
}

impl Signs<'_> {
    /// L0 below which the model has collapsed: 2, or the smallest of k / 2, half the target L0 and M / 16 if this is
    /// less.
    fn least_l0(&self) -> f64 {
        let k = self.model.architecture.asked_l0().map(|k| k as f64);
        let wanted = [k, self.target_l0].into_iter().flatten().map(|l0| l0 / 2.0);
        let few = self.model.n_latents as f64 / 16.0;
        wanted.fold(LEAST_L0.min(few), f64::min)
    }

    /// The signs of a collapse, in words: L0 below 2, or below less where less is asked for; more than nine tenths of the
    /// latents dead, on enough rows for each to fire ten times; FVU above 1, which is the FVU of the mean row.
    pub fn seen(&self) -> Vec<String> {
        let (least, latents) = (self.least_l0(), self.model.n_latents);
        let mut seen = Vec::new();
        if self.l0 < least {
            seen.push(format!("L0 is {:.2}, below {least}", self.l0));
        }
        let chances = self.dead_rows as f64 * self.l0.max(1.0) / latents as f64;
        if chances >= CHANCES && self.dead as f64 > MOST_DEAD * latents as f64 {
            seen.push(format!("{} of {latents} latents are dead", self.dead));
        }
        if let Some(fvu) = self.fvu.filter(|fvu| *fvu > 1.0) {
            seen.push(format!("FVU is {fvu:.4}, above that of the mean row (1)"));
        }
        seen
    }
}

/// The facts about a finished run.
#[derive(Clone, Debug)]
pub struct RunFacts<'a> {
    /// The model.
    pub model: &'a SaeConfig,
    /// Number of optimizer steps taken.
    pub steps: usize,
    /// Number of steps of linear warm-up in the config.
    pub warmup_steps: usize,
    /// Mean number of active latents per held-out row.
    pub l0_mean: f64,
    /// FVU over the held-out rows, if it is known.
    pub fvu: Option<f64>,
    /// Number of dead latents.
    pub dead: u64,
    /// Number of rows on which they have not fired.
    pub dead_rows: usize,
}

impl RunFacts<'_> {
    /// One sentence for each reason why the numbers of this run mean less than they seem to.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let (steps, warmup) = (self.steps, self.warmup_steps);
        if warmup >= steps {
            notes.push(format!(
                "the warm-up of {warmup} steps is not shorter than the run of {steps}: the learning rate only ever rose \
                 (lower training.warmup_steps or train longer)"
            ));
        }
        let signs = Signs {
            model: self.model,
            target_l0: None,
            l0: self.l0_mean,
            fvu: self.fvu,
            dead: self.dead,
            dead_rows: self.dead_rows,
        };
        let seen = signs.seen();
        if !seen.is_empty() {
            notes.push(format!("the model has collapsed: {}", seen.join(", ")));
        }
        let latents = self.model.n_latents;
        let said = seen.iter().any(|sign| sign.contains("dead"));
        if self.dead as f64 > MOST * latents as f64 && !said {
            let dead = self.dead;
            notes.push(format!("{dead} of {latents} latents are dead"));
        }
        notes.extend(self.model.architecture.notes(steps, self.l0_mean));
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architectures::{AnyArchitecture, Attention, BatchTopK, Relu, TopK};

    fn notes(
        architecture: impl Into<AnyArchitecture>,
        steps: usize,
        l0_mean: f64,
        dead: u64,
    ) -> Vec<String> {
        let model = SaeConfig::new(architecture, 8, 100);
        let facts = RunFacts {
            model: &model,
            steps,
            warmup_steps: 150,
            l0_mean,
            fvu: Some(0.3),
            dead,
            dead_rows: 1000,
        };
        facts.notes()
    }

    #[test]
    fn a_run_that_went_well_has_no_notes() {
        assert!(notes(Attention::default(), 600, 30.0, 50).is_empty());
        assert!(notes(BatchTopK::default(), 600, 33.0, 0).is_empty());
    }

    #[test]
    fn each_trouble_has_its_sentence() {
        for (found, expected) in [
            (
                notes(Relu::default(), 150, 3.0, 0),
                "the warm-up of 150 steps",
            ),
            (
                notes(Relu::default(), 600, 0.0, 0),
                "the model has collapsed: L0 is 0.00, below 2",
            ),
            (
                notes(TopK::default(), 600, 3.0, 51),
                "51 of 100 latents are dead",
            ),
            (notes(BatchTopK::default(), 200, 32.0, 0), "has seen 200"),
            (
                notes(BatchTopK::default(), 600, 40.0, 0),
                "L0 is 40.0, k = 32",
            ),
        ] {
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(expected), "{found:?}");
        }
    }

    #[test]
    fn signs_of_a_collapse() {
        let seen =
            |k: Option<usize>, latents: usize, l0: f64, fvu: f64, dead: u64, dead_rows: usize| {
                let model = match k {
                    Some(k) => SaeConfig::new(
                        TopK {
                            k,
                            ..TopK::default()
                        },
                        8,
                        latents,
                    ),
                    None => SaeConfig::new(Attention::default(), 8, latents),
                };
                let signs = Signs {
                    model: &model,
                    target_l0: None,
                    l0,
                    fvu: Some(fvu),
                    dead,
                    dead_rows,
                };
                signs.seen().len()
            };
        assert_eq!(seen(None, 4608, 30.0, 0.2, 0, 100_000), 0);
        assert_eq!(seen(None, 4608, 1.9, 0.899, 4606, 100_000), 2);
        assert_eq!(seen(None, 4608, 3.1, 3662.0, 4197, 100_000), 2);
        // few rows, so that most latents had no chance
        assert_eq!(seen(None, 4608, 4.0, 0.5, 4500, 1000), 0);
        // few latents were asked for or exist: no collapse
        assert_eq!(seen(Some(1), 4608, 1.0, 0.5, 0, 100_000), 0);
        assert_eq!(seen(Some(2), 4608, 1.5, 0.5, 0, 100_000), 0);
        assert_eq!(seen(Some(2), 4608, 0.5, 0.5, 0, 100_000), 1);
        assert_eq!(seen(None, 16, 1.2, 0.5, 0, 100_000), 0);
    }
}
