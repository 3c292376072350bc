//! The files that a run leaves on disk, and how they are kept whole.
//!
//! [`RunDir`] knows the files of a run directory, [`Provenance`] says where the numbers of a run come from, [`Usage`] how much
//! time and memory it needed, [`FREE_TO_CHANGE`] which keys of its config change no number.
//! [`atomic_file`] writes one file whole or not at all; [`sealed`] does the same for several files that belong
//! together and protects them with checksums. [`checkpoints`] finds the checkpoint that is meant by "best".
//!
//! The crate knows neither the model nor the data, and compiles in seconds.

pub mod atomic_file;
pub mod checkpoints;
pub mod sealed;

mod free_keys;
mod provenance;
mod run_dir;
mod usage;

pub use free_keys::FREE_TO_CHANGE;
pub use provenance::{Origin, Provenance, Raise, Sides, on_card};
pub use run_dir::{FileError, RunDir, read_text};
pub use usage::{Usage, peak_memory};
