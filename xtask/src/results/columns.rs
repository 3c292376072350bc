//! Numbers of a run, each addressed by a pointer into its report.
//!
//! A record keeps every number of `report.json`, by its JSON pointer; in a list whose entries have a `name` or an `n`, that
//! stands in place of the index: `/reconstruction/fvu`, `/top_n/trained/5/on`. So a number that `sae-eval`
//! begins to write needs no code here. Short names are for the usual ones.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::numbers::Form;

/// Numbers by pointer.
pub(crate) type Metrics = BTreeMap<String, f64>;

/// Longest list of plain numbers that is kept (an interval, not a histogram).
const MAX_LIST: usize = 4;
/// Parts of a report that measure nothing of the run, or say the same again.
const LEFT_OUT: [&str; 7] = [
    "schema_version",
    "model",
    "train",
    "held_out",
    "toolkits",
    "l0_histogram",
    "firing_frequency_histogram",
];

/// A column of a table.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Column {
    pub(crate) at: String,
    pub(crate) title: String,
    pub(crate) form: Form,
    /// 1 where the greatest mean is printed bold, -1 where the least is, otherwise 0.
    pub(crate) best: f64,
}

/// A table of one number at given L0.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Compare {
    /// The number.
    pub(super) column: Column,
    /// The L0 of its rows.
    pub(super) at_l0: Vec<f64>,
    /// Whether more is better. Then it is interpolated in itself over log L0, otherwise in log over log.
    #[serde(default)]
    pub(super) more: bool,
}

/// How the plan writes a column: a short name or a pointer, or all of it; `+` or `-` in front is for `best`.
#[derive(Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "a name such as \"fvu\", or { at = \"/a/b\", title = \"...\", form = \"percent\" }"
)]
enum Written {
    Name(String),
    Full {
        at: String,
        title: Option<String>,
        form: Option<Form>,
    },
}

impl TryFrom<Written> for Column {
    type Error = anyhow::Error;

    fn try_from(written: Written) -> Result<Self> {
        let (name, title, form) = match written {
            Written::Name(name) => (name, None, None),
            Written::Full { at, title, form } => (at, title, form),
        };
        let best = f64::from(name.starts_with('+')) - f64::from(name.starts_with('-'));
        let (at, usual_title, usual_form) = named(name.trim_start_matches(['+', '-']))?;
        Ok(Self {
            at,
            title: title.unwrap_or(usual_title),
            form: form.unwrap_or(usual_form),
            best,
        })
    }
}

/// Pointer, title and form of a name. `probe:K` is the balanced accuracy of a K-sparse probe, `on:N` is top-n classification
/// with n latents on, `off:N` with them off, `through:N` the same as `on:N` through the rest of the model; anything that begins with a slash is a pointer with four decimals.
fn named(name: &str) -> Result<(String, String, Form)> {
    let decimals = Form::Decimals;
    let (at, title, form) = match name {
        "fvu" => (FVU, "FVU", decimals(4)),
        "cosine" => ("/reconstruction/cosine", "mean cosine", decimals(3)),
        "l0" => (L0, "L0", decimals(1)),
        "l0_p5" => ("/sparsity/l0_p5", "5 %", decimals(0)),
        "l0_p95" => ("/sparsity/l0_p95", "95 %", decimals(0)),
        "dead" => ("/sparsity/dead_latents", "dead", decimals(0)),
        "dead_share" => (DEAD_SHARE, "dead", Form::Percent),
        "single_latent_f1" => ("/criteria/metrics/single_latent_f1", "F1", decimals(3)),
        "seconds" => (SECONDS, "training, s", decimals(0)),
        "training_l0" => (TRAINING_L0, "L0 in training", decimals(1)),
        "loss_recovered" => (
            "/tail/metrics/loss_recovered",
            "loss recovered",
            decimals(4),
        ),
        "fvu_at_32" => (FVU_AT_32, "FVU moved to L0 32", decimals(4)),
        pointer if pointer.starts_with('/') => (pointer, pointer, decimals(4)),
        _ => {
            let top_n = |n, side| format!("/top_n/trained/{n}/{side}");
            let through = |n| format!("/tail/classes/top_n/{n}/on");
            return Ok(match name.split_once(':') {
                Some(("on", "all")) => (top_n("all", "on"), "all".into(), Form::Percent),
                Some(("on", n)) => (top_n(n, "on"), format!("top-{n}"), Form::Percent),
                Some(("off", n)) => (top_n(n, "off"), format!("without top-{n}"), Form::Percent),
                Some(("through", "all")) => (through("all"), "all".into(), Form::Percent),
                Some(("through", n)) => (through(n), format!("top-{n}"), Form::Percent),
                Some(("probe", k)) => {
                    let at = format!("/criteria/metrics/probe_{k}_balanced_accuracy");
                    (at, format!("probe, k = {k}"), decimals(3))
                }
                _ => bail!("column {name}: no such number; see xtask/src/results/columns.rs"),
            });
        }
    };
    Ok((at.into(), title.into(), form))
}

/// Pointers of the numbers that code needs by name.
pub(crate) const FVU: &str = "/reconstruction/fvu";
pub(crate) const L0: &str = "/sparsity/l0_mean";
pub(crate) const DEAD_SHARE: &str = "/sparsity/dead_fraction";
/// From `metrics.jsonl`: seconds of training over all continuations, and the mean L0 of the last hundred training batches.
pub(super) const SECONDS: &str = "/training_seconds";
pub(super) const TRAINING_L0: &str = "/training_l0";
/// From `metrics.jsonl`: the mean L0 of a tenth of the training batches, at most a hundred: of those up to half of the training,
/// and of the last ones.
pub(crate) const HALFWAY_L0: &str = "/training_l0_halfway";
pub(crate) const FINAL_L0: &str = "/training_l0_final";
/// `FVU (L0/32)^0.38`: FVU moved to an L0 of 32, computed when it is asked for.
pub(super) const FVU_AT_32: &str = "/fvu_at_32";

