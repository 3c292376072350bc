//! Integration tests of `sae-model`, one binary.
#![allow(clippy::unwrap_used)] // tests may unwrap

mod adam;
mod architectures;
mod fuzz;
mod golden;
mod gradients;
mod masked;
mod refinement;
mod saved;
mod untrusted;

use std::io::Write;

use burn::tensor::{Device, Tensor, TensorData};
use sae_model::AnyArchitecture;
use sae_model::Architecture;
use sae_model::device::{DeviceError, DeviceName};
use serde_json::{Map, Value};

/// Every device that this build and machine have. Reports each device that is skipped.
fn devices() -> Vec<(DeviceName, Device)> {
    DeviceName::every()
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

/// Reproducible rows of numbers between -1 and 1.
fn pattern_rows(shape: [usize; 2], device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..shape[0] * shape[1])
        .map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0)
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}

/// The architecture with this switch set, if it has the switch.
fn with(architecture: &AnyArchitecture, key: &str, value: impl Into<Value>) -> AnyArchitecture {
    match architecture.switches().contains_key(key) {
        true => architecture
            .with(Map::from_iter([(key.to_string(), value.into())]))
            .expect("a value of its type"),
        false => architecture.clone(),
    }
}
