//! Axes of charts: where values lie, and where the ticks are.

/// One axis of a chart.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub(super) label: String,
    pub(super) low: f64,
    pub(super) high: f64,
    log: bool,
    /// Names of the places 0, 1, ...; empty on an axis of numbers.
    names: Vec<String>,
}

impl Axis {
    /// A linear axis from `low` to `high`.
    pub(super) fn linear(label: &str, low: f64, high: f64) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        Self {
            label: label.into(),
            low,
            high,
            log: false,
            names: Vec::new(),
        }
    }

    /// An axis of names, which lie at 0, 1, ...
    pub(super) fn named(label: &str, names: Vec<String>) -> Self {
        let last = names.len().saturating_sub(1) as f64;
        Self {
            names,
            ..Self::linear(label, -0.3, last + 0.3)
        }
    }

    /// A logarithmic axis; both ends must be above zero.
    pub(super) fn log(label: &str, low: f64, high: f64) -> Self {
        let low = low.max(1e-12);
        let high = if high > low * 1.001 { high } else { low * 10.0 };
        Self {
            label: label.into(),
            low,
            high,
            log: true,
            names: Vec::new(),
        }
    }

    /// A linear axis that has all finite values on it, and zero if it is near.
    pub(super) fn of(label: &str, values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = extent(values).unwrap_or((0.0, 1.0));
        if low > 0.0 && low < 0.5 * high {
            low = 0.0;
        }
        if high - low <= 1e-9 * high.abs() {
            (low, high) = (
                low.min(0.0),
                if high == 0.0 {
                    1.0
                } else {
                    high.max(0.0) * 1.1
                },
            );
        }
        let pad = 0.04 * (high - low).max(1e-9 * high.abs()).max(1e-12);
        high += pad;
        if low != 0.0 {
            low -= pad;
        }
        Self::linear(label, low, high)
    }

    /// A logarithmic axis that has all finite values above zero on it.
    pub(super) fn log_of(label: &str, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = extent(values.filter(|v| *v > 0.0)).unwrap_or((0.1, 1.0));
        let pad = (high / low).powf(0.04).max(1.05);
        Self::log(label, low / pad, high * pad)
    }

    /// Where a value lies, from 0 to 1; values outside lie at the ends.
    pub(super) fn part(&self, value: f64) -> f64 {
        let part = match self.log {
            true => (value.max(1e-300) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        if part.is_finite() {
            part.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }

    /// An end of the axis as the script needs it: its logarithm on a logarithmic axis.
    pub(super) fn end(&self, value: f64) -> f64 {
        if self.log { value.ln() } else { value }
    }

    /// Places of ticks, about `most` of them.
    pub(super) fn ticks(&self, most: usize) -> Vec<f64> {
        match self.log {
            _ if !self.names.is_empty() => (0..self.names.len()).map(|i| i as f64).collect(),
            true => log_ticks(self.low, self.high),
            false => ticks(self.low, self.high, most),
        }
    }

    /// The label of a tick.
    pub(super) fn text(&self, tick: f64) -> String {
        let name = self.names.get(tick as usize);
        name.cloned().unwrap_or_else(|| tick_label(tick))
    }
}

/// The smallest and the largest finite value.
fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.filter(|value| value.is_finite());
    finite.fold(None, |ends: Option<(f64, f64)>, v| {
        Some(ends.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
    })
}

/// Round numbers from `low` to `high`, about `most` of them, at steps of 1, 2 or 5 times a power of ten.
fn ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) {
        return Vec::new();
    }
    let rough = span / most.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|s| s * power);
    let step = step
        .into_iter()
        .find(|step| span / step <= most as f64 + 1e-9)
        .unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last.min(first + 50))
        .map(|i| i as f64 * step)
        .collect()
}

/// Powers of ten; 1, 2 and 5 times them on an axis of less than two decades; every second or third on a very long one.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = (high / low).log10();
    if !(decades.is_finite() && decades > 0.0) {
        return Vec::new();
    }
    let every = (decades / 6.0).ceil().max(1.0) as i32;
    let digits: &[f64] = if decades < 2.0 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0]
    };
    let powers =
        (low.log10().floor() as i32..=high.log10().ceil() as i32).filter(|p| p % every == 0);
    let all = powers.flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
    all.filter(|tick| (low * 0.9999..=high * 1.0001).contains(tick))
        .collect()
}

/// The label of a tick.
fn tick_label(value: f64) -> String {
    let magnitude = value.abs();
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    };
    match magnitude {
        0.0 => "0".into(),
        m if m >= 1e9 => format!("{value:.0e}"),
        m if m >= 1e6 => format!("{}M", trimmed(format!("{:.2}", value / 1e6))),
        m if m >= 1e4 => format!("{}k", trimmed(format!("{:.1}", value / 1e3))),
        m if m >= 1e-3 => trimmed(format!("{value:.6}")),
        _ => trimmed(format!("{value:.0e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ticks_by_hand() {
        assert_eq!(
            ticks(0.0, 1.0, 5),
            [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
        );
        assert_eq!(ticks(0.0, 73.0, 6), [0.0, 20.0, 40.0, 60.0]);
        assert_eq!(ticks(-3.0, 3.0, 4), [-2.0, 0.0, 2.0]);
        assert_eq!(ticks(2.0, 2.0, 4), [0.0; 0]);
        assert_eq!(ticks(f64::NAN, 2.0, 4), [0.0; 0]);
        assert_eq!(log_ticks(0.002, 1.5), [0.01, 0.1, 1.0]);
        assert_eq!(log_ticks(1.0, 30.0), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(log_ticks(1e-12, 1.0).len(), 7);
        let labels = [0.0, 0.2, 20.0, 1500.0, 25_000.0, 3e6, 1e-5, -0.5].map(tick_label);
        assert_eq!(
            labels,
            ["0", "0.2", "20", "1500", "25k", "3M", "1e-5", "-0.5"]
        );
    }

    proptest! {
        #[test]
        fn ticks_are_few_and_on_the_axis(low in -1e6f64..1e6, span in 1e-6f64..1e7, most in 2usize..9) {
            let all = ticks(low, low + span, most);
            prop_assert!(!all.is_empty() && all.len() <= most + 1, "{all:?}");
            prop_assert!(all.iter().all(|t| *t >= low - 1e-6 * span && *t <= low + span * 1.000001));
        }

        #[test]
        fn log_ticks_are_few_and_on_the_axis(low in -12f64..6.0, decades in 0.01f64..18.0) {
            let (low, high) = (10f64.powf(low), 10f64.powf(low + decades));
            let all = log_ticks(low, high);
            prop_assert!(all.len() <= 8, "{all:?}");
            prop_assert!(all.iter().all(|t| *t >= low * 0.999 && *t <= high * 1.001));
        }
    }
}
