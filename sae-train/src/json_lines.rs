//! `metrics.jsonl`: one object per step (`split` = `train`), one per validation (`split` = `held_out`, means over the
//! held-out rows that a validation uses) and, if these are not all held-out rows, one for all of them when training
//! ends (`split` = `held_out_all`). Each object appears once, however often the run was interrupted.
//!
//! Burn delivers metrics later than the step, on a thread of its own. A checkpoint waits until the records of its step
//! are written and notes the file's length and checksum; resuming truncates the file to that length.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::train::logger::MetricLogger;
use burn::train::metric::MetricDefinition;
use burn::train::metric::NumericEntry;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use serde_json::{Map, Value, json};

use crate::checkpoint::MetricsPosition;
use crate::failure::Failure;
use crate::metrics::Names;
use crate::schedule::Schedule;
use crate::tensorboard::EventFiles;

/// The last record is searched for in this many bytes at the end of the file.
const TAIL: u64 = 1 << 14;
/// Longest time that a checkpoint waits for the records of its step.
const PATIENCE: Duration = Duration::from_secs(60);

/// The file, shared by the logger that writes it and the checkpoints that note its position.
#[derive(Debug)]
pub(crate) struct MetricsFile {
    path: PathBuf,
    state: Mutex<State>,
    written: Condvar,
    started: Instant,
    /// Seconds of training before this process.
    seconds_before: f64,
}

#[derive(Debug)]
struct State {
    file: File,
    bytes: u64,
    hasher: blake3::Hasher,
    /// Number of steps recorded.
    step: usize,
    /// The last validation: its step and held-out FVU.
    validated: Option<(usize, Option<f64>)>,
    failure: Option<Failure>,
    /// The same records for TensorBoard, if they were asked for.
    events: Option<EventFiles>,
}

impl MetricsFile {
    /// Opens `path` to append after the records of the first `step` steps. Later records are dropped: their steps will
    /// run again.
    pub(crate) fn open(
        path: &Path,
        step: usize,
        position: Option<&MetricsPosition>,
    ) -> Result<Arc<Self>, Failure> {
        let mut hasher = blake3::Hasher::new();
        let bytes = position.map_or(0, |position| position.bytes);
        let kept = hash_prefix(path, bytes, &mut hasher).map_err(Failure::write(path))?;
        let sum = hasher.finalize().to_hex();
        if let Some(position) = position
            && (kept < bytes || sum.as_str() != position.blake3)
        {
            tracing::warn!(
                "{}: the records of the first {step} steps are not what was written; those that can be read are kept",
                path.display()
            );
            let text = rescue(path, step).map_err(Failure::write(path))?;
            sae_run::atomic_file::write(path, text.as_bytes()).map_err(Failure::write(path))?;
            hasher.reset().update(text.as_bytes());
        }
        let bytes = hasher.count();
        let mut options = File::options();
        let file = options.create(true).append(true).open(path);
        let file = file
            .and_then(|file| file.set_len(bytes).map(|()| file))
            .map_err(Failure::write(path))?;
        let state = State {
            file,
            bytes,
            hasher,
            step,
            validated: None,
            failure: None,
            events: None,
        };
        Ok(Arc::new(Self {
            path: path.into(),
            state: Mutex::new(state),
            written: Condvar::new(),
            started: Instant::now(),
            seconds_before: position.map_or(0.0, |position| position.seconds),
        }))
    }

    /// Writes the records for TensorBoard, too: those so far and those that follow.
    pub(crate) fn write_events(&self, dir: &Path) -> Result<(), Failure> {
        let mut state = self.state();
        state.events = Some(EventFiles::open(dir, &self.path, self.seconds_before)?);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// Waits until `step` steps are recorded, and the validation of this step if it is `validated`.
    fn recorded(&self, step: usize, validated: bool) -> Result<MutexGuard<'_, State>, Failure> {
        let behind = |state: &mut State| {
            let held_out = state.validated.is_some_and(|(at, _)| at == step);
            state.failure.is_none() && (state.step < step || (validated && !held_out))
        };
        let waited = self
            .written
            .wait_timeout_while(self.state(), PATIENCE, behind);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        if timeout.timed_out() {
            let message = format!("the records of step {step} do not arrive");
            return Err(Failure::write(&self.path)(io::Error::other(message)));
        }
        Ok(state)
    }

