//! The size of everything that a tail computes, found from the sizes of its inputs before anything runs.
//!
//! A tail comes from somebody else, and a few bytes of it can ask for any amount of memory. So only operators are taken whose
//! results have a size that follows from the sizes of what they are given, and every size is known, and bounded, before the
//! first is allocated.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// Most numbers in one result.
const MAX_ELEMENTS: usize = 1 << 29;
/// Most numbers in all results that depend on no input together, which a reader may compute at once.
const MAX_CONSTANTS: usize = 1 << 26;

/// What is known of a value.
#[derive(Clone, Debug)]
struct Known {
    shape: Vec<usize>,
    /// The numbers, of whole numbers.
    whole: Option<Vec<i64>>,
    /// Whether it depends on no input.
    constant: bool,
}

/// The sizes for one size of the input.
pub(super) struct Sizes {
    /// Shape of the output.
    pub(super) output: Vec<usize>,
    /// Numbers in the largest result.
    pub(super) largest: usize,
}

/// An operator as it is used.
struct Use<'a> {
    node: &'a NodeProto,
    inputs: Vec<&'a Known>,
}

type Rule = fn(&Use) -> Result<Vec<usize>>;

/// The operators that a tail may use, and the shapes of their results.
const OPERATORS: [(&str, Rule); 25] = [
    ("Add", broadcast),
    ("Concat", concat),
    ("Div", broadcast),
    ("Erf", same),
    ("Exp", same),
    ("Gemm", gemm),
    ("Identity", same),
    ("MatMul", matmul),
    ("Mul", broadcast),
    ("Neg", same),
    ("Pow", broadcast),
    ("Reciprocal", same),
    ("ReduceMean", reduce),
    ("Reshape", reshape),
    ("Shape", tokens),
    ("Sigmoid", same),
    ("Slice", slice),
    ("Softmax", same),
    ("Sqrt", same),
    ("Squeeze", squeeze),
    ("Sub", broadcast),
    ("Tanh", same),
    ("Transpose", transpose),
    ("Unsqueeze", unsqueeze),
    ("Where", broadcast),
];

/// The sizes of what `graph` computes of `hidden [batch, tokens, d]`.
pub(super) fn sizes(graph: &GraphProto, hidden: [usize; 3]) -> Result<Sizes> {
    let (input, output) = (&graph.input[0].name, &graph.output[0].name);
    let mut known: HashMap<&str, Known> = HashMap::new();
    for weight in &graph.initializer {
        known.insert(&weight.name, constant(weight)?);
    }
    let given = Known {
        shape: hidden.into(),
        whole: None,
        constant: false,
    };
    known.insert(input, given);
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
    ensure!(node.output.len() == 1, "it has not one result");
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
    Ok(Known {
        whole: is_shape.then(|| vec![of.inputs[0].shape[1] as i64]),
        shape,
        constant: is_shape || of.inputs.iter().all(|input| input.constant),
    })
}

fn volume(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |all, size| all.checked_mul(*size))
}

/// A weight: as many bytes as its shape says.
fn constant(weight: &TensorProto) -> Result<Known> {
    let name = &weight.name;
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

impl Use<'_> {
    fn shape(&self, input: usize) -> Result<&[usize]> {
        let known = self.inputs.get(input);
        Ok(&known
            .with_context(|| format!("its input {input} is missing"))?
            .shape)
    }

    /// The whole numbers that it is given as an input.
    fn whole(&self, input: usize) -> Result<&[i64]> {
        let known = self.inputs.get(input);
        let whole = known.and_then(|known| known.whole.as_deref());
        whole.with_context(|| {
            format!("its input {input} is not made of whole numbers that are known beforehand")
        })
    }

    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.node.attribute.iter().find(|one| one.name == name)
    }

    fn number(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |one| one.i)
    }
}

/// An axis, from the end if it is negative.
fn axis(axis: i64, rank: usize) -> Result<usize> {
    let from_start = if axis < 0 { axis + rank as i64 } else { axis };
    let found = usize::try_from(from_start).ok().filter(|axis| *axis < rank);
    found.with_context(|| format!("there is no axis {axis} of {rank}"))
}

