use sae_model::{AnyArchitecture, Architecture};

use super::*;

const MINIMAL: &str = "
    [data]
    train = 'a.safetensors'
    held_out = 'b.safetensors'
    [model]
    n_latents = 64
    [training]
    steps = 10
    batch_size = 4
";

fn load(text: &str, set: &[&str]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.toml");
    std::fs::write(&path, text).unwrap();
    let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
    Config::load(&path, &set, None)
}

#[test]
fn resolved_configs_read_back_as_themselves() {
    let presets = ["paper", "released", "default"].map(|preset| format!("model.preset='{preset}'"));
    let all = AnyArchitecture::all();
    let all = all
        .iter()
        .map(|a| format!("model.architecture='{}'", a.name()));
    let all = presets.into_iter().chain(all);
    for set in all.chain(["model.pre_bias=false".into()]) {
        let config = load(MINIMAL, &[set.as_str()]).unwrap();
        let data = DataScale {
            d_in: 24,
            variance: 3.0,
            mean_over_sigma: 0.1,
        };
        let resolved = config.resolve(data).unwrap();
        let written = config.with_defaults(&resolved);
        let text = toml::to_string(&written).unwrap();
        let again = load(&text, &[]).unwrap();
        assert_eq!(again, written);
        assert_eq!(again.resolve(DataScale::unknown(24)).unwrap(), resolved);
        assert_eq!(config.run_name(), "small");
    }
}

#[test]
fn the_mean_of_the_data_decides_on_a_pre_bias_unless_told() {
    let pre_bias = |set: &[&str], mean_over_sigma| {
        let data = DataScale {
            mean_over_sigma,
            ..DataScale::unknown(24)
        };
        load(MINIMAL, set)
            .unwrap()
            .resolve(data)
            .unwrap()
            .model
            .pre_bias
    };
    for (set, near, far) in [
        (&[][..], false, true),
        (&["model.architecture='mlp_sparsemax'"], false, true),
        (&["model.pre_bias=true"], true, true),
        (&["model.pre_bias=false"], false, false),
        (&["model.init_pre_bias='zero'"], true, true),
        (&["training.pre_bias_lr=0.5"], true, true),
        (&["model.preset='paper'"], false, false),
        (&["model.preset='released'"], false, false),
        (&["model.architecture='topk'"], true, true),
    ] {
        assert_eq!(
            (pre_bias(set, 0.33), pre_bias(set, 0.34)),
            (near, far),
            "{set:?}"
        );
    }
}

#[test]
fn keys_that_do_nothing_are_errors() {
    const OF: [(&str, &str, &[&str]); 11] = [
        ("model.preset", "'paper'", &["attention"]),
        ("model.k", "7", &["topk", "batch_topk"]),
        ("model.bandwidth", "2.0", &["jumprelu"]),
        ("model.value", "'score'", &["attention", "mlp_sparsemax"]),
        ("model.init_projections", "'identity'", &["attention"]),
        (
            "model.init_pre_bias",
            "'zero'",
            &[
                "attention",
                "attention_relu",
                "mlp_sparsemax",
                "relu",
                "topk",
                "batch_topk",
                "jumprelu",
                "gated",
            ],
        ),
        (
            "training.sparsity_coefficient",
            "1.5",
            &["attention_relu", "relu", "jumprelu", "gated"],
        ),
        (
            "training.sparsity_warmup_steps",
            "3",
            &["attention_relu", "relu", "jumprelu", "gated"],
        ),
        ("training.target_l0", "16", &["jumprelu"]),
        (
            "training.aux_coefficient",
            "0.5",
            &["topk", "batch_topk", "gated"],
        ),
        ("training.aux_k", "9", &["topk", "batch_topk"]),
    ];
    let every: Vec<&str> = AnyArchitecture::all()
        .iter()
        .map(Architecture::name)
        .collect();
    let (listed, later) = every.split_at(8);
    for (key, value, known) in OF {
        // Architectures that came later say themselves what they know.
        let set = |name: &str| {
            [
                format!("model.architecture={name}"),
                format!("{key}={value}"),
            ]
        };
        let knows = |name: &&str| load(MINIMAL, &set(name).each_ref().map(String::as_str)).is_ok();
        let later: Vec<&str> = later.iter().copied().filter(knows).collect();
        let known = [known, &later].concat();
        for &architecture in listed {
            let set = format!("model.architecture={architecture}");
            let found = load(MINIMAL, &[&set, &format!("{key}={value}")]);
            let Err(error) = found else {
                assert!(known.contains(&architecture), "{key} with {architecture}");
                continue;
            };
            assert!(!known.contains(&architecture), "{key} with {architecture}");
            let message = error.to_string();
            assert!(message.starts_with(&format!("{key} = ")), "{message}");
            if !key.contains("init_") {
                let list = format!("(it is for {})", known.join(", "));
                let this = format!("model.architecture = \"{architecture}\" has no use");
                assert!(
                    message.contains(&list) && message.contains(&this),
                    "{message}"
                );
            }
        }
    }
    let set = ["model.pre_bias=false", "model.init_pre_bias='zero'"];
    let message = load(MINIMAL, &set).unwrap_err().to_string();
    assert!(message.contains("for a model with pre_bias"), "{message}");
}

