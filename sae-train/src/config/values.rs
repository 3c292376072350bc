//! The values that a key takes in a sweep: a list, a range, or one.

use toml::{Table, Value};

/// Largest number of values, and of runs.
pub(super) const MOST: usize = 10_000;

/// The values that a value stands for: a list, a range, or itself.
pub(super) fn values(value: &Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(all) if all.is_empty() => {
            Err("an empty list; give it at least one value".into())
        }
        Value::Array(all) => match all
            .iter()
            .find(|value| value.is_array() || value.is_table())
        {
            Some(_) => Err("a value of a list is a number, a text, true or false".into()),
            None => Ok(all.clone()),
        },
        Value::Table(range) => self::range(range),
        single => Ok(vec![single.clone()]),
    }
}

/// The values from `from` to `to`, each `step` more or `factor` times as much as the one before.
fn range(range: &Table) -> Result<Vec<Value>, String> {
    let usage =
        "a range is { from = 0, to = 4, step = 1 } or { from = 1e-4, to = 1.6e-3, factor = 2 }";
    let number = |name: &str| match range.get(name) {
        Some(Value::Integer(value)) => Some(*value as f64),
        Some(Value::Float(value)) => Some(*value),
        _ => None,
    };
    let is_known = |name: &String| ["from", "to", "step", "factor"].contains(&name.as_str());
    let numbers = range
        .keys()
        .all(|name| is_known(name) && number(name).is_some());
    let (Some(from), Some(to), true) = (number("from"), number("to"), numbers) else {
        return Err(usage.into());
    };
    let whole = range.values().all(Value::is_integer);
    let at = |i: usize| match (number("step"), number("factor")) {
        (step, None) => Some(from + i as f64 * step.unwrap_or(1.0)),
        (None, Some(factor)) => Some(from * factor.powi(i as i32)),
        _ => None,
    };
    let mut values = Vec::new();
    // the last value may miss the end by rounding
    let within = |value: f64| value <= to + 1e-9 * to.abs();
    while let Some(value) = at(values.len()).filter(|value| within(*value)) {
        let goes_on = at(values.len() + 1).is_some_and(|next| next > value);
        if !goes_on || values.len() == MOST {
            return Err(format!("this range does not come to its end; {usage}"));
        }
        values.push(match whole {
            true => Value::Integer(value as i64),
            false => Value::Float(rounded(value)),
        });
    }
    match values.is_empty() {
        true => Err(format!("there is nothing in this range; {usage}")),
        false => Ok(values),
    }
}

/// To twelve digits: 0.1 + 2 * 0.1 is 0.3.
fn rounded(value: f64) -> f64 {
    format!("{value:.11e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_where_they_say() {
        let of = |text: &str| -> Result<Vec<Value>, String> {
            let table: Table = format!("v = {text}").parse().unwrap();
            values(&table["v"])
        };
        let floats = |all: Vec<Value>| all.iter().filter_map(Value::as_float).collect::<Vec<f64>>();
        assert_eq!(
            floats(of("{ from = 0.1, to = 0.5, step = 0.1 }").unwrap()),
            [0.1, 0.2, 0.3, 0.4, 0.5]
        );
        assert_eq!(
            floats(of("{ from = 1e-4, to = 1.6e-3, factor = 2 }").unwrap()),
            [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]
        );
        for wrong in [
            "[]",
            "[[1]]",
            "{ from = 1 }",
            "{ from = 1, to = 4, by = 2 }",
            "{ from = 1, to = 4, step = 1, factor = 2 }",
            "{ from = 1, to = 4, step = 0 }",
            "{ from = 1, to = 4, factor = 1 }",
            "{ from = 1, to = 4, factor = 0.5 }",
            "{ from = 0, to = 4, factor = 2 }",
            "{ from = 4, to = 1 }",
            "{ from = 0, to = 1e9 }",
            "{ from = 'a', to = 4 }",
            "{ from = nan, to = nan }",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
