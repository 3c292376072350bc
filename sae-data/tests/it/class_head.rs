//! Class embeddings and names: valid ones are loaded, others are errors with their key.

use std::path::{Path, PathBuf};

use sae_data::DataConfig;

use crate::{config, f32_bytes, npy, numbered};

const ROWS: usize = 40;

/// Data of width 3 with these labels and embeddings of three classes.
fn labelled(dir: &Path, labels: &[u8; ROWS]) -> DataConfig {
    let path = dir.join("labels.npy");
    npy(&path, "|u1", &[ROWS], labels);
    let embeddings = dir.join("e.npy");
    npy(
        &embeddings,
        "<f4",
        &[3, 3],
        &f32_bytes(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
    );
    DataConfig {
        labels: Some(path),
        class_embeddings: Some(embeddings),
        ..config(&numbered(dir, ROWS, 3))
    }
}

fn names(dir: &Path, text: &str) -> Option<PathBuf> {
    let path = dir.join("names.json");
    std::fs::write(&path, text).unwrap();
    Some(path)
}

#[test]
fn valid_embeddings_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let config = labelled(dir.path(), &[2; ROWS]);
    let split = config.open().unwrap();
    let head = config.class_head(&split).unwrap().unwrap();
    assert_eq!((head.width, head.embeddings.len()), (3, 9));
    assert_eq!(head.names, ["0", "1", "2"]);
    let class_names = names(dir.path(), r#"["a", "b", "c"]"#);
    let named = DataConfig {
        class_names,
        ..config
    };
    assert_eq!(
        named.class_head(&split).unwrap().unwrap().names,
        ["a", "b", "c"]
    );
}

#[test]
fn a_missing_head_has_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let config = labelled(dir.path(), &[0; ROWS]);
    let unlabelled = DataConfig {
        labels: None,
        ..config.clone()
    };
    let why = unlabelled
        .class_head(&unlabelled.open().unwrap())
        .unwrap()
        .unwrap_err();
    assert!(why.ends_with("has no labels"), "{why}");
    let without = DataConfig {
        class_embeddings: None,
        ..config
    };
    let why = without
        .class_head(&without.open().unwrap())
        .unwrap()
        .unwrap_err();
    assert!(why.contains("data.class_embeddings"), "{why}");
}

#[test]
fn invalid_files_are_errors_with_their_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut labels = [0; ROWS];
    labels[17] = 3;
    let good = labelled(dir.path(), &[0; ROWS]);
    let split = good.open().unwrap();
    let wide = dir.path().join("wide.npy");
    npy(&wide, "<f4", &[3, 4], &f32_bytes(&[1.0; 12]));
    let long = names(dir.path(), "[]");
    std::fs::File::options()
        .write(true)
        .open(long.as_ref().unwrap())
        .unwrap()
        .set_len(17 << 20)
        .unwrap();
    let refused = |config: &DataConfig| config.class_head(&split).unwrap_err().to_string();
    let with = |class_names| DataConfig {
        class_names,
        ..good.clone()
    };
    let long = refused(&with(long));
    assert!(
        long.starts_with("data.class_names = ") && long.contains("longer than 16 MiB"),
        "{long}"
    );
    let two = refused(&with(names(dir.path(), r#"["a", "b"]"#)));
    assert!(
        two.starts_with("data.class_names = ") && two.contains("2 names for 3"),
        "{two}"
    );
    let text = refused(&with(names(dir.path(), "a, b, c")));
    assert!(text.contains("not a JSON list of strings"), "{text}");
    let missing = refused(&with(Some("nowhere.json".into())));
    assert!(
        missing.starts_with("data.class_names = \"nowhere.json\": no such file"),
        "{missing}"
    );
    let wide = refused(&DataConfig {
        class_embeddings: Some(wide),
        ..good.clone()
    });
    assert!(
        wide.starts_with("data.class_embeddings = ") && wide.contains("width 4, the activations 3"),
        "{wide}"
    );
    let stranger = labelled(dir.path(), &labels);
    let message = stranger
        .class_head(&stranger.open().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("data.class_embeddings = ") && message.contains("row 17 "),
        "{message}"
    );
    assert!(message.contains("has label 3"), "{message}");
}
