//! Tails of tiny models (tests/data/tails, with the outputs of torch), and wrong ones.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use prost::Message;
use safetensors::SafeTensors;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Size;
use tract_onnx::pb::type_proto::Value as Type;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

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

/// The tail of `gpt2.onnx` with other nodes: what is said of it.
fn said_of(nodes: Vec<NodeProto>, change: impl FnOnce(&mut GraphProto)) -> String {
    let bytes = std::fs::read(tails().join("gpt2.onnx")).unwrap();
    let mut model = ModelProto::decode(&bytes[..]).unwrap();
    let graph = model.graph.as_mut().unwrap();
    graph.output[0].name = nodes.last().unwrap().output[0].clone();
    graph.node = nodes;
    change(graph);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    let opened = Tail::open(&path).and_then(Network::new);
    opened.map_or_else(|error| format!("{error:#}"), |_| "fine".into())
}

/// `output = operator(inputs)`.
fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: operator.into(),
        input: inputs.iter().map(|name| name.to_string()).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    }
}

/// A weight of zeros.
fn weight(name: &str, kind: DataType, dims: &[i64], bytes: usize) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type: kind as i32,
        dims: dims.into(),
        raw_data: vec![0; bytes],
        ..TensorProto::default()
    }
}

#[test]
fn graphs_that_would_ask_for_too_much_are_refused() {
    let nothing = |_: &mut GraphProto| {};
    let same = |output: &str| node("Identity", &["hidden"], output);
    assert_eq!(said_of(vec![same("out")], nothing), "fine");
    // Logits whose number is that of the tokens.
    let mut turn = node("Transpose", &["hidden"], "turned");
    turn.attribute.push(AttributeProto {
        name: "perm".into(),
        r#type: AttributeType::Ints as i32,
        ints: vec![0, 2, 1],
        ..AttributeProto::default()
    });
    let square = vec![turn, node("MatMul", &["hidden", "turned"], "out")];
    let said = said_of(square, nothing);
    assert!(said.contains("a decoder makes [2, 3, 1]"), "{said}");
    let hidden_weight = |graph: &mut GraphProto| {
        let weight = weight("hidden", DataType::Float, &[1, 9, 16], 576);
        graph.initializer.push(weight);
    };
    let said = said_of(vec![same("out")], hidden_weight);
    assert!(said.contains("is a weight, too"), "{said}");
    let said = said_of(vec![same("")], nothing);
    assert!(said.contains("not one result with a name"), "{said}");
    let fixed = |graph: &mut GraphProto| {
        let kind = graph.input[0].r#type.as_mut().unwrap().value.as_mut();
        let Some(Type::TensorType(tensor)) = kind else {
            panic!("no tensor");
        };
        let tokens = &mut tensor.shape.as_mut().unwrap().dim[1];
        tokens.value = Some(Size::DimValue(7));
    };
    let said = said_of(vec![same("out")], fixed);
    assert!(said.contains("names for the others"), "{said}");
    // Nine axes: by a shape, by new axes, and of a weight itself.
    let to = |graph: &mut GraphProto| {
        let weight = weight("to", DataType::Int64, &[9], 72);
        graph.initializer.push(weight);
    };
    for operator in ["Reshape", "Unsqueeze"] {
        let said = said_of(vec![node(operator, &["hidden", "to"], "out")], to);
        assert!(said.contains("axes; at most 8"), "{operator}: {said}");
    }
    let deep = |graph: &mut GraphProto| {
        let weight = weight("deep", DataType::Float, &[1; 9], 4);
        graph.initializer.push(weight);
    };
    let said = said_of(vec![same("out")], deep);
    assert!(said.contains("axes; at most 8"), "{said}");
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
