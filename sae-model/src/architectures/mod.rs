//! Architectures: how latents come from scores, and what training adds for it. One file each.
//!
//! A file holds all that an architecture is: its switches, its parameters, its selection, its terms of the loss, what
//! happens after an update, its recipe and its source. The list in this file is the only one; configs, saved models,
//! help texts, reports and the tests that loop over all architectures come from it. A crate that uses this one adds
//! its own architectures with [`register`].

mod attention;
mod attention_relu;
mod batch_topk;
mod gated;
mod jumprelu;
mod matryoshka;
mod mlp_sparsemax;
mod relu;
mod shared;
mod topk;

use std::fmt::Debug;
use std::sync::{Arc, RwLock};

use burn::tensor::Tensor;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::config::{InvalidConfig, SaeConfig};
use crate::loss::{Coefficient, Step, Term};
use crate::parameters::{Parameter, Parameters};
use crate::recipe::Recipe;
use crate::sae::Encoded;
use crate::scores::{Attended, Scores, Selected};

pub use attention::Preset;
pub use shared::{ENCODER, ENCODER_BIAS, SPARSITY};

/// An architecture. Everything has a default, except for its name, its source, its switches, its parameters and its
/// selection.
///
/// `x [B, d]` are activations, `q [B, d]` queries, `z = q W_enc^T + b_enc [B, M]` scores, `a [B, M]` latents.
pub trait Architecture: Debug + Send + Sync {
    /// Its name in configs, in `cfg.json` and in reports.
    fn name(&self) -> &'static str;

    /// The paper and the equations.
    fn source(&self) -> &'static str;

    /// In words, with the switch that matters most: `topk (k = 32)`.
    fn describe(&self) -> String {
        match self.asked_l0() {
            Some(k) => format!("{} (k = {k})", self.name()),
            None => self.name().into(),
        }
    }

    /// Its own switches and their values, as configs write them.
    fn switches(&self) -> Map<String, Value>;

    /// The meanings of its own switches: `(key, meaning)`.
    fn meanings(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Checks its own switches.
    ///
    /// # Errors
    /// [`InvalidConfig`] for the first value that no model can have.
    fn check(&self, _config: &SaeConfig) -> Result<(), InvalidConfig> {
        Ok(())
    }

    /// Its parameters, beside those that every model has ([`crate::parameters::COMMON`]).
    fn parameters(&self) -> &'static [Parameter];

    /// The switches that every model has, where it wants other ones than `usual`.
    fn config(&self, usual: SaeConfig) -> SaeConfig {
        usual
    }

    /// The usual `input_scale` for data of width `d_in` and variance `mean ||x - mean(x)||^2`. The default makes rows of
    /// `mean ||u||^2 = d`, the scale of the papers' coefficients.
    fn input_scale(&self, d_in: usize, variance: f64) -> f64 {
        (variance / d_in as f64).sqrt()
    }

    /// Whether there is usually a pre-bias, for data of this `||mean(x)|| / sigma`.
    fn pre_bias(&self, _mean_over_sigma: f64) -> bool {
        true
    }

    /// How it is trained for `steps` steps on activations of width `d_in`.
    fn recipe(&self, _steps: usize, d_in: usize) -> Recipe {
        Recipe::baseline(d_in)
    }

    /// Numbers that its terms of the loss read.
    fn coefficients(&self) -> &'static [Coefficient] {
        &[]
    }

    /// Latents of scores.
    fn select(&self, scores: &Scores<'_>) -> Selected;

    /// [`Architecture::select`] and `y = a W_dec` in one operation, where the architecture has one.
    fn attend(&self, _scores: &Scores<'_>) -> Option<Attended> {
        None
    }

    /// Steps by which inference refines the latents (`refinement.rs`).
    fn refinement(&self) -> usize {
        0
    }

    /// k: the L0 that it was asked for, where it was.
    fn asked_l0(&self) -> Option<usize> {
        None
    }

    /// Names of the terms that [`Architecture::losses`] may return.
    fn terms(&self) -> &'static [&'static str] {
        &[]
    }

    /// The terms that training minimises beside the reconstruction loss. The codes of a step are of the latents that are in this
    /// process: a sum over latents goes through [`Across::sum`](crate::Across::sum) of `step.sae.across()`.
    fn losses(&self, _step: &Step<'_>) -> Vec<Term> {
        Vec::new()
    }

