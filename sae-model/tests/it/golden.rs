//! Compares sparsemax and the model with float64 reference values from torch (`tests/golden/README.md`).

use burn::tensor::{Device, Tensor, TensorData};
use sae_model::architectures::Attention;
use sae_model::loss::Loss;
use sae_model::{Mode, Preset, Sae, SaeConfig, ops, saved};
use safetensors::SafeTensors;

use crate::{devices, values};

/// Absolute tolerance of forward values, which are of order one.
const FORWARD: f64 = 1e-5;
/// Tolerance of gradients, relative to the largest entry of the tensor.
const GRADIENT: f64 = 1e-4;

struct Golden(Vec<u8>);

impl Golden {
    fn open(name: &str) -> Self {
        let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        Self(std::fs::read(path).expect("the golden file"))
    }

    fn get(&self, name: &str) -> Option<(Vec<f64>, Vec<usize>)> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let view = file.tensor(name).ok()?;
        let words = view.data().as_chunks::<8>().0;
        Some((
            words.iter().map(|w| f64::from_le_bytes(*w)).collect(),
            view.shape().to_vec(),
        ))
    }

    fn tensor(&self, name: &str, device: &Device) -> Tensor<2> {
        let (values, shape) = self
            .get(name)
            .unwrap_or_else(|| panic!("{name} is in the file"));
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        Tensor::from_data(TensorData::new(values, [shape[0], shape[1]]), device)
    }

    fn check(&self, name: &str, actual: &[f32], tolerance: impl Fn(&[f64]) -> f64) {
        let (expected, _) = self
            .get(name)
            .unwrap_or_else(|| panic!("{name} is in the file"));
        assert_eq!(actual.len(), expected.len(), "{name}");
        let tolerance = tolerance(&expected);
        for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
            let error = (f64::from(*a) - e).abs();
            assert!(
                error <= tolerance,
                "{name}[{i}]: {a} is not {e} (off by {error:e}, {tolerance:e} allowed)"
            );
        }
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(1e-6, |max, v| v.abs().max(max))
}

#[test]
fn sparsemax() {
    let golden = Golden::open("sparsemax.safetensors");
    for (name, device) in devices() {
        let device = device.autodiff();
        for case in [
            "normal_7x13",
            "wide_5x4099",
            "hot_4x257",
            "flat_3x64",
            "offset_3x100",
            "single_4x1",
            "two_6x2",
        ] {
            let of = |part: &str| format!("sparsemax.{case}.{part}");
            let z = golden.tensor(&of("z"), &device).require_grad();
            let p = ops::sparsemax(z.clone());
            let grads = (p.clone() * golden.tensor(&of("grad_out"), &device))
                .sum()
                .backward();
            eprintln!("{name} {case}");
            golden.check(&of("p"), &values(p), |_| FORWARD);
            let dz = z.grad(&grads).expect("scores have a gradient");
            golden.check(&of("grad_z"), &values(dz), |e| GRADIENT * largest(e));
        }
        let p = ops::sparsemax(golden.tensor("sparsemax.ties_4x4.z", &device));
        golden.check("sparsemax.ties_4x4.p", &values(p), |_| FORWARD);
    }
}

/// The names of parameters in the golden files and in saved models.
const NAMES: [(&str, &str); 4] = [
    ("concepts", "W_dec"),
    ("w_q", "W_Q"),
    ("w_k", "W_K"),
    ("w_v", "W_V"),
];

/// Loads the golden model at `prefix` through the saved-model format, as users do with their own weights.
fn model(golden: &Golden, preset: Preset, prefix: &str, device: &Device) -> Sae {
    let shape = |name: &str| {
        golden
            .get(&format!("{prefix}.{name}"))
            .map(|(_, shape)| shape)
    };
    let concepts = shape("concepts").expect("concepts");
    let config = SaeConfig::new(Attention::from(preset), concepts[1], concepts[0]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let fresh = Sae::init(&config, 0, &vec![0.0; config.d_in], &Device::flex());
    saved::save(&fresh, 0, dir.path()).expect("saved");
    // other weights follow, which the checksums would refuse
    std::fs::remove_file(dir.path().join(sae_run::sealed::SUMS_FILE)).expect("removed");
    let mut tensors = Vec::new();
    for (name, now) in NAMES {
        if let Some((values, shape)) = golden.get(&format!("{prefix}.{name}")) {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|v| (*v as f32).to_le_bytes())
                .collect();
            tensors.push((now, shape, bytes));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (*name, view.expect("a view"))
    });
    let bytes = safetensors::serialize(views, None).expect("serialized");
    std::fs::write(dir.path().join(saved::WEIGHTS_FILE), bytes).expect("written");
    saved::load(dir.path(), device).expect("loaded")
}

#[test]
fn model_forward_loss_and_gradients() {
    let golden = Golden::open("model.safetensors");
    for (name, device) in devices() {
        let device = device.autodiff();
        for (preset, form, loss) in [
            (Preset::Paper, "paper", Loss::Mse),
            (Preset::Released, "released", Loss::NormWeighted),
        ] {
            for shape in ["B5_d7_M33", "B16_d24_M200", "B3_d64_M1031"] {
                let prefix = format!("{form}.{shape}");
                eprintln!("{name} {prefix}");
                let of = |part: &str| format!("{prefix}.{part}");
                let sae = model(&golden, preset, &prefix, &device);
                let x = golden.tensor(&of("x"), &device);
                let r = sae.forward(x.clone(), &Mode::Inference);
                let loss = loss.forward(x, r.x_hat.clone(), 1.0);
                let grads = loss.backward();
                let scale = |e: &[f64]| FORWARD * largest(e).max(1.0);
                let scores = r.encoded.queries.matmul(sae.w_dec().transpose());
                golden.check(&of("scores"), &values(scores), scale);
                let latents = r.encoded.latents.on_host().to_dense(&Device::flex());
                golden.check(&of("acts"), &values(latents), scale);
                golden.check(&of("recon"), &values(r.x_hat), scale);
                golden.check(&of("loss"), &values(loss), scale);
                let found = NAMES.map(|(name, now)| Some((name, sae.parameters.matrix(now)?)));
                let found: Vec<_> = found.into_iter().flatten().collect();
                assert_eq!(found.len(), if form == "paper" { 4 } else { 3 });
                for (name, parameter) in found {
                    let grad = parameter.grad(&grads);
                    let grad = grad.expect("every parameter has a gradient");
                    golden.check(&of(&format!("grad.{name}")), &values(grad), |e| {
                        GRADIENT * largest(e)
                    });
                }
            }
        }
    }
}
