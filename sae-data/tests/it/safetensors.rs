//! Safetensors files, made here: types, labels, and every way a file can be wrong.

use std::path::Path;

use ::safetensors::Dtype;
use half::{bf16, f16};
use proptest::prelude::*;
use sae_data::{ActivationData, DataError, Options};

use crate::{f32_bytes, write};

fn open(path: &Path, tensor: Option<&str>) -> Result<ActivationData, DataError> {
    let tensor = tensor.map(String::from);
    ActivationData::open(
        path,
        &Options {
            tensor,
            ..Options::default()
        },
    )
}

fn read_all(path: &Path) -> Vec<f32> {
    let file = open(path, None).expect("opened");
    let blocks: Result<Vec<_>, _> = file.blocks(3).collect();
    blocks.expect("finite").concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_type_reads_what_was_written(
        (rows, width) in (1usize..9, 1usize..40),
        seed in any::<u32>(),
        shift in 0usize..4,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let values: Vec<f32> = (0..rows * width)
            .map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) % 4001) as f32 / 16.0 - 125.0)
            .collect();
        // a tensor of odd length before the data moves it off its alignment
        let pad = ("a", Dtype::U8, vec![shift], vec![0u8; shift]);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let (bytes, expected): (Vec<u8>, Vec<f32>) = match dtype {
                Dtype::F32 => (f32_bytes(&values), values.clone()),
                Dtype::F16 => (
                    values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
                    values.iter().map(|v| f16::from_f32(*v).to_f32()).collect(),
                ),
                _ => (
                    values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
                    values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
                ),
            };
            write(&path, &[pad.clone(), ("x", dtype, vec![rows, width], bytes)]);
            prop_assert_eq!(read_all(&path), expected);
        }
    }

    #[test]
    fn damaged_files_are_errors_not_panics(cut in 0usize..200, flip in 0usize..200, bit in 0u8..8) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        write(&path, &[("x", Dtype::F32, vec![4, 3], f32_bytes(&[1.0; 12]))]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..cut.min(whole.len() - 1)]).unwrap();
        prop_assert!(open(&path, None).is_err());
        let mut flipped = whole.clone();
        let at = flip % whole.len();
        flipped[at] ^= 1 << bit;
        std::fs::write(&path, &flipped).unwrap();
        if let Ok(file) = open(&path, None) {
            let _ = file.blocks(2).count(); // still a file, perhaps of other values
        }
    }
}

/// A safetensors file begins with the length of its header, and that may look like a pickle.
#[test]
fn headers_of_every_length_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let values = f32_bytes(&[1.0, 2.0, 3.0, 4.0]);
    let json = r#"{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    for name in ["a.safetensors", "a"] {
        let path = dir.path().join(name);
        for len in (json.len()..5000).chain([0x0580, 0x1_0280, 0x58_0280]) {
            // without a name only those that the content could be mistaken in
            if name == "a" && len & 0xff != 0x80 {
                continue;
            }
            let header = [json, &" ".repeat(len - json.len())].concat();
            let bytes = [&(len as u64).to_le_bytes()[..], header.as_bytes(), &values].concat();
            std::fs::write(&path, bytes).unwrap();
            let data = open(&path, None).unwrap_or_else(|error| panic!("{len}: {error}"));
            assert_eq!(data.read(0..2).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        }
    }
}

/// The bytes that `pickle.dumps` writes, some of it with `{` as the ninth byte.
#[test]
fn pickles_are_named_as_such() {
    let long = |protocol: u8, rest: &[u8]| {
        // a number of five bytes, 528280977408
        let mut pickle = vec![0x80, protocol, 0x8a, 5, 0, 0, 0, 0, b'{'];
        pickle.extend(rest);
        pickle
    };
    let frame = |protocol| {
        let mut pickle = vec![0x80, protocol, 0x95, 20, 0, 0, 0, 0, 0, 0, 0];
        pickle.extend([0x8c, 5, b'h', b'e', b'l', b'l', b'o', 0x94, b'.']);
        pickle
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pkl");
    for pickle in [
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00.".to_vec(),
        b"\x80\x02}q\x00U\x09{\"a\": 1}q\x01K\x01s.".to_vec(),
        b"\x80\x03}q\x00(X\x05\x00\x00\x00hello.".to_vec(),
        long(2, b"."),
        long(3, b"C\nxxxxxxxxxx\x86q\x00."),
        long(2, b"\"U\x01}."),
        frame(4),
        frame(5),
    ] {
        std::fs::write(&path, &pickle).unwrap();
        let message = open(&path, None).expect_err("refused").to_string();
        assert!(
            message.contains("a pickle, which is never read"),
            "{pickle:?}: {message}"
        );
    }
}

#[test]
fn labels_of_every_type() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let x = ("x", Dtype::F32, vec![3, 1], f32_bytes(&[0.0, 1.0, 2.0]));
    for (dtype, bytes) in [
        (
            Dtype::I64,
            [2i64, 0, 1]
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<u8>>(),
        ),
        (
            Dtype::I32,
            [2i32, 0, 1].iter().flat_map(|v| v.to_le_bytes()).collect(),
        ),
        (Dtype::U8, vec![2, 0, 1]),
    ] {
        write(&path, &[x.clone(), ("labels", dtype, vec![3], bytes)]);
        let file = open(&path, None).unwrap();
        assert_eq!(file.labels(0..3).unwrap(), Some(vec![2, 0, 1]));
        assert_eq!(file.labels(1..2).unwrap(), Some(vec![0]));
    }
    write(
        &path,
        &[x.clone(), ("labels", Dtype::I32, vec![3], vec![0xff; 12])],
    );
    let file = open(&path, None).unwrap();
    assert!(matches!(
        file.labels(1..3),
        Err(DataError::Label {
            row: 1,
            label: -1,
            ..
        })
    ));
    write(&path, &[x]);
    assert_eq!(open(&path, None).unwrap().labels(0..3).unwrap(), None);
}

