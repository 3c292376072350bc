//! The model: the paper's equations in their order (arXiv 2604.14925, section 3). Read this first.
//!
//! ```text
//! x0 = x - b_dec                                       [B, d]   b_dec: the pre-bias, or 0
//! n  = s (||x0|| / s)^p                                [B, 1]   the norm that rows are divided by
//! u  = x0 / n                                          [B, d]   p = 1: queries of length one; p = 0: the same n for all
//!                                                               (p = 1 where ||x0|| / s is out of norm_range)
//! q  = t u W_Q W_K^T                                   [B, d]   t: the scale
//! z  = q W_enc^T + b_enc                               [B, M]   scores; W_enc = W_dec for attention
//! a  = select(z)                                       [B, M]   latents, sparse: sparsemax, TopK, ... (`architectures/`)
//! a  = refined(a)                                      [B, M]   at inference, where asked for (`refinement.rs`)
//! x_hat = b_dec + n (a W_dec) W_V                      [B, d]
//! ```
//!
//! K = W_dec W_K and V = W_dec W_V are never formed: `(u W_Q)(W_dec W_K)^T = (u W_Q W_K^T) W_dec^T` and
//! `a (W_dec W_V) = (a W_dec) W_V`, which turns products of size M d^2 into products of size B d^2. On the CPU the
//! scores are never stored either (`ops::encode`), and decoding reads the support alone.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::across::Across;
use crate::architectures::Architecture;
use crate::config::SaeConfig;
use crate::ops::{self, Norm, SparseCodes};
use crate::parameters::{B_DEC, Parameter, Parameters, W_DEC, W_K, W_Q, W_V};
use crate::scores::{Attended, Mode, Scores, Selected};

/// A sparse autoencoder of any architecture.
#[derive(Module, Debug)]
pub struct Sae {
    /// Its parameters, by name.
    pub parameters: Parameters,
    #[module(skip)]
    pub(crate) config: SaeConfig,
    #[module(skip)]
    across: Across,
}

/// A batch before the dictionary.
#[derive(Clone, Debug)]
pub struct Input {
    /// u `[B, d]`.
    pub u: Tensor<2>,
    /// n `[B, 1]`.
    pub norms: Tensor<2>,
}

/// A batch seen through the dictionary.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Latents a.
    pub latents: SparseCodes,
    /// Gated: the gates that are open, with their pre-activations.
    pub gate: Option<SparseCodes>,
    /// Queries q `[B, d]`.
    pub queries: Tensor<2>,
    /// The rows as the model sees them.
    pub input: Input,
}

/// A batch, encoded and decoded.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The encoding.
    pub encoded: Encoded,
    /// x_hat `[B, d]`.
    pub x_hat: Tensor<2>,
}

impl Sae {
    /// A fresh model, the same on every device. `mean [d]` is the mean of the training data, where a pre-bias starts.
    ///
    /// # Panics
    /// If `mean` does not have `config.d_in` entries, or `config` is invalid.
    pub fn init(config: &SaeConfig, seed: u64, mean: &[f32], device: &Device) -> Self {
        Self::init_across(config, seed, mean, device, Across::alone(config.n_latents))
    }

    /// The part of a fresh model that this process has: its latents, and everything that is not of latents.
    ///
    /// # Panics
    /// As [`Sae::init`]; or if `across` is of another number of latents.
    pub fn init_across(
        config: &SaeConfig,
        seed: u64,
        mean: &[f32],
        device: &Device,
        across: Across,
    ) -> Self {
        config.validate().expect("a validated model config");
        let parameters = Parameters::start(config, across.own(), seed, mean, device);
        Self::of_parts(parameters, config, across)
    }

    /// A model of its parts.
    fn of_parts(parameters: Parameters, config: &SaeConfig, across: Across) -> Self {
        let last = across.of(across.comm().ranks() - 1).end;
        assert_eq!(last, config.n_latents, "every latent is somewhere");
        Self {
            parameters,
            config: config.clone(),
            across,
        }
    }

    /// A model with these parameters, which are those that `config` asks for.
    pub(crate) fn whole(parameters: Parameters, config: SaeConfig) -> Self {
        let across = Across::alone(config.n_latents);
        Self::of_parts(parameters, &config, across)
    }

