//! The tables, from the lines of finished runs alone.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::columns::{Column, FVU, L0};
use super::plan::{Cell, Compare, Method, Run};
use super::queue::Results;
use crate::results::numbers::{Form, at_l0, mean_and_deviation};
use crate::results::render::{head, text};

/// A value of each seed that has one.
type BySeed = BTreeMap<u64, f64>;

/// Everything about one data set; empty where it has no runs.
pub(super) fn data_set(results: &Results, name: &str) -> String {
    let cells = results.plan.cells(name);
    let mut out = String::new();
    for compare in &results.plan.compares {
        out += &compared(results, &cells, compare);
    }
    let rates = rates(results, &cells);
    let runs = runs(results, &cells);
    for (summary, table) in [
        ("Learning rates, chosen on the validation split", rates),
        ("All runs", runs),
    ] {
        if !table.is_empty() {
            let _ = write!(
                out,
                "<details><summary>{summary}</summary>\n\n{table}\n</details>\n\n"
            );
        }
    }
    out
}

/// Cells of the same length and width.
fn by_grid<'a, 'b>(cells: &'b [Cell<'a>]) -> Vec<&'b [Cell<'a>]> {
    cells.chunk_by(|a, b| a.rank == b.rank).collect()
}

/// A number at equal L0: one row per length, width and L0, one column per method, and how far the first is from the others.
fn compared(results: &Results, cells: &[Cell], compare: &Compare) -> String {
    let methods = &results.plan.methods;
    let first = &methods[0];
    let others: Vec<&str> = families(methods.iter().map(|method| method.family()), first.family());
    let grids = by_grid(cells).into_iter();
    let rows: String = grids
        .flat_map(|cells| compare.at_l0.iter().map(move |l0| (cells, *l0)))
        .filter_map(|(cells, l0)| compared_row(results, cells, compare, (l0, &others)))
        .collect();
    if rows.is_empty() {
        return rows;
    }
    let mut out = format!("**{} at equal L0**\n\n", compare.column.title);
    let titles = titles(methods, &others, compare.more);
    head(
        &mut out,
        "steps",
        &titles.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    out + &rows + "\n"
}

/// The row of these cells, which are of one grid, at this L0; none where no method has a number.
fn compared_row(
    results: &Results,
    cells: &[Cell],
    compare: &Compare,
    (l0, others): (f64, &[&str]),
) -> Option<String> {
    let (methods, grid, form) = (&results.plan.methods, cells[0].grid, compare.column.form);
    let of = |method: &Method| {
        let cell = cells.iter().find(|cell| cell.method.name == method.name);
        cell.map(|cell| at(results, cell, compare, l0))
            .unwrap_or_default()
    };
    let found: Vec<BySeed> = methods.iter().map(of).collect();
    if found.iter().all(BySeed::is_empty) {
        return None;
    }
    let (steps, latents) = (thousands(grid.steps), thousands(grid.n_latents));
    let mut row = format!("| {steps} | {latents} | {l0} |");
    for values in &found {
        let _ = write!(row, " {} |", cell_text(values, grid.seeds.len(), form));
    }
    for family in others {
        let all = methods.iter().zip(&found);
        let variants = all.filter(|(method, _)| method.family() == *family);
        let better = better(variants.map(|(_, values)| values), compare.more);
        let (difference, form) = difference(&found[0], better, compare.more, form);
        let _ = write!(row, " {} |", cell_text(&difference, grid.seeds.len(), form));
    }
    Some(row + "\n")
}

/// M, L0, each method, and the comparison of the first with each family of others.
fn titles(methods: &[Method], others: &[&str], more: bool) -> Vec<String> {
    let label = |family: &str| {
        let own = methods.iter().find(|method| method.name == family);
        own.map_or(family.to_string(), |method| method.label.clone())
    };
    let side = if more { "above" } else { "below" };
    let mut titles = vec!["M".to_string(), "L0".to_string()];
    titles.extend(methods.iter().map(|method| method.label.clone()));
    titles.extend(
        others
            .iter()
            .map(|family| format!("{side} {}", label(family))),
    );
    titles
}

/// The families but one, each once.
fn families<'a>(all: impl Iterator<Item = &'a str>, but: &str) -> Vec<&'a str> {
    let mut families = Vec::new();
    for family in all.filter(|family| *family != but) {
        if !families.contains(&family) {
            families.push(family);
        }
    }
    families
}

/// A number of a cell at an L0, by seed: interpolated between neighbouring runs, never beyond them.
fn at(results: &Results, cell: &Cell, compare: &Compare, l0: f64) -> BySeed {
    let mut found = BySeed::new();
    for seed in &cell.grid.seeds {
        let points = points(results, cell, *seed, &compare.column.at);
        let value = match compare.more {
            // the interpolation is in the logarithm of what it is given
            true => {
                let points: Vec<(f64, f64)> = points.iter().map(|(l0, y)| (*l0, y.exp())).collect();
                at_l0(&points, l0).map(f64::ln)
            }
            false => at_l0(&points, l0),
        };
        found.extend(value.map(|value| (*seed, value)));
    }
    found
}

/// L0 and a number of each of a seed's runs.
fn points(results: &Results, cell: &Cell, seed: u64, at: &str) -> Vec<(f64, f64)> {
    let Some(lr) = results.chosen(cell) else {
        return Vec::new();
    };
    let runs = (0..cell.method.runs.len()).map(|i| cell.run_at(results.plan, seed, i, lr));
    let both = |run: Run| {
        let metrics = &results.get(&run)?.metrics;
        Some((*metrics.get(L0)?, *metrics.get(at)?))
    };
    runs.filter_map(both)
        .filter(|(l0, y)| *l0 > 0.0 && y.is_finite())
        .collect()
}

