//! A tail, ready to run: by tract, on one thread per call.

use anyhow::{Context, Result, ensure};
use tract_onnx::prelude::*;

use super::file::Tail;

/// Numbers in the largest result of one call: 256 MB.
const AT_ONCE: usize = 1 << 26;

/// A tail that runs.
pub(super) struct Network {
    tail: Tail,
    plan: Arc<TypedSimplePlan>,
}

impl Network {
    /// Prepares a tail that has been checked. Its parsed file stays: the sizes for other numbers of tokens follow from it.
    pub(super) fn new(tail: Tail) -> Result<Self> {
        let prepare = || -> TractResult<_> {
            let model = tract_onnx::onnx().model_for_proto_model(&tail.proto)?;
            model.into_optimized()?.into_runnable()
        };
        let plan = prepare().map_err(|error| anyhow::anyhow!("{error:#}"));
        let plan =
            plan.with_context(|| format!("{} cannot be used as a tail", tail.path.display()))?;
        Ok(Self { tail, plan })
    }

    /// The tail.
    pub(super) fn tail(&self) -> &Tail {
        &self.tail
    }

    /// The output of several versions of one document, `[tokens, d]` each; `visit(version, output)` gets them in order.
    pub(super) fn run(
        &self,
        versions: &[&[f32]],
        tokens: usize,
        mut visit: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let width = self.tail.width;
        let one = self.tail.sizes(1, tokens)?.largest.max(1);
        let at_once = (AT_ONCE / one).max(1);
        for (call, some) in versions.chunks(at_once).enumerate() {
            let hidden = some.concat();
            let input = Tensor::from_shape(&[some.len(), tokens, width], &hidden);
            let output = input.and_then(|input| self.plan.run(tvec!(input.into())));
            let output = output.map_err(|error| anyhow::anyhow!("{error:#}"));
            let output = output.with_context(|| {
                format!(
                    "{}: running it on {tokens} tokens",
                    self.tail.path.display()
                )
            })?;
            let values = output[0].to_plain_array_view::<f32>();
            let values = values.map_err(|error| anyhow::anyhow!("{error:#}"))?;
            let values = values
                .as_slice()
                .context("the tail's output is not in order")?;
            let each = values.len() / some.len();
            ensure!(each > 0, "the tail gave nothing");
            ensure!(
                values.iter().all(|x| x.is_finite()),
                "{}: its output has NaN or infinity",
                self.tail.path.display()
            );
            for (at, output) in values.chunks_exact(each).enumerate() {
                visit(call * at_once + at, output)?;
            }
        }
        Ok(())
    }
}