fn same(of: &Use) -> Result<Vec<usize>> {
    ensure!(
        of.inputs.len() == 1,
        "it is given {} values",
        of.inputs.len()
    );
    Ok(of.shape(0)?.into())
}

/// Numpy's rule: sizes are the same from the end, or one of them is 1.
fn broadcast_shapes(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], axis: usize| {
        let missing = rank - shape.len();
        axis.checked_sub(missing).map_or(1, |axis| shape[axis])
    };
    let each = (0..rank).map(|axis| match (size(a, axis), size(b, axis)) {
        (a, b) if a == b => Ok(a),
        (1, size) | (size, 1) => Ok(size),
        _ => bail!("shapes {a:?} and {b:?} do not fit"),
    });
    each.collect()
}

fn broadcast(of: &Use) -> Result<Vec<usize>> {
    let mut shape = of.shape(0)?.to_vec();
    for input in 1..of.inputs.len() {
        shape = broadcast_shapes(&shape, of.shape(input)?)?;
    }
    Ok(shape)
}

fn matmul(of: &Use) -> Result<Vec<usize>> {
    let (a, b) = (of.shape(0)?, of.shape(1)?);
    ensure!(
        a.len() >= 2 && b.len() >= 2,
        "shapes {a:?} and {b:?} are no matrices"
    );
    let ((outer_a, a_last), (outer_b, b_last)) = (a.split_at(a.len() - 2), b.split_at(b.len() - 2));
    ensure!(a_last[1] == b_last[0], "shapes {a:?} and {b:?} do not fit");
    let mut shape = broadcast_shapes(outer_a, outer_b)?;
    shape.extend([a_last[0], b_last[1]]);
    Ok(shape)
}

fn gemm(of: &Use) -> Result<Vec<usize>> {
    let matrix = |input: usize, flag: &str| {
        let shape = of.shape(input)?;
        ensure!(shape.len() == 2, "shape {shape:?} is no matrix");
        let transposed = of.number(flag, 0) != 0;
        Ok(if transposed {
            [shape[1], shape[0]]
        } else {
            [shape[0], shape[1]]
        })
    };
    let (a, b) = (matrix(0, "transA")?, matrix(1, "transB")?);
    ensure!(a[1] == b[0], "shapes {a:?} and {b:?} do not fit");
    let shape = vec![a[0], b[1]];
    if of.inputs.len() > 2 {
        let added = broadcast_shapes(&shape, of.shape(2)?)?;
        ensure!(added == shape, "what it adds is larger than its product");
    }
    Ok(shape)
}

fn reduce(of: &Use) -> Result<Vec<usize>> {
    let mut shape = of.shape(0)?.to_vec();
    let axes = of.attribute("axes").context("it says no axes")?;
    let axes: Result<Vec<usize>> = axes
        .ints
        .iter()
        .map(|one| axis(*one, shape.len()))
        .collect();
    let mut axes = axes?;
    axes.iter().for_each(|axis| shape[*axis] = 1);
    if of.number("keepdims", 1) == 0 {
        axes.sort_unstable();
        axes.dedup();
        for axis in axes.into_iter().rev() {
            shape.remove(axis);
        }
    }
    Ok(shape)
}

fn reshape(of: &Use) -> Result<Vec<usize>> {
    let (from, to) = (of.shape(0)?, of.whole(1)?);
    ensure!(of.number("allowzero", 0) == 0, "allowzero is not supported");
    let sizes = to.iter().enumerate().map(|(at, size)| match *size {
        0 => from
            .get(at)
            .copied()
            .context("it keeps an axis that is not there"),
        -1 => Ok(1),
        size => usize::try_from(size).context("a size is negative"),
    });
    let mut shape: Vec<usize> = sizes.collect::<Result<_>>()?;
    let all = volume(from).context("it is too large")?;
    let known = volume(&shape).context("it is too large")?;
    let open: Vec<usize> = (0..to.len()).filter(|at| to[*at] == -1).collect();
    match open[..] {
        [] => ensure!(known == all, "{from:?} cannot become {to:?}"),
        [at] => {
            ensure!(
                known > 0 && all % known == 0,
                "{from:?} cannot become {to:?}"
            );
            shape[at] = all / known;
        }
        _ => bail!("{to:?} leaves more than one size open"),
    }
    Ok(shape)
}