/// All numbers of a report.
pub(super) fn of_report(report: &Value) -> Metrics {
    let mut metrics = Metrics::new();
    for (key, value) in report.as_object().into_iter().flatten() {
        if !LEFT_OUT.contains(&key.as_str()) {
            flatten(value, &format!("/{key}"), &mut metrics);
        }
    }
    metrics
}

/// The warnings of a report.
pub(super) fn notes(report: &Value) -> Vec<String> {
    let notes = report["notes"].as_array().into_iter().flatten();
    notes
        .filter_map(|note| Some(note.as_str()?.into()))
        .collect()
}

/// The numbers of the records of `metrics.jsonl`.
pub(super) fn of_training(records: &[Value]) -> Metrics {
    let training = records.iter().filter(|record| record["split"] == "train");
    let l0 = training.filter_map(|record| record["l0"].as_f64());
    let l0: Vec<f64> = l0.collect();
    let seconds = records.last().and_then(|record| record["seconds"].as_f64());
    let tenth = l0.len().div_ceil(10).min(100);
    let found = [
        (TRAINING_L0, mean_of_last(&l0, 100)),
        (HALFWAY_L0, mean_of_last(&l0[..l0.len() / 2], tenth)),
        (FINAL_L0, mean_of_last(&l0, tenth)),
        (SECONDS, seconds),
    ];
    let found = found
        .into_iter()
        .filter_map(|(at, value)| Some((at.to_string(), value?)));
    found.collect()
}

/// The mean of the last `n` values, or of all where there are fewer; none where there are none.
fn mean_of_last(values: &[f64], n: usize) -> Option<f64> {
    let last = &values[values.len() - n.min(values.len())..];
    (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64)
}

/// Adds all numbers below `value`.
pub(super) fn flatten(value: &Value, at: &str, metrics: &mut Metrics) {
    match value {
        Value::Number(number) => {
            metrics.extend(number.as_f64().map(|number| (at.to_string(), number)));
        }
        Value::Object(entries) => {
            for (key, value) in entries {
                let key = key.replace('~', "~0").replace('/', "~1");
                flatten(value, &format!("{at}/{key}"), metrics);
            }
        }
        Value::Array(entries)
            if entries.iter().all(Value::is_number) && entries.len() <= MAX_LIST =>
        {
            for (i, value) in entries.iter().enumerate() {
                flatten(value, &format!("{at}/{i}"), metrics);
            }
        }
        Value::Array(entries) => entries
            .iter()
            .for_each(|entry| flatten_entry(entry, at, metrics)),
        _ => {}
    }
}

/// An entry of a list: its `value`, or all that it has, by its name.
fn flatten_entry(entry: &Value, at: &str, metrics: &mut Metrics) {
    let name = ["name", "n"].iter().find_map(|key| match &entry[*key] {
        Value::String(name) => Some(name.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    });
    if let (Some(name), Some(fields)) = (name, entry.as_object()) {
        for (key, value) in fields {
            match key.as_str() {
                "name" | "n" => {}
                "value" => flatten(value, &format!("{at}/{name}"), metrics),
                key => flatten(value, &format!("{at}/{name}/{key}"), metrics),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_found_by_pointer() {
        let report = json!({
            "schema_version": 5, "seconds": 1.5, "model": { "n_latents": 8 },
            "reconstruction": [{ "name": "fvu", "value": 0.25, "interval": [0.2, 0.3], "formula": "x" }],
            "sparsity": [{ "name": "dead_fraction", "value": 0.125 }],
            "top_n": { "trained": [{ "n": "5", "on": 0.5, "off": null }], "per_class": [{ "class": "a", "rows": 3 }] },
            "labels": { "probing": { "k1": { "balanced_accuracy": 0.7, "counts": [1, 2, 3, 4, 5] } } },
        });
        let expected = [
            (DEAD_SHARE, 0.125),
            ("/labels/probing/k1/balanced_accuracy", 0.7),
            (FVU, 0.25),
            ("/reconstruction/fvu/interval/0", 0.2),
            ("/reconstruction/fvu/interval/1", 0.3),
            ("/seconds", 1.5),
            ("/top_n/trained/5/on", 0.5),
        ];
        let expected: Metrics = expected
            .iter()
            .map(|(at, value)| (at.to_string(), *value))
            .collect();
        assert_eq!(of_report(&report), expected);
        // a plain pointer means here what it means in the report
        let at = "/labels/probing/k1/balanced_accuracy";
        assert_eq!(
            report.pointer(at).and_then(Value::as_f64),
            of_report(&report).get(at).copied()
        );
    }

    #[test]
    fn l0_of_training_halfway_and_at_the_end() {
        let record = |i: usize| json!({ "split": "train", "l0": i, "seconds": 0.5 * i as f64 });
        let mut records: Vec<Value> = (1..=40).map(record).collect();
        records.push(json!({ "split": "held_out", "l0": 99, "seconds": 21 }));
        let expected = [
            (TRAINING_L0, 20.5), // of all: there are fewer than a hundred
            (HALFWAY_L0, 18.5),  // of 17 to 20
            (FINAL_L0, 38.5),    // of 37 to 40
            (SECONDS, 21.0),
        ];
        let expected = expected.map(|(at, value)| (at.to_string(), value));
        assert_eq!(of_training(&records), Metrics::from(expected));
        assert!(of_training(&[]).is_empty());
        let one = of_training(&records[..1]);
        assert_eq!((one.get(HALFWAY_L0), one[FINAL_L0]), (None, 1.0));
    }
}
