//! The codes that `sae-eval encode` writes, as other programs read them: the lines of docs/ENCODING.md, and Parquet.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use sae_model::architectures::TopK;
use sae_model::{AnyArchitecture, Architecture, SaeConfig};

use crate::WIDTH;
use crate::encode::{Case, Entries, succeeded};

fn case() -> Case {
    let architecture = AnyArchitecture::named(TopK::default().name()).unwrap();
    let k = serde_json::Map::from_iter([("k".to_string(), serde_json::Value::from(5))]);
    let config = SaeConfig::new(architecture.with(k).unwrap(), WIDTH, 30);
    Case::new(&config, 40_000)
}

/// The Python with the packages that the document's lines need, or a word on standard error.
fn python() -> Option<std::ffi::OsString> {
    let skipped = |why: &str| {
        // not eprintln!: the test harness would swallow it
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED the lines of docs/ENCODING.md in Python: {why}"
        );
    };
    let Some(python) = std::env::var_os("SAE_PYTHON") else {
        skipped("SAE_PYTHON is not set");
        return None;
    };
    let imports = "import numpy, pyarrow, safetensors, scipy";
    let output = Command::new(&python)
        .args(["-c", imports])
        .output()
        .unwrap();
    if !output.status.success() {
        skipped(&String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(python)
}

/// Prints `row latent bits` of each entry of `codes`, a scipy matrix, and its shape.
const PRINT: &str = "
import numpy as np
codes.sort_indices()
for row in range(codes.shape[0]):
    at = slice(codes.indptr[row], codes.indptr[row + 1])
    for latent, value in zip(codes.indices[at], codes.data[at]):
        print(row, latent, np.float32(value).view('u4'))
assert codes.shape == (40000, 30), codes.shape
";

fn printed(python: &std::ffi::OsStr, dir: &Path, code: &str) -> Entries {
    let script = format!("{code}\n{PRINT}");
    let mut command = Command::new(python);
    let output = command.args(["-c", &script]).current_dir(dir).output();
    let text = succeeded(&output.unwrap());
    let entry = |line: &str| {
        let numbers: Vec<u32> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        (numbers[0] as usize, numbers[1], numbers[2])
    };
    text.lines().map(entry).collect()
}

#[test]
fn the_documents_lines_open_the_codes() {
    let Some(python) = python() else { return };
    let text = include_str!("../../../docs/ENCODING.md");
    let (_, rest) = text.split_once("```python\n").unwrap();
    let (lines, _) = rest.split_once("```").unwrap();
    assert!(lines.lines().count() <= 4, "{lines}");
    let case = case();
    case.encode("codes", &["--shard-mb", "1"]);
    assert!(case.path("codes/codes-00001.safetensors").exists());
    let own = case.own_codes(1000);
    assert!(printed(&python, &case.path("."), lines) == own);
    // rows without entries, and f16
    std::fs::remove_dir_all(case.path("codes")).unwrap();
    case.encode("codes", &["--latents", "3", "--dtype", "f16"]);
    let of_three: Entries = own.into_iter().filter(|entry| entry.1 == 3).collect();
    let there = printed(&python, &case.path("."), lines);
    let places = |of: &Entries| -> Vec<_> { of.iter().map(|e| (e.0, e.1)).collect() };
    assert!(there.len() < 40_000 && places(&there) == places(&of_three));
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_has_the_same_entries() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    let case = case();
    let dir = case.encode("codes", &["--format", "parquet", "--shard-mb", "1"]);
    let index = crate::read_json(&dir.join("index.json"));
    let (mut entries, mut first) = (Entries::new(), 0);
    for shard in index["shards"].as_array().unwrap() {
        let path = dir.join(shard["file"].as_str().unwrap());
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(shard["blake3"], blake3::hash(&bytes).to_hex().as_str());
        assert_eq!(shard["bytes"], bytes.len());
        let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
        let before = entries.len();
        for row in reader.get_row_iter(None).unwrap() {
            let row = row.unwrap();
            let value = row.get_float(2).unwrap().to_bits();
            let number = row.get_ulong(0).unwrap() as usize;
            entries.push((number, row.get_uint(1).unwrap(), value));
        }
        assert_eq!(shard["entries"], entries.len() - before);
        assert!(entries[before].0 >= first);
        first += shard["rows"].as_u64().unwrap() as usize;
    }
    assert_eq!(
        (first, index["shards"].as_array().unwrap().len() > 2),
        (40_000, true)
    );
    assert!(entries == case.own_codes(1000));
    if let Some(python) = python() {
        let code = "
import glob, pyarrow.parquet, pyarrow as pa, scipy.sparse
t = pa.concat_tables([pyarrow.parquet.read_table(f) for f in sorted(glob.glob('codes/*.parquet'))])
assert [str(f.type) for f in t.schema] == ['uint64', 'uint32', 'float'], t.schema
row, latent, value = (t[name].to_numpy() for name in ['row', 'latent', 'value'])
codes = scipy.sparse.csr_matrix((value, (row, latent)), (40000, 30))";
        assert!(printed(&python, &case.path("."), code) == entries);
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_needs_its_feature() {
    let case = case();
    let message = case.refused(2, "codes", &["--format", "parquet"]);
    assert!(message.contains("sae-eval --features parquet"), "{message}");
}
