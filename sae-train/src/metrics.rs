//! The numbers of each step, as Burn metrics (for the TUI) and as `metrics.jsonl`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{Tensor, TensorReadError};
use burn::train::logger::MetricLogger;
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricDefinition, MetricId, MetricMetadata, MetricName,
    Numeric, NumericAttributes, NumericEntry, SerializedEntry,
};
use serde_json::{Map, Value, json};

use crate::learner::StepOutput;
use crate::schedule::Schedule;

/// One number of a [`StepOutput`].
pub(crate) trait Quantity: Send + Sync + Clone + 'static {
    /// Its name, the same in the TUI, in the progress lines and in `metrics.jsonl`.
    const NAME: &'static str;
    /// Where it is.
    fn of(output: &StepOutput) -> &Tensor<1>;
}

macro_rules! quantities {
    ($($id:ident = $name:literal : $field:ident;)*) => {
        $(
            #[doc = concat!("`", $name, "`; see [`StepOutput`].")]
            #[derive(Clone)]
            pub(crate) struct $id;
            impl Quantity for $id {
                const NAME: &'static str = $name;
                fn of(output: &StepOutput) -> &Tensor<1> {
                    &output.$field
                }
            }
        )*
    };
}

quantities! {
    Loss = "loss": loss;
    Fvu = "fvu": fvu;
    L0 = "l0": l0;
    Dead = "dead": dead;
}

/// Mean of a quantity over the rows seen since the last validation.
#[derive(Clone)]
pub(crate) struct Mean<Q: Quantity> {
    name: MetricName,
    state: NumericMetricState,
    quantity: PhantomData<Q>,
}

impl<Q: Quantity> Mean<Q> {
    pub(crate) fn new() -> Self {
        Self {
            name: Arc::new(Q::NAME.into()),
            state: NumericMetricState::default(),
            quantity: PhantomData,
        }
    }

    fn format(&self) -> FormatOptions {
        FormatOptions::new(self.name.clone()).precision(4)
    }
}

/// A quantity of one batch.
pub(crate) struct Reading<Q> {
    value: Tensor<1>,
    rows: usize,
    quantity: PhantomData<Q>,
}

impl<Q: Quantity> Adaptor<Reading<Q>> for StepOutput {
    fn adapt(&self) -> Reading<Q> {
        Reading {
            value: Q::of(self).clone(),
            rows: self.rows,
            quantity: PhantomData,
        }
    }
}

impl<Q: Quantity> Metric for Mean<Q> {
    type Input = Reading<Q>;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        let unit = None;
        NumericAttributes {
            unit,
            higher_is_better: false,
        }
        .into()
    }

    fn update(
        &mut self,
        reading: &Self::Input,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        let value = reading.value.clone().try_into_scalar::<f64>()?;
        self.state.update(value, reading.rows);
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.state.compute_final(self.format()))
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl<Q: Quantity> Numeric for Mean<Q> {
    fn value(&self) -> Option<NumericEntry> {
        Some(self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(self.state.running_value())
    }

    fn final_value(&self) -> NumericEntry {
        self.state.final_value()
    }
}

/// Names of metrics by their id, as Burn announces them.
#[derive(Default)]
pub(crate) struct Names(HashMap<MetricId, String>);

impl Names {
    pub(crate) fn add(&mut self, definition: &MetricDefinition) {
        self.0
            .insert(definition.metric_id.clone(), definition.name.to_string());
    }

    pub(crate) fn get(&self, id: &MetricId) -> &str {
        self.0.get(id).map_or("unknown", String::as_str)
    }
}

/// Writes `metrics.jsonl`: one object a step (`split` = `train`), one a validation (`split` = `held_out`,
/// means over all held-out rows).
pub(crate) struct JsonLines {
    file: File,
    names: Names,
    schedule: Schedule,
    /// Steps done.
    step: usize,
    started: Instant,
}

impl JsonLines {
    /// Appends to `path`, after the records of the first `step` steps; later ones, left by an interrupted
    /// stretch that will be run again, are dropped.
    pub(crate) fn open(path: &Path, schedule: Schedule, step: usize) -> io::Result<Self> {
        let kept = match std::fs::read_to_string(path) {
            Ok(text) => keep_until(&text, step),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        sae_model::atomic_file::write(path, kept.as_bytes())?;
        let file = File::options().append(true).open(path)?;
        Ok(Self {
            file,
            names: Names::default(),
            schedule,
            step,
            started: Instant::now(),
        })
    }

    /// Values of an update by name: those of one batch, or (`of_pass`) their means over a whole pass.
    fn values(&self, update: &MetricsUpdate, of_pass: bool) -> Map<String, Value> {
        let entries = update.entries_numeric.iter().filter_map(|numeric| {
            let value = numeric.numeric_entry.as_ref()?;
            let name = self.names.get(&numeric.entry.metric_id).to_string();
            let wanted = matches!(value, NumericEntry::Final(_)) == of_pass;
            wanted.then(|| (name, json!(value.current())))
        });
        entries.collect()
    }
}

/// The lines of the first `step` steps.
fn keep_until(text: &str, step: usize) -> String {
    let within = |line: &&str| {
        let record: Option<Value> = serde_json::from_str(line).ok();
        let recorded = record.and_then(|record| record["step"].as_u64());
        recorded.is_some_and(|recorded| recorded <= step as u64)
    };
    text.lines()
        .filter(within)
        .flat_map(|line| [line, "\n"])
        .collect()
}

impl MetricLogger for JsonLines {
    fn log(&mut self, update: MetricsUpdate, _epoch: usize, split: &Split) {
        let training = matches!(split, Split::Train);
        let mut record = self.values(&update, !training);
        if record.is_empty() {
            return; // the end of a stretch of training, or one batch of a validation
        }
        if training {
            record.insert("lr".into(), json!(self.schedule.at(self.step)));
            self.step += 1;
        }
        let split = if training { "train" } else { "held_out" };
        let seconds = self.started.elapsed().as_secs_f64();
        record.insert("split".into(), json!(split));
        record.insert("step".into(), json!(self.step));
        record.insert("seconds".into(), json!(seconds));
        if let Err(error) = writeln!(self.file, "{}", Value::Object(record)) {
            let step = self.step;
            tracing::error!("metrics.jsonl: {error}; the record of step {step} is lost");
        }
    }

    fn read_numeric(
        &mut self,
        _name: &str,
        _epoch: usize,
        _split: &Split,
    ) -> Result<Vec<NumericEntry>, String> {
        Err("metrics.jsonl is not read back while training".into())
    }

    fn log_metric_definition(&mut self, definition: MetricDefinition) {
        self.names.add(&definition);
    }

    fn log_epoch_summary(&mut self, _summary: EpochSummary) {}
}

#[cfg(test)]
mod tests {
    use super::keep_until;

    #[test]
    fn resuming_drops_what_will_be_run_again() {
        let text = "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":";
        assert_eq!(keep_until(text, 2), "{\"step\":1}\n{\"step\":2}\n");
    }
}
