//! `[[sweep]]` and `--sweep`: many configs from one.
//!
//! A table names keys and the values that each of them takes; its runs are the product. Several tables stand beside each other.
//! What a table does not name is that of the config. The name of a run is what makes it differ: `topk,k=20,lr=1e-3`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use toml::{Table, Value};

use super::values::{MOST as MOST_RUNS, values};
use super::{ConfigError, Written, invalid, set};

/// The values that each key takes, by dotted key.
type Axes = BTreeMap<String, Vec<Value>>;

/// The runs that a config asks for.
pub(crate) struct Sweep {
    pub(crate) name: String,
    /// The directory of their run directories.
    pub(crate) dir: PathBuf,
    pub(crate) runs: Vec<Variant>,
}

/// A run of a sweep.
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) config: Written,
    /// Which of the devices it trains on.
    pub(crate) lane: usize,
}

impl Written {
    /// The sweep that the config, or `arguments` of the form `key=1,2,3`, ask for; `None` for a single run.
    ///
    /// # Errors
    /// If a key may not vary, has no values, or if two runs are the same.
    pub(crate) fn sweep(&self, arguments: &[String]) -> Result<Option<Sweep>, ConfigError> {
        let mut tables = match self.table.get("sweep") {
            None if arguments.is_empty() => return Ok(None),
            None => vec![Axes::new()],
            Some(written) => tables(written)?,
        };
        for argument in arguments {
            let (key, values) = axis(argument)?;
            for table in &mut tables {
                table.insert(key.clone(), values.clone());
            }
        }
        for key in tables.iter().flat_map(|axes| axes.keys()) {
            self.check_not_set(key)?;
        }
        let dir = self.run_dir();
        let names = dir.file_name().unwrap_or_default();
        let mut sweep = Sweep {
            name: names.to_string_lossy().into_owned(),
            dir: dir.clone(),
            runs: Vec::new(),
        };
        let devices = self.devices();
        for axes in tables {
            for values in product(&axes)? {
                let lane = sweep.runs.len() % devices.len().max(1);
                let mut run = self.variant(&dir, &values)?;
                run.lane = lane;
                if let Some(device) = devices.get(lane) {
                    run.config.table.insert("device".into(), (*device).into());
                }
                sweep.runs.push(run);
            }
        }
        check_names(&sweep.runs)?;
        Ok(Some(sweep))
    }

    /// The devices that the config names, with commas between them; none if it names none.
    pub(crate) fn devices(&self) -> Vec<&str> {
        let names = self.table.get("device").and_then(Value::as_str);
        names.map_or(Vec::new(), |names| {
            names.split(',').map(str::trim).collect()
        })
    }

    /// Fails if `--set` gives a value to a key that varies.
    fn check_not_set(&self, key: &str) -> Result<(), ConfigError> {
        match self.set.iter().find(|set| *set == key) {
            Some(_) => Err(ConfigError::Set {
                argument: key.into(),
                remedy: "the sweep varies this key; use --sweep to give it other values".into(),
            }),
            None => Ok(()),
        }
    }

    /// The config of the run with these values.
    fn variant(
        &self,
        dir: &std::path::Path,
        values: &[(String, Value)],
    ) -> Result<Variant, ConfigError> {
        let mut table = self.table.clone();
        table.remove("sweep");
        for (key, value) in values {
            set::insert(&mut table, key, value.clone())
                .map_err(|remedy| invalid(key, value, remedy))?;
        }
        let name = name(values);
        table.insert("runs_dir".into(), dir.to_string_lossy().into_owned().into());
        table.insert("run".into(), name.clone().into());
        let config = Written {
            table,
            name: None,
            set: Vec::new(),
        };
        Ok(Variant {
            name,
            config,
            lane: 0,
        })
    }
}

/// The tables of `[[sweep]]`.
fn tables(written: &Value) -> Result<Vec<Axes>, ConfigError> {
    let wrong = |value: &Value| {
        let remedy =
            "write one or more tables [[sweep]], with keys such as training.lr = [1e-3, 2e-3]";
        invalid("sweep", value, remedy)
    };
    let all = written.as_array().filter(|all| !all.is_empty());
    let all = all.ok_or_else(|| wrong(written))?;
    let table = |value: &Value| {
        let table = value.as_table().filter(|table| !table.is_empty());
        axes(table.ok_or_else(|| wrong(value))?)
    };
    all.iter().map(table).collect()
}

