//! Integration tests of `sae-model`, one binary.
#![allow(clippy::unwrap_used)] // a test may

mod adam;
mod baselines;
mod fuzz;
mod golden;
mod gradients;
mod masked;
mod refinement;
mod saved;
mod untrusted;

use std::io::Write;

use burn::tensor::{Device, Tensor};
use sae_model::device::{DeviceError, DeviceName};

/// Every device that this build and machine have; says loudly which it had to leave out.
fn devices() -> Vec<(DeviceName, Device)> {
    [DeviceName::Cpu, DeviceName::NdArray, DeviceName::Wgpu(None)]
        .into_iter()
        .filter_map(|name| match name.open() {
            Ok(device) => Some((name, device)),
            Err(DeviceError::NotCompiled { .. }) => None,
            Err(error) => {
                // not eprintln!: the test harness would swallow it
                let _ = writeln!(std::io::stderr(), "SKIPPED the tests on {name}: {error}");
                None
            }
        })
        .collect()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}
