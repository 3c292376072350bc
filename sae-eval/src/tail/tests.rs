//! Tails of tiny models (tests/data/tails, with the outputs of torch), and wrong ones.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::file::{Kind, Tail};
use super::network::Network;

fn tails() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tails")
}

/// A tensor of float32, and its shape.
fn tensor(file: &SafeTensors, name: &str) -> (Vec<f32>, Vec<usize>) {
    let tensor = file.tensor(name).unwrap();
    let numbers = tensor.data().chunks_exact(4);
    let numbers = numbers.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    (numbers.collect(), tensor.shape().to_vec())
}

#[test]
fn what_tract_computes_is_what_torch_computes() {
    for (name, kind) in [
        ("llama", Kind::Decoder),
        ("gpt2", Kind::Decoder),
        ("bert_classifier", Kind::Classifier),
        ("clip_classifier", Kind::Classifier),
        ("bert_encoder", Kind::Encoder),
    ] {
        let tail = Tail::open(&tails().join(format!("{name}.onnx"))).unwrap();
        assert_eq!(tail.kind, kind, "{name}");
        let bytes = std::fs::read(tails().join(format!("{name}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (hidden, shape) = tensor(&file, "hidden");
        let (expected, _) = tensor(&file, "output");
        let [batch, tokens, width] = shape[..] else {
            panic!("{name}: {shape:?}");
        };
        assert_eq!(tail.width, width, "{name}");
        let network = Network::new(tail).unwrap();
        let versions: Vec<&[f32]> = hidden.chunks_exact(tokens * width).collect();
        let mut found = Vec::new();
        let visit = |version: usize, output: &[f32]| {
            assert_eq!(found.len(), version * output.len(), "{name}: in order");
            found.extend_from_slice(output);
            Ok(())
        };
        network.run(&versions, tokens, visit).unwrap();
        assert_eq!(found.len(), expected.len(), "{name}");
        let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        assert!(worst < 1e-5, "{name}: {worst}");
        assert_eq!(batch, versions.len());
    }
}

/// A document alone has the same output as beside others, and shorter ones are computed, too.
#[test]
fn documents_do_not_depend_on_their_company() {
    let tail = Tail::open(&tails().join("llama.onnx")).unwrap();
    let width = tail.width;
    let network = Network::new(tail).unwrap();
    let hidden: Vec<f32> = (0..3 * 5 * width)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0)
        .collect();
    let versions: Vec<&[f32]> = hidden.chunks_exact(5 * width).collect();
    let outputs = |versions: &[&[f32]], tokens| {
        let mut all = Vec::new();
        let keep = |_: usize, output: &[f32]| {
            all.push(output.to_vec());
            Ok(())
        };
        network.run(versions, tokens, keep).unwrap();
        all
    };
    let together = outputs(&versions, 5);
    for (version, expected) in versions.iter().zip(&together) {
        let alone = &outputs(&[version], 5)[0];
        let same = alone
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(same);
        // a decoder does not look ahead
        let shorter = &outputs(&[&version[..3 * width]], 3)[0];
        let same = shorter
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(same);
    }
}

#[test]
fn wrong_files_are_refused_with_their_reason() {
    for (name, words) in [
        ("unknown_operator", "not one that a tail may use"),
        ("float16", "FLOAT16"),
        ("external", "lie in other files"),
        ("outer_product", "more than"),
        ("lying_initializer", "has 16 bytes"),
        ("two_inputs", "2 inputs"),
        ("integer_output", "INT64"),
        ("no_metadata", "dynamic-sae.tail"),
        ("truncated", "damaged"),
        ("not_onnx", "no ONNX model"),
        ("range_bomb", "not one that a tail may use"),
    ] {
        let path = tails().join(format!("wrong/{name}.onnx"));
        let error = Tail::open(&path).map(|_| ()).unwrap_err();
        let said = format!("{error:#}");
        assert!(said.contains(words), "{name}: {said}");
        assert!(said.contains(&path.display().to_string()), "{name}: {said}");
    }
    let missing = Tail::open(Path::new("nowhere.onnx"))
        .map(|_| ())
        .unwrap_err();
    assert!(format!("{missing:#}").contains("nowhere.onnx"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A damaged file is an error or a tail that runs, and never ends the program.
    #[test]
    fn damaged_files_end_nothing(at in 0usize..25_000, byte in any::<u8>(), cut in prop::option::of(0usize..25_000)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged.onnx");
        let mut bytes = std::fs::read(tails().join("gpt2.onnx")).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(cut.unwrap_or(usize::MAX));
        std::fs::write(&path, bytes).unwrap();
        if let Ok(tail) = Tail::open(&path) {
            let (width, tokens) = (tail.width, tail.context.min(3));
            if let Ok(network) = Network::new(tail) {
                let hidden = vec![0.5; tokens * width];
                let _ = network.run(&[&hidden], tokens, |_, _| Ok(()));
            }
        }
    }
}
