//! Statistics over seeds, and how numbers are printed.

use serde::Deserialize;

/// `FVU ~ L0^-SLOPE`, roughly, on the token set between an L0 of 16 and 64 (the table `equal-l0-tokens`): what `fvu_at_32`
/// moves FVU along.
pub(super) const SLOPE: f64 = 0.38;

/// How a number is printed.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    /// With this many decimals.
    Decimals(usize),
    /// A part, in per cent.
    Percent,
}

/// A mean and, of two values or more, their sample standard deviation.
pub(crate) type Mean = (f64, Option<f64>);

/// Mean and sample standard deviation; the latter needs two values.
pub(crate) fn mean_and_deviation(values: &[f64]) -> Mean {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (n > 1.0).then(|| (squares / (n - 1.0)).sqrt()))
}

/// `0.1235 ± 0.0005`, or without the deviation.
pub(crate) fn text((mean, deviation): Mean, form: Form) -> String {
    let (factor, decimals, unit) = match form {
        Form::Decimals(decimals) => (1.0, decimals, ""),
        Form::Percent => (100.0, 1, " %"),
    };
    let deviation = deviation.map(|value| format!(" ± {:.decimals$}", factor * value));
    format!(
        "{:.decimals$}{}{unit}",
        factor * mean,
        deviation.unwrap_or_default()
    )
}

/// A number at an L0, along the straight line over log L0 between the two neighbouring points; none outside of
/// them. Points are `(l0, y)`; with `log` the line is one in log y.
pub(super) fn at_l0(points: &[(f64, f64)], l0: f64, log: bool) -> Option<f64> {
    let mut points = points.to_vec();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let pair = points
        .windows(2)
        .find(|pair| (pair[0].0..=pair[1].0).contains(&l0))?;
    let place = |(x, y): (f64, f64)| (x.ln(), if log { y.ln() } else { y });
    let [(x0, y0), (x1, y1)] = [place(pair[0]), place(pair[1])];
    let along = if x1 > x0 {
        (l0.ln() - x0) / (x1 - x0)
    } else {
        0.0
    };
    let y = y0 + along * (y1 - y0);
    Some(if log { y.exp() } else { y })
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
            assert!((at_l0(&points, l0, true).unwrap() - law(l0)).abs() < 1e-12);
        }
        assert_eq!(at_l0(&points, 7.9, true), None);
        assert_eq!(at_l0(&points, 65.0, true), None);
    }

    #[test]
    fn numbers_as_they_are_printed() {
        assert_eq!(
            text((0.12345, Some(0.00051)), Form::Decimals(4)),
            "0.1235 ± 0.0005"
        );
        assert_eq!(text((0.156, None), Form::Percent), "15.6 %");
        assert_eq!(text((0.156, Some(0.012)), Form::Percent), "15.6 ± 1.2 %");
    }
}
