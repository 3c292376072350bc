//! TensorBoard's event files, one directory per `split` of `metrics.jsonl` (`tensorboard/train/`, `tensorboard/held_out/`,
//! `tensorboard/held_out_all/`), so that both curves of a metric are in one chart. The tags are the names in `metrics.jsonl`.
//!
//! The files are a function of `metrics.jsonl`: when a run begins or goes on they are written again from its records, and then
//! each new record is appended. So each step is there once, whatever interrupted the run.
//!
//! A file is a sequence of TFRecords (tensorflow/core/lib/io/record_writer.h): the length as u64, its masked CRC-32C, the data,
//! its masked CRC-32C, all little-endian. The data is a protocol buffer (tensorflow/core/util/event.proto and
//! framework/summary.proto), of which three messages are needed:
//!
//! ```text
//! Event    1: double wall_time  2: int64 step  3: string file_version  5: Summary summary
//! Summary  1: repeated Value
//! Value    1: string tag  2: float simple_value
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::failure::Failure;

/// Name of each file; TensorBoard looks for "tfevents".
const FILE: &str = "events.out.tfevents.sae-train";
/// Of the first event of a file.
const VERSION: &[u8] = b"brain.Event:2";
/// Values of `split`.
const SPLITS: [&str; 3] = ["train", "held_out", "held_out_all"];
/// Fields of a record that are not numbers to plot.
const NOT_PLOTTED: [&str; 3] = ["split", "step", "seconds"];

/// The event files of a run.
#[derive(Debug)]
pub(crate) struct EventFiles {
    dir: PathBuf,
    /// Unix time at which training began, if it had not been interrupted.
    began: f64,
    files: BTreeMap<String, File>,
}

impl EventFiles {
    /// Writes the files in `dir` again from the records of `metrics`, after `seconds` of training.
    pub(crate) fn open(dir: &Path, metrics: &Path, seconds: f64) -> Result<Self, Failure> {
        let began = began(&dir.join("train").join(FILE));
        let mut events = Self {
            dir: dir.into(),
            began: began.unwrap_or_else(|| now() - seconds),
            files: BTreeMap::new(),
        };
        let file = File::open(metrics).map_err(Failure::write(metrics))?;
        let mut writers = BTreeMap::new();
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(Failure::write(metrics))?;
            let Some((split, event)) = events.event(&line) else {
                continue;
            };
            let path = events.path(&split);
            let writer = match writers.entry(split) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let file = events.begin(entry.key())?;
                    entry.insert(BufWriter::new(file))
                }
            };
            writer.write_all(&event).map_err(Failure::write(&path))?;
        }
        for (split, writer) in writers {
            let path = events.path(&split);
            let file = writer.into_inner().map_err(io::IntoInnerError::into_error);
            let file = file.and_then(|file| fs::rename(staging(&path), &path).map(|()| file));
            events
                .files
                .insert(split, file.map_err(Failure::write(&path))?);
        }
        for split in SPLITS
            .iter()
            .filter(|split| !events.files.contains_key(**split))
        {
            let left = dir.join(split);
            fs::remove_dir_all(&left)
                .or_else(absent)
                .map_err(Failure::write(&left))?;
        }
        Ok(events)
    }

    /// Appends the record of a line of `metrics.jsonl`.
    pub(crate) fn append(&mut self, line: &[u8]) -> Result<(), Failure> {
        let Some((split, event)) = self.event(line) else {
            return Ok(());
        };
        let path = self.path(&split);
        let mut file = match self.files.remove(&split) {
            Some(file) => file,
            None => {
                let file = self.begin(&split)?;
                fs::rename(staging(&path), &path).map_err(Failure::write(&path))?;
                file
            }
        };
        let written = file.write_all(&event).map_err(Failure::write(&path));
        self.files.insert(split, file);
        written
    }

    fn path(&self, split: &str) -> PathBuf {
        self.dir.join(split).join(FILE)
    }

    /// Begins a file under its temporary name.
    fn begin(&self, split: &str) -> Result<File, Failure> {
        let path = staging(&self.path(split));
        let parent = self.dir.join(split);
        fs::create_dir_all(&parent).map_err(Failure::write(&parent))?;
        let begun = File::create(&path).and_then(|mut file| {
            file.write_all(&framed(&version_event(self.began)))?;
            Ok(file)
        });
        begun.map_err(Failure::write(&path))
    }

    /// The split and the framed event of a record; `None` if it is none of these splits, or has no number.
    fn event(&self, line: &[u8]) -> Option<(String, Vec<u8>)> {
        let record: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let split = record.get("split")?.as_str()?;
        let known = SPLITS.contains(&split);
        let (step, seconds) = (
            record.get("step")?.as_u64()?,
            record.get("seconds")?.as_f64()?,
        );
        let values = record
            .iter()
            .filter(|(name, _)| !NOT_PLOTTED.contains(&name.as_str()));
        let values: Vec<(&str, f32)> = values
            .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()? as f32)))
            .collect();
        (known && !values.is_empty()).then(|| {
            let event = scalar_event(self.began + seconds, step, &values);
            (split.to_string(), framed(&event))
        })
    }
}

