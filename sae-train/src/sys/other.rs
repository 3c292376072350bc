//! Windows.

use signal_hook::consts::{SIGINT, SIGTERM};

/// A signal that ends training behind a checkpoint, and what is said of it.
pub(crate) type Ending = (i32, &'static str);

/// The signals to catch.
pub(crate) fn endings() -> Vec<Ending> {
    vec![
        (SIGINT, "stopped by Ctrl-C"),
        (SIGTERM, "stopped by SIGTERM"),
    ]
}

/// In the dashboard Ctrl-C is a key here, and `q` stops.
pub(crate) fn let_ctrl_c_through() {}