    /// Waits until `step` steps are recorded and syncs the file; returns its position, and the held-out FVU if
    /// `validated`.
    pub(crate) fn position(
        &self,
        step: usize,
        validated: bool,
    ) -> Result<(MetricsPosition, Option<f64>), Failure> {
        let state = self.recorded(step, validated)?;
        state.file.sync_data().map_err(Failure::write(&self.path))?;
        let position = MetricsPosition {
            bytes: state.bytes,
            blake3: state.hasher.finalize().to_hex().to_string(),
            seconds: self.seconds(),
        };
        let fvu = state
            .validated
            .filter(|_| validated)
            .and_then(|(_, fvu)| fvu);
        Ok((position, fvu))
    }

    /// Takes the error of a failed write, if there was one.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.state().failure.take()
    }

    /// Appends the record of the whole held-out set, after all other records of the run, which has `step` steps.
    pub(crate) fn append_whole(
        &self,
        step: usize,
        record: Map<String, Value>,
    ) -> Result<(), Failure> {
        let mut state = self.recorded(step, true)?;
        self.append_line(&mut state, record, "held_out_all");
        state.failure.take().map_or(Ok(()), Err)
    }

    /// Mean L0, FVU and dead latents of the last record, if it is not one of training: of the last validation, or of all held-out rows.
    pub(crate) fn last_validation(&self) -> Option<(f64, Option<f64>, u64)> {
        let mut file = File::open(&self.path).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))
            .ok()?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).ok()?;
        let text = String::from_utf8_lossy(&tail);
        let record: Value = serde_json::from_str(text.lines().next_back()?).ok()?;
        let l0 = record["l0"].as_f64().filter(|_| record["split"] != "train");
        Some((
            l0?,
            record["fvu"].as_f64(),
            record["dead"].as_f64()?.round() as u64,
        ))
    }

    /// Appends a record; a record of training counts one step.
    fn append(&self, mut record: Map<String, Value>, training: bool, schedule: Schedule) {
        let mut state = self.state();
        if training {
            record.insert("lr".into(), json!(schedule.at(state.step)));
            state.step += 1;
        } else {
            let fvu = record.get("fvu").and_then(Value::as_f64);
            state.validated = Some((state.step, fvu));
        }
        let split = if training { "train" } else { "held_out" };
        self.append_line(&mut state, record, split);
        self.written.notify_all();
    }

    fn append_line(&self, state: &mut State, mut record: Map<String, Value>, split: &str) {
        record.insert("split".into(), json!(split));
        record.insert("step".into(), json!(state.step));
        record.insert("seconds".into(), json!(self.seconds()));
        let line = format!("{}\n", Value::Object(record));
        match state.file.write_all(line.as_bytes()) {
            Ok(()) => {
                state.bytes += line.len() as u64;
                state.hasher.update(line.as_bytes());
            }
            Err(error) => state.failure = Some(Failure::write(&self.path)(error)),
        }
        if let Some(events) = &mut state.events
            && let Err(failure) = events.append(line.as_bytes())
        {
            state.failure = Some(failure);
        }
    }
}

