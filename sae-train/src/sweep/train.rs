//! Trains the passes of a sweep, one after the other, and says how each run ended.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};
use sae_data::Share;

use super::PreparedSweep;
use crate::failure::{Failure, code_of, message};
use crate::output::{self, say};
use crate::prepare::Prepared;
use crate::progress::Row;
use crate::signals::Signals;
use crate::steps::READER_GONE;
use crate::train::Place;

/// Stack of a run's thread, in bytes: as the main thread of a process has.
const STACK: usize = 8 << 20;
/// Steps of a turn: so often a model is used before others push it out of the processor's cache.
const TURN: usize = 8;
/// Memory for the batches of a turn, in bytes: larger ones make shorter turns.
const TURN_BYTES: usize = 64 << 20;
/// The exit code if runs fail for several reasons.
const SEVERAL: u8 = 12;

/// How a run has ended.
enum End {
    Trained,
    /// It was asked to stop, and by what, with this exit code.
    Stopped(&'static str, u8),
    /// It has failed, with this exit code.
    Failed(u8),
}

impl PreparedSweep {
    /// All runs.
    pub(crate) fn runs_mut(&mut self) -> impl Iterator<Item = &mut Prepared> {
        self.passes.iter_mut().flatten()
    }

    /// Trains all runs. A run that fails ends alone; an error at the end says which have.
    pub(crate) fn train(self, plain: bool) -> Result<()> {
        let signals = Signals::watch().context("watching for Ctrl-C")?;
        std::fs::create_dir_all(&self.dir).map_err(Failure::write(&self.dir))?;
        crate::logging::start(&self.dir.join("train.log"))?;
        self.announce();
        let started = Instant::now();
        let mut ends = Vec::new();
        let (of, table) = (self.passes.len(), !plain && std::io::stdout().is_terminal());
        for (at, pass) in self.passes.into_iter().enumerate() {
            let closed = output::is_closed().then_some((READER_GONE, 141));
            if let Some((what, code)) = signals.caught().or(closed) {
                ends.extend(pass.iter().map(|run| (name(run), End::Stopped(what, code))));
                continue;
            }
            let title = format!("sweep {}, pass {} of {of}", self.name, at + 1);
            ends.extend(train_pass(pass, &signals, table.then_some(title)));
        }
        let trained = ends.iter().filter(|(_, end)| matches!(end, End::Trained));
        say(format!(
            "sweep {}: {} of {} runs trained, in {:.1} s",
            self.name,
            trained.count(),
            ends.len(),
            started.elapsed().as_secs_f64(),
        ));
        if let Some(failure) = failure(&ends) {
            return Err(failure.into());
        }
        say(format!("report: cargo xtask eval {}", self.dir.display()));
        Ok(())
    }

    /// Prints what is trained, with warnings about the data.
    fn announce(&self) {
        let runs = self.passes.iter().map(Vec::len).sum::<usize>();
        let passes = match self.passes.len() {
            1 => "one pass over the data".into(),
            more => format!("{more} passes over the data"),
        };
        let first = &self.passes[0][0];
        say(format!(
            "sweep {}: {runs} runs, {passes}, {}",
            self.name,
            first.of_data()
        ));
        let runs = || self.passes.iter().flatten();
        let devices: BTreeMap<usize, &str> = runs()
            .filter(|run| run.threads.is_none())
            .map(|run| (run.lane, run.config.device.as_str()))
            .collect();
        if devices.len() > 1 {
            let devices: Vec<&str> = devices.into_values().collect();
            say(format!("devices: {}", devices.join(", ")));
        }
        if let Some(threads) = runs().filter_map(|run| run.threads).min() {
            let lanes = runs().map(|run| run.lane + 1).max().unwrap_or(1);
            let each = match threads.get() {
                1 => "1 thread".into(),
                more => format!("{more} threads"),
            };
            say(format!("up to {lanes} runs at a time, with {each} each"));
        }
        if self.seeds_apart {
            say(
                "note: each seed has an order of its own, and a pass; data.order_seed = 0 gives all seeds one order",
            );
        }
        first.say_left_out();
        first.say_notes();
    }
}

fn name(run: &Prepared) -> String {
    run.config.run_name().into()
}

/// Steps of a turn; all runs of a pass have batches of one size.
fn turn(run: &Prepared) -> usize {
    let numbers = run.config.training.batch_size * run.data.train.width();
    (TURN_BYTES / (numbers * size_of::<f32>())).clamp(1, TURN)
}

/// Trains the runs of a pass, and shows a table with this title if there is one.
fn train_pass(pass: Vec<Prepared>, signals: &Signals, title: Option<String>) -> Vec<(String, End)> {
    let names: Vec<String> = pass.iter().map(name).collect();
    // held until all have ended: a row that is dropped disappears
    let table = title.map(|title| table(&title, &names));
    let rows: Vec<Option<Row>> = match &table {
        Some((_, rows)) => rows.iter().cloned().map(Some).collect(),
        None => vec![None; names.len()],
    };
    let places = pass.iter().map(|run| (run.steps_done(), run.lane));
    let places: Vec<(usize, usize)> = places.collect();
    let steps = pass.iter().map(|run| run.config.training.steps).max();
    let turn = pass.first().map_or(1, turn);
    let shares = Share::of_pass(steps.unwrap_or(0), &places, turn);
    // All seats are taken before anybody begins: those of threads that cannot start are given up.
    let seats: Vec<_> = shares.iter().map(Share::seat).collect();
    let ends = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (((run, share), seat), row) in pass.into_iter().zip(shares).zip(seats).zip(rows) {
            let place = Place {
                signals: signals.clone(),
                use_tui: false,
                share: Some(share),
                row,
            };
            let thread = thread::Builder::new()
                .name(name(&run))
                .stack_size(STACK)
                .spawn_scoped(scope, move || {
                    on_own_threads(run.threads, move || {
                        seat.begin();
                        train_run(run, &place)
                    })
                });
            threads.push(thread);
        }
        threads.into_iter().map(joined).collect::<Vec<_>>()
    });
    if let Some((head, _)) = &table {
        head.abandon();
    }
    output::show_table(None);
    names.into_iter().zip(ends).collect()
}

