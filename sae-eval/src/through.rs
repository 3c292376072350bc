//! The rest of the model as an evaluation asks for it, in programs with the feature `tail` and in those without.

use anyhow::Result;

use crate::cli::Arguments;
use crate::evaluate::Passes;
use crate::model::Model;
use crate::ranking::Rule;
use crate::report::tail::TailSection;
use crate::run::Run;

/// The rest of the model, opened and checked.
pub(crate) struct Through<'a> {
    #[cfg(feature = "tail")]
    tail: crate::tail::Opened,
    #[cfg(feature = "tail")]
    run: &'a Run,
    #[cfg_attr(not(feature = "tail"), expect(dead_code))]
    arguments: &'a Arguments,
}

#[cfg(not(feature = "tail"))]
impl<'a> Through<'a> {
    /// `None` if no tail is asked for.
    pub(crate) fn open(run: &'a Run, arguments: &'a Arguments) -> Result<Option<Self>> {
        let asked = arguments.tail.or(run.tail.as_ref());
        anyhow::ensure!(
            asked.file.is_none(),
            "eval.tail.file, or --tail, asks for the rest of the model, and this program was built without the feature tail; start \
             it with cargo run -p sae-eval --features tail"
        );
        Ok(None)
    }

    pub(crate) fn judge(self, _: &Passes, _: &Model, _: Rule) -> Result<TailSection> {
        unreachable!("a program without the feature tail opens none")
    }
}

#[cfg(feature = "tail")]
impl<'a> Through<'a> {
    /// `None` if no tail is asked for.
    pub(crate) fn open(run: &'a Run, arguments: &'a Arguments) -> Result<Option<Self>> {
        let asked = arguments.tail.or(run.tail.as_ref());
        let tail = crate::tail::Opened::open(run, &asked)?;
        Ok(tail.map(|tail| Self {
            tail,
            run,
            arguments,
        }))
    }

    /// Judges all documents.
    pub(crate) fn judge(self, passes: &Passes, model: &Model, rule: Rule) -> Result<TailSection> {
        use sae_model::saved::WEIGHTS_FILE;
        use sae_run::{RunDir, sealed};

        // A model of a checkpoint is gone when the run goes on, so nothing of it is kept.
        let weights = RunDir::new(&self.run.dir).model().join(WEIGHTS_FILE);
        let about = sealed::checksum(&weights)
            .ok()
            .filter(|_| self.run.step.is_none());
        let dir = self.arguments.reports(None);
        self.tail.judge(
            passes,
            model,
            &crate::tail::Asked {
                rule,
                ns: &self.arguments.top_n,
                dir: about.is_some().then_some(dir.as_path()),
                about: serde_json::json!([about, self.arguments.device]),
            },
        )
    }
}
