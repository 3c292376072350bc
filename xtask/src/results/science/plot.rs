//! Line plots as SVG: axes, lines with error bars, a legend. Colours follow the reader's light or dark theme.
//!
//! `plotters` would be cheap (four crates, 2 s to compile); it writes colours into every element, where a style sheet can let
//! them follow the theme, which is why this is a module of our own.

use std::fmt::Write;

/// An axis.
pub(super) struct Axis {
    /// What it shows, with its unit.
    pub(super) label: String,
    /// Whether equal distances are equal factors.
    pub(super) log: bool,
}

/// A line: points from left to right.
pub(super) struct Line {
    pub(super) label: String,
    /// Index of its colour.
    pub(super) colour: usize,
    pub(super) dashed: bool,
    /// x, y and half the length of the error bar, where there is one.
    pub(super) points: Vec<(f64, f64, Option<f64>)>,
}

/// A plot.
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
}

/// Size of the picture, and of its drawing area: left, top, right, bottom.
const SIZE: (f64, f64) = (720.0, 400.0);
const AREA: [f64; 4] = [76.0, 40.0, 510.0, 344.0];
/// Told apart by most kinds of colour vision, and readable on white and on black.
const COLOURS: [&str; 6] = [
    "#2f81d6", "#d9822b", "#239b6e", "#c457a5", "#8a6fd1", "#a08a1f",
];
const STYLE: &str = "text{font:13px sans-serif;fill:#1f2328}.t{font-weight:bold}.g{stroke:#d0d7de}.b{fill:#fff}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.g{stroke:#3d444d}.b{fill:#0d1117}}";

/// From numbers to places on an axis.
struct Scale {
    log: bool,
    from: f64,
    to: f64,
    ends: (f64, f64),
    ticks: Vec<f64>,
}

impl Scale {
    /// Of the numbers that it must hold, between two ends of the picture.
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, ends: (f64, f64)) -> Self {
        let log = axis.log;
        let place = |value: f64| if log { value.log10() } else { value };
        let (low, high) = values
            .map(place)
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
                (low.min(v), high.max(v))
            });
        let margin = 0.04 * (high - low).max(if log { 0.05 } else { 1e-3 });
        let from = if low == 0.0 && !log {
            0.0
        } else {
            low - margin
        };
        let mut scale = Self {
            log,
            from,
            to: high + margin,
            ends,
            ticks: Vec::new(),
        };
        scale.ticks = if log {
            scale.log_ticks()
        } else {
            scale.even_ticks()
        };
        scale
    }

    fn at(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        self.ends.0 + (value - self.from) / (self.to - self.from) * (self.ends.1 - self.ends.0)
    }

    fn even_ticks(&self) -> Vec<f64> {
        let rough = (self.to - self.from) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = power
            * [1.0, 2.0, 5.0, 10.0]
                .into_iter()
                .find(|by| by * power >= rough)
                .unwrap_or(10.0);
        let first = (self.from / step).ceil() as i64;
        let last = (self.to / step).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }

    /// 1, 2, 5 of each power of ten; finer where the axis is short.
    fn log_ticks(&self) -> Vec<f64> {
        let (low, high) = (10f64.powf(self.from), 10f64.powf(self.to));
        let all = |digits: &[f64]| -> Vec<f64> {
            let powers = self.from.floor() as i32..=self.to.ceil() as i32;
            let ticks =
                powers.flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
            ticks.filter(|tick| (low..=high).contains(tick)).collect()
        };
        let usual = all(&[1.0, 2.0, 5.0]);
        if usual.len() >= 3 {
            return usual;
        }
        all(&[
            1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0,
        ])
    }
}

/// The picture.
pub(super) fn svg(plot: &Plot) -> String {
    let [left, top, right, bottom] = AREA;
    let points = || plot.lines.iter().flat_map(|line| line.points.iter());
    let x = Scale::new(&plot.x, points().map(|point| point.0), (left, right));
    let spread =
        points().flat_map(|(_, y, error)| [y - error.unwrap_or(0.0), y + error.unwrap_or(0.0)]);
    let y = Scale::new(&plot.y, spread, (bottom, top));
    let (width, height) = SIZE;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\"><title>{0}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"b\" width=\"{width}\" height=\"{height}\"/>\n\
         <text class=\"t\" x=\"{left}\" y=\"22\">{0}</text>\n",
        escaped(&plot.title)
    );
    axes(&mut out, plot, &x, &y);
    for (i, line) in plot.lines.iter().enumerate() {
        draw(&mut out, line, &x, &y);
        legend(&mut out, line, top + 10.0 + 22.0 * i as f64);
    }
    out + "</svg>\n"
}

