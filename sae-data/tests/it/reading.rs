//! Number of bytes that are read, as the system counts them for a separate process.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use sae_data::{ActivationLoader, DataConfig, Summary};

use crate::{config, npy};

/// Names the data for the process that counts.
const DATA: &str = "SAE_DATA_COUNT_READS";

/// Not a test itself: [`count`] starts it.
#[test]
fn counted() {
    let Ok(text) = std::env::var(DATA) else {
        return;
    };
    let config: DataConfig = serde_json::from_str(&text).unwrap();
    let before = read_so_far();
    let split = config.open().unwrap();
    let check_rows = config.resolved_check_rows(&split);
    for side in [&split.train, &split.held_out] {
        side.fingerprint().unwrap();
        Summary::of(side, Some(check_rows), |_| {}).unwrap();
    }
    let checked = read_so_far();
    let batch = 256;
    let steps = split.train.rows() / batch;
    if check_rows == 0 {
        let device = Device::flex();
        let streaming = config.streaming(0);
        let training =
            ActivationLoader::training(&split.train, batch, &streaming, 0..steps, steps, &device);
        assert_eq!(training.iter().filter(Result::is_ok).count(), steps);
        let held_out = ActivationLoader::evaluation(&split.held_out, batch, &device);
        held_out.iter().for_each(|batch| drop(batch.unwrap()));
        let blocks = split.held_out.blocks(batch);
        blocks.for_each(|block| drop(block.unwrap()));
    }
    println!("COUNTED {} {}", checked - before, read_so_far() - checked);
}

/// Bytes that this process has asked the system for.
fn read_so_far() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.map_or(0, |bytes| bytes.parse().unwrap())
}

/// Bytes that are read to open and check the data, and in one epoch plus two passes over the held-out side.
pub(crate) fn count(config: &DataConfig) -> (u64, u64) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "reading::counted", "--nocapture"])
        .env(DATA, serde_json::to_string(config).unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let line = text
        .lines()
        .find_map(|line| line.split("COUNTED ").nth(1))
        .unwrap();
    let (checked, streamed) = line.split_once(' ').unwrap();
    (checked.parse().unwrap(), streamed.parse().unwrap())
}

/// A file of 6 GiB as float16 that takes up next to nothing on the disk.
#[cfg(target_os = "linux")]
fn huge(dir: &Path) -> std::path::PathBuf {
    let (rows, width) = (1_572_864usize, 2048usize);
    let path = dir.join("huge.npy");
    npy(&path, "<f2", &[rows, width], &[]);
    let mut file = File::options().write(true).open(&path).unwrap();
    let header = file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(&[0, 0x3c, 0, 0x40]).unwrap(); // 1 and 2, or there would be nothing to see
    file.set_len(header + 2 * (rows * width) as u64).unwrap();
    path
}

/// Beyond 4 GiB as float32, a sample of 1 GiB per side is read; as float16 that is half as many bytes.
#[test]
#[cfg(target_os = "linux")]
fn a_huge_file_is_not_read_through_before_training() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&huge(dir.path()));
    let split = config.open().unwrap();
    let rows = config.resolved_check_rows(&split);
    assert_eq!(rows, (1 << 30) / (4 * 2048));
    assert_eq!(
        DataConfig {
            check_rows: Some(0),
            ..config.clone()
        }
        .resolved_check_rows(&split),
        0
    );
    assert_eq!(
        DataConfig {
            check_rows: Some(9),
            ..config.clone()
        }
        .resolved_check_rows(&split),
        9
    );
    let (checked, _) = count(&DataConfig {
        check_rows: Some(20_480),
        ..config.clone()
    });
    let sample = 2 * 20_480 * 2048 * 2;
    assert!(checked < sample + (8 << 20), "{checked}");
    // and by default
    let (checked, _) = count(&config);
    assert!(checked < (1 << 30) + (8 << 20), "{checked} bytes");
    assert!(checked > 1 << 30, "{checked} bytes");
}

#[test]
#[cfg(target_os = "linux")]
fn inspect_looks_at_a_sample_of_a_huge_file_and_stops_at_once() {
    use std::os::unix::process::ExitStatusExt;
    use std::time::{Duration, Instant};
    let dir = tempfile::tempdir().unwrap();
    let path = huge(dir.path());
    let binary = env!("CARGO_BIN_EXE_sae-data");
    let inspect = |sample: &str| {
        // a test may have been started with Ctrl-C ignored, which its children inherit
        let mut command = Command::new("env");
        command
            .args([
                "--default-signal=INT",
                binary,
                "inspect",
                "--sample",
                sample,
            ])
            .arg(&path);
        command
    };
    let output = inspect("2048").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("checked    2048 of 1572864 rows, evenly spread (--sample 0 for all)"),
        "{text}"
    );
    let mut child = inspect("0")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it should be reading");
    let began = Instant::now();
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().signal(), Some(2));
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
}
