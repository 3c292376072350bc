//! How far the pass over documents is: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two lines where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// Shows progress.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    documents: usize,
    done: usize,
    before: usize,
    started: Instant,
    told: Instant,
}

impl Progress {
    pub(super) fn new(documents: usize, done: usize) -> Self {
        if done > 0 {
            eprintln!("{done} of {documents} documents are done already");
        }
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "the rest of the model {wide_bar} {human_pos} of {human_len} documents, {per_sec}, ETA {eta}",
            );
            let bar = ProgressBar::new(documents as u64);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(done as u64);
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            documents,
            done,
            before: done,
            started: now,
            told: now,
        }
    }

    pub(super) fn add(&mut self, documents: usize) {
        self.done += documents;
        if let Some(bar) = &self.bar {
            bar.inc(documents as u64);
        } else if self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            eprintln!("{}", self.said());
        }
    }

    fn said(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = (self.done - self.before) as f64 / seconds.max(1e-9);
        format!(
            "{} of {} documents, {rate:.1} documents/s, ETA {:.0} s",
            self.done,
            self.documents,
            (self.documents - self.done) as f64 / rate.max(1e-9)
        )
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.done > self.before {
            eprintln!("the rest of the model: {}", self.said());
        }
    }
}
