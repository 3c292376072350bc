//! Ctrl-C and SIGTERM: the first asks for a stop that leaves only whole shards, the second ends the process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The signal that was caught, if any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicUsize>);

impl Stop {
    /// Starts to catch the signals.
    pub(crate) fn watch() -> io::Result<Self> {
        let stop = Self::default();
        let second = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(signal, 128 + signal, second.clone())?;
            flag::register(signal, second.clone())?;
            flag::register_usize(signal, stop.0.clone(), signal as usize)?;
        }
        Ok(stop)
    }

    /// The number of the caught signal.
    pub(crate) fn caught(&self) -> Option<i32> {
        match self.0.load(Ordering::Relaxed) as i32 {
            0 => None,
            signal => Some(signal),
        }
    }
}
