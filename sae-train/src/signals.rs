//! Ctrl-C, SIGTERM and SIGHUP: the first asks training to stop behind a checkpoint, the second ends the process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::flag;

use crate::sys;

/// Which signal has been caught.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signals {
    caught: Arc<AtomicUsize>,
    watched: Arc<Vec<sys::Ending>>,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn watch() -> io::Result<Self> {
        let signals = Self {
            caught: Arc::default(),
            watched: sys::endings().into(),
        };
        let second = Arc::new(AtomicBool::new(false));
        for (signal, _) in signals.watched.iter() {
            flag::register_conditional_shutdown(*signal, 128 + signal, second.clone())?;
            flag::register(*signal, second.clone())?;
            flag::register_usize(*signal, signals.caught.clone(), *signal as usize)?;
        }
        Ok(signals)
    }

    /// What is to be said of the caught signal, and the exit code that goes with it.
    pub(crate) fn caught(&self) -> Option<(&'static str, u8)> {
        let caught = self.caught.load(Ordering::Relaxed) as i32;
        let ending = self.watched.iter().find(|(signal, _)| *signal == caught);
        ending.map(|(signal, what)| (*what, 128 + *signal as u8))
    }
}
