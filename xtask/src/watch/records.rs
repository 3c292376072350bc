//! The records of training as they grow: of `metrics.jsonl`, only what was added since the last look is read, and a curve
//! has a bounded number of points. A run that goes on from a checkpoint cuts the file; then all of it is read again.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;

/// Most records that are kept of a curve.
const MOST: usize = 512;
/// Longest line that is read.
const LINE: u64 = 1 << 16;

/// One record.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Record {
    #[serde(default)]
    split: String,
    pub(super) step: usize,
    pub(super) fvu: Option<f64>,
    pub(super) l0: Option<f64>,
    pub(super) dead: Option<f64>,
    /// Seconds of training so far.
    pub(super) seconds: Option<f64>,
}

/// Records by their steps: at most [`MOST`], evenly spread, and the last one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Curve {
    kept: Vec<Record>,
    last: Option<Record>,
    seen: usize,
    every: usize,
}

impl Curve {
    fn push(&mut self, record: Record) {
        self.every = self.every.max(1);
        if self.seen.is_multiple_of(self.every) {
            self.kept.push(record.clone());
        }
        self.seen += 1;
        if self.kept.len() > MOST {
            let mut at = 0;
            self.kept.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            self.every *= 2;
        }
        self.last = Some(record);
    }

    pub(super) fn last(&self) -> Option<&Record> {
        self.last.as_ref()
    }

    /// The records that are kept, and the last one.
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        let there = self.kept.last().map(|record| record.step);
        let last = self.last.iter();
        self.kept
            .iter()
            .chain(last.filter(move |last| Some(last.step) != there))
    }

    fn step(&self) -> Option<usize> {
        self.last.as_ref().map(|record| record.step)
    }

    /// Seconds per step lately.
    pub(super) fn pace(&self) -> Option<f64> {
        let last = self.last.as_ref()?;
        let recent = self.kept.len().saturating_sub(MOST / 8);
        let first = self
            .kept
            .get(recent)
            .filter(|first| first.step < last.step)?;
        Some((last.seconds? - first.seconds?) / (last.step - first.step) as f64)
    }
}

/// The records of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Records {
    pub(super) train: Curve,
    pub(super) held_out: Curve,
    /// Bytes that have been read: whole lines.
    read: u64,
}

impl Records {
    /// Reads what was added to the file at `path`. A file that is not there has no records.
    pub(super) fn update(&mut self, path: &Path) {
        let Ok(mut file) = File::open(path) else {
            *self = Self::default();
            return;
        };
        let shorter = file.metadata().is_ok_and(|about| about.len() < self.read);
        if shorter || !self.go_on(&mut file) {
            *self = Self::default();
            self.go_on(&mut file);
        }
    }

    /// Reads the lines behind those that have been read. False if they do not follow on these, because the file was cut
    /// and has grown again.
    fn go_on(&mut self, file: &mut File) -> bool {
        if file.seek(SeekFrom::Start(self.read)).is_err() {
            return true;
        }
        let (mut file, mut line, mut follows) = (BufReader::new(file), Vec::new(), self.read > 0);
        loop {
            line.clear();
            match file.by_ref().take(LINE).read_until(b'\n', &mut line) {
                Ok(n) if n > 0 && (line.ends_with(b"\n") || n as u64 == LINE) => {}
                _ => return true, // the end, or a line that is being written
            }
            // a piece of a line, or steps that have passed already
            if !self.add(&line) && follows {
                return false;
            }
            follows = false;
            self.read += line.len() as u64;
        }
    }

    /// Adds the record of a line. False if it is none, or one of a step that has passed already.
    fn add(&mut self, line: &[u8]) -> bool {
        let Ok(record) = serde_json::from_slice::<Record>(line) else {
            return false;
        };
        let curve = match record.split.as_str() {
            "train" => &mut self.train,
            "held_out" => &mut self.held_out,
            _ => return true,
        };
        let new = curve.step().is_none_or(|step| record.step > step);
        if new {
            curve.push(record);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn line(split: &str, step: usize) -> String {
        format!(
            "{{\"split\":\"{split}\",\"step\":{step},\"fvu\":0.5,\"seconds\":{}}}\n",
            step * 2
        )
    }

    #[test]
    fn records_are_read_as_they_come() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut records = Records::default();
        records.update(&path);
        assert_eq!(records, Records::default());
        let mut file = File::create(&path).unwrap();
        let second = line("train", 2);
        let text = line("train", 1) + "not a record\n" + &second[..9];
        file.write_all(text.as_bytes()).unwrap();
        records.update(&path);
        assert_eq!(records.train.step(), Some(1));
        let text = second[9..].to_string() + &line("held_out", 2) + &line("held_out_all", 2);
        file.write_all(text.as_bytes()).unwrap();
        records.update(&path);
        assert_eq!(
            (records.train.step(), records.held_out.step()),
            (Some(2), Some(2))
        );
        assert_eq!(records.train.pace(), Some(2.0));
    }

    #[test]
    fn a_file_that_was_cut_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let lines = |steps: std::ops::RangeInclusive<usize>| -> String {
            steps.map(|step| line("train", step)).collect()
        };
        let mut records = Records::default();
        // shorter than what was read; then cut back and grown beyond it
        for (text, last) in [
            (lines(1..=30), 30),
            (lines(1..=12), 12),
            (lines(1..=8) + &lines(9..=40), 40),
        ] {
            fs::write(&path, text).unwrap();
            records.update(&path);
            let steps: Vec<usize> = records.train.records().map(|r| r.step).collect();
            assert_eq!(steps, (1..=last).collect::<Vec<_>>());
        }
        let other = line("train", 1).replace("0.5", "0.123456789") + &lines(2..=60);
        fs::write(&path, other).unwrap();
        records.update(&path);
        assert_eq!(records.train.step(), Some(60));
    }

    #[test]
    fn curves_have_a_bounded_number_of_points() {
        let mut curve = Curve::default();
        for step in 1..=100_000 {
            curve.push(Record {
                step,
                ..Record::default()
            });
        }
        let steps: Vec<usize> = curve.records().map(|record| record.step).collect();
        assert!(
            (MOST / 2..=MOST + 1).contains(&steps.len()),
            "{}",
            steps.len()
        );
        assert_eq!((steps[0], steps.last()), (1, Some(&100_000)));
    }
}
