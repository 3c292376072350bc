//! The binary `sae-eval`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sae_eval::cli::main()
}
