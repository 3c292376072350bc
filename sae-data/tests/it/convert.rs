//! Conversion: rows stay the same, an interrupted conversion continues, and a full disk loses nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ::safetensors::Dtype;
use sae_data::convert::{Conversion, convert, verify};
use sae_data::{ActivationData, DataError, Element, Options, ShardIndex};

use crate::{f32_bytes, write};

const ROWS: usize = 5000;
const WIDTH: usize = 20;

fn open(path: &Path) -> Result<ActivationData, DataError> {
    ActivationData::open(path, &Options::default())
}

/// Rows in 50 documents with labels, all values exact in f16.
fn source(dir: &Path) -> PathBuf {
    let values: Vec<f32> = (0..ROWS * WIDTH)
        .map(|i| (i * 7919 % 4001) as f32 / 16.0 - 125.0)
        .collect();
    let words = |f: &dyn Fn(i64) -> i64| {
        (0..ROWS as i64)
            .flat_map(|row| f(row).to_le_bytes())
            .collect()
    };
    let path = dir.join("source.safetensors");
    write(
        &path,
        &[
            ("x", Dtype::F32, vec![ROWS, WIDTH], f32_bytes(&values)),
            ("labels", Dtype::I64, vec![ROWS], words(&|row| row % 7)),
            ("doc", Dtype::I64, vec![ROWS], words(&|row| row / 100 * 3)),
        ],
    );
    path
}

const IN_SHARDS: Conversion = Conversion {
    element: Element::F16,
    shard_rows: 1250, // a shard ends in the middle of a document
};

/// First row of each document.
fn starts(data: &ActivationData) -> Vec<usize> {
    let documents = data.info().documents.as_ref().expect("documents");
    (0..documents.count()).map(|i| documents.start(i)).collect()
}

#[test]
fn shards_hold_the_same_rows_labels_and_documents() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&source(dir.path())).unwrap();
    for element in [Element::F16, Element::Bf16, Element::F32] {
        let to = dir.path().join(element.name());
        let mut done = 0;
        let index = convert(
            &data,
            &to,
            Conversion {
                element,
                ..IN_SHARDS
            },
            |rows| done += rows,
        )
        .unwrap();
        assert_eq!((index.shards.len(), index.rows, done), (4, ROWS, ROWS));
        verify(&to, |_| {}).unwrap();
        let shards = open(&to).unwrap();
        assert_eq!(
            (shards.info().element, starts(&shards)),
            (element, starts(&data))
        );
        assert_eq!(
            shards.labels(0..ROWS).unwrap(),
            data.labels(0..ROWS).unwrap()
        );
        if element != Element::Bf16 {
            assert_eq!(shards.read(0..ROWS).unwrap(), data.read(0..ROWS).unwrap());
        }
        assert!(!to.join("index.json.partial").exists());
    }
}

/// All files of a directory with their bytes.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                std::fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_killed_conversion_continues() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&source(dir.path())).unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    convert(&data, &whole, IN_SHARDS, |_| {}).unwrap();
    // killed in the third shard: a panic leaves the same files as a kill, except the temporary one
    let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut rows = 0;
        let _ = convert(&data, &cut, IN_SHARDS, |more| {
            rows += more;
            if rows > 3000 {
                std::panic::resume_unwind(Box::new("killed"));
            }
        });
    }));
    assert!(killed.is_err());
    std::fs::write(cut.join("shard-00002.safetensors.7-0.tmp"), b"half a shard").unwrap();
    assert!(!cut.join("index.json").exists() && !cut.join("shard-00002.safetensors").exists());
    // complete shards are not written again
    let before = std::fs::metadata(cut.join("shard-00001.safetensors"))
        .unwrap()
        .modified()
        .unwrap();
    convert(&data, &cut, IN_SHARDS, |_| {}).unwrap();
    let after = std::fs::metadata(cut.join("shard-00001.safetensors"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after);
    assert_eq!(contents(&cut), contents(&whole));
}

