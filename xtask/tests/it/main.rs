//! Tests of the `xtask` program as a process.

#![allow(clippy::unwrap_used)]

#[cfg(unix)]
mod guide;
#[cfg(unix)]
mod science;
#[cfg(unix)]
mod watch;
