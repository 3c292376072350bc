//! All printing is here, for three reasons: if the reader goes away (`| head`), training must stop with a checkpoint,
//! not with a panic in the thread that prints next; nothing may be printed into the dashboard; and messages held back
//! while the dashboard is open must appear afterwards.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// True once the reader of standard output has gone.
static CLOSED: AtomicBool = AtomicBool::new(false);
/// Output held back until the dashboard closes; `None` without a dashboard.
static HELD: Mutex<Option<Vec<u8>>> = Mutex::new(None);

fn held() -> MutexGuard<'static, Option<Vec<u8>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a line on standard output.
pub(crate) fn say(line: impl AsRef<str>) {
    let mut out = io::stdout().lock();
    let printed = writeln!(out, "{}", line.as_ref()).and_then(|()| out.flush());
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
    let _ = writeln!(Stderr, "{}", line.as_ref());
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
        match held().as_mut() {
            Some(waiting) => waiting.extend_from_slice(bytes),
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
