//! The tables, from the lines of finished runs alone.

use std::collections::BTreeMap;

use super::columns::{Column, Compare, FVU, L0};
use super::numbers::{Form, Mean, at_l0, mean_and_deviation, text};
use super::plan::{Cell, Method, Run};
use super::queue::{BySeed, Results};

/// Everything about one data set; empty where it has no runs.
pub(super) fn data_set(results: &Results, name: &str) -> String {
    let cells = results.plan.cells(name);
    let mut text = compared_all(results, &cells);
    let rates = rates(results, &cells);
    let runs = runs(results, &cells);
    let summary = "Learning rates, chosen on the validation split";
    for (summary, table) in [(summary, rates), ("All runs", runs)] {
        if !table.is_empty() {
            text += &format!("<details><summary>{summary}</summary>\n\n{table}\n</details>\n\n");
        }
    }
    text
}

/// The plan's numbers at equal L0, then one row per method and one column per number.
pub(super) fn plain(results: &Results) -> String {
    let cells: Vec<Cell> = results.plan.all_cells().collect();
    let label = |cell: &Cell| vec![cell.method.label.clone()];
    let mut rows: Vec<Vec<String>> = cells.iter().map(label).collect();
    let mut titles = vec![""];
    let seeds = &results.plan.grids[0].seeds;
    for Column {
        at,
        title,
        form,
        best,
    } in &results.plan.columns
    {
        let values = cells.iter().map(|cell| results.by_seed(cell, 0, at));
        let values: Vec<BySeed> = values.collect();
        let means = values.iter().filter_map(mean).map(|mean| best * mean);
        let most = means
            .max_by(f64::total_cmp)
            .map(|most| text((most / best, None), *form));
        for (row, values) in rows.iter_mut().zip(&values) {
            let shown = mean(values).map(|mean| text((mean, None), *form));
            let bold = if *best != 0.0 && shown == most {
                "**"
            } else {
                ""
            };
            row.push(format!(
                "{bold}{}{bold}",
                cell_text(values, seeds.len(), *form)
            ));
        }
        titles.push(title);
    }
    rows.retain(|row| row.len() > 1);
    let listed: Vec<String> = seeds.iter().map(u64::to_string).collect();
    let (table, listed) = (markdown(&titles, &[0], rows), listed.join(", "));
    let caption = match seeds.len() {
        1 => format!("One seed ({listed})."),
        n => format!("Mean ± standard deviation over {n} seeds ({listed})."),
    };
    match compared_all(results, &cells) {
        none if none.is_empty() => format!("{table}\n{caption}\n"),
        compared => format!("{compared}{table}\n{caption} {AT_EQUAL_L0}\n"),
    }
}

/// How to read numbers at equal L0.
const AT_EQUAL_L0: &str = "Numbers at equal L0 are interpolated between neighbouring runs of a seed (FVU: in log FVU over log L0); \
     \"-\": out of their range, or not run.";

/// How to read the tables, and how much of the plan has been run.
pub(super) fn state(results: &Results) -> String {
    let (mut done, mut all) = (0, 0);
    for cell in results.plan.all_cells() {
        let [known, waiting] = results.runs(&cell);
        all += known.len() + waiting.len();
        done += known.iter().filter_map(|run| results.get(run)).count();
    }
    format!(
        "Mean ± standard deviation over the seeds. {AT_EQUAL_L0} \
         \"below\" and \"above\" compare seed by seed with the method's better variant, with or without a pre-bias. Learning rates are chosen with \
         seed {} at one sparsity. {done} of {all} runs of the plan are done.\n",
        results.plan.choice_seed
    )
}

/// A table; titles and cells in `left` are at the left, all others at the right. Empty where there are no rows.
pub(crate) fn markdown(titles: &[&str], left: &[usize], rows: Vec<Vec<String>>) -> String {
    let line = |cells: String| format!("| {cells} |\n");
    let side = |i: usize| if left.contains(&i) { "---|" } else { "---:|" };
    let sides: String = (0..titles.len()).map(side).collect();
    let lines: String = rows.iter().map(|row| line(row.join(" | "))).collect();
    match rows.len() {
        0 => lines,
        _ => format!("{}|{sides}\n{lines}", line(titles.join(" | "))),
    }
}

