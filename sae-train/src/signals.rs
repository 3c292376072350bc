//! Ctrl-C and SIGTERM: the first asks training to stop behind a checkpoint, the second ends the process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Which signal has been caught.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signals {
    caught: Arc<AtomicUsize>,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn watch() -> io::Result<Self> {
        let signals = Self::default();
        let second = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(signal, 128 + signal, second.clone())?;
            flag::register(signal, second.clone())?;
            flag::register_usize(signal, signals.caught.clone(), signal as usize)?;
        }
        Ok(signals)
    }

    /// The caught signal's name, and the exit code that goes with it.
    pub(crate) fn caught(&self) -> Option<(&'static str, u8)> {
        match self.caught.load(Ordering::Relaxed) as i32 {
            SIGINT => Some(("stopped by Ctrl-C", 130)),
            SIGTERM => Some(("stopped by SIGTERM", 143)),
            _ => None,
        }
    }
}

/// Burn's dashboard puts the terminal into raw mode, where Ctrl-C is a key that it ignores: makes it a signal
/// again.
pub(crate) fn let_ctrl_c_through() {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let terminal = rustix::stdio::stdin();
    if let Ok(mut settings) = tcgetattr(terminal) {
        settings.local_modes |= LocalModes::ISIG;
        if let Err(error) = tcsetattr(terminal, OptionalActions::Now, &settings) {
            tracing::warn!("Ctrl-C will not be noticed ({error}); stop with q");
        }
    }
}
