//! Line plots as SVG: axes, lines with error bars, a legend. Colours follow the reader's light or dark theme.
//!
//! `plotters` would be cheap (four crates, 2 s to compile); it writes colours into every element, where a style sheet can let
//! them follow the theme, which is why this is a module of our own.

/// An axis, by its label with the unit: equal distances are equal differences, or equal factors.
pub(crate) enum Axis {
    Even(&'static str),
    Log(&'static str),
}

/// x, y and half the length of the error bar, where there is one.
pub(crate) type Point = (f64, f64, Option<f64>);

/// A line: points from left to right.
pub(crate) struct Line {
    pub(crate) label: String,
    /// Index of its colour.
    pub(crate) colour: usize,
    pub(crate) dashed: bool,
    pub(crate) points: Vec<Point>,
}

/// A plot.
pub(crate) struct Plot {
    pub(crate) layout: &'static Layout,
    /// Name of its file.
    pub(crate) file: String,
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
}

/// How large a picture is, and what stands beside its lines.
pub(crate) struct Layout {
    size: (f64, f64),
    /// The drawing area: left, top, right, bottom.
    area: [f64; 4],
    /// A legend on the right, and dots at the points.
    legend: bool,
}

/// A picture for a document.
pub(crate) const WIDE: Layout = Layout {
    size: (720.0, 400.0),
    area: [76.0, 40.0, 510.0, 344.0],
    legend: true,
};
/// One of several beside each other, also on a phone; the page around them has the legend.
pub(crate) const SMALL: Layout = Layout {
    size: (380.0, 250.0),
    area: [62.0, 36.0, 366.0, 196.0],
    legend: false,
};
/// Distance at which two numbers of an axis can be read.
const LINE_HEIGHT: f64 = 14.0;
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
    /// The scale that holds all values, between two ends of the picture.
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, ends: (f64, f64)) -> Self {
        let log = matches!(axis, Axis::Log(_));
        let places = values.map(|value| if log { value.log10() } else { value });
        let places = places.filter(|value| value.is_finite());
        let (low, high) = places.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
            (low.min(v), high.max(v))
        });
        let margin = match high - low {
            0.0 if !log => (0.1 * high.abs()).max(1.0), // one value alone says nothing of its unit
            spread => 0.04 * spread.max(if log { 0.05 } else { 1e-3 }),
        };
        let from = if low == 0.0 && !log {
            low
        } else {
            low - margin
        };
        let to = high + margin;
        let ticks = if log {
            log_ticks(from, to)
        } else {
            even_ticks(from, to)
        };
        Self {
            log,
            from,
            to,
            ends,
            ticks,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        self.ends.0 + (value - self.from) / (self.to - self.from) * (self.ends.1 - self.ends.0)
    }
}

fn even_ticks(from: f64, to: f64) -> Vec<f64> {
    let rough = (to - from) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0].into_iter();
    let step = power
        * factors
            .clone()
            .find(|by| by * power >= rough)
            .unwrap_or(10.0);
    let (first, last) = ((from / step).ceil() as i64, (to / step).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// 1, 2, 5 of each power of ten; finer where the axis is short.
fn log_ticks(from: f64, to: f64) -> Vec<f64> {
    let range = 10f64.powf(from)..=10f64.powf(to);
    let all = |digits: &[f64]| -> Vec<f64> {
        let powers = (from.floor() as i32..=to.ceil() as i32).map(|power| 10f64.powi(power));
        let ticks = powers.flat_map(|power| digits.iter().map(move |digit| digit * power));
        ticks.filter(|tick| range.contains(tick)).collect()
    };
    let usual = all(&[1.0, 2.0, 5.0]);
    if usual.len() >= 3 {
        return usual;
    }
    all(&[
        1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0,
    ])
}

/// The picture.
pub(crate) fn svg(plot: &Plot) -> String {
    let [left, top, right, bottom] = plot.layout.area;
    let points = || plot.lines.iter().flat_map(|line| line.points.iter());
    let x = Scale::new(&plot.x, points().map(|point| point.0), (left, right));
    let spread =
        points().flat_map(|(_, y, error)| [y - error.unwrap_or(0.0), y + error.unwrap_or(0.0)]);
    let y = Scale::new(&plot.y, spread, (bottom, top));
    let (width, height) = plot.layout.size;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\"><title>{0}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"b\" width=\"{width}\" height=\"{height}\"/>\n\
         <text class=\"t\" x=\"{left}\" y=\"22\">{0}</text>\n",
        escaped(&plot.title)
    );
    out += &axes(plot, &x, &y);
    for (i, line) in plot.lines.iter().enumerate() {
        out += &draw(line, &x, &y, plot.layout.legend);
        if plot.layout.legend {
            out += &legend(line, right, top + 10.0 + 22.0 * i as f64);
        }
    }
    out + "</svg>\n"
}