/// The plan's numbers at equal L0.
fn compared_all(results: &Results, cells: &[Cell]) -> String {
    let table = |compare| compared(results, cells, compare);
    results.plan.compares.iter().map(table).collect()
}

/// A number at equal L0: one row per length, width and L0, one column per method, and how far the first is from the others.
fn compared(results: &Results, cells: &[Cell], compare: &Compare) -> String {
    let methods = &results.plan.methods;
    let others = methods.iter().filter(|method| !method.is_variant());
    let others: Vec<&Method> = others.skip(1).collect();
    let side = if compare.more { "above" } else { "below" };
    let beside = others.iter().map(|other| format!("{side} {}", other.label));
    let beside: Vec<String> = beside.collect();
    let labels = methods.iter().map(|method| &method.label);
    let labels = labels.chain(&beside).map(String::as_str);
    let titles: Vec<&str> = ["steps", "M", "L0"].into_iter().chain(labels).collect();
    let mut rows = Vec::new();
    for cells in cells.chunk_by(|a, b| a.rank == b.rank) {
        let row = |l0: &f64| compared_row(results, cells, compare, *l0, &others);
        rows.extend(compare.at_l0.iter().filter_map(row));
    }
    match markdown(&titles, &[0], rows) {
        none if none.is_empty() => none,
        table => format!("**{} at equal L0**\n\n{table}\n", compare.column.title),
    }
}

/// The row of these cells, which are of one grid, at this L0; none where no method has a number.
fn compared_row(
    results: &Results,
    cells: &[Cell],
    compare: &Compare,
    l0: f64,
    others: &[&Method],
) -> Option<Vec<String>> {
    let Compare { column, more, .. } = compare;
    let (methods, seeds) = (&results.plan.methods, cells[0].grid.seeds.len());
    let of = |method: &Method| {
        let mut own = cells.iter().filter(|cell| cell.method.name == method.name);
        own.next()
            .map_or(BySeed::new(), |cell| at(results, cell, compare, l0))
    };
    let found: Vec<BySeed> = methods.iter().map(of).collect();
    let [steps, m] = shape(&cells[0]);
    let mut row = vec![steps, m, l0.to_string()];
    row.extend(
        found
            .iter()
            .map(|values| cell_text(values, seeds, column.form)),
    );
    let form = if *more { column.form } else { Form::Percent };
    for other in others {
        let all = methods.iter().zip(&found);
        let variants = all.filter(|(method, _)| method.family == other.family);
        let better = better(variants.map(|(_, values)| values), *more);
        row.push(cell_text(
            &difference(&found[0], better, *more),
            seeds,
            form,
        ));
    }
    found.iter().any(|values| !values.is_empty()).then_some(row)
}

/// A number of a cell at an L0, by seed: interpolated between neighbouring runs, never beyond them.
fn at(results: &Results, cell: &Cell, compare: &Compare, l0: f64) -> BySeed {
    let mut points: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for i in 0..cell.method.runs.len() {
        for record in results.records(cell, i) {
            let point = record.number(L0).zip(record.number(&compare.column.at));
            let point = point.filter(|(l0, y)| *l0 > 0.0 && y.is_finite());
            points.entry(record.run.seed).or_default().extend(point);
        }
    }
    let at = |points: &[_]| at_l0(points, l0, !compare.more);
    let found = points
        .iter()
        .filter_map(|(seed, points)| Some((*seed, at(points)?)));
    found.collect()
}

/// The mean over the seeds, if there are any.
fn mean(values: &BySeed) -> Option<f64> {
    over_seeds(values).map(|(mean, _)| mean)
}

/// Mean and deviation over the seeds, if there are any.
pub(crate) fn over_seeds(values: &BySeed) -> Option<Mean> {
    let values: Vec<f64> = values.values().copied().collect();
    (!values.is_empty()).then(|| mean_and_deviation(&values))
}

/// The values with the better mean, of a method with and without a pre-bias.
fn better<'a>(variants: impl Iterator<Item = &'a BySeed>, more: bool) -> Option<&'a BySeed> {
    let sign = if more { -1.0 } else { 1.0 };
    let means = variants.filter_map(|values| Some((sign * mean(values)?, values)));
    let best = means.min_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, values)| values)
}

