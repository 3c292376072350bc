//! True concepts and their strengths: valid ones are loaded, others are errors with their key.

use std::path::Path;

use sae_data::DataConfig;
use sae_data::config::HeldOut;

use crate::{config, f32_bytes, npy, numbered};

/// 40 training rows and 6 held-out rows of width 3, with two concepts.
fn known(dir: &Path) -> DataConfig {
    let concepts = dir.join("concepts.npy");
    let values = [1.0, 0.0, 0.0, 0.0, 2.0, 0.0];
    npy(&concepts, "<f4", &[2, 3], &f32_bytes(&values));
    let held_out = dir.join("held_out.npy");
    npy(&held_out, "<f4", &[6, 3], &f32_bytes(&[1.0; 18]));
    DataConfig {
        held_out: HeldOut::Path(held_out),
        true_concepts: Some(concepts),
        ..config(&numbered(dir, 40, 3))
    }
}

fn codes(dir: &Path, rows: usize, concepts: usize) -> DataConfig {
    let path = dir.join("codes.npy");
    let values = vec![0.5; rows * concepts];
    npy(&path, "<f4", &[rows, concepts], &f32_bytes(&values));
    DataConfig {
        true_codes: Some(path),
        ..known(dir)
    }
}

fn refused(config: &DataConfig, expected: &[&str]) {
    let split = config.open().unwrap();
    let error = config.truth(&split).unwrap_err().to_string();
    for part in expected {
        assert!(error.contains(part), "{error} has no {part}");
    }
}

#[test]
fn valid_concepts_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let plain = config(&numbered(dir.path(), 40, 3));
    let split = plain.open().unwrap();
    assert!(plain.truth(&split).unwrap().is_none());
    let config = codes(dir.path(), 6, 2);
    let truth = config.truth(&config.open().unwrap()).unwrap().unwrap();
    assert_eq!((truth.count, truth.concepts.len()), (2, 6));
    assert_eq!(truth.codes.unwrap().rows(), 6);
}

#[test]
fn invalid_files_are_errors_with_their_key() {
    let dir = tempfile::tempdir().unwrap();
    refused(
        &codes(dir.path(), 5, 2),
        &["data.true_codes", "5 rows", "6 rows"],
    );
    refused(
        &codes(dir.path(), 6, 3),
        &["data.true_codes", "3 strengths"],
    );
    let alone = DataConfig {
        true_concepts: None,
        ..codes(dir.path(), 6, 2)
    };
    refused(&alone, &["data.true_codes", "give data.true_concepts"]);
    let part = DataConfig {
        held_out: HeldOut::default(),
        ..codes(dir.path(), 6, 2)
    };
    refused(&part, &["data.true_codes", "data.held_out as a path"]);
    let missing = DataConfig {
        true_concepts: Some(dir.path().join("none.npy")),
        ..known(dir.path())
    };
    refused(&missing, &["data.true_concepts", "no such file"]);
    let config = known(dir.path());
    let path = config.true_concepts.clone().unwrap();
    npy(&path, "<f4", &[2, 2], &f32_bytes(&[1.0; 4]));
    refused(&config, &["data.true_concepts", "width 2"]);
    npy(
        &path,
        "<f4",
        &[2, 3],
        &f32_bytes(&[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    );
    refused(&config, &["data.true_concepts", "row 1 has no direction"]);
}
