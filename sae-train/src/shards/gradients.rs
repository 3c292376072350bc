//! The gradients of parts, on the host: added up, cut, and sent.

use std::ops::Range;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::slices::Slices;
use crate::learner::SaeLearner;

/// Numbers that one thread adds up.
pub(super) const CHUNK: usize = 1 << 16;

/// What the step of a part hands on: per parameter of the learner its gradient, or what training counts, and nothing where the part has
/// nothing; then the numbers of the part.
#[derive(Debug)]
pub(super) struct Gradients {
    tensors: Vec<Vec<f32>>,
    numbers: Vec<f32>,
}

impl Gradients {
    /// Those of a part.
    pub(super) fn of(learner: &SaeLearner, grads: GradientsParams, numbers: Vec<f32>) -> Self {
        let mut taking = Taking {
            grads,
            tensors: Vec::new(),
        };
        learner.visit(&mut taking);
        Self {
            tensors: taking.tensors,
            numbers,
        }
    }

    /// One gradient per parameter, or what training counts of it.
    pub(super) fn tensors_mut(&mut self) -> &mut [Vec<f32>] {
        &mut self.tensors
    }

    pub(super) fn plus(self, other: Self) -> Self {
        let either = |(a, b): (Vec<f32>, Vec<f32>)| match (a.is_empty(), b.is_empty()) {
            (true, _) => b,
            (_, true) => a,
            _ => added(a, b),
        };
        let pairs = self.tensors.into_iter().zip(other.tensors);
        Self {
            tensors: pairs.map(either).collect(),
            numbers: added(self.numbers, other.numbers),
        }
    }

    /// Divided by a number of parts.
    pub(super) fn over(mut self, parts: usize) -> Self {
        let parts = parts as f32;
        for values in self.tensors.iter_mut().chain([&mut self.numbers]) {
            let chunks = values.par_chunks_mut(CHUNK);
            chunks.for_each(|chunk| chunk.iter_mut().for_each(|value| *value /= parts));
        }
        self
    }

    /// How many numbers there are per parameter, for [`Layout::agreed`].
    pub(super) fn lengths(&self) -> Vec<usize> {
        self.tensors.iter().map(Vec::len).collect()
    }

    /// How many numbers there are beside them.
    pub(super) fn numbers(&self) -> usize {
        self.numbers.len()
    }

    /// As Burn's optimizer takes them, on the learner's device; and the numbers.
    pub(super) fn into_parts(self, learner: &SaeLearner) -> (GradientsParams, Vec<f32>) {
        let mut giving = Giving {
            tensors: self.tensors.into_iter(),
            grads: GradientsParams::new(),
        };
        learner.visit(&mut giving);
        (giving.grads, self.numbers)
    }
}

/// `a + b`, number by number.
pub(super) fn added(mut a: Vec<f32>, b: Vec<f32>) -> Vec<f32> {
    let pairs = a.par_chunks_mut(CHUNK).zip(b.par_chunks(CHUNK));
    pairs.for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| *a += b));
    a
}

/// How the numbers of a message follow each other.
#[derive(Debug)]
pub(super) struct Layout {
    slices: Slices,
    places: Vec<Place>,
    numbers: usize,
}

/// The place of a parameter in a message.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Numbers of all rows.
    length: usize,
    rows: usize,
    /// Numbers per row.
    width: usize,
    /// Whether processes have slices.
    cut: bool,
    /// Whether it is a gradient; others are what training counts.
    trained: bool,
}

impl Place {
    /// The numbers of process `rank`.
    fn numbers(&self, slices: Slices, rank: usize) -> Range<usize> {
        match self.cut {
            true => self.of_rows(slices.of(rank, self.rows)),
            false => 0..self.length,
        }
    }

    fn of_rows(&self, rows: Range<usize>) -> Range<usize> {
        rows.start * self.width..rows.end * self.width
    }
}

impl Layout {
    /// The layout for a learner whose parts have so many numbers per parameter (some may have none), and `numbers` beside them.
    pub(super) fn agreed(
        learner: &SaeLearner,
        slices: Slices,
        of_parts: &[Vec<usize>],
        numbers: usize,
    ) -> Self {
        let mut shaping = Shaping {
            slices,
            of_parts,
            places: Vec::new(),
        };
        learner.visit(&mut shaping);
        Self {
            slices,
            places: shaping.places,
            numbers,
        }
    }

