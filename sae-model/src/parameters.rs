//! The parameters of a model, by name.
//!
//! A [`Parameter`] is one row of a table: name, shape, start. The tables drive how models start, how they are saved, loaded
//! and checked. [`COMMON`] has the rows that every model may have, and each
//! architecture adds its own.

use std::ops::Range;
use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};

use crate::architectures::Architecture;
use crate::config::{ConceptInit, PreBiasInit, ProjectionInit, SaeConfig};

/// One parameter of a model.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name in code and in files.
    pub name: &'static str,
    /// Its shape.
    pub shape: Shape,
    /// Where it starts.
    pub start: Start,
    /// Whether the optimizer moves it.
    pub trained: bool,
    /// Whether a model has it.
    pub when: fn(&SaeConfig) -> bool,
}

/// The shape of a parameter, in terms of the width d and the number of latents M.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shape {
    /// `[M, d]`
    Dictionary,
    /// `[d, d]`
    Square,
    /// `[d]`
    Width,
    /// `[M]`
    Latents,
    /// `[1]`
    One,
}

/// Where a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Start {
    /// As the rows of the decoder, which start as `init.concepts` says.
    Decoder,
    /// As `init.projections` says, with random numbers of this stream.
    Projection(u64),
    /// As `init.pre_bias` says.
    PreBias,
    /// Everywhere this number.
    Constant(f32),
}

impl Shape {
    /// In numbers.
    pub fn dims(self, config: &SaeConfig) -> Vec<usize> {
        self.dims_of(config.n_latents, config.d_in)
    }

    /// Whether it has a row per latent.
    pub fn is_of_latents(self) -> bool {
        matches!(self, Self::Dictionary | Self::Latents)
    }

    /// In numbers, of m latents.
    fn dims_of(self, m: usize, d: usize) -> Vec<usize> {
        match self {
            Self::Dictionary => vec![m, d],
            Self::Square => vec![d, d],
            Self::Width => vec![d],
            Self::Latents => vec![m],
            Self::One => vec![1],
        }
    }
}

impl Parameter {
    /// Trained, and part of every model: to be completed with name, shape and start.
    pub const ALWAYS: Self = Self {
        name: "",
        shape: Shape::Latents,
        start: Start::Constant(0.0),
        trained: true,
        when: |_| true,
    };
}

/// Name of the encoder `[M, d]`.
pub const W_ENC: &str = "W_enc";
/// Name of the encoder's bias `[M]`.
pub const B_ENC: &str = "b_enc";
/// The dictionary `[M, d]`: concepts are its rows.
pub const W_DEC: Parameter = Parameter {
    name: "W_dec",
    shape: Shape::Dictionary,
    start: Start::Decoder,
    ..Parameter::ALWAYS
};
/// W_Q `[d, d]`, row-vector convention (`x W`), as all projections.
pub const W_Q: Parameter = Parameter {
    name: "W_Q",
    shape: Shape::Square,
    start: Start::Projection(1),
    when: |config| config.query_projection,
    ..Parameter::ALWAYS
};
/// W_K `[d, d]`.
pub const W_K: Parameter = Parameter {
    name: "W_K",
    start: Start::Projection(2),
    when: |config| config.key_projection,
    ..W_Q
};
/// W_V `[d, d]`.
pub const W_V: Parameter = Parameter {
    name: "W_V",
    start: Start::Projection(3),
    when: |config| config.value_projection,
    ..W_Q
};
/// The pre-bias `[d]`.
pub const B_DEC: Parameter = Parameter {
    name: "b_dec",
    shape: Shape::Width,
    start: Start::PreBias,
    when: |config| config.pre_bias,
    ..Parameter::ALWAYS
};

/// Parameters that a model of any architecture may have.
pub const COMMON: [Parameter; 5] = [W_DEC, W_Q, W_K, W_V, B_DEC];

/// The parameters of this model.
pub fn table(config: &SaeConfig) -> Vec<Parameter> {
    let own = config.architecture.parameters().iter();
    let all = COMMON.iter().chain(own).copied();
    all.filter(|parameter| (parameter.when)(config)).collect()
}

