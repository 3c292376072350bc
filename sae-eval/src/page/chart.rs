//! Charts as SVG, drawn on the server's side so that they are there without JavaScript. Colours come from classes that
//! the style sheet sets for light and dark.

use maud::{Markup, html};

use super::axis::Axis;
use super::text::number;

/// Space around the plot: left, top, right, bottom.
const MARGIN: [f64; 4] = [66.0, 12.0, 14.0, 46.0];

/// A chart with its axes.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// Its title, above it.
    pub(super) title: String,
    /// A sentence for those who cannot see it.
    pub(super) description: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl Chart {
    pub(super) fn new(title: &str, description: impl Into<String>, x: Axis, y: Axis) -> Self {
        let (title, description) = (title.into(), description.into());
        Self {
            title,
            description,
            x,
            y,
            width: 420.0,
            height: 280.0,
        }
    }

    /// Horizontal place of a value.
    pub(super) fn x(&self, value: f64) -> f64 {
        MARGIN[0] + self.x.part(value) * (self.width - MARGIN[0] - MARGIN[2])
    }

    /// Vertical place of a value.
    pub(super) fn y(&self, value: f64) -> f64 {
        self.height - MARGIN[3] - self.y.part(value) * (self.height - MARGIN[1] - MARGIN[3])
    }

    /// The figure, with `marks` in the plot and `note` below it.
    pub(super) fn draw(&self, marks: Markup, note: Markup) -> Markup {
        html! {
            figure.chart {
                figcaption { (self.title) }
                (self.svg(None, marks))
                @if !note.0.is_empty() { p.note { (note) } }
            }
        }
    }

    /// The picture alone; with an id if the script is to find it.
    pub(super) fn svg(&self, id: Option<&str>, marks: Markup) -> Markup {
        let label = format!("{}. {}", self.title, self.description);
        let size = format!("0 0 {} {}", self.width, self.height);
        html! {
            svg id=[id] viewBox=(size) role="img" aria-label=(label) {
                (self.axes())
                g.marks { (marks) }
            }
        }
    }

    fn axes(&self) -> Markup {
        let (left, right) = (at(MARGIN[0]), at(self.width - MARGIN[2]));
        let (top, bottom) = (at(MARGIN[1]), at(self.height - MARGIN[3]));
        let below = at(self.height - MARGIN[3] + 18.0);
        let beside = at(MARGIN[0] - 7.0);
        let middle = at((MARGIN[0] + self.width - MARGIN[2]) / 2.0);
        let up = (MARGIN[1] + self.height - MARGIN[3]) / 2.0;
        html! {
            g.grid {
                @for tick in self.y.ticks(5) {
                    line x1=(left) x2=(right) y1=(at(self.y(tick))) y2=(at(self.y(tick))) {}
                    text.end x=(beside) y=(at(self.y(tick) + 4.5)) { (self.y.text(tick)) }
                }
                @for tick in self.x.ticks(6) {
                    line x1=(at(self.x(tick))) x2=(at(self.x(tick))) y1=(top) y2=(bottom) {}
                    text.middle x=(at(self.x(tick))) y=(below) { (self.x.text(tick)) }
                }
            }
            g.names {
                text.middle x=(middle) y=(at(self.height - 6.0)) { (self.x.label) }
                text.middle x=(at(-up)) y="13" transform="rotate(-90)" { (self.y.label) }
            }
        }
    }

    /// Bars between `edges`, each with its value and a title.
    pub(super) fn bars(
        &self,
        edges: &[f64],
        values: &[f64],
        title: impl Fn(usize) -> String,
    ) -> Markup {
        let bottom = self.height - MARGIN[3];
        let bar = |i: usize| {
            let (from, to) = (self.x(edges[i]), self.x(edges[i + 1]));
            let (gap, top) = (0.08 * (to - from).min(12.0), self.y(values[i]));
            let height = (bottom - top).max(if values[i] > 0.0 { 1.0 } else { 0.0 });
            [
                from + gap,
                bottom - height,
                (to - from - 2.0 * gap).max(0.5),
                height,
            ]
            .map(at)
        };
        html! {
            @for i in 0..values.len().min(edges.len().saturating_sub(1)) {
                @let [x, y, width, height] = bar(i);
                rect.bar x=(x) y=(y) width=(width) height=(height) { title { (title(i)) } }
            }
        }
    }

    /// A line through points, with a class of the style sheet.
    pub(super) fn line(&self, class: &str, points: &[(f64, f64)]) -> Markup {
        let place = |(i, (x, y)): (usize, &(f64, f64))| {
            let letter = if i == 0 { "M" } else { "L" };
            format!("{letter}{} {}", at(self.x(*x)), at(self.y(*y)))
        };
        let finite = points
            .iter()
            .filter(|(x, y)| x.is_finite() && y.is_finite());
        let path: String = finite.enumerate().map(place).collect();
        html! { path class={ "line " (class) } d=(path) {} }
    }

    /// Dots as one path, whatever their number. Dots at the same place are drawn once.
    pub(super) fn dots(&self, class: &str, points: impl Iterator<Item = (f64, f64)>) -> Markup {
        let finite = points.filter(|(x, y)| x.is_finite() && y.is_finite());
        let place = |(x, y): (f64, f64)| {
            (
                (self.x(x) * 2.0).round() as i32,
                (self.y(y) * 2.0).round() as i32,
            )
        };
        let mut places: Vec<(i32, i32)> = finite.map(place).collect();
        places.sort_unstable();
        places.dedup();
        let path: String = places
            .iter()
            .map(|(x, y)| format!("M{} {}h0", at(f64::from(*x) / 2.0), at(f64::from(*y) / 2.0)))
            .collect();
        html! { path class={ "dots " (class) } d=(path) {} }
    }

    /// Where the plot lies and what its axes are, for the script: `[left, right, top, bottom, x low, x high, y low, y high]`
    /// with the logarithm of the ends of logarithmic axes.
    pub(super) fn places(&self) -> [f64; 8] {
        [
            MARGIN[0],
            self.width - MARGIN[2],
            MARGIN[1],
            self.height - MARGIN[3],
            self.x.end(self.x.low),
            self.x.end(self.x.high),
            self.y.end(self.y.low),
            self.y.end(self.y.high),
        ]
    }
}