/// The keys of one table: `seed` at the top, all others in a section.
fn axes(table: &Table) -> Result<Axes, ConfigError> {
    let mut axes = Axes::new();
    for (name, value) in table {
        match value.as_table() {
            Some(section) if name != "seed" => {
                for (key, value) in section {
                    add(&mut axes, format!("{name}.{key}"), value)?;
                }
            }
            _ => add(&mut axes, name.clone(), value)?,
        }
    }
    Ok(axes)
}

fn add(axes: &mut Axes, key: String, value: &Value) -> Result<(), ConfigError> {
    may_vary(&key, value)?;
    let values = values(value).map_err(|remedy| invalid(&format!("sweep.{key}"), value, remedy))?;
    axes.insert(key, values);
    Ok(())
}

/// `key=1,2,3`, or `key=` and a list or a range in TOML.
fn axis(argument: &str) -> Result<(String, Vec<Value>), ConfigError> {
    let wrong = |remedy: String| ConfigError::Sweep {
        argument: argument.into(),
        remedy,
    };
    let usage = "write key=value,value, for example --sweep training.lr=1e-3,2e-3";
    let (key, text) = argument
        .split_once('=')
        .ok_or_else(|| wrong(usage.into()))?;
    let key = key.trim();
    let value = match set::toml_value(text) {
        Some(value @ (Value::Array(_) | Value::Table(_))) => value,
        _ if text.trim().is_empty() => Value::Array(Vec::new()),
        _ if text.trim().starts_with(['[', '{']) => {
            return Err(wrong("this is neither a list nor a range in TOML".into()));
        }
        _ => {
            let one = |text: &str| set::toml_value(text).unwrap_or_else(|| text.trim().into());
            Value::Array(text.split(',').map(one).collect())
        }
    };
    may_vary(key, &value)?;
    let values = values(&value).map_err(wrong)?;
    Ok((key.into(), values))
}

/// Fails for keys that the runs of a sweep have in common.
fn may_vary(key: &str, value: &Value) -> Result<(), ConfigError> {
    let varies = ["model.", "training."]
        .iter()
        .any(|section| key.starts_with(section));
    if varies || ["seed", "data.layer"].contains(&key) {
        return Ok(());
    }
    let remedy = "the runs of a sweep may differ in keys of [model] and [training], in seed and in data.layer, and in no other";
    Err(invalid(&format!("sweep.{key}"), value, remedy))
}

/// Every combination of values; the last key varies fastest.
fn product(axes: &Axes) -> Result<Vec<Vec<(String, Value)>>, ConfigError> {
    let runs = axes.values().map(Vec::len).try_fold(1, usize::checked_mul);
    if runs.is_none_or(|runs| runs > MOST_RUNS) {
        let remedy = format!("this product has more than {MOST_RUNS} runs; use fewer values");
        let keys: Vec<&str> = axes.keys().map(String::as_str).collect();
        return Err(invalid("sweep", keys.join(", "), remedy));
    }
    let mut all = vec![Vec::new()];
    for (key, values) in axes {
        let longer = |run: Vec<(String, Value)>| {
            let with = move |value: &Value| {
                let mut run = run.clone();
                run.push((key.clone(), value.clone()));
                run
            };
            values.iter().map(with)
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    Ok(all)
}

/// `topk,k=20,lr=1e-3`
fn name(values: &[(String, Value)]) -> String {
    let part = |(key, value): &(String, Value)| {
        let (_, last) = key.rsplit_once('.').unwrap_or(("", key));
        match key.as_str() {
            "model.architecture" => text(value),
            _ => format!("{last}={}", text(value)),
        }
    };
    values.iter().map(part).collect::<Vec<_>>().join(",")
}

/// A value in the fewest characters.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(value) => {
            let (plain, short) = (value.to_string(), format!("{value:e}"));
            if short.len() < plain.len() {
                short
            } else {
                plain
            }
        }
        other => other.to_string(),
    }
}

