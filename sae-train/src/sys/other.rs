//! Windows.

use signal_hook::consts::{SIGINT, SIGTERM};

/// A signal that stops training with a checkpoint, and its message.
pub(crate) type Ending = (i32, &'static str);

/// The signals to catch.
pub(crate) fn endings() -> Vec<Ending> {
    vec![
        (SIGINT, "stopped by Ctrl-C"),
        (SIGTERM, "stopped by SIGTERM"),
    ]
}

/// Does nothing: here Ctrl-C stays a key in the dashboard; `q` stops training.
pub(crate) fn let_ctrl_c_through() {}