/// Grid, numbers and labels.
fn axes(plot: &Plot, x: &Scale, y: &Scale) -> String {
    let [left, top, right, bottom] = plot.layout.area;
    let mut out = String::new();
    for tick in &x.ticks {
        out += &format!(
            "<path class=\"g\" d=\"M{at:.1} {top}V{bottom}\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            bottom + 18.0,
            number(*tick),
            at = x.at(*tick)
        );
    }
    let mut last = f64::INFINITY;
    for tick in &y.ticks {
        let at = y.at(*tick);
        if last - at < LINE_HEIGHT {
            continue; // the numbers would lie on each other
        }
        last = at;
        out += &format!(
            "<path class=\"g\" d=\"M{left} {at:.1}H{right}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            left - 8.0,
            at + 4.5,
            number(*tick)
        );
    }
    let (x_middle, y_middle) = ((left + right) / 2.0, (top + bottom) / 2.0);
    let [x, y] = [&plot.x, &plot.y].map(|(Axis::Even(label) | Axis::Log(label))| escaped(label));
    let below = bottom + 42.0;
    out + &format!(
        "<text x=\"{x_middle}\" y=\"{below}\" text-anchor=\"middle\">{x}</text>\n\
         <text transform=\"translate(18 {y_middle}) rotate(-90)\" text-anchor=\"middle\">{y}</text>\n"
    )
}

impl Line {
    /// Its colour, and the attribute of a dashed line.
    fn look(&self) -> (&'static str, &'static str) {
        let dash = if self.dashed {
            " stroke-dasharray=\"5 4\""
        } else {
            ""
        };
        (COLOURS[self.colour % COLOURS.len()], dash)
    }
}

/// A line, with dots at its points if they are asked for, or if there is only one point.
fn draw(line: &Line, x: &Scale, y: &Scale, dots: bool) -> String {
    let (colour, dash) = line.look();
    let places = line.points.iter();
    let places = places.map(|(px, py, _)| format!("{:.1},{:.1}", x.at(*px), y.at(*py)));
    let mut out = format!(
        "<g stroke=\"{colour}\" fill=\"{colour}\" stroke-width=\"2\"><polyline fill=\"none\"{dash} points=\"{}\"/>\n",
        places.collect::<Vec<_>>().join(" ")
    );
    for (px, py, error) in &line.points {
        let (cx, cy) = (x.at(*px), y.at(*py));
        if dots || line.points.len() == 1 {
            out += &format!("<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"2.5\" stroke=\"none\"/>");
        }
        if let Some(error) = error.filter(|error| *error > 0.0 && (*error < *py || !y.log)) {
            let (low, high) = (y.at(py - error), y.at(py + error));
            let (from, to) = (cx - 4.0, cx + 4.0);
            out += &format!(
                "<path stroke-width=\"1.2\" d=\"M{cx:.1} {low:.1}V{high:.1}M{from:.1} {low:.1}H{to:.1}M{from:.1} {high:.1}H{to:.1}\"/>"
            );
        }
    }
    out + "</g>\n"
}

/// What the legend says of a line, at this height on the right of the drawing area.
fn legend(line: &Line, right: f64, height: f64) -> String {
    let (colour, dash) = line.look();
    let (from, to) = (right + 16.0, right + 42.0);
    format!(
        "<path stroke=\"{colour}\" stroke-width=\"2\"{dash} d=\"M{from} {height}H{to}\"/><text x=\"{}\" y=\"{}\">{}</text>\n",
        to + 8.0,
        height + 4.5,
        escaped(&line.label)
    )
}

/// A tick's number, without the noise of its binary form.
fn number(value: f64) -> String {
    let rounded: f64 = format!("{value:.3e}").parse().unwrap_or(value);
    format!("{rounded}")
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_ticks() {
        let log = Axis::Log("");
        let scale = Scale::new(&log, [10.0, 1000.0].into_iter(), (0.0, 100.0));
        assert_eq!(scale.ticks, [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
        assert!(
            (scale.at(100.0) - 50.0).abs() < 1e-9,
            "the geometric mean is in the middle"
        );
        let even = Axis::Even("");
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
        let one = Scale::new(&even, [0.0, 0.0].into_iter(), (100.0, 0.0));
        assert_eq!((one.from, one.to), (0.0, 1.0));
        assert_eq!(number(0.1 + 0.2), "0.3");
    }

    #[test]
    fn text_is_escaped_and_every_line_is_drawn() {
        let line = |label: &str| Line {
            label: label.into(),
            colour: 0,
            dashed: false,
            points: vec![(1.0, 2.0, Some(0.5))],
        };
        let plot = Plot {
            layout: &WIDE,
            file: "a.svg".into(),
            title: "x < y".into(),
            x: Axis::Log("a & b"),
            y: Axis::Even("a & b"),
            lines: vec![line("p"), line("q")],
        };
        let picture = svg(&plot);
        assert!(
            picture.contains("x &lt; y")
                && picture.contains("a &amp; b")
                && !picture.contains("NaN")
        );
        assert_eq!(picture.matches("<polyline").count(), 2);
        assert_eq!(picture.matches(">p</text>").count(), 1);
        let lines = vec![Line {
            points: vec![(1.0, 0.14, None), (2.0, 0.8, None)],
            ..line("p")
        }];
        let (layout, x, y) = (&SMALL, Axis::Even("x"), Axis::Log("y"));
        let small = svg(&Plot {
            layout,
            x,
            y,
            lines,
            ..plot
        });
        assert!(!small.contains(">p</text>"), "the page has the legend");
        let numbers = small.split("text-anchor=\"end\">").skip(1);
        let heights: Vec<f64> = small
            .split("<text x=\"54\" y=\"")
            .skip(1)
            .map(|text| text.split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(heights.len(), numbers.count());
        assert!(heights.len() > 2 && heights.windows(2).all(|pair| pair[0] - pair[1] >= 14.0));
    }
}
