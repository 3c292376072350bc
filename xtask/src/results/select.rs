//! Which runs are meant: `--only data=smol,steps=2000`, `--keep seed=0`.

use anyhow::{Context, Result, ensure};

use super::plan::{Judged, Run};

/// Conditions `FIELD=VALUE`. Those on one field are alternatives, those on different fields must all hold; a selection without
/// conditions takes every run. A run that chooses a learning rate is for every seed.
#[derive(Debug, Default)]
pub(super) struct Selection(Vec<(String, String)>);

impl Selection {
    pub(super) fn parse(option: &str, conditions: &[String]) -> Result<Self> {
        let parsed = conditions.iter().map(|condition| {
            let (field, value) = condition.split_once('=').with_context(|| {
                format!("{option} {condition}: write FIELD=VALUE, for example steps=2000")
            })?;
            ensure!(
                ["data", "method", "steps", "n_latents", "seed", "split"].contains(&field),
                "{option} {condition}: the fields are data, method, steps, n_latents, seed and split"
            );
            Ok((field.to_string(), value.to_string()))
        });
        Ok(Self(parsed.collect::<Result<_>>()?))
    }

    pub(super) fn takes(&self, run: &Run) -> bool {
        let any_seed = run.judged == Judged::Validation;
        let holds = |(field, wanted): &(String, String)| match field.as_str() {
            "data" => run.data == *wanted,
            "method" => run.method == *wanted,
            "steps" => run.steps.to_string() == *wanted,
            "n_latents" => run.n_latents.to_string() == *wanted,
            "seed" => any_seed || run.seed.to_string() == *wanted,
            _ => run.judged.name() == wanted,
        };
        let mut fields = self.0.iter();
        fields.all(|one| self.0.iter().any(|other| other.0 == one.0 && holds(other)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_within_a_field_and_all_fields() {
        let run = crate::results::store::tests::record(1, 0.5).run;
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
