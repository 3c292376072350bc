//! `sae-eval encode`, through the binary: its codes against the model's own, continuing, and wrong input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::{Device, Tensor, TensorData};
use sae_data::synthetic::Synthetic;
use sae_model::architectures::Attention;
use sae_model::{AnyArchitecture, Preset, Sae, SaeConfig, saved};
use safetensors::SafeTensors;
use serde_json::{Map, Value};

use crate::{Run, WIDTH, metric, read_json};

pub(crate) const LATENTS: usize = 30;

/// The codes of some rows: `(row, latent, bits of the value)` of each entry.
pub(crate) type Entries = Vec<(usize, u32, u32)>;

/// A saved model and rows.
pub(crate) struct Case {
    dir: tempfile::TempDir,
    pub(crate) sae: Sae,
    pub(crate) x: Vec<f32>,
}

impl Case {
    pub(crate) fn new(config: &SaeConfig, rows: usize) -> Self {
        let source = Synthetic {
            width: WIDTH,
            concepts: 20,
            active: 3,
            noise: 0.05,
            seed: 2,
        };
        let x = source.rows(rows);
        let sae = Sae::init(config, 7, &[0.1; WIDTH], &Device::flex());
        let dir = tempfile::tempdir().unwrap();
        let case = Self { dir, sae, x };
        saved::save(&case.sae, 7, &case.path("model")).unwrap();
        case.write_rows("x.npy", &case.x);
        case
    }

