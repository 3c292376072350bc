//! Tables as Markdown.

use std::fmt::Write;

use anyhow::{Result, ensure};

use super::numbers::{self, Column, Form};
use super::plan::{Method, Table};
use super::runs::Runner;

/// Runs what a table needs, and renders it.
pub(super) fn table(table: &Table, seeds: &[u64], runner: &Runner) -> Result<String> {
    ensure!(!seeds.is_empty(), "a result needs a seed");
    if table.at_l0.is_empty() {
        rows(table, seeds, runner)
    } else {
        at_equal_l0(table, seeds, runner)
    }
}

/// Settings of a run: the table's, then its own, which count.
fn settings<'a>(groups: &[&'a [String]]) -> Vec<&'a str> {
    let all = groups.iter().flat_map(|group| group.iter());
    all.map(String::as_str).collect()
}

/// A row a setting, a column a number: mean and standard deviation over the seeds.
fn rows(table: &Table, seeds: &[u64], runner: &Runner) -> Result<String> {
    let columns: Vec<Column> = table
        .columns
        .iter()
        .map(|name| numbers::column(name))
        .collect::<Result<_>>()?;
    let mut cells: Vec<Vec<(f64, Option<f64>)>> = Vec::new();
    for row in &table.rows {
        let mut values = vec![Vec::new(); columns.len()];
        for seed in seeds {
            let outcome = runner.outcome(&table.data, &settings(&[&table.set, &row.set]), *seed)?;
            for (values, name) in values.iter_mut().zip(&table.columns) {
                values.push(numbers::value(name, &outcome)?);
            }
        }
        cells.push(
            values
                .iter()
                .map(|values| numbers::mean_and_deviation(values))
                .collect(),
        );
    }
    let mut out = String::new();
    let titles: Vec<&str> = columns.iter().map(|column| column.title.as_str()).collect();
    head(&mut out, "", &titles);
    for (row, line) in table.rows.iter().zip(&cells) {
        let _ = write!(out, "| {} |", row.label);
        for (i, (cell, column)) in line.iter().zip(&columns).enumerate() {
            let bold = is_best(table, i, cell.0, &cells, column.form);
            let text = text(*cell, column.form);
            let _ = if bold {
                write!(out, " **{text}** |")
            } else {
                write!(out, " {text} |")
            };
        }
        out.push('\n');
    }
    let _ = writeln!(out, "\n{}", caption(seeds));
    Ok(out)
}

/// Whether a mean is printed as the best of its column is.
fn is_best(
    table: &Table,
    i: usize,
    mean: f64,
    cells: &[Vec<(f64, Option<f64>)>],
    form: Form,
) -> bool {
    let name = &table.columns[i];
    let means = cells.iter().map(|line| line[i].0);
    let best = if table.best.contains(&format!("+{name}")) {
        means.fold(f64::NEG_INFINITY, f64::max)
    } else if table.best.contains(name) {
        means.fold(f64::INFINITY, f64::min)
    } else {
        return false;
    };
    text((mean, None), form) == text((best, None), form)
}

/// FVU of each method at given L0, interpolated seed by seed, and how far the first method is below the others.
fn at_equal_l0(table: &Table, seeds: &[u64], runner: &Runner) -> Result<String> {
    let mut found = Vec::new(); // by method: for each L0 the values of the seeds, none where one is out of reach
    for method in &table.methods {
        found.push(method_at(table, method, seeds, runner)?);
    }
    let labels = table.methods.iter().map(|method| method.label.clone());
    let below = table
        .methods
        .iter()
        .skip(1)
        .map(|method| format!("below {}", method.label));
    let titles: Vec<String> = labels.chain(below).collect();
    let mut out = String::new();
    head(
        &mut out,
        "L0",
        &titles.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    for (i, l0) in table.at_l0.iter().enumerate() {
        let _ = write!(out, "| {l0} |");
        for method in &found {
            let cell = method[i].as_deref().map(numbers::mean_and_deviation);
            let _ = write!(
                out,
                " {} |",
                cell.map_or("-".into(), |cell| text(cell, Form::Decimals(4)))
            );
        }
        for other in &found[1..] {
            let part = below_of(found[0][i].as_deref(), other[i].as_deref());
            let _ = write!(
                out,
                " {} |",
                part.map_or("-".into(), |cell| text(cell, Form::Percent))
            );
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "\nFVU at equal L0, interpolated between neighbouring runs in log FVU over log L0; \"-\": out of their range. {}",
        caption(seeds)
    );
    Ok(out)
}

/// FVU of a method at each L0 of the table, by seed.
fn method_at(
    table: &Table,
    method: &Method,
    seeds: &[u64],
    runner: &Runner,
) -> Result<Vec<Option<Vec<f64>>>> {
    let mut curves = Vec::new();
    for seed in seeds {
        let mut points = Vec::new();
        for run in &method.runs {
            let outcome = runner.outcome(
                &table.data,
                &settings(&[&table.set, &method.set, run]),
                *seed,
            )?;
            points.push((
                numbers::value("l0", &outcome)?,
                numbers::value("fvu", &outcome)?,
            ));
        }
        curves.push(points);
    }
    let at = |l0: &f64| {
        curves
            .iter()
            .map(|points| numbers::at_l0(points, *l0))
            .collect()
    };
    Ok(table.at_l0.iter().map(at).collect())
}

/// By which part the first is below the second, seed by seed.
fn below_of(first: Option<&[f64]>, second: Option<&[f64]>) -> Option<(f64, Option<f64>)> {
    let pairs = first?.iter().zip(second?);
    let parts: Vec<f64> = pairs.map(|(a, b)| 1.0 - a / b).collect();
    Some(numbers::mean_and_deviation(&parts))
}

pub(super) fn head(out: &mut String, first: &str, titles: &[&str]) {
    let _ = writeln!(out, "| {first} | {} |", titles.join(" | "));
    let _ = writeln!(out, "|---|{}", "---:|".repeat(titles.len()));
}

pub(super) fn text((mean, deviation): (f64, Option<f64>), form: Form) -> String {
    let (factor, decimals, unit) = match form {
        Form::Decimals(decimals) => (1.0, decimals, ""),
        Form::Percent => (100.0, 1, " %"),
    };
    let number = |value: f64| format!("{:.decimals$}", factor * value);
    match deviation {
        Some(deviation) => format!("{} ± {}{unit}", number(mean), number(deviation)),
        None => format!("{}{unit}", number(mean)),
    }
}

fn caption(seeds: &[u64]) -> String {
    let listed: Vec<String> = seeds.iter().map(u64::to_string).collect();
    match seeds.len() {
        1 => format!("One seed ({}).", listed[0]),
        n => format!(
            "Mean ± standard deviation over {n} seeds ({}).",
            listed.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_they_are_printed() {
        assert_eq!(
            text((0.12345, Some(0.00051)), Form::Decimals(4)),
            "0.1235 ± 0.0005"
        );
        assert_eq!(text((0.156, None), Form::Percent), "15.6 %");
        assert_eq!(text((0.156, Some(0.012)), Form::Percent), "15.6 ± 1.2 %");
        let below = below_of(Some(&[0.9, 0.8]), Some(&[1.0, 1.0])).unwrap();
        assert_eq!(text(below, Form::Percent), "15.0 ± 7.1 %");
        assert!(below_of(None, Some(&[1.0])).is_none());
    }
}
