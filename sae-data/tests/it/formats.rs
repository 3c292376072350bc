//! Data sets written by the usual packages: read row for row, or refused with a message.
//!
//! `tests/python/write_formats.py` writes them. It needs a Python with `tests/python/requirements.txt`, named in
//! SAE_PYTHON, as in `.ci/run`; without it these tests print that they were skipped.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sae_data::{ActivationData, Documents, Options};
use serde::Deserialize;

#[derive(Deserialize, Default)]
struct Given {
    tensor: Option<String>,
    layer: Option<i64>,
    #[serde(default)]
    drop_first_token: bool,
    labels: Option<PathBuf>,
}

impl Given {
    fn options(&self, root: &Path) -> Options {
        Options {
            tensor: self.tensor.clone(),
            layer: self.layer,
            drop_first_token: self.drop_first_token,
            labels: self.labels.as_ref().map(|path| root.join(path)),
        }
    }
}

#[derive(Deserialize)]
struct Expected {
    name: String,
    path: PathBuf,
    options: Given,
    rows: usize,
    width: usize,
    values: PathBuf,
    labels: Option<PathBuf>,
    documents: Option<Vec<usize>>,
    tokens: Option<Vec<i64>>,
}

#[derive(Deserialize)]
struct Refused {
    name: String,
    path: PathBuf,
    options: Given,
    says: Vec<String>,
}

/// The data sets, written once for all tests; `None` without Python.
fn written() -> Option<&'static Path> {
    static WRITTEN: OnceLock<Option<tempfile::TempDir>> = OnceLock::new();
    let dir = WRITTEN.get_or_init(|| {
        let Some(python) = std::env::var_os("SAE_PYTHON") else {
            // not eprintln!: the test harness would swallow it
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED the data sets of other packages: SAE_PYTHON is not set"
            );
            return None;
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/write_formats.py");
        let output = Command::new(python)
            .arg(script)
            .arg(dir.path())
            .output()
            .expect("Python runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(dir)
    });
    dir.as_ref().map(tempfile::TempDir::path)
}

fn manifest<T: for<'de> Deserialize<'de>>(root: &Path, name: &str) -> Vec<T> {
    let text = std::fs::read(root.join(name)).expect("a manifest");
    let mut entries: Vec<serde_json::Value> = serde_json::from_slice(&text).expect("a list");
    assert!(entries.len() > 100, "{name}: {} entries", entries.len());
    let of_parquet = |entry: &serde_json::Value| entry["path"].to_string().contains("parquet");
    entries.retain(|entry| cfg!(feature = "parquet") || !of_parquet(entry));
    let entry = |entry| serde_json::from_value(entry).expect("an entry");
    entries.into_iter().map(entry).collect()
}

fn words<const N: usize>(path: &Path) -> Vec<[u8; N]> {
    std::fs::read(path)
        .expect("values")
        .as_chunks::<N>()
        .0
        .to_vec()
}

fn starts(documents: &Documents) -> Vec<usize> {
    (0..documents.count()).map(|i| documents.start(i)).collect()
}