fn absent(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

/// The temporary name of a file. Without "tfevents", for TensorBoard reads the files of a directory in the order of their
/// names and never goes back to one.
fn staging(path: &Path) -> PathBuf {
    path.with_file_name("events.tmp")
}

fn now() -> f64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0.0, |time| time.as_secs_f64())
}

/// The time in the first event of a file: a run that goes on keeps its clock, and TensorBoard its place in the file.
fn began(path: &Path) -> Option<f64> {
    let mut first = framed(&version_event(0.0));
    File::open(path).ok()?.read_exact(&mut first).ok()?;
    let (time, _) = first.get(13..)?.split_first_chunk()?; // behind the length, its checksum and the number of the field
    let time = f64::from_le_bytes(*time);
    (time.is_finite() && first == framed(&version_event(time))).then_some(time)
}

/// The first event of a file.
fn version_event(wall_time: f64) -> Vec<u8> {
    let mut event = double(1, wall_time);
    event.extend(bytes(3, VERSION));
    event
}

/// An event with these scalars.
fn scalar_event(wall_time: f64, step: u64, values: &[(&str, f32)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut one = bytes(1, tag.as_bytes());
        one.push((2 << 3) | 5); // a float is 32 bits
        one.extend(value.to_le_bytes());
        summary.extend(bytes(1, &one));
    }
    let mut event = double(1, wall_time);
    event.push(2 << 3);
    event.extend(varint(step));
    event.extend(bytes(5, &summary));
    event
}

fn double(field: u8, value: f64) -> Vec<u8> {
    let mut out = vec![(field << 3) | 1];
    out.extend(value.to_le_bytes());
    out
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![(field << 3) | 2];
    out.extend(varint(value.len() as u64));
    out.extend(value);
    out
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A TFRecord.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(data);
    out.extend(masked(crc32c(data)).to_le_bytes());
    out
}

/// The checksum of data that may itself have checksums.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected: RFC 3720, appendix B.4.
fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
    !data.iter().fold(!0, step)
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn files_have_the_bytes_that_tensorboard_writes() {
        // made by tensorboard's own writer: sae-train/tests/python/tensorboard_golden.py
        let golden = include_bytes!("../tests/golden/events.bin");
        let mut ours = framed(&version_event(1.5));
        ours.extend(framed(&scalar_event(
            2.25,
            1,
            &[("fvu", 0.5), ("l0", 31.25)],
        )));
        ours.extend(framed(&scalar_event(
            1e9 + 0.125,
            1_000_000,
            &[("loss", -1e-3)],
        )));
        assert_eq!(ours, golden);
    }

    fn line(split: &str, step: usize, loss: &str) -> String {
        format!(
            "{{\"dead\":0,\"loss\":{loss},\"seconds\":{step}.5,\"split\":\"{split}\",\"step\":{step}}}\n"
        )
    }

    #[test]
    fn files_are_a_function_of_the_records() {
        let dir = tempfile::tempdir().unwrap();
        let (metrics, out) = (
            dir.path().join("metrics.jsonl"),
            dir.path().join("tensorboard"),
        );
        let records = [
            line("train", 1, "0.5"),
            line("train", 2, "null"), // a step that was passed over
            line("held_out", 2, "0.25"),
            line("train", 3, "0.125"),
        ];
        fs::write(&metrics, records[..2].concat()).unwrap();
        let mut events = EventFiles::open(&out, &metrics, 2.5).unwrap();
        // TensorBoard reads every file with this in its name
        assert!(
            !staging(&events.path("train"))
                .to_string_lossy()
                .contains("tfevents")
        );
        for record in &records[2..] {
            events.append(record.trim().as_bytes()).unwrap();
        }
        let read = |split: &str| fs::read(out.join(split).join(FILE)).unwrap();
        let [train, held_out] = ["train", "held_out"].map(read);
        // more than the records say, as a process that was killed leaves it
        events.append(line("train", 4, "9.0").as_bytes()).unwrap();
        events
            .append(line("held_out_all", 4, "9.0").as_bytes())
            .unwrap();
        fs::write(&metrics, records.concat()).unwrap();
        EventFiles::open(&out, &metrics, 3.5).unwrap();
        assert_eq!([read("train"), read("held_out")], [train, held_out]);
        assert!(!out.join("held_out_all").exists());
        assert_eq!(
            fs::read_dir(out.join("train")).unwrap().count(),
            1,
            "nothing is left over"
        );
    }
}