/// Trains with so many threads of its own, or with those of the program.
fn on_own_threads(threads: Option<NonZeroUsize>, train: impl FnOnce() -> End + Send) -> End {
    let Some(threads) = threads else {
        return train();
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get());
    match pool.stack_size(STACK).build() {
        Ok(pool) => pool.install(train),
        Err(error) => {
            output::complain(format!("error: a thread cannot be started: {error}"));
            End::Failed(1)
        }
    }
}

/// The end of a run whose thread has ended, or has not started.
fn joined(thread: std::io::Result<ScopedJoinHandle<'_, End>>) -> End {
    let ended = match thread {
        Ok(thread) => thread.join().map_err(|_| anyhow!("a thread has panicked")),
        Err(error) => Err(anyhow!("a thread cannot be started: {error}")),
    };
    ended.unwrap_or_else(|error| {
        output::complain(format!("error: {}", message(&error)));
        End::Failed(1)
    })
}

/// Trains a run in its thread, and says what is wrong if it fails.
fn train_run(run: Prepared, place: &Place) -> End {
    output::speak_for(run.config.run_name());
    let result = run.train_in(place);
    let (end, how) = match result {
        Ok(()) => (End::Trained, "trained".to_string()),
        Err(error) => match error.downcast_ref::<Failure>() {
            Some(Failure::Stopped { what, code, .. }) => {
                (End::Stopped(what, *code), "stopped".to_string())
            }
            _ => {
                let message = message(&error);
                output::complain(format!("error: {message}"));
                (End::Failed(code_of(&error).unwrap_or(1)), message)
            }
        },
    };
    if let Some(row) = &place.row {
        row.end(&how);
    }
    end
}

/// Shows a table: its head, and a row for each run.
fn table(title: &str, names: &[String]) -> (ProgressBar, Vec<Row>) {
    let table = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
    let style = indicatif::ProgressStyle::with_template("{msg}  {elapsed}");
    let head = table.add(ProgressBar::new_spinner().with_message(title.to_string()));
    head.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_spinner()));
    head.enable_steady_tick(std::time::Duration::from_secs(1));
    let widest = names.iter().map(String::len).max().unwrap_or(0);
    let row = |name: &String| Row::new(&table, &format!("{name:widest$}"));
    let rows = names.iter().map(row).collect();
    output::show_table(Some(table));
    (head, rows)
}

/// What is wrong with a sweep, if anything is.
fn failure(ends: &[(String, End)]) -> Option<Failure> {
    let failed = ends.iter().filter_map(|(name, end)| match end {
        End::Failed(code) => Some((name.as_str(), *code)),
        _ => None,
    });
    let (names, codes): (Vec<&str>, Vec<u8>) = failed.unzip();
    let mut what = Vec::new();
    let stopped = ends.iter().find_map(|(_, end)| match end {
        End::Stopped(what, code) => Some((*what, *code)),
        _ => None,
    });
    if let Some((stop, _)) = stopped {
        what.push(format!(
            "{stop}; checkpoints are kept, continue with --resume"
        ));
    }
    if !names.is_empty() {
        let (some, all) = (names.len(), ends.len());
        what.push(format!(
            "{some} of {all} runs have failed: {}",
            names.join("; ")
        ));
    }
    let code = match (stopped, &codes[..]) {
        (Some((_, code)), _) => code,
        (None, []) => return None,
        (None, [first, rest @ ..]) if rest.iter().all(|code| code == first) => *first,
        _ => SEVERAL,
    };
    let what = what.join("; ");
    Some(Failure::Sweep { what, code })
}
