//! Files that survive a crash: [`atomic_file`] writes one file whole or not at all, [`sealed`] does the same for
//! several files that belong together and protects them with checksums.
//!
//! The crate knows neither the model nor the data, and compiles in seconds.

pub mod atomic_file;
pub mod sealed;