    /// The parameters in the order of a message: first those that are trained.
    fn order(&self) -> impl Iterator<Item = (usize, &Place)> {
        let places = || self.places.iter().enumerate();
        let trained = places().filter(|(_, place)| place.trained);
        trained.chain(places().filter(|(_, place)| !place.trained))
    }

    /// Number of numbers of gradients in a message to process `rank`: the first of it.
    pub(super) fn trained(&self, rank: usize) -> usize {
        let trained = self.places.iter().filter(|place| place.trained);
        let lengths = trained.map(|place| place.numbers(self.slices, rank).len());
        lengths.sum()
    }

    /// Number of numbers in a message to process `rank`.
    pub(super) fn length(&self, rank: usize) -> usize {
        let places = self.places.iter();
        let lengths = places.map(|place| place.numbers(self.slices, rank).len());
        lengths.sum::<usize>() + self.numbers
    }

    /// The message to process `rank`; zeros where the part has nothing.
    pub(super) fn message(&self, part: &Gradients, rank: usize) -> Vec<f32> {
        let mut message = Vec::with_capacity(self.length(rank));
        for (at, place) in self.order() {
            let values = &part.tensors[at];
            let numbers = place.numbers(self.slices, rank);
            match values.is_empty() {
                true => message.resize(message.len() + numbers.len(), 0.0),
                false => message.extend_from_slice(&values[numbers]),
            }
        }
        message.extend_from_slice(&part.numbers);
        message
    }

    /// What a message to process `rank` says.
    pub(super) fn read(&self, message: &[f32], rank: usize) -> Gradients {
        let mut rest = message;
        let mut tensors = vec![Vec::new(); self.places.len()];
        for (at, place) in self.order() {
            let (values, behind) = rest.split_at(place.numbers(self.slices, rank).len());
            rest = behind;
            tensors[at] = values.to_vec();
        }
        Gradients {
            tensors,
            numbers: rest.to_vec(),
        }
    }

    /// Sums of the squares of the gradients that process `rank` has: one per block of rows, then one of what is not cut.
    pub(super) fn squares(&self, slice: &Gradients, rank: usize) -> Vec<f32> {
        let trained = |cut: bool| {
            let all = self.places.iter().zip(&slice.tensors);
            all.filter(move |(place, _)| place.trained && place.cut == cut)
        };
        let square = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let of_block = |block: usize| -> f32 {
            let sums = trained(true).map(|(place, values)| {
                let rows = self.slices.own_block(rank, block, place.rows);
                square(&values[place.of_rows(rows)])
            });
            sums.sum::<f64>() as f32
        };
        let blocks = (0..self.slices.each()).into_par_iter();
        let mut sums: Vec<f32> = blocks.map(of_block).collect();
        let whole = trained(false).map(|(_, values)| square(values));
        sums.push(whole.sum::<f64>() as f32);
        sums
    }
}

/// Makes a layout.
struct Shaping<'a> {
    slices: Slices,
    of_parts: &'a [Vec<usize>],
    places: Vec<Place>,
}

impl ModuleVisitor for Shaping<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let at = self.places.len();
        let lengths = self.of_parts.iter().map(|lengths| lengths[at]);
        let length = lengths.max().unwrap_or_default();
        let tensor = param.val();
        let dims = tensor.dims();
        let (rows, width) = (dims[0], dims[1..].iter().product());
        self.places.push(Place {
            length,
            rows,
            width,
            cut: self.slices.cut(&dims) && length == rows * width,
            trained: tensor.is_require_grad(),
        });
    }
}

/// Takes gradients out of Burn's.
struct Taking {
    grads: GradientsParams,
    tensors: Vec<Vec<f32>>,
}

impl ModuleVisitor for Taking {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let grad = self.grads.remove::<D>(param.id);
        let values = |grad: Tensor<D>| grad.into_data().try_to_vec().expect("float32 gradients");
        self.tensors.push(grad.map_or(Vec::new(), values));
    }
}

/// Gives them back.
struct Giving {
    tensors: std::vec::IntoIter<Vec<f32>>,
    grads: GradientsParams,
}

impl ModuleVisitor for Giving {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let values = self.tensors.next().expect("as many parameters");
        if values.is_empty() {
            return;
        }
        let tensor = param.val().inner();
        let mut dims = tensor.dims();
        dims[0] = values.len() / dims[1..].iter().product::<usize>();
        let data = TensorData::new(values, dims);
        let grad = Tensor::<D>::from_data(data, &tensor.device());
        self.grads.register(param.id, grad);
    }
}