/// The number of tokens: the only size that a tail may ask for.
fn tokens(of: &Use) -> Result<Vec<usize>> {
    let asks = (of.number("start", 0), of.number("end", i64::MAX));
    ensure!(
        asks == (1, 2) && !of.inputs[0].constant && of.inputs[0].shape.len() == 3,
        "a tail may ask for the number of tokens alone: Shape(hidden, start=1, end=2)"
    );
    Ok(vec![1])
}

fn slice(of: &Use) -> Result<Vec<usize>> {
    let mut shape = of.shape(0)?.to_vec();
    let (starts, ends) = (of.whole(1)?, of.whole(2)?);
    ensure!(of.inputs.len() >= 4, "it says no axes");
    let axes = of.whole(3)?;
    let ones = vec![1; axes.len()];
    let steps = if of.inputs.len() > 4 {
        of.whole(4)?
    } else {
        &ones
    };
    ensure!(
        [starts.len(), ends.len(), steps.len()] == [axes.len(); 3],
        "it has not one start, end and step for each axis"
    );
    for (at, one) in axes.iter().enumerate() {
        let axis = axis(*one, shape.len())?;
        ensure!(
            steps[at] == 1,
            "its step is {}; only 1 is supported",
            steps[at]
        );
        let size = shape[axis] as i64;
        let place = |end: i64| {
            if end < 0 {
                end.saturating_add(size).max(0)
            } else {
                end.min(size)
            }
        };
        shape[axis] = (place(ends[at]) - place(starts[at])).max(0) as usize;
    }
    Ok(shape)
}

fn concat(of: &Use) -> Result<Vec<usize>> {
    let mut shape = of.shape(0)?.to_vec();
    let axis = axis(of.number("axis", 0), shape.len())?;
    for input in 1..of.inputs.len() {
        let other = of.shape(input)?;
        let fits = other.len() == shape.len()
            && (0..shape.len()).all(|at| at == axis || other[at] == shape[at]);
        ensure!(fits, "shapes {shape:?} and {other:?} do not fit");
        shape[axis] = shape[axis]
            .checked_add(other[axis])
            .context("it is too large")?;
    }
    Ok(shape)
}

fn transpose(of: &Use) -> Result<Vec<usize>> {
    let shape = of.shape(0)?;
    let Some(order) = of.attribute("perm") else {
        return Ok(shape.iter().rev().copied().collect());
    };
    let order: Result<Vec<usize>> = order
        .ints
        .iter()
        .map(|one| axis(*one, shape.len()))
        .collect();
    let order = order?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    ensure!(
        sorted.iter().copied().eq(0..shape.len()),
        "its order {order:?} is none"
    );
    Ok(order.into_iter().map(|axis| shape[axis]).collect())
}

fn squeeze(of: &Use) -> Result<Vec<usize>> {
    let shape = of.shape(0)?;
    let axes: Result<Vec<usize>> = of
        .whole(1)?
        .iter()
        .map(|one| axis(*one, shape.len()))
        .collect();
    let axes = axes?;
    ensure!(
        axes.iter().all(|axis| shape[*axis] == 1),
        "an axis of {shape:?} is not of size 1"
    );
    let left = (0..shape.len()).filter(|at| !axes.contains(at));
    Ok(left.map(|at| shape[at]).collect())
}

fn unsqueeze(of: &Use) -> Result<Vec<usize>> {
    let shape = of.shape(0)?;
    let axes = of.whole(1)?;
    let rank = shape.len() + axes.len();
    let axes: Result<Vec<usize>> = axes.iter().map(|one| axis(*one, rank)).collect();
    let mut axes = axes?;
    axes.sort_unstable();
    axes.dedup();
    let mut left = shape.iter().copied();
    let each = (0..rank).map(|at| {
        if axes.contains(&at) {
            Some(1)
        } else {
            left.next()
        }
    });
    let shape: Option<Vec<usize>> = each.collect();
    shape.context("it names an axis twice")
}