/// Reads a data set and returns the first difference to the expected one.
fn differences(root: &Path, expected: &Expected) -> Result<(), String> {
    let say = |error: sae_data::DataError| format!("{error}");
    let data = ActivationData::open(&root.join(&expected.path), &expected.options.options(root))
        .map_err(say)?;
    if (data.rows(), data.width()) != (expected.rows, expected.width) {
        return Err(format!("[{}, {}]", data.rows(), data.width()));
    }
    let values: Vec<f32> = words(&root.join(&expected.values))
        .into_iter()
        .map(f32::from_le_bytes)
        .collect();
    if data.read(0..expected.rows).map_err(say)? != values {
        return Err("other values".into());
    }
    // parts of it, too
    for (start, end) in [
        (1, 2),
        (expected.rows / 3, expected.rows / 3 * 2),
        (expected.rows - 1, expected.rows),
    ] {
        let (start, end) = (start.min(expected.rows - 1), end.min(expected.rows));
        if data.read(start..end).map_err(say)? != values[start * data.width()..end * data.width()] {
            return Err(format!("other values in rows {start}..{end}"));
        }
    }
    let labels: Option<Vec<usize>> = expected.labels.as_ref().map(|path| {
        words(&root.join(path))
            .into_iter()
            .map(|word| i64::from_le_bytes(word) as usize)
            .collect()
    });
    if data.labels(0..expected.rows).map_err(say)? != labels {
        return Err("other labels".into());
    }
    if let Some(labels) = labels {
        let half = expected.rows / 2..expected.rows;
        if data.labels(half.clone()).map_err(say)?.as_deref() != Some(&labels[half]) {
            return Err("other labels in the second half".into());
        }
    }
    if let Ok((train, held_out)) = data.split_fraction(0.4, 0) {
        for side in [train.spread(7), held_out, train] {
            side_differs(&data, &side)
                .map_err(say)?
                .map_or(Ok(()), Err)?;
        }
    }
    let documents = data.info().documents.as_ref().map(starts);
    if documents != expected.documents {
        return Err(format!(
            "documents {documents:?}, not {:?}",
            expected.documents
        ));
    }
    let meanings = data.meanings().map_err(say)?;
    let tokens = (0..expected.rows).map(|row| Ok(meanings.row(row).map_err(say)?.token));
    let tokens = tokens.map(|token| token.map(|token| token.map(|token| token.id)));
    let tokens: Option<Vec<i64>> = match meanings.has_tokens() {
        true => tokens.collect::<Result<_, String>>()?,
        false => None,
    };
    if tokens != expected.tokens {
        return Err(format!("tokens {tokens:?}, not {:?}", expected.tokens));
    }
    Ok(())
}

/// How the rows or labels of a part, whose stretches are read together, differ from those of the whole.
fn side_differs(
    data: &ActivationData,
    side: &ActivationData,
) -> Result<Option<String>, sae_data::DataError> {
    let rows: Vec<usize> = side.rows_in_source(0..side.rows());
    let (all, labels) = (data.read(0..data.rows())?, data.labels(0..data.rows())?);
    let width = data.width();
    let values = rows.iter().flat_map(|row| &all[row * width..][..width]);
    if !side.read(0..side.rows())?.iter().eq(values) {
        return Ok(Some(format!("other values in rows {rows:?}")));
    }
    let labels = labels.map(|labels| rows.iter().map(|row| labels[*row]).collect());
    Ok((side.labels(0..side.rows())? != labels).then(|| format!("other labels in rows {rows:?}")))
}

#[test]
fn read_row_for_row() {
    let Some(root) = written() else { return };
    let wrong: Vec<String> = manifest::<Expected>(root, "expected.json")
        .iter()
        .filter_map(|expected| {
            Some(format!(
                "{}: {}",
                expected.name,
                differences(root, expected).err()?
            ))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!root.join("PICKLE_WAS_READ").exists());
}

#[test]
fn refused_with_the_right_words() {
    let Some(root) = written() else { return };
    let wrong: Vec<String> = manifest::<Refused>(root, "refused.json")
        .iter()
        .filter_map(|refused| {
            let opened =
                ActivationData::open(&root.join(&refused.path), &refused.options.options(root));
            let read = opened.and_then(|data| {
                data.labels(0..data.rows())?;
                data.read(0..data.rows())
            });
            let message = match read {
                Ok(values) => {
                    return Some(format!(
                        "{}: {} values were read",
                        refused.name,
                        values.len()
                    ));
                }
                Err(error) => error.to_string(),
            };
            let silent: Vec<&String> = refused
                .says
                .iter()
                .filter(|part| !message.contains(*part))
                .collect();
            (!silent.is_empty())
                .then(|| format!("{}: {message:?} does not say {silent:?}", refused.name))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!root.join("PICKLE_WAS_READ").exists());
}

/// Without the feature a Parquet file is an error that names it; the program says how to get it.
#[test]
#[cfg(not(feature = "parquet"))]
fn a_parquet_file_names_the_missing_feature() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/parquet/label.parquet");
    let error = ActivationData::open(&path, &Options::default()).expect_err("refused");
    assert_eq!(error.missing_feature(), Some("parquet"));
    let message = error.to_string();
    assert!(
        message.contains("built with the feature \"parquet\""),
        "{message}"
    );
    let error = crate::config(&path).open().expect_err("refused");
    assert_eq!(error.missing_feature, Some("parquet"));
    let binary = env!("CARGO_BIN_EXE_sae-data");
    let output = Command::new(binary)
        .arg("inspect")
        .arg(&path)
        .output()
        .expect("it runs");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        message.contains("-p sae-data --features parquet"),
        "{message}"
    );
}
