//! Damaged saved models: whatever the bytes, loading gives a model that works or an error, never a panic.
//!
//! A fuzzer for the stable toolchain: it saves models of every architecture, damages one of their files at random, and
//! loads them. Each group of architectures gets half a second, or SAE_FUZZ_SECONDS seconds
//! (`SAE_FUZZ_SECONDS=200 cargo test -p sae-model fuzz`). A model that makes `load` panic is kept under
//! `target/fuzz/model`, and its path is printed; put it into `tests/corpus/refused`. Limit the memory from outside:
//! `ulimit -v 4000000`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_model::architectures::Attention;
use sae_model::saved::{self, CONFIG_FILE, SavedModelError, WEIGHTS_FILE};
use sae_model::{AnyArchitecture, Architecture, Mode, Preset, Sae, SaeConfig};
use sae_run::sealed;

use crate::with;
use serde_json::Value;

pub(crate) const WIDTH: usize = 4;
const LATENTS: usize = 6;
/// A placeholder for text that is not JSON, replaced before the file is written.
pub(crate) const RAW: &str = "@raw@";

/// Numbers, and other values in their place, that are likely to cause faults.
const INTERESTING: [&str; 24] = [
    "0",
    "1",
    "-1",
    "2",
    "7",
    "1.5",
    "4294967296",
    "1152921504606846976",
    "4611686018427387904",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e-320",
    "1e-60",
    "1e60",
    "-1e308",
    "1e999",
    "NaN",
    "-Infinity",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
];

pub(crate) fn config(architecture: impl Into<AnyArchitecture>) -> SaeConfig {
    SaeConfig::new(with(&architecture.into(), "k", 2), WIDTH, LATENTS)
}

/// Loads the model in `dir` and reconstructs two batches with it: zeros, and threes.
pub(crate) fn load(dir: &Path) -> Result<(), SavedModelError> {
    let config = saved::load_config(dir)?.model;
    let sae = saved::load(dir, &Device::flex())?;
    assert_eq!(sae.config(), &config);
    assert_eq!(config.validate(), Ok(()));
    let zeros = Tensor::zeros([3, config.d_in], &Device::flex());
    for x in [zeros.clone(), zeros + 3.0] {
        assert_eq!(
            sae.forward(x, &Mode::Inference).x_hat.dims(),
            [3, config.d_in]
        );
    }
    Ok(())
}

/// Changes the bytes in one to four places.
fn damage_bytes(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.random_range(0..bytes.len());
        let end = (at + rng.random_range(1..32)).min(bytes.len());
        match rng.random_range(0..7) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                let to = rng.random_range(0..=bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            5 => {
                let digits = bytes.iter().skip(at).position(u8::is_ascii_digit);
                bytes[digits.map_or(at, |digit| at + digit)] = b'0' + rng.random_range(0..10);
            }
            _ => bytes[at..end].fill([0, 0x7f, 0xff][rng.random_range(0..3)]),
        }
    }
}

/// Valid weights that are likely to break arithmetic.
const EXTREME: [f32; 7] = [0.0, -0.0, f32::MAX, f32::MIN, 1e-38, 1e-45, -1e20];

/// Changes some numbers of `tensors`.
fn damage_values(tensors: &mut [u8], rng: &mut impl Rng) {
    let (words, _) = tensors.as_chunks_mut::<4>();
    for _ in 0..rng.random_range(1..=8) {
        let value = EXTREME[rng.random_range(0..EXTREME.len())];
        let at = rng.random_range(0..words.len());
        words[at] = value.to_le_bytes();
    }
}

/// The JSON pointer of every place in `value`.
fn places(value: &Value) -> Vec<String> {
    let mut places = vec![String::new()];
    let below = |name: String, value| places_below(name, value);
    match value {
        Value::Object(fields) => {
            places.extend(
                fields
                    .iter()
                    .flat_map(|(name, value)| below(name.clone(), value)),
            );
        }
        Value::Array(items) => {
            places.extend(
                items
                    .iter()
                    .enumerate()
                    .flat_map(|(i, value)| below(i.to_string(), value)),
            );
        }
        _ => {}
    }
    places
}

fn places_below(name: String, value: &Value) -> Vec<String> {
    let below = places(value).into_iter();
    below.map(|place| format!("/{name}{place}")).collect()
}

