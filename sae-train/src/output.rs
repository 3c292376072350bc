//! All printing is here, for four reasons: if the reader goes away (`| head`), training must stop with a checkpoint,
//! not with a panic in the thread that prints next; nothing may be printed into the dashboard; messages held back
//! while the dashboard is open must appear afterwards; and of several runs in one process, a line says which it is about.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::MultiProgress;

/// True once the reader of standard output has gone.
static CLOSED: AtomicBool = AtomicBool::new(false);
/// Output held back until the dashboard closes; `None` without a dashboard.
static HELD: Mutex<Option<Vec<u8>>> = Mutex::new(None);

/// The table of a sweep, while a terminal shows it: lines are printed above it.
static TABLE: Mutex<Option<MultiProgress>> = Mutex::new(None);

thread_local! {
    /// The run that this thread trains, if it is one of several.
    static RUN: RefCell<Option<Arc<str>>> = const { RefCell::new(None) };
}

/// Who a line is about: one run of several, or nobody in particular.
#[derive(Clone, Debug, Default)]
pub(crate) struct Speaker(Option<Arc<str>>);

impl Speaker {
    /// The one that this thread speaks for.
    pub(crate) fn here() -> Self {
        Self(RUN.with_borrow(Clone::clone))
    }

    /// Prints a line on standard output.
    pub(crate) fn say(&self, line: impl AsRef<str>) {
        let line = self.named(line.as_ref());
        above_table(|| print(&line));
    }

    fn named(&self, line: &str) -> String {
        match &self.0 {
            Some(run) => format!("{run}: {line}"),
            None => line.into(),
        }
    }
}

/// This thread speaks for one of several runs from now on.
pub(crate) fn speak_for(run: &str) {
    RUN.set(Some(run.into()));
}

/// Shows a table, or no more.
pub(crate) fn show_table(table: Option<MultiProgress>) {
    *TABLE.lock().unwrap_or_else(PoisonError::into_inner) = table;
}

fn above_table(print: impl FnOnce()) {
    match &*TABLE.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(table) => table.suspend(print),
        None => print(),
    }
}

fn held() -> MutexGuard<'static, Option<Vec<u8>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a line on standard output, for the run of this thread.
pub(crate) fn say(line: impl AsRef<str>) {
    Speaker::here().say(line);
}

fn print(line: &str) {
    let mut out = io::stdout().lock();
    let printed = writeln!(out, "{line}").and_then(|()| out.flush());
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            CLOSED.store(true, Ordering::Relaxed);
        }
        // for example a full disk under a log: the run matters more than its lines
        Err(error) => tracing::debug!("standard output: {error}"),
        Ok(()) => {}
    }
}

/// Prints a line on standard error, or keeps it until the dashboard is closed.
pub(crate) fn complain(line: impl AsRef<str>) {
    let line = Speaker::here().named(line.as_ref());
    let _ = Stderr.write_all(format!("{line}\n").as_bytes());
}

/// Returns true if the reader of standard output has gone.
pub(crate) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Holds standard error back from now on: the dashboard has the terminal.
pub(crate) fn hold() {
    held().get_or_insert_default();
}

/// Prints what was held back, after the dashboard has closed.
pub(crate) fn release() {
    if let Some(waiting) = held().take() {
        let _ = io::stderr().write_all(&waiting);
    }
}

/// Standard error, as the log and [`complain`] write to it.
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = Ok(bytes.len());
        match held().as_mut() {
            Some(waiting) => waiting.extend_from_slice(bytes),
            None => above_table(|| {
                let all = io::stderr().write_all(bytes);
                written = all.map(|()| bytes.len());
            }),
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