    pub(crate) fn attention(rows: usize) -> Self {
        let config = SaeConfig::new(Attention::from(Preset::Default), WIDTH, LATENTS);
        Self::new(&config, rows)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes rows as `.npy`.
    pub(crate) fn write_rows(&self, name: &str, x: &[f32]) {
        let shape = format!("({}, {WIDTH})", x.len() / WIDTH);
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
        let header = format!("{header:<117}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(x.iter().flat_map(|v| v.to_le_bytes()));
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn command(&self, out: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sae-eval"));
        command
            .arg("encode")
            .args([self.path("model"), self.path("x.npy"), self.path(out)])
            .args(more);
        command
    }

    pub(crate) fn encode(&self, out: &str, more: &[&str]) -> PathBuf {
        succeeded(&self.command(out, more).output().unwrap());
        self.path(out)
    }

    /// The message of an encoding that fails with this exit code.
    pub(crate) fn refused(&self, code: i32, out: &str, more: &[&str]) -> String {
        failed(code, &self.command(out, more).output().unwrap())
    }

    /// The model's own codes, in batches of `batch` rows; zeros are left out.
    pub(crate) fn own_codes(&self, batch: usize) -> Entries {
        let mut entries = Vec::new();
        for (number, x) in self.x.chunks(batch * WIDTH).enumerate() {
            let x = TensorData::new(x.to_vec(), [x.len() / WIDTH, WIDTH]);
            let x = Tensor::from_data(x, &Device::flex());
            let codes = self.sae.encode(x).latents.on_host();
            let values = codes.host_values();
            for row in 0..codes.pattern.rows() {
                let active = codes.pattern.row(row).filter(|at| values[*at] != 0.0);
                entries.extend(active.map(|at| {
                    let latent = codes.pattern.indices()[at];
                    (number * batch + row, latent, values[at].to_bits())
                }));
            }
        }
        entries
    }
}

pub(crate) fn succeeded(output: &Output) -> String {
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The message of a program that failed with this exit code.
pub(crate) fn failed(code: i32, output: &Output) -> String {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

/// The codes in a directory; checks the index, the offsets and the order of latents.
fn read(dir: &Path) -> Entries {
    let index = read_json(&dir.join("index.json"));
    assert_eq!(index["format"], "dynamic-sae.codes");
    assert_eq!(index["version"], 1);
    let (mut first, mut entries) = (0, Vec::new());
    for shard in index["shards"].as_array().unwrap() {
        let bytes = std::fs::read(dir.join(shard["file"].as_str().unwrap())).unwrap();
        assert_eq!(shard["bytes"], bytes.len());
        assert_eq!(shard["blake3"], blake3::hash(&bytes).to_hex().as_str());
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let offsets: Vec<usize> = words::<8>(&tensors, "offsets")
            .map(|word| u64::from_le_bytes(word) as usize)
            .collect();
        let indices: Vec<u32> = words(&tensors, "indices").map(u32::from_le_bytes).collect();
        let values: Vec<f32> = match index["dtype"].as_str().unwrap() {
            "F32" => words(&tensors, "values").map(f32::from_le_bytes).collect(),
            _ => words(&tensors, "values")
                .map(|word| half::f16::from_le_bytes(word).to_f32())
                .collect(),
        };
        assert_eq!(shard["entries"], values.len());
        assert_eq!(shard["rows"], offsets.len() - 1);
        assert_eq!((offsets[0], offsets[offsets.len() - 1]), (0, values.len()));
        assert_eq!(indices.len(), values.len());
        for (row, ends) in offsets.windows(2).enumerate() {
            assert!(indices[ends[0]..ends[1]].is_sorted_by(|a, b| a < b));
            entries.extend(
                (ends[0]..ends[1]).map(|at| (first + row, indices[at], values[at].to_bits())),
            );
        }
        first += offsets.len() - 1;
    }
    assert_eq!(index["rows"], first);
    entries
}

fn words<'a, const N: usize>(
    tensors: &'a SafeTensors,
    name: &str,
) -> impl Iterator<Item = [u8; N]> + 'a {
    let data = tensors.tensor(name).unwrap().data().to_vec();
    let words: Vec<[u8; N]> = data.as_chunks::<N>().0.to_vec();
    words.into_iter()
}

/// Every architecture, also with refined values and (attention) with projections.
fn configs() -> Vec<SaeConfig> {
    let mut configs = Vec::new();
    for architecture in AnyArchitecture::all() {
        let refined = Map::from_iter([("refinement".to_string(), Value::from(2))]);
        let refined = architecture.with(refined).ok();
        for architecture in refined.into_iter().chain([architecture]) {
            let k = Map::from_iter([("k".to_string(), Value::from(5))]);
            let architecture = architecture.with(k).unwrap_or(architecture);
            configs.push(SaeConfig::new(architecture, WIDTH, LATENTS));
        }
    }
    for preset in [Preset::Paper, Preset::Released] {
        let mut config = SaeConfig::new(Attention::from(preset), WIDTH, LATENTS);
        configs.push(config.clone());
        let refined = Map::from_iter([("refinement".to_string(), Value::from(2))]);
        config.architecture = config.architecture.with(refined).unwrap();
        config.value_projection = true;
        configs.push(config);
    }
    configs
}

#[test]
fn codes_are_the_models_bit_for_bit_whatever_the_batch() {
    for mut config in configs() {
        config.input_scale = 0.2; // so that all of them fire
        let case = Case::new(&config, 150);
        let own = case.own_codes(150);
        let about = format!("{config:?}");
        assert!(own.len() > 150, "{about}");
        for batch in [1, 7, 64, 150] {
            assert!(own == case.own_codes(batch), "batches of {batch}: {about}");
            let (out, batch) = (format!("out-{batch}"), batch.to_string());
            let more = ["--batch-size", &batch, "--threads", "2"];
            assert!(own == read(&case.encode(&out, &more)), "{batch}: {about}");
        }
    }
}

#[test]
fn a_measured_threshold_replaces_the_batch() {
    for name in ["batch_topk", "matryoshka"] {
        let k = Map::from_iter([("k".to_string(), Value::from(5))]);
        let architecture = AnyArchitecture::named(name).unwrap().with(k).unwrap();
        let mut case = Case::new(&SaeConfig::new(architecture, WIDTH, LATENTS), 150);
        let smallest = Tensor::from_data([0.4f32], &Device::flex());
        case.sae = case.sae.clone().after_update(Some(smallest));
        saved::save(&case.sae, 7, &case.path("model")).unwrap();
        let own = case.own_codes(150);
        assert!(own.len() < 150 * LATENTS && own.iter().all(|(_, _, a)| f32::from_bits(*a) > 0.3));
        assert!(own == read(&case.encode("out", &["--batch-size", "13"])));
    }
}

#[test]
fn options_choose_entries_and_their_type() {
    let case = Case::attention(150);
    let own = case.own_codes(150);
    let all = read(&case.encode("all", &["--dtype", "f16"]));
    let halves = own.iter().map(|(row, latent, bits)| {
        let half = half::f16::from_f32(f32::from_bits(*bits)).to_f32();
        (*row, *latent, half.to_bits())
    });
    let halves: Entries = halves.filter(|entry| entry.2 != 0).collect();
    assert_eq!(all, halves);
    assert_eq!(read_json(&case.path("all/index.json"))["dtype"], "F16");

    let some = |latent: u32| latent == 3 || (10..=19).contains(&latent);
    let kept: Entries = own.iter().copied().filter(|entry| some(entry.1)).collect();
    assert_eq!(read(&case.encode("some", &["--latents", "10-19,3"])), kept);
    std::fs::write(case.path("list.txt"), "3\n10-15\n16-19\n").unwrap();
    let list = case.path("list.txt").display().to_string();
    let from_file = case.encode("file", &["--latents", &list, "--top", "2"]);
    let mut largest = Vec::new();
    for row in 0..150 {
        let mut of_row: Entries = kept.iter().copied().filter(|e| e.0 == row).collect();
        of_row.sort_by(|a, b| {
            let value = |entry: &(usize, u32, u32)| f32::from_bits(entry.2);
            value(b).total_cmp(&value(a)).then(a.1.cmp(&b.1))
        });
        of_row.truncate(2);
        of_row.sort_unstable();
        largest.extend(of_row);
    }
    assert!(largest.len() < kept.len());
    assert_eq!(read(&from_file), largest);
}

#[test]
fn the_help_says_what_the_program_does() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sae-eval"));
    let output = command.arg("--help").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("Evaluate a trained run"), "{text}");
    assert!(
        text.contains("encode") && text.contains("Exit codes"),
        "{text}"
    );
}

#[test]
fn reconstructed_rows_are_a_data_set_with_the_reports_fvu() {
    let run = Run::new(Preset::Default);
    run.write_config("max_norm = 1000.0");
    let reported = metric(&run.report(&["--no-untrained"]), "reconstruction", "fvu");
    let program = || Command::new(env!("CARGO_BIN_EXE_sae-eval"));
    let out = run.path("codes");
    let mut command = program();
    command.arg("encode").arg(run.path(".")).arg(&out);
    succeeded(
        &command
            .args(["--held-out", "--reconstruct"])
            .output()
            .unwrap(),
    );
    let open = |path: &Path| sae_data::ActivationData::open(path, &Default::default()).unwrap();
    let x = open(&run.path("heldout.safetensors")).read(0..100).unwrap();
    let data = open(&out.join("reconstruction"));
    assert_eq!((data.rows(), data.width()), (100, WIDTH));
    sae_data::convert::verify(data.path(), |_| {}).unwrap();
    let x_hat = data.read(0..100).unwrap();
    let mut stats = sae_model::stats::ReconstructionStats::new(WIDTH);
    stats.add(&x, &x_hat);
    assert!((stats.fvu() - reported).abs() < 1e-12, "{reported}");
    let index = read_json(&out.join("index.json"));
    assert_eq!(index["data_rows"], serde_json::json!([[0, 100]]));

    // a row beyond the limit has its place, too
    let huge = [&x[..5 * WIDTH], &[500.0; WIDTH], &x[5 * WIDTH..]].concat();
    run.write_rows("heldout.safetensors", &huge, true);
    let mut command = program();
    command
        .arg("encode")
        .arg(run.path("."))
        .arg(run.path("all"));
    succeeded(&command.arg("--held-out").output().unwrap());
    assert_eq!(read_json(&run.path("all/index.json"))["rows"], 101);
    // the rows must be those of the run
    let print = open(&run.path("train.safetensors")).fingerprint().unwrap();
    let provenance = serde_json::json!({"train": print, "held_out": print});
    std::fs::write(run.path("provenance.json"), provenance.to_string()).unwrap();
    let mut command = program();
    command.arg("encode").arg(run.path(".")).arg(run.path("no"));
    let message = failed(2, &command.arg("--held-out").output().unwrap());
    assert!(
        message.contains("data.held_out is not the data"),
        "{message}"
    );
}

#[test]
fn what_was_kept_is_what_is_reconstructed() {
    let case = Case::attention(150);
    let more = ["--reconstruct", "--top", "1", "--dtype", "f16"];
    let dir = case.encode("out", &more).join("reconstruction");
    let data = sae_data::ActivationData::open(&dir, &Default::default()).unwrap();
    let x_hat = data.read(0..150).unwrap();
    let w_dec: Vec<f32> = case.sae.w_dec().into_data().iter().collect();
    // Every row moves from the pre-bias along the direction of its one latent.
    for (row, latent, _) in read(&case.path("out")) {
        let moved = x_hat[row * WIDTH..][..WIDTH].iter().map(|v| v - 0.1);
        let along = &w_dec[latent as usize * WIDTH..][..WIDTH];
        let moved: Vec<f32> = moved.collect();
        let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let cosine = dot(&moved, along) / (dot(&moved, &moved) * dot(along, along)).sqrt();
        assert!(cosine > 0.999, "row {row}: {cosine}");
    }
}
