//! The model as evaluation uses it: it encodes and decodes on its device, and rows, codes and reconstructions lie on the host.
//!
//! Statistics, probes and pages are made on the host, and top-n classification filters codes there for every n. So rows, codes and
//! reconstructions travel; the dictionary does once.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sae_model::{Input, Mode, Sae, SparseCodes, ops};

/// A model, ready to encode and decode.
pub(crate) struct Model {
    sae: Sae,
    device: Device,
    host: Device,
}

/// An encoded batch, on the host.
pub(crate) struct Codes {
    /// Latent activations.
    pub(crate) codes: SparseCodes,
    /// The normalised rows and their norms, which decoding needs, on the model's device.
    pub(crate) input: Input,
}

/// The device of everything but the model: `device` itself if it is a CPU.
pub(crate) fn host_of(device: &Device) -> Device {
    if ops::is_cpu(device) {
        device.clone()
    } else {
        Device::flex()
    }
}

impl Model {
    /// Takes a model on the host, `host_of(device)`, and copies it to a GPU.
    pub(crate) fn new(sae: Sae, device: &Device) -> Self {
        let host = host_of(device);
        let sae = if host == *device {
            sae
        } else {
            sae.to_device(device)
        };
        Self {
            sae,
            device: device.clone(),
            host,
        }
    }

    /// Encodes `x [B, d]`, which lies on the host.
    pub(crate) fn encode(&self, x: Tensor<2>) -> Codes {
        let encoded = self.sae.encode(moved(x, &self.device));
        Codes {
            codes: encoded.latents.on_host(),
            input: encoded.input,
        }
    }

    /// Encodes and decodes `x [B, d]`, which lies on the host.
    pub(crate) fn reconstruct(&self, x: Tensor<2>) -> (Codes, Tensor<2>) {
        let forward = self.sae.forward(moved(x, &self.device), &Mode::Inference);
        let codes = Codes {
            codes: forward.encoded.latents.on_host(),
            input: forward.encoded.input,
        };
        (codes, moved(forward.x_hat, &self.host))
    }

    /// Decodes the codes of rows with this `input` to `x_hat [B, d]`.
    pub(crate) fn decode(&self, codes: SparseCodes, input: &Input) -> Tensor<2> {
        let x_hat = self.sae.decode(&codes.to_device(&self.device), input);
        moved(x_hat, &self.host)
    }
}

/// The values of a tensor, on the host.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>(); // nothing to do where it is float32
    data.try_into_vec().expect("the values are float32")
}

fn moved(x: Tensor<2>, device: &Device) -> Tensor<2> {
    if x.device() == *device {
        return x;
    }
    Tensor::from_data(x.into_data(), device)
}
