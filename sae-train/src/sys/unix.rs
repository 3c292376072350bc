//! Linux and macOS.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// A signal that stops training with a checkpoint, and its message.
pub(crate) type Ending = (i32, &'static str);

/// The signals to catch, without SIGHUP if the process was started to ignore it (`nohup`).
pub(crate) fn endings() -> Vec<Ending> {
    let mut endings = vec![
        (SIGINT, "stopped by Ctrl-C"),
        (SIGTERM, "stopped by SIGTERM"),
    ];
    if !is_ignored(SIGHUP) {
        endings.push((SIGHUP, "stopped by SIGHUP (the terminal is gone)"));
    }
    endings
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: all zeros is a valid `sigaction`; the call gets a valid pointer to it, changes no disposition (the new
    // one is null), and has filled it in if it returns 0.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut now) == 0
            && now.sa_sigaction == libc::SIG_IGN
    }
}

/// Makes Ctrl-C a signal again: Burn's dashboard puts the terminal into raw mode, where it is a key that Burn ignores.
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
