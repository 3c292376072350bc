//! The model as evaluation uses it: one part encodes, one part decodes.
//!
//! Top-n classification filters codes for every n, and sparse codes are decoded on the host. So the model stays on the
//! host: otherwise its dictionary would be copied from the GPU for every batch. If a GPU has kernels for the encoder
//! (sparse attention), a copy that was moved there once encodes; everything else runs on the host.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sae_model::{Architecture, Input, Latents, Mode, Sae, SparseCodes, ops};

/// A model, ready to encode and decode.
pub(crate) struct Model {
    /// Decodes; also encodes if there is no copy on a GPU.
    host: Sae,
    /// Encodes.
    gpu: Option<(Sae, Device)>,
}

/// An encoded batch, on the host.
pub(crate) struct Codes {
    /// Latent activations.
    pub(crate) codes: SparseCodes,
    /// The normalised rows and their norms, which decoding needs.
    pub(crate) input: Input,
}

/// The device of everything except GPU kernels: `device` itself if it is a CPU.
pub(crate) fn host_of(device: &Device) -> Device {
    if ops::is_cpu(device) {
        device.clone()
    } else {
        Device::flex()
    }
}

impl Model {
    /// Takes a model on the host, `host_of(device)`, and copies it only to a GPU.
    pub(crate) fn new(host: Sae, device: &Device) -> Self {
        let on_gpu = !ops::is_cpu(device) && host.config().architecture.runs_on_gpu();
        let gpu = on_gpu.then(|| (host.clone().to_device(device), device.clone()));
        Self { host, gpu }
    }

    /// True if a GPU computes the codes, which are dense there.
    pub(crate) fn is_dense(&self) -> bool {
        self.gpu.is_some()
    }

    /// Encodes `x [B, d]`, which lies on the host.
    pub(crate) fn encode(&self, x: Tensor<2>) -> Codes {
        let Some((sae, device)) = &self.gpu else {
            let encoded = self.host.encode(x);
            return Codes {
                codes: encoded.latents.into_codes(),
                input: encoded.input,
            };
        };
        let host = x.device();
        let encoded = sae.encode(moved(x, device));
        let codes = match encoded.latents {
            Latents::Dense(a) => {
                let [_, latents] = a.dims();
                SparseCodes::from_dense(&values(a), latents, &host)
            }
            Latents::Sparse(codes) => codes,
        };
        let input = Input {
            u: moved(encoded.input.u, &host),
            norms: moved(encoded.input.norms, &host),
        };
        Codes { codes, input }
    }

    /// Encodes and decodes `x [B, d]`, which lies on the host.
    pub(crate) fn reconstruct(&self, x: Tensor<2>) -> (Codes, Tensor<2>) {
        if self.gpu.is_some() {
            let encoded = self.encode(x);
            let x_hat = self.decode(encoded.codes.clone(), &encoded.input);
            return (encoded, x_hat);
        }
        let forward = self.host.forward(x, &Mode::Inference);
        let codes = Codes {
            codes: forward.encoded.latents.into_codes(),
            input: forward.encoded.input,
        };
        (codes, forward.x_hat)
    }

    /// Decodes the codes of rows with this `input` to `x_hat [B, d]`.
    pub(crate) fn decode(&self, codes: SparseCodes, input: &Input) -> Tensor<2> {
        self.host.decode(&Latents::Sparse(codes), input)
    }
}

/// The values of a tensor, on the host.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>(); // nothing to do where it is float32
    data.try_into_vec().expect("the values are float32")
}

fn moved(x: Tensor<2>, device: &Device) -> Tensor<2> {
    Tensor::from_data(x.into_data(), device)
}
