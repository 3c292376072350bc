//! Short runs on the data sets of `tests/data`, whose rows are tokens or cells of images, and the data that a browser would
//! unpack of their reports.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::{Device, Tensor, TensorData};
use data_encoding::BASE64;
use sae_data::{ActivationData, DataConfig};
use sae_model::architectures::Attention;
use sae_model::{Preset, saved};
use safetensors::SafeTensors;
use serde_json::Value;

/// Latents of the models.
pub(crate) const LATENTS: usize = 96;

/// The directory of a data set of the tests.
pub(crate) fn data_set(name: &str) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.join("tests/data").join(name)
}

/// A run directory with a model that was trained for a moment.
pub(crate) struct Trained {
    dir: tempfile::TempDir,
    pub(crate) data: PathBuf,
}

impl Trained {
    /// A run on a data set of the tests.
    pub(crate) fn on(name: &str) -> Self {
        let data = data_set(name);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let section = format!("train = {data:?}\nheld_out = {{ fraction = 0.4 }}\n");
        let config = format!("[data]\n{section}");
        std::fs::write(dir.path().join("config.toml"), config).expect("written");
        let split = toml::from_str::<DataConfig>(&section)
            .expect("a section")
            .open()
            .expect("the data set");
        let attention = Attention::from(Preset::Default);
        let trainer = sae_train::Trainer::new(attention, LATENTS, 60, 128).set("seed", 3);
        let sae = trainer.fit(&split.train).expect("it trains");
        saved::save(&sae, 3, &dir.path().join("model")).expect("saved");
        Self { dir, data }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs sae-eval with these arguments.
    pub(crate) fn eval<A: AsRef<std::ffi::OsStr>>(arguments: &[A]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sae-eval"))
            .args(arguments)
            .output()
            .expect("sae-eval runs")
    }

    /// Makes the report and unpacks its page.
    pub(crate) fn page(&self) -> Page {
        let output = Self::eval(&[self.path()]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        Page::read(&self.path().join("reports/report.html"))
    }

    /// Activations of all latents on all rows of the data set, `[rows, LATENTS]`.
    pub(crate) fn codes(&self) -> Vec<f32> {
        let data = ActivationData::open(&self.data, &Default::default()).expect("the data set");
        let device = Device::flex();
        let sae = saved::load(&self.path().join("model"), &device).expect("the model");
        let x = data.read(0..data.rows()).expect("all rows");
        let x = Tensor::from_data(TensorData::new(x, [data.rows(), data.width()]), &device);
        let codes = sae.encode(x).latents.on_host();
        codes.to_dense(&device).into_data().iter().collect()
    }

    /// A tensor of integers of the data set's only shard.
    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        let bytes = std::fs::read(self.data.join("shard-00000.safetensors")).expect("a shard");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let tensor = file.tensor(name).expect("the tensor");
        let size = tensor.dtype().bitsize() / 8;
        let number = |bytes: &[u8]| match size {
            4 => i64::from(i32::from_le_bytes(bytes.try_into().expect("4 bytes"))),
            _ => i64::from_le_bytes(bytes.try_into().expect("8 bytes")),
        };
        tensor.data().chunks(size).map(number).collect()
    }

    /// The strings of the data set's vocabulary.
    pub(crate) fn words(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.data.join("vocab.json")).expect("a vocabulary");
        serde_json::from_str(&text).expect("a list of strings")
    }
}

/// A page and its packed data.
pub(crate) struct Page {
    pub(crate) html: String,
    /// Bytes of packed data by id.
    pieces: BTreeMap<String, Vec<u8>>,
}

impl Page {
    fn read(path: &Path) -> Self {
        let html = std::fs::read_to_string(path).expect("a page");
        let mut pieces = BTreeMap::new();
        for part in html
            .split(r#"<script type="application/octet-stream;base64" id=""#)
            .skip(1)
        {
            let (id, rest) = part.split_once(r#"">"#).expect("an id");
            let packed = rest.split_once('<').expect("an end").0;
            let deflated = BASE64.decode(packed.as_bytes()).expect("base64");
            let mut bytes = Vec::new();
            flate2::read::DeflateDecoder::new(&deflated[..])
                .read_to_end(&mut bytes)
                .expect("deflated data");
            pieces.insert(id.to_string(), bytes);
        }
        Self { html, pieces }
    }

    /// The items of all pieces `prefix-0`, `prefix-1`, ...
    pub(crate) fn list(&self, prefix: &str) -> Vec<Value> {
        let ids = (0..).map(|i| format!("{prefix}-{i}"));
        let pieces = ids.map_while(|id| self.pieces.get(&id));
        pieces
            .flat_map(|bytes| serde_json::from_slice::<Vec<Value>>(bytes).expect("a list"))
            .collect()
    }

    /// The largest `|a_j|` of each latent: the third column of the table.
    pub(crate) fn largest(&self) -> Vec<f32> {
        let column = &self.pieces["columns"][8 * LATENTS..12 * LATENTS];
        let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("4 bytes"));
        column.chunks(4).map(number).collect()
    }
}
