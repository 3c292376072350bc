//! Tests of the operations, on every device that this build and machine have.

mod attention;
mod codes;
mod rows;

use std::io::Write;

use burn::tensor::{Device, Tensor, TensorData};

use crate::device::{DeviceError, DeviceName};

/// Every device that this build and machine have. Reports each device that is skipped.
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

fn tensor(values: &[f32], width: usize, device: &Device) -> Tensor<2> {
    let data = TensorData::new(values.to_vec(), [values.len() / width, width]);
    Tensor::from_data(data, device)
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("a float32 tensor")
}

/// Numbers between -1 and 1 without a pattern; `seed` determines them.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