    /// A number of a training batch `[1]` that [`Architecture::after_update`] wants to see. Where latents are spread over
    /// processes, it sees the least of theirs.
    fn observe(&self, _batch: &Encoded) -> Option<Tensor<1>> {
        None
    }

    /// The parameters after an update of the optimizer; `observed` is the batch's [`Architecture::observe`].
    fn after_update(&self, parameters: Parameters, _observed: Option<Tensor<1>>) -> Parameters {
        parameters
    }

    /// The reason why the numbers of a finished run mean less than they seem to, if there is one: after `steps` steps and with
    /// this L0.
    fn notes(&self, _steps: usize, _l0: f64) -> Option<String> {
        None
    }
}

/// Makes [`AnyArchitecture`] of the list: one variant per architecture, and [`built_in`].
macro_rules! architectures {
    ($d:tt $($module:ident::$id:ident),* $(,)?) => {
        /// An architecture: one of the list, or one that was [registered](register).
        #[derive(Clone, Debug)]
        #[non_exhaustive]
        #[allow(missing_docs)] // each is documented in its file
        pub enum AnyArchitecture {
            $($id($module::$id),)*
            /// Of another crate.
            Custom(Arc<dyn Architecture>),
        }

        $(
            pub use $module::$id;
            impl From<$id> for AnyArchitecture {
                fn from(own: $id) -> Self {
                    Self::$id(own)
                }
            }
        )*

        /// The architectures of this crate.
        fn built_in() -> Vec<Entry> {
            vec![$(Entry::of::<$id>(AnyArchitecture::$id)),*]
        }

        /// `$body` with `$own` as the architecture inside.
        macro_rules! each {
            ($d any:expr, $d own:ident => $d body:expr) => {
                match $d any {
                    $(AnyArchitecture::$id($d own) => $d body,)*
                    AnyArchitecture::Custom($d own) => $d body,
                }
            };
        }
    };
}

architectures! { $
    attention::Attention,
    attention_relu::AttentionRelu,
    mlp_sparsemax::MlpSparsemax,
    relu::Relu,
    topk::TopK,
    batch_topk::BatchTopK,
    jumprelu::JumpRelu,
    gated::Gated,
    matryoshka::Matryoshka,
}

/// The built-in architectures are dispatched statically.
impl Architecture for AnyArchitecture {
    fn name(&self) -> &'static str {
        each!(self, own => own.name())
    }
    fn source(&self) -> &'static str {
        each!(self, own => own.source())
    }
    fn describe(&self) -> String {
        each!(self, own => own.describe())
    }
    fn switches(&self) -> Map<String, Value> {
        each!(self, own => own.switches())
    }
    fn meanings(&self) -> &'static [(&'static str, &'static str)] {
        each!(self, own => own.meanings())
    }
    fn check(&self, config: &SaeConfig) -> Result<(), InvalidConfig> {
        each!(self, own => own.check(config))
    }
    fn parameters(&self) -> &'static [Parameter] {
        each!(self, own => own.parameters())
    }
    fn config(&self, usual: SaeConfig) -> SaeConfig {
        each!(self, own => own.config(usual))
    }
    fn input_scale(&self, d_in: usize, variance: f64) -> f64 {
        each!(self, own => own.input_scale(d_in, variance))
    }
    fn pre_bias(&self, mean_over_sigma: f64) -> bool {
        each!(self, own => own.pre_bias(mean_over_sigma))
    }
    fn recipe(&self, steps: usize, d_in: usize) -> Recipe {
        each!(self, own => own.recipe(steps, d_in))
    }
    fn coefficients(&self) -> &'static [Coefficient] {
        each!(self, own => own.coefficients())
    }
    fn select(&self, scores: &Scores<'_>) -> Selected {
        each!(self, own => own.select(scores))
    }
    fn attend(&self, scores: &Scores<'_>) -> Option<Attended> {
        each!(self, own => own.attend(scores))
    }
    fn refinement(&self) -> usize {
        each!(self, own => own.refinement())
    }
    fn asked_l0(&self) -> Option<usize> {
        each!(self, own => own.asked_l0())
    }
    fn terms(&self) -> &'static [&'static str] {
        each!(self, own => own.terms())
    }
    fn losses(&self, step: &Step<'_>) -> Vec<Term> {
        each!(self, own => own.losses(step))
    }
    fn observe(&self, batch: &Encoded) -> Option<Tensor<1>> {
        each!(self, own => own.observe(batch))
    }
    fn after_update(&self, parameters: Parameters, observed: Option<Tensor<1>>) -> Parameters {
        each!(self, own => own.after_update(parameters, observed))
    }
    fn notes(&self, steps: usize, l0: f64) -> Option<String> {
        each!(self, own => own.notes(steps, l0))
    }
}

