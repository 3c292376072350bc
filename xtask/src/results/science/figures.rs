//! Which plots are drawn: FVU against L0 for each data set, length and width, and dead latents against length.

use std::collections::BTreeMap;

use super::columns::{DEAD_SHARE, FVU, L0};
use super::plan::{Cell, Run};
use super::plot::{Axis, Line, Plot, svg};
use super::queue::Results;
use super::tables::{short, thousands};
use crate::results::numbers::mean_and_deviation;

/// A picture and the name of its file.
pub(super) struct Figure {
    pub(super) file: String,
    pub(super) title: String,
    pub(super) svg: String,
}

/// All figures of a data set for which there are runs.
pub(super) fn of_data_set(results: &Results, name: &str) -> Vec<Figure> {
    let title = &results.plan.data[name].title;
    let cells = results.plan.cells(name);
    let mut figures = Vec::new();
    let (mut widths, mut grids) = (BTreeMap::new(), BTreeMap::new());
    for cell in &cells {
        widths
            .entry(cell.grid.n_latents)
            .or_insert_with(Vec::new)
            .push(cell);
        grids
            .entry((cell.grid.n_latents, cell.grid.steps))
            .or_insert_with(Vec::new)
            .push(cell);
    }
    for ((m, steps), cells) in grids {
        let lines: Vec<Line> = cells
            .iter()
            .filter_map(|cell| line(results, cell.method, fvu(results, cell)))
            .collect();
        let title = format!("{title}, {} steps, M = {}", thousands(steps), thousands(m));
        let axes = [
            ("L0, active latents per row", true),
            ("FVU on held-out rows", true),
        ];
        figures.extend(figure(
            format!("fvu-{name}-{steps}-{m}.svg"),
            title,
            axes,
            lines,
        ));
    }
    for (m, cells) in widths {
        let lines = dead_lines(results, &cells);
        if lines.iter().any(|line| line.points.len() > 1) {
            let title = format!("{title}, dead latents, M = {}", thousands(m));
            let axes = [
                ("steps", true),
                ("dead latents on held-out rows, % of M", false),
            ];
            figures.extend(figure(format!("dead-{name}-{m}.svg"), title, axes, lines));
        }
    }
    figures
}

fn figure(
    file: String,
    title: String,
    axes: [(&str, bool); 2],
    lines: Vec<Line>,
) -> Option<Figure> {
    let [x, y] = axes.map(|(label, log)| Axis {
        label: label.into(),
        log,
    });
    let plot = Plot { title, x, y, lines };
    let drawn = (!plot.lines.is_empty()).then(|| svg(&plot));
    drawn.map(|svg| Figure {
        file,
        title: plot.title,
        svg,
    })
}

/// A line of the method's colour; dashed without a pre-bias.
fn line(
    results: &Results,
    method: &super::plan::Method,
    points: Vec<(f64, f64, Option<f64>)>,
) -> Option<Line> {
    let methods = &results.plan.methods;
    let mut families: Vec<&str> = methods.iter().map(|method| method.family()).collect();
    families.dedup();
    let colour = families
        .iter()
        .position(|family| *family == method.family())?;
    let dashed = method.family() != method.name;
    (!points.is_empty()).then(|| Line {
        label: method.label.clone(),
        colour,
        dashed,
        points,
    })
}

/// Mean L0, mean FVU and its deviation at every sparsity.
fn fvu(results: &Results, cell: &Cell) -> Vec<(f64, f64, Option<f64>)> {
    let sparsities = 0..cell.method.runs.len();
    let mut points: Vec<_> = sparsities
        .filter_map(|i| {
            let (l0, _) = over_seeds(results, cell, i, L0)?;
            let (fvu, deviation) = over_seeds(results, cell, i, FVU)?;
            (l0 > 0.0 && fvu > 0.0).then_some((l0, fvu, deviation))
        })
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// The dead share of each method at the sparsity that `choose_at` names, over lengths.
fn dead_lines(results: &Results, cells: &[&Cell]) -> Vec<Line> {
    let methods = results.plan.methods.iter();
    let line_of = |method: &super::plan::Method| {
        let own = cells.iter().filter(|cell| cell.method.name == method.name);
        let mut points: Vec<_> = own
            .filter_map(|cell| {
                let (share, deviation) = over_seeds(results, cell, method.choose_at, DEAD_SHARE)?;
                Some((
                    cell.grid.steps as f64,
                    100.0 * share,
                    deviation.map(|deviation| 100.0 * deviation),
                ))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut line = line(results, method, points)?;
        let at: Vec<&str> = method.runs[method.choose_at]
            .iter()
            .map(|own| short(own))
            .collect();
        if !at.is_empty() {
            line.label = format!("{}, {}", method.label, at.join(", "));
        }
        Some(line)
    };
    methods.filter_map(line_of).collect()
}

fn over_seeds(results: &Results, cell: &Cell, i: usize, at: &str) -> Option<(f64, Option<f64>)> {
    let lr = results.chosen(cell)?;
    let runs = cell
        .grid
        .seeds
        .iter()
        .map(|seed| cell.run_at(results.plan, *seed, i, lr));
    let number = |run: Run| results.get(&run)?.metrics.get(at).copied();
    let values: Vec<f64> = runs.filter_map(number).collect();
    (!values.is_empty()).then(|| mean_and_deviation(&values))
}
