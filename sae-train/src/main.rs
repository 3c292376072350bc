//! The binary `sae-train`.

use std::process::ExitCode;

/// Burn's device of programs that name none.
const DEFAULT_DEVICE: &str = "BURN_DEVICE";

fn main() -> ExitCode {
    // Burn reads the optimizer of a checkpoint onto its default device, which is CUDA where that is compiled in, whether the machine
    // has it or not. From the processor it goes to the device of the run.
    if std::env::var_os(DEFAULT_DEVICE).is_none() {
        // SAFETY: this is the first statement of the process, which has started no other thread.
        unsafe { std::env::set_var(DEFAULT_DEVICE, "flex") };
    }
    sae_train::cli::main()
}
