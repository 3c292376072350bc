//! The measurements as data, and as a table.

use serde::Serialize;
use serde_json::{Value, json};

use super::contestants::Contestant;
use super::launches::Launches;
use super::worker::Turn;
use super::{Arguments, Shape};

/// All contestants at one shape.
#[derive(Debug, Serialize)]
pub(super) struct ShapeReport {
    pub(super) shape: Shape,
    pub(super) measured: Vec<Measured>,
    /// The kernels of our steps, on a GPU.
    pub(super) launches: Vec<Launches>,
}

/// The turns of one contestant.
#[derive(Debug, Default, Serialize)]
pub(super) struct Measured {
    id: String,
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<String>,
    seconds: Vec<f64>,
    l0: Option<f64>,
    peak_bytes: Option<u64>,
}

/// The value of a key in a file of /proc, or "unknown".
fn first(file: &str, key: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = |line: &str| line.trim_start_matches([' ', '\t', ':']).to_string();
    line.map_or("unknown".into(), value)
}

/// The processor's name, and how many there are.
pub(crate) fn processor() -> (String, usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (first("/proc/cpuinfo", "model name"), cores)
}

/// Everything measured: the content of `--json`.
pub(super) fn json(arguments: &Arguments, shapes: &[ShapeReport]) -> Value {
    let (processor, cores) = processor();
    let memory = first("/proc/meminfo", "MemTotal");
    json!({
        "machine": { "processor": processor, "cores": cores, "memory": memory },
        "device": arguments.device,
        "rounds": arguments.rounds,
        "shapes": shapes,
    })
}

impl Measured {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    pub(super) fn of(contestant: &Contestant) -> Self {
        Self {
            id: contestant.id.into(),
            precision: contestant.precision.clone(),
            ..Self::new(&contestant.name)
        }
    }

    pub(super) fn add(&mut self, turn: &Turn) {
        // of a loader the seconds per row, so that turns of different lengths compare
        self.seconds.push(turn.seconds / turn.rows.unwrap_or(1.0));
        self.l0 = turn.l0.or(self.l0);
        let peak = turn.device_bytes.or(turn.peak_bytes);
        self.peak_bytes = peak.max(self.peak_bytes);
    }

    pub(super) fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
    }

    pub(super) fn peak(&self) -> String {
        let megabytes = |bytes| format!("{:.0} MB", bytes as f64 / 1e6);
        self.peak_bytes.map_or("-".into(), megabytes)
    }

    pub(super) fn extremes(&self) -> (f64, f64) {
        let fold = |f: fn(f64, f64) -> f64, start| self.seconds.iter().copied().fold(start, f);
        (fold(f64::min, f64::INFINITY), fold(f64::max, 0.0))
    }
}

impl ShapeReport {
    /// The median of a contestant of this precision, or of one whose precision cannot be chosen.
    fn median_of(&self, id: &str, precision: Option<&str>) -> Option<f64> {
        let of = |m: &&Measured| m.id == id && m.precision.as_deref() == precision;
        self.measured.iter().find(of).map(Measured::median)
    }

    /// Markdown: medians with their range, multiples of one sgemm (torch's of the same precision where it was measured), rows per
    /// second, memory, and how many times our step of this precision fits into a peer's.
    pub(super) fn table(&self) -> String {
        let Shape {
            batch,
            width,
            latents,
        } = self.shape;
        let mut out = format!(
            "\nbatch {batch}, width {width}, {latents} latents\n\n\
             | | median (range) ms | sgemms | rows/s | L0 | peak memory | over our step |\n\
             |---|---:|---:|---:|---:|---:|---:|\n"
        );
        for m in &self.measured {
            let precision = m.precision.as_deref();
            let sgemm = [("torch-sgemm", precision.or(Some("f32"))), ("sgemm", None)];
            let step = [("step", precision), ("step", Some("f32"))];
            let [sgemm, step] = [sgemm, step].map(|all| {
                let medians = all.iter().filter_map(|(id, of)| self.median_of(id, *of));
                medians.into_iter().next().unwrap_or(f64::NAN)
            });
            let (median, (low, high)) = (m.median(), m.extremes());
            out += &format!(
                "| {} | {:.1} ({:.1} to {:.1}) | {:.2} | {:.0} | {} | {} | {:.2}x |\n",
                m.name,
                median * 1e3,
                low * 1e3,
                high * 1e3,
                median / sgemm,
                batch as f64 / median,
                m.l0.map_or("-".into(), |l0| format!("{l0:.1}")),
                m.peak(),
                median / step,
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(id: &str, seconds: &[f64]) -> Measured {
        let mut measured = Measured {
            id: id.into(),
            ..Measured::new(id)
        };
        for seconds in seconds {
            measured.add(&Turn {
                seconds: *seconds,
                rows: None,
                l0: Some(31.96),
                peak_bytes: Some(5_000_000),
                device_bytes: None,
            });
        }
        measured
    }

    #[test]
    fn medians_and_ratios_by_hand() {
        let report = ShapeReport {
            shape: Shape {
                batch: 100,
                width: 2,
                latents: 3,
            },
            measured: vec![
                measured("sgemm", &[0.2, 0.1, 0.3]),
                measured("step", &[0.3, 0.5]),
            ],
            launches: Vec::new(),
        };
        let table = report.table();
        assert!(
            table.contains("| sgemm | 200.0 (100.0 to 300.0) | 1.00 | 500 | 32.0 | 5 MB | 0.50x |"),
            "{table}"
        );
        assert!(
            table.contains("| step | 400.0 (300.0 to 500.0) | 2.00 | 250 | 32.0 | 5 MB | 1.00x |"),
            "{table}"
        );
    }
}