/// Changes one place in `json` and returns the text.
fn damage_json(mut json: Value, rng: &mut impl Rng) -> String {
    let places = places(&json);
    let place = &places[rng.random_range(0..places.len())];
    let raw = match rng.random_range(0..8) {
        0 => "[".repeat(rng.random_range(1..100_000)),
        1 => format!("\"{}\"", "x".repeat(rng.random_range(1..100_000))),
        _ => INTERESTING[rng.random_range(0..INTERESTING.len())].to_string(),
    };
    let at = json.pointer_mut(place).expect("it is there");
    match (rng.random_range(0..6), at) {
        (0, Value::Object(fields)) => {
            let names: Vec<String> = fields.keys().cloned().collect();
            if let Some(name) = names.get(rng.random_range(0..names.len().max(1))) {
                fields.remove(name);
            }
        }
        (1, Value::Object(fields)) => {
            fields.insert("stranger".into(), RAW.into());
        }
        (0, Value::Array(items)) => drop(items.pop()),
        (1, Value::Array(items)) => items.push(RAW.into()),
        (_, at) => *at = RAW.into(),
    }
    json.to_string().replace(&format!("\"{RAW}\""), &raw)
}

/// Splits a safetensors file into its header and its tensors.
pub(crate) fn split(file: &[u8]) -> (Value, &[u8]) {
    let (len, rest) = file.split_first_chunk().unwrap();
    let (header, tensors) = rest.split_at(u64::from_le_bytes(*len) as usize);
    (serde_json::from_slice(header).unwrap(), tensors)
}

pub(crate) fn join(header: &str, tensors: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(tensors);
    file
}

/// Damages one of the two files of the model in `dir`.
fn damage(dir: &Path, rng: &mut impl Rng) {
    let path = dir.join([CONFIG_FILE, WEIGHTS_FILE][rng.random_range(0..2)]);
    let mut bytes = std::fs::read(&path).unwrap();
    let weights = path.ends_with(WEIGHTS_FILE);
    match rng.random_range(0..3) {
        0 => damage_bytes(&mut bytes, rng),
        1 if weights => {
            let start = bytes.len() - split(&bytes).1.len();
            damage_values(&mut bytes[start..], rng);
        }
        _ if weights => {
            let (header, tensors) = split(&bytes);
            bytes = join(&damage_json(header, rng), tensors);
        }
        _ => bytes = damage_json(serde_json::from_slice(&bytes).unwrap(), rng).into_bytes(),
    }
    std::fs::write(path, bytes).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

fn fuzz(group: &str, configs: &[SaeConfig]) {
    let seconds = std::env::var("SAE_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let budget = Duration::from_secs_f64(seconds.unwrap_or(0.5));
    let seed = seconds.map_or(0, |_| rand::random());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let saved = tempfile::tempdir().unwrap();
    let models: Vec<PathBuf> = (0..configs.len())
        .map(|i| saved.path().join(i.to_string()))
        .collect();
    for (config, dir) in configs.iter().zip(&models) {
        let sae = Sae::init(config, 7, &[0.5; WIDTH], &Device::flex());
        saved::save(&sae, 7, dir).unwrap();
        // with checksums, no damage would reach the parsers
        std::fs::remove_file(dir.join(sealed::SUMS_FILE)).unwrap();
        load(dir).unwrap();
    }
    let kept = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/fuzz/model")
        .join(group);
    let (start, mut inputs, mut refused) = (Instant::now(), 0, 0);
    while start.elapsed() < budget {
        // on disk, where it can be found if the process dies
        let dir = kept.join(format!("current-{}", std::process::id()));
        copy(&models[rng.random_range(0..models.len())], &dir);
        damage(&dir, &mut rng);
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| load(&dir)));
        inputs += 1;
        match result {
            Ok(result) if began.elapsed() < Duration::from_secs(5) => {
                refused += usize::from(result.is_err());
            }
            _ => {
                let kept = kept.join(format!("{seed:x}-{inputs}"));
                std::fs::rename(&dir, &kept).unwrap();
                panic!("{}: a panic, or longer than five seconds", kept.display());
            }
        }
    }
    let _ = std::fs::remove_dir_all(kept.join(format!("current-{}", std::process::id())));
    println!("{group}: {inputs} inputs, {refused} refused");
    // a fuzzer whose inputs are all refused, or all accepted, damages the wrong things
    assert!(
        inputs > 20 && refused > inputs / 2 && refused < inputs,
        "{inputs} inputs, {refused} refused"
    );
}

#[test]
fn attention() {
    let presets = [Preset::Paper, Preset::Released, Preset::Default];
    let configs = presets.map(|preset| config(Attention::from(preset)));
    fuzz("attention", &configs);
}

/// Fuzzes those of the other architectures that are `wanted`.
fn others(group: &str, wanted: impl Fn(&AnyArchitecture) -> bool) {
    let all = AnyArchitecture::all().into_iter();
    let others = all.filter(|architecture| architecture.name() != "attention");
    let configs: Vec<_> = others.filter(wanted).map(config).collect();
    assert!(configs.len() > 1);
    fuzz(group, &configs);
}

#[test]
fn penalties() {
    others("penalties", |architecture| {
        architecture.terms().contains(&"sparsity_loss")
    });
}

#[test]
fn choices() {
    others("choices", |architecture| {
        !architecture.terms().contains(&"sparsity_loss")
    });
}
