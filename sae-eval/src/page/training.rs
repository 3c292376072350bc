//! The records of training, thinned: `metrics.jsonl` may have millions of lines.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;

/// Most records that are kept of each side.
const MOST: usize = 1024;
/// Longest line that is read.
const LINE: u64 = 1 << 16;

/// One record.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Record {
    #[serde(default)]
    pub(super) split: String,
    pub(super) step: u64,
    pub(super) loss: Option<f64>,
    pub(super) fvu: Option<f64>,
    pub(super) l0: Option<f64>,
    pub(super) dead: Option<f64>,
    pub(super) lr: Option<f64>,
}

/// Records in the order of their steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Training {
    pub(super) train: Thinned,
    pub(super) held_out: Thinned,
}

/// At most [`MOST`] records: every one, or every second, fourth, ...
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Thinned {
    pub(super) records: Vec<Record>,
    seen: usize,
    every: usize,
}

impl Thinned {
    pub(super) fn push(&mut self, record: Record) {
        self.every = self.every.max(1);
        if self.seen.is_multiple_of(self.every) {
            self.records.push(record);
        }
        self.seen += 1;
        if self.records.len() > MOST {
            let mut at = 0;
            self.records.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            self.every *= 2;
        }
    }
}

impl Training {
    /// Reads the records; lines that are none are skipped, and a file that cannot be read has none.
    pub(super) fn read(path: &Path) -> Self {
        File::open(path).map_or_else(|_| Self::default(), |file| Self::of(BufReader::new(file)))
    }

    fn of(mut file: impl BufRead) -> Self {
        let (mut training, mut line) = (Self::default(), Vec::new());
        loop {
            line.clear();
            match file.by_ref().take(LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return training,
                Ok(_) => {}
            }
            if let Ok(record) = serde_json::from_slice::<Record>(&line) {
                match record.split.as_str() {
                    "train" => training.train.push(record),
                    "held_out" => training.held_out.push(record),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_the_rest_is_skipped() {
        let text = concat!(
            "{\"split\":\"train\",\"step\":1,\"loss\":2.0,\"fvu\":0.5,\"l0\":30,\"other\":[1]}\n",
            "not a record\n\n",
            "{\"split\":\"held_out\",\"step\":1,\"fvu\":null}\n",
            "{\"split\":\"held_out_all\",\"step\":1,\"fvu\":0.4}\n",
            "{\"split\":\"train\",\"st",
        );
        let training = Training::of(text.as_bytes());
        assert_eq!(training.train.records.len(), 1);
        assert_eq!(training.train.records[0].fvu, Some(0.5));
        assert_eq!(training.held_out.records[0].fvu, None);
    }

    #[test]
    fn many_records_are_thinned_evenly() {
        let mut thinned = Thinned::default();
        for step in 0..100_000 {
            thinned.push(Record {
                step,
                ..Record::default()
            });
        }
        let steps: Vec<u64> = thinned.records.iter().map(|r| r.step).collect();
        assert!((MOST / 2..=MOST).contains(&steps.len()), "{}", steps.len());
        let every = steps[1] - steps[0];
        assert!(steps.windows(2).all(|pair| pair[1] - pair[0] == every) && steps[0] == 0);
    }
}