/// How much better the first is, seed by seed: by which part it is below, or by how much it is above.
fn difference(first: &BySeed, other: Option<&BySeed>, more: bool) -> BySeed {
    let pairs = first
        .iter()
        .filter_map(|(seed, a)| Some((*seed, a, other?.get(seed)?)));
    let better = |a: &f64, b: &f64| if more { a - b } else { 1.0 - a / b };
    pairs.map(|(seed, a, b)| (seed, better(a, b))).collect()
}

/// Mean and deviation, and of how many seeds where some are missing.
pub(crate) fn cell_text(values: &BySeed, seeds: usize, form: Form) -> String {
    match (over_seeds(values), values.len()) {
        (None, _) => "-".into(),
        (Some(mean), n) if n < seeds => format!("{} ({n} of {seeds})", text(mean, form)),
        (Some(mean), _) => text(mean, form),
    }
}

/// FVU on the validation split for every learning rate of a grid, the chosen one bold.
fn rates(results: &Results, cells: &[Cell]) -> String {
    let mut rows = Vec::new();
    for cell in cells {
        let chosen = results.chosen(cell).flatten();
        let shown = |run: &Run| {
            let record = results.get(run)?;
            let numbers = match record.number(FVU).zip(record.number(L0)) {
                Some((fvu, l0)) => format!("{fvu:.4} at L0 {l0:.1}"),
                None => "diverged".into(),
            };
            let bold = if run.lr == chosen { "**" } else { "" };
            Some(format!("{bold}{}: {numbers}{bold}", run.lr?))
        };
        let shown: Vec<String> = cell.choice().iter().filter_map(shown).collect();
        if !shown.is_empty() {
            let [steps, m] = shape(cell);
            rows.push(vec![steps, m, cell.method.label.clone(), shown.join("; ")]);
        }
    }
    let titles = ["steps", "M", "method", "learning rate: FVU"];
    markdown(&titles, &[2, 3], rows)
}

/// One row per setting that has runs, one column per number.
fn runs(results: &Results, cells: &[Cell]) -> String {
    let columns = &results.plan.columns;
    let mut rows = Vec::new();
    for cell in cells {
        for (i, set) in cell.method.runs.iter().enumerate() {
            let records = results.records(cell, i);
            if records.is_empty() {
                continue;
            }
            let lr = results.chosen(cell).flatten();
            let lr = lr.map_or("rule".into(), |lr| lr.to_string());
            let set = set
                .iter()
                .map(|own| short(own))
                .collect::<Vec<_>>()
                .join(", ");
            let [steps, m] = shape(cell);
            let mut row = vec![steps, m, cell.method.label.clone(), set, lr];
            for Column { at, form, .. } in columns {
                let values = results.by_seed(cell, i, at);
                row.push(cell_text(&values, cell.grid.seeds.len(), *form));
            }
            let failed = records.iter().filter(|record| record.failed.is_some());
            row.push(match failed.count() {
                0 => String::new(),
                failed => format!("{failed} diverged"),
            });
            rows.push(row);
        }
    }
    let numbers = columns.iter().map(|column| column.title.as_str());
    let titles = ["steps", "M", "method", "set", "lr"].into_iter();
    let titles: Vec<&str> = titles.chain(numbers).chain([""]).collect();
    markdown(&titles, &[2, 3, titles.len() - 1], rows)
}

/// Steps and M of a cell.
fn shape(cell: &Cell) -> [String; 2] {
    [cell.grid.steps, cell.grid.n_latents].map(thousands)
}

/// `k=32` of `model.k=32`.
pub(super) fn short(setting: &str) -> String {
    let key = setting.split('=').next().unwrap_or(setting);
    setting[key.rfind('.').map_or(0, |dot| dot + 1)..].into()
}

/// 24,576.
pub(crate) fn thousands(number: usize) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1000), number % 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_as_they_are_printed() {
        let by_seed = |values: &[f64]| (0..).zip(values.iter().copied()).collect::<BySeed>();
        let (first, other) = (by_seed(&[0.9, 0.8]), by_seed(&[1.0, 1.0]));
        let below = difference(&first, Some(&other), false);
        assert_eq!(cell_text(&below, 2, Form::Percent), "15.0 ± 7.1 %");
        assert!(difference(&BySeed::new(), Some(&other), false).is_empty());
    }
}
