//! Which plots are drawn: FVU against L0 for each data set, length and width, and dead latents against length.

use super::columns::{DEAD_SHARE, FVU, L0};
use super::plan::Cell;
use super::queue::Results;
use super::tables::{over_seeds, short, thousands};
use crate::plot::{Axis, Line, Plot, Point, WIDE};

/// All plots of a data set for which there are runs.
pub(super) fn of_data_set(results: &Results, name: &str) -> Vec<Plot> {
    let data = &results.plan.data[name].title;
    let mut cells = results.plan.cells(name);
    let shape = |cell: &Cell| (cell.grid.n_latents, cell.grid.steps);
    cells.sort_by_key(shape);
    let mut plots = Vec::new();
    for cells in cells.chunk_by(|a, b| shape(a) == shape(b)) {
        let (m, steps) = shape(&cells[0]);
        plots.push(Plot {
            layout: &WIDE,
            file: format!("fvu-{name}-{steps}-{m}.svg"),
            title: format!("{data}, {} steps, M = {}", thousands(steps), thousands(m)),
            x: Axis::Log("L0, active latents per row"),
            y: Axis::Log("FVU on held-out rows"),
            lines: cells.iter().map(|cell| fvu_line(results, cell)).collect(),
        });
    }
    for cells in cells.chunk_by(|a, b| a.grid.n_latents == b.grid.n_latents) {
        let m = cells[0].grid.n_latents;
        let lines: Vec<Line> = dead_lines(results, cells);
        // one length has no plot over lengths
        if lines.iter().any(|line| line.points.len() > 1) {
            plots.push(Plot {
                layout: &WIDE,
                file: format!("dead-{name}-{m}.svg"),
                title: format!("{data}, dead latents, M = {}", thousands(m)),
                x: Axis::Log("steps"),
                y: Axis::Even("dead latents on held-out rows, % of M"),
                lines,
            });
        }
    }
    for plot in &mut plots {
        plot.lines.retain(|line| !line.points.is_empty());
    }
    plots.retain(|plot| !plot.lines.is_empty());
    plots
}

/// A line of the method's colour, with its points from left to right; dashed without a pre-bias.
fn line(cell: &Cell, label: String, mut points: Vec<Point>) -> Line {
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let families = cell
        .plan
        .methods
        .iter()
        .filter(|method| !method.is_variant());
    let before = families.take_while(|other| other.family != cell.method.family);
    let (colour, dashed) = (before.count(), cell.method.is_variant());
    Line {
        label,
        colour,
        dashed,
        points,
    }
}

/// Mean L0, mean FVU and its deviation at every sparsity.
fn fvu_line(results: &Results, cell: &Cell) -> Line {
    let mean = |i, at| over_seeds(&results.by_seed(cell, i, at));
    let sparsities = 0..cell.method.runs.len();
    let points = sparsities.filter_map(|i| {
        let ((l0, _), (fvu, deviation)) = (mean(i, L0)?, mean(i, FVU)?);
        (l0 > 0.0 && fvu > 0.0).then_some((l0, fvu, deviation))
    });
    line(cell, cell.method.label.clone(), points.collect())
}

/// The dead share of each method at the sparsity that `choose_at` names, over lengths.
fn dead_lines(results: &Results, cells: &[Cell]) -> Vec<Line> {
    let mut lines = Vec::new();
    for method in &results.plan.methods {
        let own = cells.iter().filter(|cell| cell.method.name == method.name);
        let own: Vec<&Cell> = own.collect();
        let points = own.iter().filter_map(|cell| {
            let share = over_seeds(&results.by_seed(cell, method.choose_at, DEAD_SHARE));
            let (share, deviation) = share?;
            let percent = deviation.map(|deviation| 100.0 * deviation);
            Some((cell.grid.steps as f64, 100.0 * share, percent))
        });
        let mut label = vec![method.label.clone()];
        label.extend(method.runs[method.choose_at].iter().map(|own| short(own)));
        let points = points.collect();
        lines.extend(own.first().map(|cell| line(cell, label.join(", "), points)));
    }
    lines
}
