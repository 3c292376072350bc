//! Integration tests of `sae-data`, one binary.
#![allow(clippy::unwrap_used)] // a test may

mod class_head;
mod convert;
mod formats;
mod fuzz;
mod limit;
mod loader;
mod meanings;
#[cfg(feature = "parquet")]
mod parquet;
mod reading;
mod safetensors;
mod shared;
mod split;
mod summary;
mod truth;

use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use ::safetensors::tensor::TensorView;
use sae_data::DataConfig;

/// Writes a safetensors file of the given tensors.
fn write(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (
            *name,
            TensorView::new(*dtype, shape.clone(), bytes).expect("a consistent tensor"),
        )
    });
    let bytes = ::safetensors::serialize(views, None).expect("serialized");
    std::fs::write(path, bytes).expect("written");
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A file of `rows` rows whose entries are their row number.
fn numbered(dir: &Path, rows: usize, width: usize) -> PathBuf {
    let values: Vec<f32> = (0..rows * width).map(|i| (i / width) as f32).collect();
    let path = dir.join("numbered.safetensors");
    write(
        &path,
        &[(
            "activations",
            Dtype::F32,
            vec![rows, width],
            f32_bytes(&values),
        )],
    );
    path
}

/// The config that names nothing but its data.
fn config(train: &Path) -> DataConfig {
    serde_json::from_value(serde_json::json!({ "train": train })).expect("a config")
}

/// Writes a `.npy` file as NumPy does.
fn npy(path: &Path, descr: &str, shape: &[usize], values: &[u8]) {
    let shape: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    header += &" ".repeat(63 - (header.len() + 10) % 64);
    header.push('\n');
    let len = u16::try_from(header.len())
        .expect("a short header")
        .to_le_bytes();
    let bytes = [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), values].concat();
    std::fs::write(path, bytes).expect("written");
}