    /// A model of known parameters: `value` gives each of the table its values, row-major, which are asked for in the order of
    /// the table.
    ///
    /// # Errors
    /// Those of `value`.
    ///
    /// # Panics
    /// If `config` is invalid, or the values of a parameter do not have its shape.
    pub fn with_values<E>(
        config: &SaeConfig,
        device: &Device,
        value: impl FnMut(&Parameter, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        config.validate().expect("a validated model config");
        let parameters = Parameters::build(config, config.n_latents, device, value)?;
        Ok(Self::whole(parameters, config.clone()))
    }

    /// The same parameters on another device, ready to be trained if it is one of autodiff.
    pub fn on(&self, device: &Device) -> Self {
        self.part(device, self.across.clone())
    }

    /// Of a whole model, the part that a process has, on a device.
    ///
    /// # Panics
    /// If `across` is of another number of latents.
    pub fn part(&self, device: &Device, across: Across) -> Self {
        let values = self.parameters.to_data();
        let rows = match self.across.is_apart() {
            true => 0..across.own().len(), // it is the part
            false => across.own(),
        };
        let value = |parameter: &Parameter, dims: &[usize]| {
            let mut all = values.iter();
            let found = all.find(|(name, _)| *name == parameter.name);
            let (_, value) = found.expect("a model has the parameters of its table");
            let own = match parameter.shape.is_of_latents() {
                true => {
                    let width: usize = dims[1..].iter().product();
                    rows.start * width..rows.end * width
                }
                false => 0..value.num_elements(),
            };
            let numbers = value.iter().skip(own.start).take(own.len());
            Ok::<_, std::convert::Infallible>(numbers.collect())
        };
        let built = Parameters::build(&self.config, rows.len(), device, value);
        let Ok(parameters) = built;
        Self::of_parts(parameters, &self.config, across)
    }

    /// The config that the model is made by.
    pub fn config(&self) -> &SaeConfig {
        &self.config
    }

    /// How its latents are spread over processes.
    pub fn across(&self) -> &Across {
        &self.across
    }

    /// Encodes and decodes activations `x [B, d]`.
    pub fn forward(&self, x: Tensor<2>, mode: &Mode) -> Forward {
        let input = self.normalize(x);
        let queries = self.queries(&input);
        match self.attend(&queries, mode) {
            Some(Attended {
                selected,
                y,
                factor,
            }) => {
                let x_hat = self.restore(y, &input, factor);
                let encoded = selected.of(queries, input);
                Forward { encoded, x_hat }
            }
            None => {
                let encoded = self.select(queries, input, mode);
                let x_hat = self.decode(&encoded.latents, &encoded.input);
                Forward { encoded, x_hat }
            }
        }
    }

    /// Encodes activations `x [B, d]`.
    pub fn encode(&self, x: Tensor<2>) -> Encoded {
        let input = self.normalize(x);
        let queries = self.queries(&input);
        self.select(queries, input, &Mode::Inference)
    }

    /// Decodes latents of rows that came as `input` to `x_hat [B, d]`.
    pub fn decode(&self, latents: &SparseCodes, input: &Input) -> Tensor<2> {
        self.restore(self.combined(latents), input, 1.0)
    }

    /// `u = (x - b_dec) / n`
    fn normalize(&self, x: Tensor<2>) -> Input {
        let (u, norms) = ops::normalize(x, self.b_dec(), self.norm());
        Input { u, norms }
    }

    /// q, for every latent wherever it is.
    fn queries(&self, input: &Input) -> Tensor<2> {
        self.across.given(self.own_queries(input))
    }

    /// `q = t u W_Q W_K^T`, `[B, d]`.
    fn own_queries(&self, input: &Input) -> Tensor<2> {
        let w_q = self.parameters.matrix(W_Q.name);
        let w_k = self.parameters.matrix(W_K.name).map(Tensor::transpose);
        let w = match (w_q, w_k) {
            (Some(w_q), Some(w_k)) => w_q.matmul(w_k), // d^3, so that only one product is B d^2
            (Some(w), None) | (None, Some(w)) => w,
            (None, None) => return scaled(input.u.clone(), self.config.scale),
        };
        let (u, norms) = (input.u.clone(), input.norms.clone());
        let q = ops::project((u, norms), self.b_dec(), w, self.norm());
        scaled(q, self.config.scale)
    }

    /// `a = select(q W_enc^T + b_enc)`, refined at inference.
    fn select(&self, queries: Tensor<2>, input: Input, mode: &Mode) -> Encoded {
        let selected = self
            .config
            .architecture
            .select(&self.scores(&queries, mode));
        let mut encoded = selected.of(queries, input);
        if self.refines(mode) {
            encoded.latents = self.refined(encoded.latents, &encoded.input);
        }
        encoded
    }

    /// `a` and `y = a W_dec` in one operation, where the architecture has one and `a` is not refined.
    fn attend(&self, queries: &Tensor<2>, mode: &Mode) -> Option<Attended> {
        match self.refines(mode) {
            true => None,
            false => self.config.architecture.attend(&self.scores(queries, mode)),
        }
    }

    /// `y = a W_dec`, `[B, d]`.
    pub(crate) fn combined(&self, latents: &SparseCodes) -> Tensor<2> {
        self.across.sum(ops::decode(latents, self.w_dec()))
    }

    /// The codes of the latents below `size`.
    pub(crate) fn below(&self, codes: &SparseCodes, size: u32) -> SparseCodes {
        codes.below(size.saturating_sub(self.across.own().start as u32))
    }

    /// `y W_V`, `[B, d]`.
    pub(crate) fn valued(&self, y: Tensor<2>) -> Tensor<2> {
        match self.parameters.matrix(W_V.name) {
            Some(w_v) => ops::product(y, w_v),
            None => y,
        }
    }

    /// `x_hat = b_dec + n y W_V * factor`, `[B, d]`.
    fn restore(&self, y: Tensor<2>, input: &Input, factor: f64) -> Tensor<2> {
        let Input { u, norms } = input.clone();
        ops::restore(
            self.valued(y),
            self.b_dec(),
            (u, norms),
            factor,
            self.norm(),
        )
    }

    fn scores<'a>(&'a self, queries: &'a Tensor<2>, mode: &'a Mode) -> Scores<'a> {
        Scores {
            parameters: &self.parameters,
            queries,
            scale: self.config.scale,
            mode,
            across: &self.across,
        }
    }

    /// Whether the values of the selected latents are refined: at inference, where the config asks for it.
    fn refines(&self, mode: &Mode) -> bool {
        matches!(mode, Mode::Inference) && self.config.architecture.refinement() > 0
    }

    /// s, p and norm_range.
    fn norm(&self) -> Norm {
        let range = self.config.norm_range;
        Norm {
            exponent: self.config.norm_exponent as f32,
            scale: self.config.input_scale as f32,
            range: range.map_or(f32::INFINITY, |r| r as f32),
        }
    }

    /// The dictionary W_dec `[M, d]`; of a model that is spread over processes, the rows that are here.
    pub fn w_dec(&self) -> Tensor<2> {
        let w_dec = self.parameters.matrix(W_DEC.name);
        w_dec.expect("every model has a decoder")
    }

    /// W_V `[d, d]`, where there is one: rows of `W_dec W_V` are what latents add to a row.
    pub fn w_v(&self) -> Option<Tensor<2>> {
        self.parameters.matrix(W_V.name)
    }

    /// The pre-bias b_dec `[d]`, where there is one.
    pub fn b_dec(&self) -> Option<Tensor<1>> {
        self.parameters.vector(B_DEC.name)
    }

    /// The model after an update of the optimizer; `observed` is what the architecture observed of the batch.
    pub fn after_update(self, observed: Option<Tensor<1>>) -> Self {
        let architecture = &self.config.architecture;
        let parameters = architecture.after_update(self.parameters, observed);
        Self { parameters, ..self }
    }
}

impl Selected {
    /// The encoding of the rows that this was selected for.
    fn of(self, queries: Tensor<2>, input: Input) -> Encoded {
        Encoded {
            latents: self.latents,
            gate: self.gate,
            queries,
            input,
        }
    }
}

fn scaled(x: Tensor<2>, factor: f64) -> Tensor<2> {
    if factor == 1.0 { x } else { x * factor }
}
