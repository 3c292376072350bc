//! Damaged data of every format: any bytes give rows or an error, never a panic and never a row that was not read.
//!
//! A fuzzer for the stable toolchain: valid files of `tests/corpus` are damaged at random, opened and read. Each
//! format gets half a second, or SAE_FUZZ_SECONDS (`SAE_FUZZ_SECONDS=600 cargo test -p sae-data fuzz`). An input that makes
//! the reader panic, or keeps it busy, is kept under `target/fuzz`, and its path is printed; add it to
//! `tests/corpus/refused`, or to another part of the corpus. Limit the memory from outside: `ulimit -v 4000000`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_data::{ActivationData, DataError, Options};

/// Integers at the limits of types.
const INTERESTING: [u64; 10] = [
    0,
    1,
    2,
    7,
    0x7f,
    0xff,
    0x7fff_ffff,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];
/// Largest number of rows that are read of one input.
const ROWS: usize = 4096;

/// Changes the bytes in one to four places.
fn damage(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            return;
        }
        // half of the time near an end, where headers and footers are
        let near = bytes.len().min(256);
        let at = match rng.random_range(0..4) {
            0 => rng.random_range(0..near),
            1 => bytes.len() - 1 - rng.random_range(0..near),
            _ => rng.random_range(0..bytes.len()),
        };
        match rng.random_range(0..8) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes.truncate(at),
            3 => {
                // a number in a text, or a byte of any kind
                let digits = bytes.iter().skip(at).position(u8::is_ascii_digit);
                let at = digits.map_or(at, |digit| at + digit);
                bytes[at] = b'0' + rng.random_range(0..10);
            }
            4 | 5 => {
                let word = INTERESTING[rng.random_range(0..INTERESTING.len())].to_le_bytes();
                let size = [1, 2, 4, 8][rng.random_range(0..4)].min(bytes.len() - at);
                bytes[at..at + size].copy_from_slice(&word[..size]);
            }
            6 => {
                let end = (at + rng.random_range(1..64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = rng.random_range(0..=bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let end = (at + rng.random_range(1..16)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
}

/// Opens the data set at `path` and reads its first rows.
fn read(path: &Path, options: &Options) -> Result<(), DataError> {
    let data = ActivationData::open(path, options)?;
    data.fingerprint()?;
    let rows = data.rows().min(ROWS);
    for start in (0..rows).step_by(64) {
        let range = start..(start + 64).min(rows);
        assert_eq!(data.read(range.clone())?.len(), range.len() * data.width());
        let labels = data.labels(range.clone())?;
        assert!(labels.is_none_or(|labels| labels.len() == range.len()));
    }
    let meanings = data.meanings()?;
    for row in 0..rows.min(64) {
        let around = meanings.around(row, 3, 3)?;
        assert!(around.is_none_or(|around| around.rows[around.own].row == Some(row)));
        meanings.row(row)?;
        meanings.text(row)?;
    }
    // rows in pieces, too: a side of a split, and a sample of it
    if let Ok((_, held_out)) = data.split_fraction(0.3, 1) {
        for part in [held_out.spread(40), held_out] {
            let range = 0..part.rows().min(64);
            assert_eq!(part.read(range.clone())?.len(), range.len() * data.width());
            let labels = part.labels(range.clone())?;
            assert!(labels.is_none_or(|labels| labels.len() == range.len()));
        }
    }
    Ok(())
}

/// The files and directories of a part of the corpus.
fn corpus(format: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(format);
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    entries
}

/// A copy of `entry` in `dir`, one of its files damaged.
fn damaged_copy(entry: &Path, dir: &Path, rng: &mut impl Rng) -> PathBuf {
    let copy = dir.join(entry.file_name().unwrap());
    let files: Vec<PathBuf> = if entry.is_dir() {
        std::fs::create_dir_all(&copy).unwrap();
        let mut files: Vec<PathBuf> = std::fs::read_dir(entry)
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        files
    } else {
        vec![entry.to_path_buf()]
    };
    let chosen = rng.random_range(0..files.len());
    for (i, file) in files.iter().enumerate() {
        let mut bytes = std::fs::read(file).unwrap();
        if i == chosen {
            damage(&mut bytes, rng);
        }
        let to = if entry.is_dir() {
            copy.join(file.file_name().unwrap())
        } else {
            copy.clone()
        };
        std::fs::write(to, bytes).unwrap();
    }
    copy
}

/// Undamaged files are read.
fn check_undamaged(entries: &[PathBuf], format: &str) {
    for entry in entries {
        let plain = Options {
            layer: (format == "saev").then_some(8),
            ..Options::default()
        };
        let whole = read(entry, &plain);
        assert!(
            whole.is_ok() || entry.ends_with("several.safetensors"),
            "{}: {whole:?}",
            entry.display()
        );
    }
}

fn fuzz(format: &str) {
    let seconds = std::env::var("SAE_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let budget = Duration::from_secs_f64(seconds.unwrap_or(0.5));
    let seed = seconds.map_or(0, |_| rand::random());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let entries = corpus(format);
    let options = |rng: &mut ChaCha8Rng| Options {
        layer: (format == "saev").then(|| [8, 11][rng.random_range(0..2)]),
        drop_first_token: rng.random(),
        tensor: (format == "safetensors" && rng.random()).then(|| "resid".into()),
        labels: None,
    };
    check_undamaged(&entries, format);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/fuzz")
        .join(format);
    let (start, mut inputs, mut refused) = (Instant::now(), 0, 0);
    while start.elapsed() < budget {
        // where it can be found if the process dies of it
        let dir = kept.join(format!("current-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let entry = &entries[rng.random_range(0..entries.len())];
        let copy = damaged_copy(entry, &dir, &mut rng);
        let options = options(&mut rng);
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| read(&copy, &options)));
        inputs += 1;
        match result {
            Ok(result) if began.elapsed() < Duration::from_secs(5) => {
                refused += usize::from(result.is_err())
            }
            _ => {
                let kept = kept.join(format!("{seed:x}-{inputs}"));
                std::fs::rename(&copy, &kept).unwrap();
                panic!(
                    "{options:?} on {}: a panic, or longer than five seconds",
                    kept.display()
                );
            }
        }
    }
    let _ = std::fs::remove_dir_all(kept.join(format!("current-{}", std::process::id())));
    println!("{format}: {inputs} inputs, {refused} refused");
    // if all inputs were refused, or none, the damage would be the wrong one
    assert!(
        inputs > 20 && refused > inputs / 10 && refused < inputs,
        "{inputs} inputs, {refused} refused"
    );
}

#[test]
fn npy() {
    fuzz("npy");
}

#[test]
fn safetensors() {
    fuzz("safetensors");
}

#[test]
fn arrow() {
    fuzz("arrow");
}

#[test]
#[cfg(feature = "parquet")]
fn parquet() {
    fuzz("parquet");
}

#[test]
fn saev() {
    fuzz("saev");
}

/// Indexes, `state.json`, directories of files.
#[test]
fn directory() {
    fuzz("directory");
}

/// Files that once made a reader panic, kept it busy for half a minute, or made it allocate gigabytes.
#[test]
fn files_that_claim_too_much_are_refused_at_once() {
    for entry in corpus("refused") {
        let began = Instant::now();
        let result = read(&entry, &Options::default());
        let took = began.elapsed();
        assert!(result.is_err(), "{}", entry.display());
        assert!(
            took < Duration::from_secs(1),
            "{}: {took:?}",
            entry.display()
        );
    }
}

/// A thousand bytes, eighty million values: rows that are all the same compress well, and that is no mistake.
#[test]
#[cfg(feature = "parquet")]
fn rows_of_zeros_are_read() {
    for entry in corpus("compressed") {
        let data = ActivationData::open(&entry, &Options::default()).unwrap();
        assert_eq!((data.rows(), data.width()), (20_000, 1024));
        assert!(data.read(19_900..20_000).unwrap().iter().all(|x| *x == 0.0));
    }
}
