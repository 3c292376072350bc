//! How far an encoding is: a bar on a terminal, a line now and then elsewhere. Both go to standard error.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two lines.
const EVERY: Duration = Duration::from_secs(10);

/// Shows progress.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    rows: usize,
    done: usize,
    /// Rows that were there before.
    before: usize,
    started: Instant,
    last: Instant,
}

impl Progress {
    /// Of `rows` rows, `done` are done.
    pub(crate) fn new(rows: usize, done: usize) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "encoding {wide_bar} {human_pos} of {human_len} rows, {per_sec}, ETA {eta}",
            );
            let bar = ProgressBar::new(rows as u64);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(done as u64);
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            rows,
            done,
            before: done,
            started: now,
            last: now,
        }
    }

    /// `rows` more are done.
    pub(crate) fn add(&mut self, rows: usize) {
        self.done += rows;
        match &self.bar {
            Some(bar) => bar.inc(rows as u64),
            None if self.last.elapsed() >= EVERY => {
                self.last = Instant::now();
                eprintln!(
                    "{} of {} rows, {:.0} rows/s",
                    self.done,
                    self.rows,
                    self.rate()
                );
            }
            None => {}
        }
    }

    /// Rows per second.
    pub(crate) fn rate(&self) -> f64 {
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
