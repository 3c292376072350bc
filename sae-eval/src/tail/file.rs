//! A tail file: read, and checked before anything of it runs (docs/TAIL.md, "Format").

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Size;
use tract_onnx::pb::type_proto::Value as Type;
use tract_onnx::pb::{GraphProto, ModelProto, ValueInfoProto};

use super::scan;
use super::sizes::{Sizes, sizes};

/// Version of the format.
const VERSION: &str = "1";
/// Operator sets that are read.
const OPERATOR_SETS: std::ops::RangeInclusive<i64> = 13..=17;

/// What a tail computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Logits of the next token, `[batch, tokens, vocabulary]`.
    Decoder,
    /// Logits of classes, `[batch, classes]`.
    Classifier,
    /// An embedding, `[batch, e]`.
    Encoder,
}

impl Kind {
    pub(super) const NAMES: [(&'static str, Self); 3] = [
        ("decoder", Self::Decoder),
        ("classifier", Self::Classifier),
        ("encoder", Self::Encoder),
    ];

    pub(super) fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, kind)| *kind == self);
        found.map_or("", |(name, _)| name)
    }
}

/// A tail, as its file describes it.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    /// The model that it is the rest of.
    pub(super) model: String,
    /// The hidden state that it goes on from.
    pub(super) layer: usize,
    /// Longest document, in tokens.
    pub(super) context: usize,
    /// Width d of the hidden state.
    pub(super) width: usize,
    /// Size of the last axis of the output.
    pub(super) outputs: usize,
    /// Names of the classes of a classifier.
    pub(super) classes: Vec<String>,
    /// BLAKE3 of the file.
    pub(super) blake3: String,
    /// The file, parsed.
    pub(super) proto: ModelProto,
}

impl Tail {
    /// Reads a file, and checks all of it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let bytes = read(path).with_context(|| path.display().to_string())?;
        Self::of(path, &bytes)
            .with_context(|| format!("{} cannot be used as a tail", path.display()))
    }

    fn of(path: &Path, bytes: &[u8]) -> Result<Self> {
        scan::check(bytes)?;
        let proto = ModelProto::decode(bytes).context("it is no ONNX model")?;
        let property = |name: &str| {
            let key = format!("dynamic-sae.{name}");
            let mut all = proto.metadata_props.iter();
            let found = all.find(|entry| entry.key == key);
            found.map(|entry| entry.value.clone()).with_context(|| {
                format!("its metadata do not say {key}; tools/export_tail.py writes files that do")
            })
        };
        let number = |name: &str| -> Result<usize> {
            let text = property(name)?;
            let number = text.parse().ok();
            number.with_context(|| format!("its dynamic-sae.{name} is {text:?}, not a number"))
        };
        let version = property("tail")?;
        ensure!(
            version == VERSION,
            "it is a tail of version {version}, this program reads version {VERSION}"
        );
        let name = property("kind")?;
        let kind = Kind::NAMES.iter().find(|(known, _)| *known == name);
        let kind = kind
            .with_context(|| {
                format!("it is of kind {name:?}; known are decoder, classifier and encoder")
            })?
            .1;
        let classes = match kind {
            Kind::Classifier => serde_json::from_str(&property("classes")?)
                .context("its dynamic-sae.classes is no JSON list of names")?,
            _ => Vec::new(),
        };
        let mut tail = Self {
            path: path.into(),
            kind,
            model: property("model")?,
            layer: number("layer")?,
            context: number("context")?,
            width: 0,
            outputs: 0,
            classes,
            blake3: blake3::hash(bytes).to_hex().to_string(),
            proto,
        };
        tail.check_graph()?;
        Ok(tail)
    }

    fn graph(&self) -> Result<&GraphProto> {
        self.proto.graph.as_ref().context("it has no graph")
    }

    fn check_graph(&mut self) -> Result<()> {
        let graph = self.graph()?;
        let mut sets = self
            .proto
            .opset_import
            .iter()
            .filter(|set| set.domain.is_empty());
        let set = sets.next().map_or(0, |set| set.version);
        ensure!(
            OPERATOR_SETS.contains(&set),
            "its operator set is {set}; versions {} to {} are read",
            OPERATOR_SETS.start(),
            OPERATOR_SETS.end()
        );
        ensure!(
            graph.sparse_initializer.is_empty() && self.proto.functions.is_empty(),
            "it has sparse weights or functions of its own"
        );
        let ([input], [output]) = (&graph.input[..], &graph.output[..]) else {
            bail!(
                "it has {} inputs and {} outputs; a tail has one of each",
                graph.input.len(),
                graph.output.len()
            );
        };
        let width = match float(input)?[..] {
            [None, None, Some(width)] => width,
            _ => bail!(
                "its input is not float32 [batch, tokens, d] with a known d, and names for the others"
            ),
        };
        float(output)?;
        let long = self.context.max(1);
        let sizes = [[1, 1, width], [2, long.min(3), width], [1, long, width]]
            .map(|size| sizes(graph, size).map(|sizes| (size, sizes.output)));
        let mut last = None;
        for found in sizes {
            let ([batch, tokens, _], shape) = found?;
            // the same for every number of tokens
            let outputs = *last.get_or_insert(*shape.last().unwrap_or(&0));
            let expected = match self.kind {
                Kind::Decoder => vec![batch, tokens, outputs],
                Kind::Classifier => vec![batch, self.classes.len()],
                Kind::Encoder => vec![batch, outputs],
            };
            ensure!(
                shape == expected && outputs > 0,
                "of [{batch}, {tokens}, {width}] it makes {shape:?}, a {} makes {expected:?}",
                self.kind.name()
            );
        }
        (self.width, self.outputs) = (width, last.unwrap_or_default());
        Ok(())
    }

    /// The sizes for `batch` documents of `tokens` tokens.
    pub(super) fn sizes(&self, batch: usize, tokens: usize) -> Result<Sizes> {
        sizes(self.graph()?, [batch, tokens, self.width])
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    ensure!(
        length <= scan::MAX_BYTES,
        "it has {length} bytes; a tail has at most {}",
        scan::MAX_BYTES
    );
    let mut bytes = Vec::with_capacity(length as usize);
    Read::by_ref(&mut file)
        .take(scan::MAX_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The sizes of a float32 input or output, as far as it says them.
fn float(value: &ValueInfoProto) -> Result<Vec<Option<usize>>> {
    let Some(Type::TensorType(tensor)) = value.r#type.as_ref().and_then(|kind| kind.value.as_ref())
    else {
        bail!("{:?} has no type", value.name);
    };
    let kind = DataType::try_from(tensor.elem_type);
    ensure!(
        kind == Ok(DataType::Float),
        "{:?} is of type {}; tails compute in FLOAT (float32)",
        value.name,
        kind.map_or_else(
            |_| tensor.elem_type.to_string(),
            |kind| kind.as_str_name().into()
        )
    );
    let sizes = tensor.shape.as_ref().map(|shape| {
        let size = |size: &Option<Size>| match size {
            Some(Size::DimValue(size)) => usize::try_from(*size).ok(),
            _ => None,
        };
        shape.dim.iter().map(|one| size(&one.value)).collect()
    });
    Ok(sizes.unwrap_or_default())
}
