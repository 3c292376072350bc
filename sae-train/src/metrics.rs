//! The numbers of each step, as Burn metrics: what the dashboard, the progress lines and `metrics.jsonl` show.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorReadError};
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricDefinition, MetricId, MetricMetadata, MetricName,
    Numeric, NumericAttributes, NumericEntry, SerializedEntry,
};

use crate::learner::StepOutput;

/// One number of a [`StepOutput`].
pub(crate) trait Quantity: Send + Sync + Clone + 'static {
    /// Its name, the same in the TUI, in the progress lines and in `metrics.jsonl`.
    const NAME: &'static str;
    /// Where it is; a term of the loss that a batch does not have counts as zero.
    fn of(output: &StepOutput) -> Option<&Tensor<1>>;
}

/// A number of a batch, or one that only some batches have.
trait Number {
    fn as_number(&self) -> Option<&Tensor<1>>;
}

impl Number for Tensor<1> {
    fn as_number(&self) -> Option<&Tensor<1>> {
        Some(self)
    }
}

impl Number for Option<Tensor<1>> {
    fn as_number(&self) -> Option<&Tensor<1>> {
        self.as_ref()
    }
}

macro_rules! quantities {
    ($($id:ident = $name:literal : $field:ident;)*) => {
        $(
            #[doc = concat!("`", $name, "`; see [`StepOutput`].")]
            #[derive(Clone)]
            pub(crate) struct $id;
            impl Quantity for $id {
                const NAME: &'static str = $name;
                fn of(output: &StepOutput) -> Option<&Tensor<1>> {
                    output.$field.as_number()
                }
            }
        )*
    };
}

quantities! {
    Loss = "loss": loss;
    ReconstructionLoss = "reconstruction_loss": reconstruction_loss;
    SparsityLoss = "sparsity_loss": sparsity_loss;
    AuxiliaryLoss = "auxiliary_loss": auxiliary_loss;
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
    value: Option<Tensor<1>>,
    rows: usize,
    quantity: PhantomData<Q>,
}

impl<Q: Quantity> Adaptor<Reading<Q>> for StepOutput {
    fn adapt(&self) -> Reading<Q> {
        Reading {
            value: Q::of(self).cloned(),
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
        let value = match reading.value.clone() {
            Some(value) => value.try_into_scalar::<f64>()?,
            None => 0.0,
        };
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
