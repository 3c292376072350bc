//! Numbers of a run, each addressed by a pointer into its report.
//!
//! A record keeps every number of `report.json`, by its JSON pointer; in a list whose entries have a `name` or an `n`, that
//! stands in place of the index: `/reconstruction/fvu`, `/top_n/trained/5/on`. So a number that `sae-eval`
//! begins to write needs no code here. Short names are for the usual ones.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::results::numbers::Form;

/// Numbers by pointer.
pub(super) type Metrics = BTreeMap<String, f64>;

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
#[serde(from = "Written")]
pub(super) struct Column {
    pub(super) at: String,
    pub(super) title: String,
    pub(super) form: Form,
}

/// How the plan writes one: a short name, or all of it.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a name such as \"fvu\", or { at = \"/a/b\", title = \"...\", form = \"percent\" }"
)]
enum Written {
    Name(String),
    Full(Full),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Full {
    at: String,
    title: Option<String>,
    #[serde(default)]
    form: WrittenForm,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenForm {
    #[default]
    Decimals,
    Percent,
}

impl From<Written> for Column {
    fn from(written: Written) -> Self {
        let (name, full) = match written {
            Written::Name(name) => (name, None),
            Written::Full(full) => (full.at.clone(), Some(full)),
        };
        let (at, title, form) = short(&name);
        match full {
            Some(full) => Self {
                at,
                title: full.title.unwrap_or(title),
                form: match full.form {
                    WrittenForm::Percent => Form::Percent,
                    WrittenForm::Decimals => form,
                },
            },
            None => Self { at, title, form },
        }
    }
}

/// Pointer, title and form of a short name; anything else is a pointer with four decimals.
fn short(name: &str) -> (String, String, Form) {
    let (at, title, form) = match name {
        "fvu" => (FVU, "FVU", Form::Decimals(4)),
        "cosine" => ("/reconstruction/cosine", "mean cosine", Form::Decimals(3)),
        "l0" => (L0, "L0", Form::Decimals(1)),
        "dead" => ("/sparsity/dead_latents", "dead", Form::Decimals(0)),
        "dead_share" => (DEAD_SHARE, "dead", Form::Percent),
        "seconds" => (SECONDS, "training, s", Form::Decimals(0)),
        other => (other, other, Form::Decimals(4)),
    };
    (at.into(), title.into(), form)
}

/// Pointers of the numbers that code needs by name. The last is not in the report.
pub(super) const FVU: &str = "/reconstruction/fvu";
pub(super) const L0: &str = "/sparsity/l0_mean";
pub(super) const DEAD_SHARE: &str = "/sparsity/dead_fraction";
pub(super) const SECONDS: &str = "/training_seconds";

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

/// Adds all numbers below `value`.
pub(super) fn flatten(value: &Value, at: &str, metrics: &mut Metrics) {
    match value {
        Value::Number(number) => {
            metrics.extend(number.as_f64().map(|number| (at.to_string(), number)));
        }
        Value::Object(entries) => {
            let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
            for (key, value) in entries {
                flatten(value, &format!("{at}/{}", escaped(key)), metrics);
            }
        }
        Value::Array(entries)
            if entries.iter().all(Value::is_number) && entries.len() <= MAX_LIST =>
        {
            for (i, value) in entries.iter().enumerate() {
                flatten(value, &format!("{at}/{i}"), metrics);
            }
        }
        Value::Array(entries) => entries.iter().for_each(|entry| named(entry, at, metrics)),
        _ => {}
    }
}

/// An entry of a list: its `value`, or all that it has, by its name.
fn named(entry: &Value, at: &str, metrics: &mut Metrics) {
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
}
