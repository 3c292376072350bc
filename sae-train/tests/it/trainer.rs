//! `Trainer` does from Rust what a run of the binary does.

use burn::tensor::Device;
use sae_data::{ActivationData, Options};
use sae_model::architectures::{Attention, BatchTopK};
use sae_model::{AnyArchitecture, saved};
use sae_train::{TrainError, Trainer};

use crate::{WIDTH, Workspace};

#[test]
fn a_trainer_makes_the_model_of_a_run() {
    let w = Workspace::new();
    let data = ActivationData::open(&w.path("train.safetensors"), &Options::default()).unwrap();
    let batch_topk = BatchTopK {
        k: 3,
        ..BatchTopK::default()
    };
    for (name, architecture, own) in [
        ("attention", AnyArchitecture::from(Attention::default()), ""),
        ("batch_topk", batch_topk.into(), "model.k=3"),
    ] {
        let architecture_set = format!("model.architecture={name}");
        let mut arguments = vec!["--set", &architecture_set, "--set", "training.steps=30"];
        if !own.is_empty() {
            arguments.extend(["--set", own]);
        }
        let run = w.trained(name, &arguments);
        let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
        let config: toml::Table = config.parse().unwrap();
        let (model, training) = (&config["model"], &config["training"]);
        let number = |value: &toml::Value| value.as_integer().unwrap() as usize;
        let trainer = Trainer::new(
            architecture,
            number(&model["n_latents"]),
            30,
            number(&training["batch_size"]),
        )
        .set("seed", config["seed"].clone())
        .set("training.lr", training["lr"].clone())
        .set("training.warmup_steps", training["warmup_steps"].clone());
        let sae = trainer.fit(&data).unwrap();
        let run = saved::load(&run.join("model"), &Device::flex()).unwrap();
        assert_eq!(sae.config(), run.config());
        for ((name, ours), (_, theirs)) in sae
            .parameters
            .to_data()
            .into_iter()
            .zip(run.parameters.to_data())
        {
            assert_eq!(ours, theirs, "{name}");
        }
    }
}

#[test]
fn what_no_config_can_have_is_an_error() {
    let data = ActivationData::from_rows(vec![0.5; 20 * WIDTH], WIDTH);
    let wrong = Trainer::new(Attention::default(), 8, 5, 4).set("training.lrr", 1.0);
    let error = wrong.fit(&data).unwrap_err();
    assert!(matches!(error, TrainError::Config(_)), "{error}");
    assert!(error.to_string().starts_with("training.lrr = 1"), "{error}");
    let plain = Trainer::new(Attention::default(), 8, 5, 4).set("training", 3);
    let error = plain.set("training.lr", 1e-3).fit(&data).unwrap_err();
    assert!(error.to_string().contains("training"), "{error}");
    // rows without a scale, and no rows
    let usual = Trainer::new(Attention::default(), 8, 5, 4);
    let error = usual.fit(&data).unwrap_err().to_string();
    assert!(error.starts_with("model.input_scale = 0"), "{error}");
    let none = ActivationData::from_rows(Vec::new(), WIDTH);
    let error = usual.fit(&none).unwrap_err().to_string();
    assert_eq!(error, "data.train = \"memory\": it has no rows");
    let rows = vec![f32::NAN; 20 * WIDTH];
    let trainer = Trainer::new(Attention::default(), 8, 5, 4).set("model.input_scale", 1.0);
    let error = trainer
        .fit(&ActivationData::from_rows(rows, WIDTH))
        .unwrap_err();
    assert!(
        matches!(error, TrainError::NotFinite { step: 1, .. }),
        "{error}"
    );
}
