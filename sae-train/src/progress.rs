//! Plain progress lines, for logs and pipes. On a terminal Burn's TUI takes their place, or the table of a sweep, which shows the
//! last line of every run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::MetricDefinition;
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::metrics::Names;
use crate::output::Speaker;

/// Prints one line per `log_every` steps, and one per validation.
pub(crate) struct PlainLines {
    speaker: Speaker,
    /// The row of a table in which the lines appear, if they are not printed.
    row: Option<Row>,
    names: Names,
    /// Latest value of each metric, by name.
    latest: BTreeMap<String, f64>,
    in_training: bool,
    /// Names of the terms of the loss that the architecture adds.
    terms: &'static [&'static str],
    /// Number of rows of a validation, in words; empty for all.
    validated: String,
    log_every: usize,
    batch_size: usize,
    total_steps: usize,
    step: usize,
    first_step: usize,
    started: Option<Instant>,
}

impl PlainLines {
    /// For a run of `total_steps` of which `step` are done, whose architecture adds these terms to the loss; `validated`
    /// describes the rows of a validation.
    pub(crate) fn new(
        terms: &'static [&'static str],
        log_every: usize,
        batch_size: usize,
        total_steps: usize,
        step: usize,
        validated: String,
        row: Option<Row>,
    ) -> Self {
        Self {
            speaker: Speaker::here(),
            row,
            terms,
            validated,
            names: Names::default(),
            latest: BTreeMap::new(),
            in_training: false,
            log_every,
            batch_size,
            total_steps,
            step,
            first_step: step,
            started: None,
        }
    }

    fn take(&mut self, state: MetricState) {
        if let MetricState::Numeric(entry, Some(value)) = state {
            let name = self.names.get(&entry.metric_id).to_string();
            self.latest.insert(name, value.current());
        }
    }

    fn value(&self, name: &str) -> f64 {
        self.latest.get(name).copied().unwrap_or(f64::NAN)
    }

    /// `loss 0.3123  FVU 0.3123  L0 45.1  dead 12`; a loss of several terms is followed by each of them.
    fn values(&self) -> String {
        let shown: Vec<&str> = match (self.in_training, self.terms) {
            (true, []) => vec!["loss"],
            (true, terms) => [&["loss", "reconstruction_loss"][..], terms].concat(),
            (false, _) => vec!["reconstruction_loss"],
        };
        let losses = shown
            .iter()
            .map(|name| format!("{name} {:.4}", self.value(name)));
        format!(
            "{}  FVU {:.4}  L0 {:.1}  dead {:.0}",
            losses.collect::<Vec<_>>().join("  "),
            self.value("fvu"),
            self.value("l0"),
            self.value("dead"),
        )
    }

    fn print_step(&self) {
        let elapsed = self
            .started
            .map_or(0.0, |start| start.elapsed().as_secs_f64());
        let rate = (self.step - self.first_step) as f64 / elapsed.max(1e-9);
        let eta = (self.total_steps - self.step) as f64 / rate;
        let line = format!(
            "step {:>width$}/{}  {}  {:.0} rows/s  ETA {}",
            self.step,
            self.total_steps,
            self.values(),
            rate * self.batch_size as f64,
            clock(eta),
            width = self.total_steps.to_string().len(),
        );
        match &self.row {
            Some(row) => row.step(line),
            None => self.speaker.say(line),
        }
    }
}

/// A run's row of the table of a sweep.
#[derive(Clone)]
pub(crate) struct Row {
    bar: ProgressBar,
    /// What the last validation said.
    held_out: Arc<Mutex<String>>,
}

impl Row {
    /// The next row of a table.
    pub(crate) fn new(table: &MultiProgress, name: &str) -> Self {
        let style = ProgressStyle::with_template("{prefix}  {wide_msg}");
        let bar = ProgressBar::new_spinner().with_prefix(name.to_string());
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        let bar = table.add(bar);
        bar.set_message("waits");
        Self {
            bar,
            held_out: Arc::default(),
        }
    }

    fn held_out(&self, fvu: f64) {
        *self.last() = format!("held out FVU {fvu:.4}  ");
    }

    fn last(&self) -> MutexGuard<'_, String> {
        self.held_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, line: String) {
        let held_out = self.last().clone();
        self.bar.set_message(held_out + &line);
    }

    /// Shows how the run has ended.
    pub(crate) fn end(&self, how: &str) {
        let held_out = self.last().clone();
        self.bar.abandon_with_message(held_out + how);
    }
}

/// `h:mm:ss`
fn clock(seconds: f64) -> String {
    let s = seconds.clamp(0.0, 360_000.0).round() as u64;
    format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

impl MetricsRendererTraining for PlainLines {
    fn update_train(&mut self, state: MetricState) {
        self.take(state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.take(state);
    }
}

impl TrainingProgressLogger for PlainLines {
    fn start(
        &mut self,
        _total_epochs: usize,
        _starting_epoch: usize,
        _total_items: Option<usize>,
        _label: Option<&str>,
    ) {
        self.started = Some(Instant::now());
    }

    fn update_epoch(&mut self, _epoch: usize) {}

    fn start_split(&mut self, split: &str, _total_items: usize) {
        self.in_training = split.eq_ignore_ascii_case("train");
    }

    fn update_split(&mut self, _items_processed: usize) {
        if self.in_training {
            self.step += 1;
            if self.step.is_multiple_of(self.log_every) || self.step == self.total_steps {
                self.print_step();
            }
        }
    }

    fn end_split(&mut self) {
        if !self.in_training {
            let (step, rows, values) = (self.step, &self.validated, self.values());
            match &self.row {
                Some(row) => row.held_out(self.value("fvu")),
                None => {
                    let line = format!("held out{rows} at step {step}: {values}");
                    self.speaker.say(line);
                }
            }
        }
    }

    fn end(&mut self) {}

    fn log_event_training(&mut self, _event: String) {}
}

impl MetricsRenderer for PlainLines {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.add(&definition);
    }
}

// Burn requires this of a renderer, too; evaluation has a binary of its own.
impl MetricsRendererEvaluation for PlainLines {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}
}

impl EvaluationProgressLogger for PlainLines {
    fn start_global_progress(&mut self, _total_tests: usize) {}
    fn start_test(&mut self, _name: &str, _total_items: usize) {}
    fn update_test_progress(&mut self, _items_processed: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _event: String) {}
}
