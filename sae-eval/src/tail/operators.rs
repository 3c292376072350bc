//! The operators that a tail may use, and the shapes of their results.

use anyhow::{Context, Result, bail, ensure};
use tract_onnx::pb::{AttributeProto, NodeProto};

/// What is known of a value.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) shape: Vec<usize>,
    /// The numbers, of whole numbers.
    pub(super) whole: Option<Vec<i64>>,
    /// Whether it depends on no input.
    pub(super) constant: bool,
}

/// An operator as it is used.
pub(super) struct Use<'a> {
    pub(super) node: &'a NodeProto,
    pub(super) inputs: Vec<&'a Known>,
}

pub(super) type Rule = fn(&Use) -> Result<Vec<usize>>;

/// The operators that a tail may use, and the shapes of their results.
pub(super) const OPERATORS: [(&str, Rule); 25] = [
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

/// Number of numbers; `None` if there cannot be so many.
pub(super) fn volume(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |all, size| all.checked_mul(*size))
}

/// Most axes of a value.
const MAX_RANK: usize = 8;

/// Fails for a value of too many axes.
pub(super) fn check_rank(rank: usize) -> Result<()> {
    ensure!(
        rank <= MAX_RANK,
        "a value has {rank} axes; at most {MAX_RANK} are read"
    );
    Ok(())
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
    check_rank(to.len())?;
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
    check_rank(rank)?;
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