#[test]
fn what_looks_like_a_number_can_be_a_name() {
    for name in ["2024", "true", "1e3", "2024-05-01", "0x10", "[a]"] {
        let config = load(MINIMAL, &[&format!("run={name}")]).unwrap();
        assert_eq!(config.run_name(), name);
        let config = load(MINIMAL, &[&format!("data.tensor={name}")]).unwrap();
        assert_eq!(config.data.tensor.as_deref(), Some(name));
    }
    let config = load(MINIMAL, &["run='2024'"]).unwrap();
    assert_eq!(config.run_name(), "2024");
}

#[test]
fn messages_name_key_value_and_remedy() {
    for (set, expected) in [
        (
            "training.lrr=1",
            "training.lrr = 1: there is no such key; known here:",
        ),
        (
            "trainning.lr=1",
            "trainning = { ... }: there is no such key",
        ),
        (
            "training.lr=fast",
            "training.lr = \"fast\": invalid type: string \"fast\", expected f64",
        ),
        (
            "training.lr=-1",
            "training.lr = -1: the learning rate must be a positive number",
        ),
        ("training.steps=-5", "training.steps = -5: invalid value"),
        (
            "training.batch_size=0",
            "training.batch_size = 0: must be at least 1",
        ),
        (
            "model.n_latents=0",
            "model.n_latents = 0: a dictionary needs at least one latent",
        ),
        (
            "model.preset=best",
            "model.preset = \"best\": unknown variant `best`, expected one of",
        ),
        (
            "model.scale=0",
            "model.scale = 0: the score scale must be a positive number",
        ),
        (
            "training.decay_fraction=2",
            "training.decay_fraction = 2: must lie between 0 and 1",
        ),
        (
            "training.target_l0=65",
            "training.target_l0 = 65: model.architecture = \"attention\" has no use for this key",
        ),
        (
            "run=../../etc",
            "run = \"../../etc\": a run's name is one directory name",
        ),
        (
            "run=\"a\\nb\"",
            "run = \"a\\nb\": a run's name is one directory name",
        ),
        (
            "training.steps=4000000000000000000",
            "training.steps = 4000000000000000000: with a batch_size of 4 these are more rows",
        ),
        ("training.lr", "--set training.lr: write key=value"),
    ] {
        let message = load(MINIMAL, &[set]).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{set}: {message}");
    }
    let message = load(&MINIMAL.replace("steps = 10", ""), &[])
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("training.steps: missing; add it"),
        "{message}"
    );
}