/// Hashes the first `bytes` bytes of a file; returns how many there were.
fn hash_prefix(path: &Path, bytes: u64, hasher: &mut blake3::Hasher) -> io::Result<u64> {
    match File::open(path) {
        Ok(file) => hasher
            .update_reader(file.take(bytes))
            .map(|hasher| hasher.count()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// The readable lines of the first `step` steps, one per step and split.
fn rescue(path: &Path, step: usize) -> io::Result<String> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut seen = std::collections::HashSet::new();
    let mut kept = String::new();
    for line in String::from_utf8_lossy(&bytes).lines() {
        let record: Option<Value> = serde_json::from_str(line).ok();
        let key = record.and_then(|record| {
            let split = record["split"].as_str()?.to_string();
            Some((record["step"].as_u64()?, split))
        });
        if let Some(key) = key.filter(|(at, _)| *at <= step as u64)
            && seen.insert(key)
        {
            kept += line;
            kept.push('\n');
        }
    }
    Ok(kept)
}

/// The logger that gets Burn's metrics.
pub(crate) struct JsonLines {
    file: Arc<MetricsFile>,
    names: Names,
    schedule: Schedule,
}

impl JsonLines {
    pub(crate) fn new(file: Arc<MetricsFile>, schedule: Schedule) -> Self {
        Self {
            file,
            names: Names::default(),
            schedule,
        }
    }

    /// The values of an update by name: of one batch, or their means over a whole pass (`of_pass`).
    fn values(&self, update: &MetricsUpdate, of_pass: bool) -> Map<String, Value> {
        let entries = update.entries_numeric.iter().filter_map(|numeric| {
            let value = numeric.numeric_entry.as_ref()?;
            let name = self.names.get(&numeric.entry.metric_id).to_string();
            let wanted = matches!(value, NumericEntry::Final(_)) == of_pass;
            wanted.then(|| (name, json!(value.current())))
        });
        entries.collect()
    }
}

impl MetricLogger for JsonLines {
    fn log(&mut self, update: MetricsUpdate, _epoch: usize, split: &Split) {
        let training = matches!(split, Split::Train);
        let record = self.values(&update, !training);
        // empty: the end of a stretch of training, or one batch of a validation
        if !record.is_empty() {
            self.file.append(record, training, self.schedule);
        }
    }

    fn read_numeric(
        &mut self,
        _name: &str,
        _epoch: usize,
        _split: &Split,
    ) -> Result<Vec<NumericEntry>, String> {
        Err("metrics.jsonl is not read back while training".into())
    }

    fn log_metric_definition(&mut self, definition: MetricDefinition) {
        self.names.add(&definition);
    }

    fn log_epoch_summary(&mut self, _summary: EpochSummary) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: usize) -> String {
        format!("{{\"split\":\"train\",\"step\":{step}}}\n")
    }

    fn position_of(text: &str) -> MetricsPosition {
        MetricsPosition {
            bytes: text.len() as u64,
            blake3: blake3::hash(text.as_bytes()).to_hex().to_string(),
            seconds: 2.0,
        }
    }

    #[test]
    fn resuming_drops_what_will_be_run_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let first = record(1) + &record(2);
        std::fs::write(&path, format!("{first}{}{{\"step\":", record(3))).unwrap();
        let file = MetricsFile::open(&path, 2, Some(&position_of(&first))).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
        file.append(Map::new(), true, Schedule::new(1.0, 0, 0.0, 9));
        let (position, fvu) = file.position(3, false).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(position.blake3, position_of(&text).blake3);
        assert_eq!((position.bytes, fvu), (text.len() as u64, None));
        assert!(position.seconds >= 2.0);
    }

    #[test]
    fn the_record_of_all_held_out_rows_is_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let file = MetricsFile::open(&path, 0, None).unwrap();
        let schedule = Schedule::new(1.0, 0, 0.0, 9);
        std::thread::scope(|scope| {
            let last = scope.spawn(|| file.append_whole(1, Map::new()));
            std::thread::sleep(Duration::from_millis(50)); // Burn's thread is late
            file.append(Map::new(), true, schedule);
            file.append(Map::new(), false, schedule);
            last.join().unwrap().unwrap();
        });
        let text = std::fs::read_to_string(&path).unwrap();
        let splits: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["split"].clone())
            .collect();
        assert_eq!(splits, ["train", "held_out", "held_out_all"]);
    }

    #[test]
    fn what_can_be_read_of_a_damaged_file_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let whole = record(1) + &record(2) + &record(3);
        let damaged = format!(
            "{}{{\"spl\n{}{}{}",
            record(1),
            record(3),
            record(3),
            record(4)
        );
        std::fs::write(&path, damaged).unwrap();
        MetricsFile::open(&path, 3, Some(&position_of(&whole))).unwrap();
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(kept, record(1) + &record(3));
        std::fs::remove_file(&path).unwrap();
        MetricsFile::open(&path, 3, Some(&position_of(&whole))).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }
}