/// A coordinate with one digit behind the point, and none where it is zero.
pub(super) fn at(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_string)
}

/// A bar of `part` of the whole width, in a row of a table; negative parts have a class of their own.
pub(super) fn inline_bar(part: f64, label: &str) -> Markup {
    let width = 100.0 * part.abs().min(1.0);
    html! {
        svg.inline viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label=(label) {
            rect.track x="0" y="0" width="100" height="10" {}
            rect class=(if part < 0.0 { "bar below" } else { "bar" }) x="0" y="0" width=(at(width)) height="10" {}
        }
    }
}

/// An entry of a legend.
pub(super) fn key(class: &str, label: &str) -> Markup {
    html! { span.key { svg viewBox="0 0 12 12" aria-hidden="true" { circle class=(class) cx="6" cy="6" r="5" {} } (label) } }
}

/// A bin's limits in words.
pub(super) fn between(low: f64, high: f64) -> String {
    format!("{} to {}", number(low), number(high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_lie_where_they_should() {
        let chart = Chart::new(
            "a",
            "b",
            Axis::log("x", 0.01, 1.0),
            Axis::linear("y", 0.0, 10.0),
        );
        let [left, right, top, bottom, ..] = chart.places();
        assert_eq!(
            [chart.x(0.01), chart.x(1.0), chart.y(10.0), chart.y(0.0)],
            [left, right, top, bottom]
        );
        assert!((chart.x(0.1) - (left + right) / 2.0).abs() < 1e-9);
        assert_eq!([chart.x(0.0), chart.x(f64::NAN)], [left, left]);
    }

    proptest! {
        #[test]
        fn no_value_breaks_a_chart(values in prop::collection::vec((any::<f64>(), any::<f64>()), 0..6)) {
            let x = || values.iter().map(|v| v.0);
            let y = || values.iter().map(|v| v.1);
            for chart in [
                Chart::new("a", "b", Axis::of("x", x()), Axis::of("y", y())),
                Chart::new("a", "b", Axis::log_of("x", x()), Axis::log_of("y", y())),
            ] {
                let marks = html! { (chart.line("c0", &values)) (chart.dots("c0", values.iter().copied())) };
                let svg = chart.draw(marks, html! {}).into_string();
                prop_assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }
}