/// Of a method with and without a pre-bias, the one with the better mean.
fn better<'a>(variants: impl Iterator<Item = &'a BySeed>, more: bool) -> Option<&'a BySeed> {
    let mean = |values: &BySeed| values.values().sum::<f64>() / values.len() as f64;
    let sign = if more { -1.0 } else { 1.0 };
    variants
        .filter(|values| !values.is_empty())
        .min_by(|a, b| (sign * mean(a)).total_cmp(&(sign * mean(b))))
}

/// How much better the first is, seed by seed: by which part it is below, or by how much it is above.
fn difference(first: &BySeed, other: Option<&BySeed>, more: bool, form: Form) -> (BySeed, Form) {
    let mut found = BySeed::new();
    for (seed, a) in first {
        let b = other.and_then(|other| other.get(seed));
        found.extend(b.map(|b| (*seed, if more { a - b } else { 1.0 - a / b })));
    }
    (found, if more { form } else { Form::Percent })
}

/// Mean and deviation, and of how many seeds where some are missing.
fn cell_text(values: &BySeed, seeds: usize, form: Form) -> String {
    if values.is_empty() {
        return "-".into();
    }
    let values: Vec<f64> = values.values().copied().collect();
    let text = text(mean_and_deviation(&values), form);
    match values.len() {
        n if n < seeds => format!("{text} ({n} of {seeds})"),
        _ => text,
    }
}

/// FVU on the validation split for every learning rate of a grid, the chosen one bold.
fn rates(results: &Results, cells: &[Cell]) -> String {
    let mut rows = String::new();
    for cell in cells.iter().filter(|cell| !cell.method.lr.is_empty()) {
        let chosen = results.chosen(cell).flatten();
        let shown = |run: &Run| {
            let record = results.get(run)?;
            let numbers = record.metrics.get(FVU).zip(record.metrics.get(L0));
            let numbers = numbers.map_or("diverged".into(), |(fvu, l0)| {
                format!("{fvu:.4} at L0 {l0:.1}")
            });
            let lr = run.lr.unwrap_or_default();
            Some(if run.lr == chosen {
                format!("**{lr}: {numbers}**")
            } else {
                format!("{lr}: {numbers}")
            })
        };
        let shown: Vec<String> = cell.choice(results.plan).iter().filter_map(shown).collect();
        if !shown.is_empty() {
            let (steps, m) = (thousands(cell.grid.steps), thousands(cell.grid.n_latents));
            let _ = writeln!(
                rows,
                "| {steps} | {m} | {} | {} |",
                cell.method.label,
                shown.join("; ")
            );
        }
    }
    if rows.is_empty() {
        return rows;
    }
    format!("| steps | M | method | learning rate: FVU |\n|---:|---:|---|---|\n{rows}")
}

/// One row per setting, one column per number.
fn runs(results: &Results, cells: &[Cell]) -> String {
    let columns = &results.plan.columns;
    let settings = cells.iter().flat_map(|cell| {
        let own = cell.method.runs.iter().enumerate();
        own.map(move |(i, own)| (cell, i, own))
    });
    let rows: String = settings
        .filter_map(|(cell, i, own)| runs_row(results, cell, (i, own)))
        .collect();
    if rows.is_empty() {
        return rows;
    }
    let titles: Vec<&str> = columns.iter().map(|column| column.title.as_str()).collect();
    let numbers = "---:|".repeat(columns.len());
    format!(
        "| steps | M | method | set | lr | {} |  |\n|---:|---:|---|---|---:|{numbers}---|\n{rows}",
        titles.join(" | ")
    )
}

/// The row of one setting of a cell; none where it has no runs.
fn runs_row(results: &Results, cell: &Cell, (i, own): (usize, &[String])) -> Option<String> {
    let lr = results.chosen(cell)?;
    let seeds = &cell.grid.seeds;
    let runs = seeds
        .iter()
        .map(|seed| cell.run_at(results.plan, *seed, i, lr));
    let records: Vec<_> = runs
        .filter_map(|run| Some((run.seed, results.get(&run)?)))
        .collect();
    if records.is_empty() {
        return None;
    }
    let (steps, m) = (thousands(cell.grid.steps), thousands(cell.grid.n_latents));
    let own = own
        .iter()
        .map(|own| own.rsplit_once('.').map_or(own.as_str(), |_| short(own)));
    let own: Vec<&str> = own.collect();
    let lr = lr.map_or("rule".into(), |lr| lr.to_string());
    let (label, own) = (&cell.method.label, own.join(", "));
    let mut row = format!("| {steps} | {m} | {label} | {own} | {lr} |");
    for Column { at, form, .. } in &results.plan.columns {
        let found = records.iter();
        let found = found.filter_map(|(seed, record)| Some((*seed, *record.metrics.get(at)?)));
        let _ = write!(
            row,
            " {} |",
            cell_text(&found.collect(), seeds.len(), *form)
        );
    }
    let failed = records.iter().filter(|(_, record)| record.failed.is_some());
    row += &match failed.count() {
        0 => "  |\n".into(),
        failed => format!(" {failed} diverged |\n"),
    };
    Some(row)
}

/// `k=32` of `model.k=32`.
pub(super) fn short(setting: &str) -> &str {
    let key = setting.split('=').next().unwrap_or(setting);
    &setting[key.rfind('.').map_or(0, |dot| dot + 1)..]
}

/// 24,576.
pub(super) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    groups.join(",")
}
