//! `sae-eval encode`: continuing after an end of any kind, and input that it refuses.

use std::path::Path;
use std::process::Command;

use burn::tensor::Device;
use sae_model::architectures::Attention;
use sae_model::{Preset, Sae, SaeConfig, saved};

use crate::encode::{Case, LATENTS, failed, succeeded};
use crate::{WIDTH, read_json};

/// All files below a directory, with their contents.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(contents(&path)),
            false => files.push((
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(&path).unwrap(),
            )),
        }
    }
    files.sort();
    files
}

/// Rows with which shards of 1 MiB are several.
const MANY: usize = 30_000;

#[test]
fn the_same_command_continues_after_the_last_whole_shard() {
    let case = Case::attention(MANY);
    let options = ["--shard-mb", "1", "--reconstruct", "--batch-size", "700"];
    let whole = contents(&case.encode("whole", &options));
    let index = read_json(&case.path("whole/index.json"));
    let shards = index["shards"].as_array().unwrap().len();
    assert!(shards >= 2, "{shards}");
    for name in whole
        .iter()
        .filter(|(name, _)| name.ends_with("safetensors"))
    {
        assert!(name.1.len() <= (1 << 20) + 512, "{}", name.0);
    }
    // What a killed process leaves: one whole shard in the index, another one without, and temporary files.
    let out = case.path("out");
    std::fs::create_dir_all(out.join("reconstruction")).unwrap();
    let mut partial = index.clone();
    for list in ["shards", "reconstruction"] {
        partial[list].as_array_mut().unwrap().truncate(1);
    }
    std::fs::write(out.join("index.json.partial"), partial.to_string()).unwrap();
    let files = ["codes-00000", "codes-00001", "reconstruction/shard-00000"];
    for file in files.map(|file| format!("{file}.safetensors")) {
        std::fs::copy(case.path("whole").join(&file), out.join(&file)).unwrap();
    }
    std::fs::write(out.join("codes-00001.safetensors.1-2.tmp"), "x").unwrap();
    case.encode("out", &options);
    assert!(contents(&out) == whole, "the same bytes");
    // Once more: nothing is to be done.
    let again = case.command("out", &options).output().unwrap();
    assert!(succeeded(&again).contains("complete already"));
    // The batch does not matter for the codes.
    let codes = ["--shard-mb", "1"];
    let other = ["--shard-mb", "1", "--batch-size", "999"];
    assert!(contents(&case.encode("a", &codes)) == contents(&case.encode("b", &other)));
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_whole_shards_to_continue_from() {
    let case = Case::attention(4 * MANY);
    let options = ["--shard-mb", "1", "--batch-size", "16", "--threads", "1"];
    let mut process = case
        .command("out", &options)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let first = case.path("out/codes-00000.safetensors");
    while !first.exists() && process.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let kill = Command::new("kill")
        .args(["-INT", &process.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let message = failed(130, &process.wait_with_output().unwrap());
    assert!(message.contains("whole shards stay"), "{message}");
    let names: Vec<String> = contents(&case.path("out"))
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert!(
        names.iter().all(|name| !name.ends_with(".tmp")) && !names.contains(&"index.json".into()),
        "{names:?}"
    );
    case.encode("out", &options);
    let whole = case.encode("whole", &["--shard-mb", "1"]);
    assert!(contents(&case.path("out")) == contents(&whole));
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_whole_shards_to_continue_from() {
    let case = Case::attention(MANY);
    let options = ["--shard-mb", "1"];
    let whole = case.encode("whole", &options);
    // A limit on the size of files is a full disk to a program that ignores its signal.
    let command = case.command("out", &options);
    let arguments = command.get_args().map(|argument| argument.to_os_string());
    let output = Command::new("bash")
        .args(["-c", "trap '' XFSZ; ulimit -f 600; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(arguments)
        .output()
        .unwrap();
    let message = failed(1, &output);
    assert!(
        message.contains("the disk is full") && message.contains("start the same command again"),
        "{message}"
    );
    let left = contents(&case.path("out"));
    assert_eq!(left.len(), 1, "only {}", left[0].0);
    case.encode("out", &options);
    assert!(contents(&case.path("out")) == contents(&whole));
}

#[test]
fn a_directory_of_something_else_is_left_as_it_is() {
    let case = Case::attention(150);
    case.encode("out", &["--top", "3"]);
    let before = contents(&case.path("out"));
    for (more, says) in [
        (&["--top", "4"][..], "other options (--top was 3, now 4)"),
        (&[], "other options (--top was 3, now all)"),
        (
            &["--top", "3", "--latents", "1"],
            "other options (--latents)",
        ),
        (
            &["--top", "3", "--dtype", "f16"],
            "--dtype was f32, now f16",
        ),
        (&["--top", "3", "--reconstruct"], "--reconstruct was false"),
    ] {
        let message = case.refused(2, "out", more);
        assert!(message.contains(says), "{message}");
        assert!(message.contains("name another directory"), "{message}");
    }
    case.write_rows("x.npy", &case.x[WIDTH..]);
    let message = case.refused(2, "out", &["--top", "3"]);
    assert!(message.contains("codes of other data"), "{message}");
    case.write_rows("x.npy", &case.x);
    let config = SaeConfig::new(Attention::from(Preset::Paper), WIDTH, LATENTS);
    let other = Sae::init(&config, 8, &[0.0; WIDTH], &Device::flex());
    saved::save(&other, 8, &case.path("model")).unwrap();
    let message = case.refused(2, "out", &["--top", "3"]);
    assert!(message.contains("codes of another model"), "{message}");
    assert!(contents(&case.path("out")) == before, "nothing was changed");

    std::fs::remove_file(case.path("out/codes-00000.safetensors")).unwrap();
    saved::save(&case.sae, 7, &case.path("model")).unwrap();
    let message = case.refused(2, "out", &["--top", "3"]);
    assert!(
        message.contains("codes-00000.safetensors: it is missing"),
        "{message}"
    );
}

#[test]
fn files_and_other_data_sets_are_no_directory_for_codes() {
    let case = Case::attention(150);
    let message = case.refused(2, "x.npy", &[]);
    assert!(message.contains("x.npy: it is a file"), "{message}");
    let message = case.refused(2, "model", &[]);
    assert!(message.contains("it is not empty"), "{message}");
    std::fs::create_dir(case.path("shards")).unwrap();
    let index = r#"{"format": "dynamic-sae.shards", "version": 1}"#;
    for (text, says) in [
        (index, "the index of something else"),
        ("[", "not the index"),
    ] {
        std::fs::write(case.path("shards/index.json"), text).unwrap();
        let message = case.refused(2, "shards", &[]);
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn wrong_input_is_refused_before_anything_is_written() {
    let case = Case::attention(150);
    for (more, says) in [
        (
            &["--latents", "3,30"][..],
            "there is no latent 30; the model has latents 0 to 29",
        ),
        (
            &["--latents", "none.txt"],
            "neither a list such as 3,17,40-60 nor a file",
        ),
        (&["--held-out"], "cannot both be encoded"),
        (&["--device", "abacus"], "\"abacus\" is not a device"),
        (&["--tensor", "y"], "tensor"),
        (
            &["--format", "parquet", "--dtype", "f16"],
            "the values of --format parquet are f32",
        ),
    ] {
        let message = case.refused(2, "out", more);
        assert!(message.contains(says), "{message}");
    }
    std::fs::write(case.path("x.npy"), "").unwrap();
    assert!(case.refused(2, "out", &[]).contains("the file is empty"));
    std::fs::write(case.path("x.npy"), "no data").unwrap();
    assert!(case.refused(2, "out", &[]).contains("damaged"));
    std::fs::remove_file(case.path("x.npy")).unwrap();
    assert!(case.refused(2, "out", &[]).contains("x.npy: No such file"));
    assert!(!case.path("out").exists());
}

#[test]
fn rows_and_models_that_cannot_be_used_are_refused() {
    let case = Case::attention(150);
    let with = |at: usize, value: f32| {
        let mut x = case.x.clone();
        x[at] = value;
        case.write_rows("x.npy", &x);
    };
    with(77 * WIDTH + 3, f32::NAN);
    let message = case.refused(2, "out", &["--batch-size", "10"]);
    assert!(message.contains("row 77, column 3 is NaN"), "{message}");
    with(77 * WIDTH + 3, 1e30);
    // Without a whole shard, other data and options may follow.
    let message = case.refused(2, "out", &["--reconstruct"]);
    assert!(message.contains("row 77: "), "{message}");
    with(0, 1.0);
    case.encode("out", &[]);
    let mut bytes = std::fs::read(case.path("x.npy")).unwrap();
    let start = bytes.windows(9).position(|w| w == b"(150, 12)").unwrap();
    bytes[start..start + 9].copy_from_slice(b"(300, 6) ");
    std::fs::write(case.path("x.npy"), bytes).unwrap();
    let message = case.refused(2, "new", &[]);
    assert!(message.contains("its rows have width 6"), "{message}");
    with(0, 1.0);
    let path = case.path("model/sae.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let message = case.refused(2, "new", &[]);
    assert!(message.contains("changed or damaged"), "{message}");
    std::fs::remove_dir_all(case.path("model")).unwrap();
    let message = case.refused(2, "new", &[]);
    assert!(
        message.contains("neither a run directory nor a saved model"),
        "{message}"
    );
    assert!(!case.path("new").exists());
}
