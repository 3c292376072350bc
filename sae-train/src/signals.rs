//! Ctrl-C, SIGTERM and SIGHUP: the first signal asks training to save a checkpoint and stop, the second ends the
//! process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::flag;

use crate::sys;

/// The signal that was caught, if any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signals {
    caught: Arc<AtomicUsize>,
    watched: Arc<Vec<sys::Ending>>,
}

impl Signals {
    /// Starts to catch the signals.
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

    /// Message and exit code of the caught signal.
    pub(crate) fn caught(&self) -> Option<(&'static str, u8)> {
        let caught = self.caught.load(Ordering::Relaxed) as i32;
        let ending = self.watched.iter().find(|(signal, _)| *signal == caught);
        ending.map(|(signal, what)| (*what, 128 + *signal as u8))
    }
}
