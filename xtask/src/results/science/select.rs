//! Which runs are meant: `--only data=smol,steps=2000`, `--keep seed=0`.

use anyhow::{Context, Result, bail};

use super::plan::{Judged, Run};

/// Conditions `FIELD=VALUE`. Those on one field are alternatives, those on different fields must all hold; a selection without
/// conditions takes every run. A run that chooses a learning rate is for every seed.
#[derive(Debug, Default)]
pub(super) struct Selection(Vec<(String, String)>);

impl Selection {
    pub(super) fn parse(option: &str, conditions: &[String]) -> Result<Self> {
        let mut parsed = Vec::new();
        for condition in conditions {
            let (field, value) = condition.split_once('=').with_context(|| {
                format!("{option} {condition}: write FIELD=VALUE, for example steps=2000")
            })?;
            if !["data", "method", "steps", "n_latents", "seed", "split"].contains(&field) {
                bail!(
                    "{option} {condition}: the fields are data, method, steps, n_latents, seed and split"
                );
            }
            parsed.push((field.to_string(), value.to_string()));
        }
        Ok(Self(parsed))
    }

    pub(super) fn takes(&self, run: &Run) -> bool {
        let value = |field: &str| match field {
            "data" => run.data.clone(),
            "method" => run.method.clone(),
            "steps" => run.steps.to_string(),
            "n_latents" => run.n_latents.to_string(),
            "seed" => run.seed.to_string(),
            _ => format!("{:?}", run.judged).to_lowercase(),
        };
        let any_seed = run.judged == Judged::Validation;
        let holds = |(field, wanted): &(String, String)| {
            value(field) == *wanted || (field == "seed" && any_seed)
        };
        self.0
            .iter()
            .all(|one| self.0.iter().any(|other| other.0 == one.0 && holds(other)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_within_a_field_and_all_fields() {
        let run = crate::results::science::store::tests::record(1, 0.5).run;
        let takes = |conditions: &[&str]| {
            let conditions: Vec<String> = conditions.iter().map(|one| one.to_string()).collect();
            Selection::parse("--only", &conditions).unwrap().takes(&run)
        };
        assert!(takes(&[]));
        assert!(takes(&["seed=0", "seed=1", "data=small", "split=heldout"]));
        assert!(!takes(&["seed=1", "data=large"]));
        assert!(!takes(&["seed=0"]));
        let choice = Run {
            judged: Judged::Validation,
            ..run.clone()
        };
        assert!(
            Selection::parse("", &["seed=0".into()])
                .unwrap()
                .takes(&choice)
        );
        let wrong = Selection::parse("--keep", &["size=1".into()]).unwrap_err();
        assert!(wrong.to_string().contains("n_latents"));
    }
}
