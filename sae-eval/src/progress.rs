//! How far a long pass is: a bar on a terminal, a line now and then elsewhere. Both go to standard error.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two lines.
const EVERY: Duration = Duration::from_secs(10);

/// Shows progress, from its creation until it is dropped.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    /// What is counted: rows, documents.
    unit: &'static str,
    total: usize,
    done: usize,
    /// Those that were done before.
    before: usize,
    started: Instant,
    told: Instant,
}

impl Progress {
    /// Of `total` rows or documents (`unit`), `done` are done. `pass` names the work on a terminal.
    pub(crate) fn new(pass: &str, unit: &'static str, total: usize, done: usize) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(&format!(
                "{pass} {{wide_bar}} {{human_pos}} of {{human_len}} {unit}, {{per_sec}}, ETA {{eta}}"
            ));
            let bar = ProgressBar::new(total as u64);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(done as u64);
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            unit,
            total,
            done,
            before: done,
            started: now,
            told: now,
        }
    }

    /// `more` are done.
    pub(crate) fn add(&mut self, more: usize) {
        self.done += more;
        if let Some(bar) = &self.bar {
            bar.inc(more as u64);
        } else if self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            let left = (self.total - self.done) as f64 / self.per_second().max(1e-9);
            let (done, total, unit) = (self.done, self.total, self.unit);
            eprintln!("{done} of {total} {unit}, {}, ETA {left:.0} s", self.rate());
        }
    }

    /// Rows or documents per second, with the unit.
    pub(crate) fn rate(&self) -> String {
        let rate = self.per_second();
        let decimals = usize::from(rate < 100.0);
        format!("{rate:.decimals$} {}/s", self.unit)
    }

    fn per_second(&self) -> f64 {
        (self.done - self.before) as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