#[test]
fn existing_files_are_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = source(dir.path());
    let data = open(&path).unwrap();
    let to = dir.path().join("to");
    let message = |conversion| {
        convert(&data, &to, conversion, |_| {})
            .unwrap_err()
            .to_string()
    };
    std::fs::create_dir(&to).unwrap();
    std::fs::write(to.join("thesis.txt"), b"years of work").unwrap();
    assert!(message(IN_SHARDS).contains("not empty (there is thesis.txt)"));
    std::fs::remove_file(to.join("thesis.txt")).unwrap();
    convert(&data, &to, IN_SHARDS, |_| {}).unwrap();
    assert!(message(IN_SHARDS).contains("a finished data set already"));
    // begun with other options
    std::fs::rename(to.join("index.json"), to.join("elsewhere")).unwrap();
    let index: ShardIndex =
        serde_json::from_slice(&std::fs::read(to.join("elsewhere")).unwrap()).unwrap();
    let partial = serde_json::json!({ "source": data.fingerprint().unwrap(), "shard_rows": 1250, "index": index });
    std::fs::write(to.join("index.json.partial"), partial.to_string()).unwrap();
    let other = Conversion {
        shard_rows: 700,
        ..IN_SHARDS
    };
    assert!(message(other).contains("other options"));
}

#[test]
fn too_large_values_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.safetensors");
    let mut values = vec![1.0; 30];
    values[17] = 70_000.0;
    write(&path, &[("x", Dtype::F32, vec![10, 3], f32_bytes(&values))]);
    let error = convert(
        &open(&path).unwrap(),
        &dir.path().join("to"),
        IN_SHARDS,
        |_| {},
    )
    .unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("row 5, column 2 is 70000") && message.contains("use bf16 or f32"),
        "{message}"
    );
}

#[test]
fn a_flipped_bit_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    convert(&open(&source(dir.path())).unwrap(), &to, IN_SHARDS, |_| {}).unwrap();
    let shard = to.join("shard-00003.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes[20_000] ^= 4;
    std::fs::write(&shard, bytes).unwrap();
    let error = verify(&to, |_| {}).unwrap_err();
    assert!(
        matches!(error, DataError::Checksum { .. }) && error.to_string().contains("shard-00003"),
        "{error}"
    );
}

/// Runs the real binary.
fn sae_data(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sae-data"))
        .args(arguments)
        .output()
        .expect("sae-data runs")
}

/// A file of four shards of a megabyte.
fn wide_rows(dir: &Path) -> PathBuf {
    let wide: Vec<f32> = (0..400 * 4096).map(|i| (i % 1000) as f32).collect();
    let path = dir.join("wide.safetensors");
    write(
        &path,
        &[("x", Dtype::F32, vec![400, 4096], f32_bytes(&wide))],
    );
    path
}

#[test]
fn a_full_disk_leaves_complete_shards() {
    let dir = tempfile::tempdir().unwrap();
    let path = wide_rows(dir.path());
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2500k", "none"])
        .arg(&small)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        use std::io::Write;
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED the full disk: no right to mount a small tmpfs"
        );
        return;
    }
    let to = small.join("to");
    let arguments = [
        "convert",
        path.to_str().unwrap(),
        to.to_str().unwrap(),
        "--shard-mb",
        "1",
    ];
    let output = sae_data(&arguments);
    let message = String::from_utf8_lossy(&output.stderr).to_string();
    let left = contents(&to);
    let grown = Command::new("mount")
        .args(["-o", "remount,size=8000k"])
        .arg(&small)
        .status();
    let finished = sae_data(&arguments);
    let verified = verify(&to, |_| {});
    let unmounted = Command::new("umount").arg(&small).status();
    assert!(grown.is_ok_and(|s| s.success()) && unmounted.is_ok_and(|s| s.success()));
    assert_eq!(output.status.code(), Some(2));
    assert!(
        message.contains("the disk is full") && message.contains("2 of 4 shards are complete"),
        "{message}"
    );
    let names: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "index.json.partial",
            "shard-00000.safetensors",
            "shard-00001.safetensors"
        ]
    );
    assert!(
        finished.status.success(),
        "{}",
        String::from_utf8_lossy(&finished.stderr)
    );
    verified.unwrap();
}

#[test]
fn inspect_describes_a_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let output = sae_data(&["inspect", source(dir.path()).to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout).to_string();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for part in [
        "shape      [5000, 20] F32",
        "documents  50 of 100 rows each",
        "labels     yes",
        "checked    5000 of 5000 rows",
        "finite     yes",
        "constant   0 of 20 columns",
        "||mean||",
        "  from ",
        "1 window(s) of 5000 rows per epoch",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let output = sae_data(&["inspect", "nowhere"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere"));
}