/// Fails if two runs have one name: they are the same run.
fn check_names(runs: &[Variant]) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    match runs.iter().find(|run| !seen.insert(&run.name)) {
        None => Ok(()),
        Some(run) => Err(invalid(
            "sweep",
            &run.name,
            "two runs of this name; leave one of them out",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str, arguments: &[&str]) -> Result<Vec<String>, String> {
        let arguments: Vec<String> = arguments.iter().map(|a| a.to_string()).collect();
        let written = Written {
            table: text.parse().unwrap(),
            name: Some("some".into()),
            set: vec!["training.beta_1".into()],
        };
        let sweep = written
            .sweep(&arguments)
            .map_err(|error| error.to_string())?;
        Ok(sweep.map_or(Vec::new(), |sweep| {
            assert_eq!(sweep.dir, PathBuf::from("runs/some"));
            sweep.runs.into_iter().map(|run| run.name).collect()
        }))
    }

    #[test]
    fn a_table_is_a_product_and_tables_stand_beside_each_other() {
        assert_eq!(names("seed = 1", &[]).unwrap(), [""; 0]);
        let text = "[[sweep]]\nseed = [0, 1]\ntraining.lr = [1e-3, 0.25]\n[[sweep]]\nmodel.architecture = 'topk'\n\
                    model.k = { from = 2, to = 8, factor = 2 }";
        let all = names(text, &[]).unwrap();
        assert_eq!(
            all,
            [
                "seed=0,lr=1e-3",
                "seed=0,lr=0.25",
                "seed=1,lr=1e-3",
                "seed=1,lr=0.25",
                "topk,k=2",
                "topk,k=4",
                "topk,k=8"
            ]
        );
        let argued = ["training.lr=2e-3,3e-3", "seed={from=4,to=5}"];
        assert_eq!(
            names("", &argued).unwrap(),
            [
                "seed=4,lr=2e-3",
                "seed=4,lr=3e-3",
                "seed=5,lr=2e-3",
                "seed=5,lr=3e-3"
            ]
        );
        let fewer = ["training.lr=7", "seed=3"];
        assert_eq!(
            names(text, &fewer).unwrap()[..2],
            ["seed=3,lr=7", "topk,k=2,seed=3,lr=7"]
        );
    }

    #[test]
    fn mistakes_have_one_message() {
        for (text, argument, message) in [
            ("sweep = 3", "", "sweep = 3: write one or more tables"),
            ("sweep = []", "", "write one or more tables"),
            ("[[sweep]]", "", "write one or more tables"),
            (
                "[[sweep]]\ntraining.lr = []",
                "",
                "sweep.training.lr = []: an empty list",
            ),
            (
                "[[sweep]]\ndata.window_mb = [1]",
                "",
                "sweep.data.window_mb = [1]: the runs of a sweep may differ in",
            ),
            ("[[sweep]]\ndevice = ['cpu']", "", "sweep.device ="),
            ("[[sweep]]\nmodel = 3", "", "sweep.model = 3"),
            (
                "[[sweep]]\nseed = [1, 2, 1]",
                "",
                "sweep = seed=1: two runs of this name",
            ),
            (
                "[[sweep]]\ntraining.lr = [1e-3, 0.001]",
                "",
                "two runs of this name",
            ),
            ("", "training.lr", "--sweep training.lr: write key=value"),
            ("", "training.lr=", "--sweep training.lr=: an empty list"),
            ("", "runs_dir=a,b", "sweep.runs_dir"),
            (
                "",
                "training.beta_1=0,0.9",
                "--set training.beta_1: the sweep varies this key",
            ),
            ("", "seed={from=0,to=200},", "range"),
        ] {
            let arguments: Vec<&str> = [argument].into_iter().filter(|a| !a.is_empty()).collect();
            let error = names(text, &arguments).err().unwrap_or_default();
            assert!(error.contains(message), "{text} {argument}: {error}");
        }
        let many = ["seed={from=0,to=200}", "training.lr={from=1,to=200}"];
        assert!(
            names("", &many)
                .unwrap_err()
                .contains("more than 10000 runs")
        );
    }
}
