//! The size of everything that a tail computes, found from the sizes of its inputs before anything runs.
//!
//! A tail comes from somebody else, and a few bytes of it can ask for any amount of memory. So only operators are taken whose
//! results have a size that follows from the sizes of what they are given, and every size is known, and bounded, before the
//! first is allocated.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

use super::operators::{Known, OPERATORS, Use, check_rank, volume};

/// Most numbers in one result.
const MAX_ELEMENTS: usize = 1 << 29;
/// Most numbers in all results that depend on no input together, which a reader may compute at once.
const MAX_CONSTANTS: usize = 1 << 26;

/// The sizes for one size of the input.
pub(super) struct Sizes {
    /// Shape of the output.
    pub(super) output: Vec<usize>,
    /// Numbers in the largest result.
    pub(super) largest: usize,
}

/// The sizes of what `graph` computes of `hidden [batch, tokens, d]`.
pub(super) fn sizes(graph: &GraphProto, hidden: [usize; 3]) -> Result<Sizes> {
    let (input, output) = (&graph.input[0].name, &graph.output[0].name);
    let mut known: HashMap<&str, Known> = HashMap::new();
    for weight in &graph.initializer {
        let before = known.insert(&weight.name, constant(weight)?);
        ensure!(before.is_none(), "weight {:?} is there twice", weight.name);
    }
    let given = Known {
        shape: hidden.into(),
        whole: None,
        constant: false,
    };
    ensure!(
        known.insert(input, given).is_none(),
        "its input {input:?} is a weight, too"
    );
    let (mut largest, mut constants) = (0, 0usize);
    for node in &graph.node {
        let result = result(node, &known).with_context(|| about(node))?;
        let size = volume(&result.shape).unwrap_or(usize::MAX);
        ensure!(
            size <= MAX_ELEMENTS,
            "{}: its result {:?} has more than {MAX_ELEMENTS} numbers",
            about(node),
            result.shape
        );
        largest = largest.max(size);
        if result.constant {
            constants += size;
            ensure!(
                constants <= MAX_CONSTANTS,
                "{}: results that depend on no input have more than {MAX_CONSTANTS} numbers",
                about(node)
            );
        }
        let before = known.insert(&node.output[0], result);
        ensure!(
            before.is_none(),
            "{}: its result is there already",
            about(node)
        );
    }
    let output = known.get(output.as_str());
    let output = output
        .with_context(|| format!("nothing computes its output {:?}", graph.output[0].name))?;
    ensure!(
        !output.constant && output.whole.is_none(),
        "its output does not depend on its input"
    );
    Ok(Sizes {
        output: output.shape.clone(),
        largest,
    })
}

/// How messages name a node.
fn about(node: &NodeProto) -> String {
    format!("node {:?} ({})", node.name, node.op_type)
}

fn result(node: &NodeProto, known: &HashMap<&str, Known>) -> Result<Known> {
    let rule = OPERATORS.iter().find(|(name, _)| *name == node.op_type);
    let Some((_, rule)) = rule.filter(|_| node.domain.is_empty()) else {
        let names: Vec<&str> = OPERATORS.iter().map(|(name, _)| *name).collect();
        bail!(
            "this operator is not one that a tail may use: {}",
            names.join(", ")
        );
    };
    ensure!(
        node.output.len() == 1 && !node.output[0].is_empty(),
        "it has not one result with a name"
    );
    let inputs = node.input.iter().map(|name| {
        let value = known.get(name.as_str());
        value.with_context(|| format!("it is given {name:?}, which nothing before it computes"))
    });
    let inputs: Vec<&Known> = inputs.collect::<Result<_>>()?;
    ensure!(!inputs.is_empty(), "it is given nothing");
    let is_shape = node.op_type == "Shape";
    let takes_whole = matches!(
        node.op_type.as_str(),
        "Reshape" | "Slice" | "Squeeze" | "Unsqueeze"
    );
    let values = if takes_whole {
        &inputs[..1]
    } else {
        &inputs[..]
    };
    ensure!(
        values.iter().all(|value| value.whole.is_none()),
        "it computes with whole numbers"
    );
    let of = Use { node, inputs };
    let shape = rule(&of)?;
    check_rank(shape.len())?;
    Ok(Known {
        whole: is_shape.then(|| vec![of.inputs[0].shape[1] as i64]),
        shape,
        constant: is_shape || of.inputs.iter().all(|input| input.constant),
    })
}

/// A weight: as many bytes as its shape says.
fn constant(weight: &TensorProto) -> Result<Known> {
    let name = &weight.name;
    ensure!(!name.is_empty(), "a weight has no name");
    check_rank(weight.dims.len()).with_context(|| format!("weight {name:?}"))?;
    let shape: Result<Vec<usize>, _> = weight
        .dims
        .iter()
        .map(|size| usize::try_from(*size))
        .collect();
    let shape = shape.with_context(|| format!("weight {name:?} has a negative size"))?;
    let (bytes, is_whole) = match DataType::try_from(weight.data_type) {
        Ok(DataType::Float) => (4, false),
        Ok(DataType::Int64) => (8, true),
        Ok(DataType::Bool) => (1, false),
        other => bail!(
            "weight {name:?} is of type {}; weights are FLOAT (or INT64 for shapes, BOOL for masks)",
            other.map_or_else(
                |_| weight.data_type.to_string(),
                |kind| kind.as_str_name().into()
            )
        ),
    };
    let needed = volume(&shape).and_then(|size| size.checked_mul(bytes));
    ensure!(
        needed == Some(weight.raw_data.len()),
        "weight {name:?} has {} bytes, its shape {shape:?} needs {}",
        weight.raw_data.len(),
        needed.map_or("more than there can be".into(), |needed| needed.to_string())
    );
    let numbers = weight.raw_data.chunks_exact(8);
    let numbers = numbers.map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap_or_default()));
    Ok(Known {
        shape,
        whole: is_whole.then(|| numbers.collect()),
        constant: true,
    })
}