/// Grid, numbers and labels.
fn axes(out: &mut String, plot: &Plot, x: &Scale, y: &Scale) {
    let [left, top, right, bottom] = AREA;
    for tick in &x.ticks {
        let at = x.at(*tick);
        let _ = writeln!(
            out,
            "<path class=\"g\" d=\"M{at:.1} {top}V{bottom}\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            number(*tick)
        );
    }
    for tick in &y.ticks {
        let at = y.at(*tick);
        let _ = writeln!(
            out,
            "<path class=\"g\" d=\"M{left} {at:.1}H{right}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            at + 4.5,
            number(*tick)
        );
    }
    let (x_middle, y_middle) = ((left + right) / 2.0, (top + bottom) / 2.0);
    let _ = writeln!(
        out,
        "<text x=\"{x_middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
         <text transform=\"translate(18 {y_middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        bottom + 42.0,
        escaped(&plot.x.label),
        escaped(&plot.y.label)
    );
}

fn draw(out: &mut String, line: &Line, x: &Scale, y: &Scale) {
    let colour = COLOURS[line.colour % COLOURS.len()];
    let places = line
        .points
        .iter()
        .map(|(px, py, _)| format!("{:.1},{:.1}", x.at(*px), y.at(*py)));
    let _ = writeln!(
        out,
        "<g stroke=\"{colour}\" fill=\"{colour}\" stroke-width=\"2\"><polyline fill=\"none\"{} points=\"{}\"/>",
        dash(line),
        places.collect::<Vec<_>>().join(" ")
    );
    for (px, py, error) in &line.points {
        let at = (x.at(*px), y.at(*py));
        let _ = write!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" stroke=\"none\"/>",
            at.0, at.1
        );
        if let Some(error) = error.filter(|error| *error > 0.0 && (*error < *py || !y.log)) {
            let (low, high) = (y.at(py - error), y.at(py + error));
            let (from, to) = (at.0 - 4.0, at.0 + 4.0);
            let _ = write!(
                out,
                "<path stroke-width=\"1.2\" d=\"M{0:.1} {low:.1}V{high:.1}M{from:.1} {low:.1}H{to:.1}M{from:.1} {high:.1}H{to:.1}\"/>",
                at.0
            );
        }
    }
    out.push_str("</g>\n");
}

fn legend(out: &mut String, line: &Line, y: f64) {
    let colour = COLOURS[line.colour % COLOURS.len()];
    let (from, to) = (AREA[2] + 16.0, AREA[2] + 42.0);
    let _ = writeln!(
        out,
        "<path stroke=\"{colour}\" stroke-width=\"2\"{} d=\"M{from} {y}H{to}\"/><text x=\"{}\" y=\"{}\">{}</text>",
        dash(line),
        to + 8.0,
        y + 4.5,
        escaped(&line.label)
    );
}

fn dash(line: &Line) -> &'static str {
    if line.dashed {
        " stroke-dasharray=\"5 4\""
    } else {
        ""
    }
}

/// A tick's number, without the noise of its binary form.
fn number(value: f64) -> String {
    let rounded: f64 = format!("{value:.3e}").parse().unwrap_or(value);
    format!("{rounded}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_ticks() {
        let log = Axis {
            label: String::new(),
            log: true,
        };
        let scale = Scale::new(&log, [10.0, 1000.0].into_iter(), (0.0, 100.0));
        assert_eq!(scale.ticks, [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
        assert!(
            (scale.at(100.0) - 50.0).abs() < 1e-9,
            "the geometric mean is in the middle"
        );
        let even = Axis {
            label: String::new(),
            log: false,
        };
        let scale = Scale::new(&even, [0.0, 10.0].into_iter(), (100.0, 0.0));
        assert_eq!(
            scale
                .ticks
                .iter()
                .map(|tick| number(*tick))
                .collect::<Vec<_>>(),
            ["0", "5", "10"]
        );
        assert_eq!(scale.at(0.0), 100.0);
        assert_eq!(number(0.1 + 0.2), "0.3");
    }

    #[test]
    fn text_is_escaped_and_every_line_is_drawn() {
        let axis = |log| Axis {
            label: "a & b".into(),
            log,
        };
        let line = |label: &str| Line {
            label: label.into(),
            colour: 0,
            dashed: false,
            points: vec![(1.0, 2.0, Some(0.5))],
        };
        let plot = Plot {
            title: "x < y".into(),
            x: axis(true),
            y: axis(false),
            lines: vec![line("p"), line("q")],
        };
        let picture = svg(&plot);
        assert!(
            picture.contains("x &lt; y")
                && picture.contains("a &amp; b")
                && !picture.contains("NaN")
        );
        assert_eq!(picture.matches("<polyline").count(), 2);
    }
}