#[test]
fn each_error_has_its_message() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let x = |name, shape: &[usize]| {
        let n = shape.iter().product();
        (name, Dtype::F32, shape.to_vec(), f32_bytes(&vec![0.5; n]))
    };
    let cases: [(&str, Vec<_>, Option<&str>); 8] = [
        (
            "there is no tensor \"y\"; the file has \"x\" F32 [2, 3]",
            vec![x("x", &[2, 3])],
            Some("y"),
        ),
        (
            "several tensors could be the activations (\"x\" F32 [2, 3], \"y\" F32 [2, 3]); name one",
            vec![x("x", &[2, 3]), x("y", &[2, 3])],
            None,
        ),
        (
            "no tensor of activations, [rows, width] or [examples, tokens, width] in floats; the file has \"x\" F32 [3]",
            vec![x("x", &[3])],
            None,
        ),
        (
            "has shape [2, 3, 4, 1]; activations are [rows, width] or [examples, tokens, width]",
            vec![x("x", &[2, 3, 4, 1])],
            Some("x"),
        ),
        ("has shape [0, 3]", vec![x("x", &[0, 3])], None),
        (
            "\"x\" is I64; f32, f16 and bf16 can be read",
            vec![("x", Dtype::I64, vec![1, 1], vec![0; 8])],
            Some("x"),
        ),
        (
            "3 labels for 2 rows; there must be one label per row",
            vec![x("x", &[2, 3]), ("labels", Dtype::U8, vec![3], vec![0; 3])],
            None,
        ),
        (
            "\"labels\" is F32; integers in i64, i32 and u8",
            vec![x("x", &[2, 3]), x("labels", &[2])],
            None,
        ),
    ];
    for (expected, tensors, name) in cases {
        write(&path, &tensors);
        let message = open(&path, name).unwrap_err().to_string();
        assert!(
            message.contains(expected) && message.contains("a.safetensors"),
            "{message}"
        );
    }
    std::fs::write(&path, b"").unwrap();
    assert!(open(&path, None).is_err());
    let missing = open(&dir.path().join("none"), None).unwrap_err();
    let not_found = std::io::ErrorKind::NotFound;
    assert!(matches!(missing, DataError::Io { source, .. } if source.kind() == not_found));
}

#[test]
fn the_first_non_finite_value_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let mut values = vec![1.0; 21];
    values[16] = f32::NAN;
    write(&path, &[("x", Dtype::F32, vec![7, 3], f32_bytes(&values))]);
    let file = open(&path, None).unwrap();
    let error = file.blocks(2).find_map(Result::err).unwrap();
    assert!(
        matches!(
            error,
            DataError::NonFinite {
                row: 5,
                column: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn fingerprints_follow_the_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let print = |values: &[f32]| {
        write(&path, &[("x", Dtype::F32, vec![2, 2], f32_bytes(values))]);
        open(&path, None).unwrap().fingerprint().unwrap()
    };
    let first = print(&[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(first, print(&[1.0, 2.0, 3.0, 4.0]));
    assert_ne!(first, print(&[1.0, 2.0, 3.0, 5.0]));
}

#[test]
fn a_folder_without_data_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("README.md"), b"nothing to see").unwrap();
    for name in ["layer-10", "layer-2"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let message = open(dir.path(), None).unwrap_err().to_string();
    assert!(
        message.contains("open one of its directories: layer-2, layer-10"),
        "{message}"
    );
    std::fs::write(dir.path().join("acts-0.pt"), b"PK\x03\x04 and so on").unwrap();
    let message = open(dir.path(), None).unwrap_err().to_string();
    assert!(
        message.contains("no file in it is one; acts-0.pt is a zip archive, as torch.save"),
        "{message}"
    );
}

#[test]
fn rows_of_nan_have_a_summary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let nan = f32_bytes(&[f32::NAN; 6]);
    write(&path, &[("x", Dtype::F32, vec![3, 2], nan)]);
    let summary = sae_data::Summary::of(&open(&path, None).unwrap(), None, |_| {}).unwrap();
    assert!(matches!(summary.non_finite, Some((6, 0, 0, _))));
    assert_eq!(summary.variance, 0.0);
}
