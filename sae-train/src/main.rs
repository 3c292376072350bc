//! The binary `sae-train`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sae_train::cli::main()
}