/// One architecture that configs and saved models can name.
#[derive(Clone)]
struct Entry {
    /// With its default switches.
    usual: AnyArchitecture,
    /// With these switches.
    read: Arc<dyn Fn(Value) -> serde_json::Result<AnyArchitecture> + Send + Sync>,
}

/// Plain data with defaults: an architecture with switches that are left out is read with their defaults.
pub trait Switches: Architecture + Serialize + DeserializeOwned + Default + 'static {}

impl<A: Architecture + Serialize + DeserializeOwned + Default + 'static> Switches for A {}

impl Entry {
    fn of<A: Switches>(wrap: fn(A) -> AnyArchitecture) -> Self {
        Self {
            usual: wrap(A::default()),
            read: Arc::new(move |own| serde_json::from_value(own).map(wrap)),
        }
    }
}

/// Architectures that [`register`] has added.
static REGISTERED: RwLock<Vec<Entry>> = RwLock::new(Vec::new());

/// Adds an architecture of another crate, so that configs and saved models can name it. A registered one of the same name is
/// replaced; a name of this crate's own keeps its meaning.
pub fn register<A: Switches>() {
    let entry = Entry::of::<A>(|own| AnyArchitecture::Custom(Arc::new(own)));
    let mut registered = REGISTERED
        .write()
        .unwrap_or_else(|error| error.into_inner());
    registered.retain(|other| other.usual.name() != entry.usual.name());
    registered.push(entry);
}

impl AnyArchitecture {
    /// Every architecture with its default switches: those of this crate in the order of the list, then those that were
    /// registered.
    pub fn all() -> Vec<Self> {
        entries().into_iter().map(|entry| entry.usual).collect()
    }

    /// The architecture of this name with default switches.
    pub fn named(name: &str) -> Option<Self> {
        let entry = entries()
            .into_iter()
            .find(|entry| entry.usual.name() == name);
        entry.map(|entry| entry.usual)
    }

    /// The same architecture with some switches set to other values.
    ///
    /// # Errors
    /// If it has no such switch, or not of this type.
    pub fn with(&self, changes: Map<String, Value>) -> serde_json::Result<Self> {
        let entry = entries()
            .into_iter()
            .find(|entry| entry.usual.name() == self.name());
        let entry = entry.ok_or_else(|| serde_json::Error::custom("it is not registered"))?;
        // The other switches of a preset are the preset's.
        let mut own = match changes.contains_key("preset") {
            true => Map::new(),
            false => self.switches(),
        };
        own.extend(changes);
        (entry.read)(Value::Object(own))
    }
}

fn entries() -> Vec<Entry> {
    let registered = REGISTERED.read().unwrap_or_else(|error| error.into_inner());
    built_in()
        .into_iter()
        .chain(registered.iter().cloned())
        .collect()
}

impl Default for AnyArchitecture {
    fn default() -> Self {
        Self::Attention(Attention::default())
    }
}

impl PartialEq for AnyArchitecture {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name() && self.switches() == other.switches()
    }
}

/// `{"name": "topk", "k": 32, ...}`
impl Serialize for AnyArchitecture {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut all = Map::from_iter([("name".to_string(), Value::from(self.name()))]);
        all.extend(self.switches());
        all.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for AnyArchitecture {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut own = Map::<String, Value>::deserialize(deserializer)?;
        let name = own.remove("name").unwrap_or_default();
        let name = name
            .as_str()
            .ok_or_else(|| D::Error::custom("an architecture has a name"))?;
        let usual = Self::named(name)
            .ok_or_else(|| D::Error::custom(format!("there is no architecture \"{name}\"")))?;
        usual.with(own).map_err(D::Error::custom)
    }
}

/// The switches of an architecture that is plain data: for [`Architecture::switches`].
///
/// # Panics
/// If they are not a struct of JSON values.
pub fn switches_of(own: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(own) {
        Ok(Value::Object(map)) => map,
        _ => panic!("an architecture is a struct of JSON values"),
    }
}
