//! The numbers that a table may show, each by the name that the plan uses.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::runs::Outcome;

/// `FVU ~ L0^-SLOPE`, roughly, on the token set between an L0 of 16 and 64 (the table `equal-l0-tokens`): what `fvu_at_32`
/// moves FVU along.
pub(super) const SLOPE: f64 = 0.38;

/// How a number is printed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// With this many decimals.
    Decimals(usize),
    /// A part, in per cent.
    Percent,
}

/// A column: what it is called, and how it is printed.
pub(super) struct Column {
    pub(super) title: String,
    pub(super) form: Form,
}

/// The column of a name; `training_l0` is the mean over the last hundred training batches, everything else is of the
/// held-out rows; `probe:K` is the balanced accuracy of a K-sparse probe, `on:N` is top-n classification with n latents on, `off:N` with them off.
pub(super) fn column(name: &str) -> Result<Column> {
    let (title, form) = match name {
        "fvu" => ("FVU".into(), Form::Decimals(4)),
        "cosine" => ("mean cosine".into(), Form::Decimals(3)),
        "l0" => ("L0".into(), Form::Decimals(1)),
        "l0_p5" => ("5 %".into(), Form::Decimals(0)),
        "l0_p95" => ("95 %".into(), Form::Decimals(0)),
        "dead" => ("dead".into(), Form::Decimals(0)),
        "single_latent_f1" => ("F1".into(), Form::Decimals(3)),
        "training_l0" => ("L0 in training".into(), Form::Decimals(1)),
        "fvu_at_32" => ("FVU moved to L0 32".into(), Form::Decimals(4)),
        _ => match name.split_once(':') {
            Some(("on", "all")) => ("all".into(), Form::Percent),
            Some(("on", n)) => (format!("top-{n}"), Form::Percent),
            Some(("probe", k)) => (format!("probe, k = {k}"), Form::Decimals(3)),
            Some(("off", n)) => (format!("without top-{n}"), Form::Percent),
            _ => bail!("column {name}: no such number; see xtask/src/results/numbers.rs"),
        },
    };
    Ok(Column { title, form })
}

/// The value of a column in one run.
pub(super) fn value(name: &str, outcome: &Outcome) -> Result<f64> {
    let report = &outcome.report;
    let found = match name {
        "fvu" => metric(report, "reconstruction", "fvu"),
        "cosine" => metric(report, "reconstruction", "cosine"),
        "l0" => metric(report, "sparsity", "l0_mean"),
        "l0_p5" => metric(report, "sparsity", "l0_p5"),
        "l0_p95" => metric(report, "sparsity", "l0_p95"),
        "dead" => metric(report, "sparsity", "dead_latents"),
        "single_latent_f1" => criterion(report, name),
        "training_l0" => outcome.training_l0,
        "fvu_at_32" => {
            let (fvu, l0) = (value("fvu", outcome)?, value("l0", outcome)?);
            Some(fvu * (l0 / 32.0).powf(SLOPE))
        }
        _ => {
            let (side, n) = name
                .split_once(':')
                .with_context(|| format!("column {name}"))?;
            match side {
                "probe" => criterion(report, &format!("probe_{n}_balanced_accuracy")),
                _ => top_n(report, side, n),
            }
        }
    };
    found.with_context(|| format!("the report of {} has no {name}", report["run"]))
}

fn metric(report: &Value, section: &str, name: &str) -> Option<f64> {
    named(&report[section], name)
}

fn criterion(report: &Value, name: &str) -> Option<f64> {
    named(&report["criteria"]["metrics"], name)
}

fn top_n(report: &Value, side: &str, n: &str) -> Option<f64> {
    let rows = report["top_n"]["trained"].as_array()?;
    rows.iter().find(|row| row["n"] == n)?[side].as_f64()
}

fn named(metrics: &Value, name: &str) -> Option<f64> {
    let metrics = metrics.as_array()?;
    metrics.iter().find(|metric| metric["name"] == name)?["value"].as_f64()
}

/// Mean and sample standard deviation; the latter needs two values.
pub(super) fn mean_and_deviation(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (n > 1.0).then(|| (squares / (n - 1.0)).sqrt()))
}

/// FVU at an L0, along the straight line in (log L0, log FVU) between the two neighbouring points; none outside of
/// them. Points are `(l0, fvu)`.
pub(super) fn at_l0(points: &[(f64, f64)], l0: f64) -> Option<f64> {
    let mut points = points.to_vec();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let pair = points
        .windows(2)
        .find(|pair| (pair[0].0..=pair[1].0).contains(&l0))?;
    let [(x0, y0), (x1, y1)] = [pair[0], pair[1]].map(|(x, y)| (x.ln(), y.ln()));
    let along = if x1 > x0 {
        (l0.ln() - x0) / (x1 - x0)
    } else {
        0.0
    };
    Some((y0 + along * (y1 - y0)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_by_hand() {
        assert_eq!(mean_and_deviation(&[1.0, 3.0, 5.0]), (3.0, Some(2.0)));
        assert_eq!(mean_and_deviation(&[2.0]), (2.0, None));
    }

    #[test]
    fn power_laws_are_interpolated_exactly_and_never_extrapolated() {
        let law = |l0: f64| 2.0 * l0.powf(-0.4);
        let points = [64.0, 8.0, 20.0].map(|l0| (l0, law(l0)));
        for l0 in [8.0, 16.0, 64.0] {
            assert!((at_l0(&points, l0).unwrap() - law(l0)).abs() < 1e-12);
        }
        assert_eq!(at_l0(&points, 7.9), None);
        assert_eq!(at_l0(&points, 65.0), None);
    }
}
