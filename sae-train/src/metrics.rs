//! The numbers of each step, as Burn metrics for the dashboard, the progress lines and `metrics.jsonl`.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::TensorReadError;
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricDefinition, MetricId, MetricMetadata, MetricName,
    Numeric, NumericAttributes, NumericEntry, SerializedEntry,
};

use crate::numbers::{Number, StepOutput};

/// A metric of a [`StepOutput`]; a term of the loss that a batch does not have counts as zero.
type Quantity = fn(&StepOutput, name: &str) -> f64;

/// Mean of a quantity over the rows seen since the last validation.
#[derive(Clone)]
pub(crate) struct Mean {
    /// Its name in the dashboard, the progress lines and `metrics.jsonl`.
    name: MetricName,
    state: NumericMetricState,
    quantity: Quantity,
}

impl Mean {
    fn new(name: &str, quantity: Quantity) -> Self {
        Self {
            name: Arc::new(name.into()),
            state: NumericMetricState::default(),
            quantity,
        }
    }

    pub(crate) fn loss() -> Self {
        Self::new("loss", |output, _| output.number(Number::Loss))
    }

    /// The metrics of both training and validation.
    pub(crate) fn of_both() -> (Self, Self, Self, Self) {
        (
            Self::new("reconstruction_loss", |output, _| {
                output.number(Number::ReconstructionLoss)
            }),
            Self::new("fvu", |output, _| output.fvu()),
            Self::new("l0", |output, _| output.number(Number::L0)),
            Self::new("dead", |output, _| output.number(Number::Dead)),
        )
    }

    /// A term of the loss that the architecture adds.
    pub(crate) fn term(name: &str) -> Self {
        Self::new(name, |output, name| output.term(name).unwrap_or(0.0))
    }

    fn format(&self) -> FormatOptions {
        FormatOptions::new(self.name.clone()).precision(4)
    }
}

impl Adaptor<Self> for StepOutput {
    fn adapt(&self) -> Self {
        self.clone()
    }
}

impl Metric for Mean {
    type Input = StepOutput;

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
        output: &StepOutput,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        let value = (self.quantity)(output, &self.name);
        self.state.update(value, output.rows);
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.state.compute_final(self.format()))
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for Mean {
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