/// The values of a model's parameters.
#[derive(Module, Debug)]
pub struct Parameters {
    matrices: Vec<Param<Tensor<2>>>,
    vectors: Vec<Param<Tensor<1>>>,
    /// Of the matrices, then of the vectors.
    #[module(skip)]
    names: Arc<[Vec<&'static str>; 2]>,
}

impl Parameters {
    /// Every parameter of the table, with the values that `value` gives it, row-major: those of `latents` latents. They are asked for in
    /// the order of the table.
    ///
    /// # Errors
    /// Those of `value`.
    pub(crate) fn build<E>(
        config: &SaeConfig,
        latents: usize,
        device: &Device,
        mut value: impl FnMut(&Parameter, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let (mut matrices, mut vectors) = (Vec::new(), Vec::new());
        let mut names = [Vec::new(), Vec::new()];
        for parameter in table(config) {
            let dims = parameter.shape.dims_of(latents, config.d_in);
            let data = TensorData::new(value(&parameter, &dims)?, dims.clone());
            if dims.len() == 2 {
                let mut matrix = Param::from_tensor(Tensor::from_data(data, device));
                matrix.id = id_of(parameter.name);
                matrices.push(matrix);
                names[0].push(parameter.name);
            } else {
                let mut vector = Param::from_tensor(Tensor::from_data(data, device));
                vector.id = id_of(parameter.name);
                vectors.push(vector.set_require_grad(parameter.trained));
                names[1].push(parameter.name);
            }
        }
        let names = Arc::new(names);
        Ok(Self {
            matrices,
            vectors,
            names,
        })
    }

    /// The start of a model, of these latents: a pure function of config, seed and the mean of the data.
    ///
    /// # Panics
    /// If `mean` does not have `config.d_in` entries.
    pub(crate) fn start(
        config: &SaeConfig,
        latents: Range<usize>,
        seed: u64,
        mean: &[f32],
        device: &Device,
    ) -> Self {
        let (m, d) = (config.n_latents, config.d_in);
        assert_eq!(mean.len(), d, "the mean has the width of the activations");
        let decoder = || match config.init.concepts {
            ConceptInit::Unit => unit_rows(latents.clone(), d, rng(seed, 0)),
            ConceptInit::Kaiming => {
                let numbers = latents.start * d..latents.end * d;
                kaiming_uniform(numbers, m, rng(seed, 0))
            }
        };
        let value = |parameter: &Parameter, dims: &[usize]| {
            let value = match parameter.start {
                Start::Decoder => decoder(),
                Start::Constant(value) => vec![value; dims.iter().product()],
                Start::Projection(stream) => match config.init.projections {
                    ProjectionInit::Identity => identity(d),
                    ProjectionInit::Kaiming => kaiming_uniform(0..d * d, d, rng(seed, stream)),
                },
                Start::PreBias => match config.init.pre_bias {
                    PreBiasInit::Mean => mean.to_vec(),
                    PreBiasInit::Zero => vec![0.0; d],
                },
            };
            Ok::<_, std::convert::Infallible>(value)
        };
        match Self::build(config, latents.len(), device, value) {
            Ok(parameters) => parameters,
            Err(never) => match never {},
        }
    }

    /// The matrix of this name, if the model has it.
    pub fn matrix(&self, name: &str) -> Option<Tensor<2>> {
        let at = self.names[0].iter().position(|own| *own == name)?;
        self.matrices.get(at).map(Param::val)
    }

    /// The vector of this name, if the model has it.
    pub fn vector(&self, name: &str) -> Option<Tensor<1>> {
        let at = self.names[1].iter().position(|own| *own == name)?;
        self.vectors.get(at).map(Param::val)
    }

    /// Where the parameter of this name stands in the module, for groups of learning rates: `matrices.1`.
    pub fn path(&self, name: &str) -> Option<String> {
        let lists = ["matrices", "vectors"].into_iter().zip(self.names.iter());
        let mut places = lists.filter_map(|(list, names)| {
            let at = names.iter().position(|own| *own == name)?;
            Some(format!("{list}.{at}"))
        });
        places.next()
    }

    /// Puts a matrix in the place of one of this name.
    ///
    /// # Panics
    /// If there is none.
    pub fn set_matrix(&mut self, name: &str, value: Tensor<2>) {
        let at = self.names[0].iter().position(|own| *own == name);
        self.matrices[at.expect("the model has this matrix")] = Param::from_tensor(value);
    }

    /// Puts a vector in the place of one of this name.
    ///
    /// # Panics
    /// If there is none.
    pub fn set_vector(&mut self, name: &str, value: Tensor<1>) {
        let at = self.names[1].iter().position(|own| *own == name);
        self.vectors[at.expect("the model has this vector")] = Param::from_tensor(value);
    }

    /// The parameters with one matrix changed; without it, as they are.
    pub fn map_matrix(mut self, name: &str, change: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        if let Some(at) = self.names[0].iter().position(|own| *own == name) {
            let param = self.matrices.remove(at);
            self.matrices.insert(at, param.map(change));
        }
        self
    }

    /// The parameters with one vector changed; without it, as they are.
    pub fn map_vector(mut self, name: &str, change: impl FnOnce(Tensor<1>) -> Tensor<1>) -> Self {
        if let Some(at) = self.names[1].iter().position(|own| *own == name) {
            let param = self.vectors.remove(at);
            self.vectors.insert(at, param.map(change));
        }
        self
    }

    /// Names and values, on the host.
    pub fn to_data(&self) -> Vec<(&'static str, TensorData)> {
        let matrices = self.matrices.iter().map(|p| p.val().into_data());
        let vectors = self.vectors.iter().map(|p| p.val().into_data());
        let names = self.names.iter().flatten().copied();
        names.zip(matrices.chain(vectors)).collect()
    }
}

/// Identity of the parameter of this name: the same in every process, so that processes can speak of it. FNV-1a.
pub fn id_of(name: &str) -> ParamId {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    ParamId::from(hash)
}

/// One generator per parameter, so that adding a parameter does not move the others.
fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

fn identity(d: usize) -> Vec<f32> {
    (0..d * d)
        .map(|i| if i / d == i % d { 1.0 } else { 0.0 })
        .collect()
}

/// Of many rows of length one in uniformly random directions, `[m, d]`, some.
fn unit_rows(rows: Range<usize>, d: usize, mut rng: ChaCha8Rng) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows.len() * d);
    for i in 0..rows.end {
        let row: Vec<f64> = (0..d).map(|_| StandardNormal.sample(&mut rng)).collect();
        if i < rows.start {
            continue;
        }
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        values.extend(row.iter().map(|v| (v / norm) as f32));
    }
    values
}

/// Of many numbers, uniform in ±sqrt(6 / fan_in) (He et al. 2015, with torch's default gain), some.
fn kaiming_uniform(numbers: Range<usize>, fan_in: usize, mut rng: ChaCha8Rng) -> Vec<f32> {
    let bound = (6.0 / fan_in as f64).sqrt();
    let uniform = Uniform::new_inclusive(-bound, bound).expect("a positive bound");
    let all = (0..numbers.end).map(|_| uniform.sample(&mut rng) as f32);
    all.skip(numbers.start).collect()
}
