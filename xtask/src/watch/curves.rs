//! The curves of training as pictures.

use super::records::{Curve, Record, Records};
use crate::plot::{Axis, Line, Plot, SMALL, svg};

/// A number of the records.
pub(super) struct Quantity {
    /// Path of the picture.
    pub(super) path: &'static str,
    title: &'static str,
    /// Whether equal distances are equal factors.
    log: bool,
    of: fn(&Record) -> Option<f64>,
}

/// What is drawn, in the order of the page.
pub(super) const QUANTITIES: [Quantity; 3] = [
    Quantity {
        path: "/fvu.svg",
        title: "FVU",
        log: true,
        of: |record| record.fvu,
    },
    Quantity {
        path: "/l0.svg",
        title: "L0, active latents per row",
        log: false,
        of: |record| record.l0,
    },
    Quantity {
        path: "/dead.svg",
        title: "dead latents",
        log: false,
        of: |record| record.dead,
    },
];

impl Quantity {
    /// The curve of the training rows, and that of the held-out rows.
    pub(super) fn picture(&self, records: &Records) -> String {
        let line = |(curve, colour, label): (&Curve, usize, &str)| Line {
            label: label.into(),
            colour,
            dashed: false,
            points: self.points(curve),
        };
        let curves = [
            (&records.train, 0, "training"),
            (&records.held_out, 1, "held out"),
        ];
        let lines: Vec<Line> = curves.map(line).into_iter().collect();
        let lines: Vec<Line> = lines
            .into_iter()
            .filter(|line| !line.points.is_empty())
            .collect();
        if lines.is_empty() {
            return EMPTY.into();
        }
        let y = if self.log {
            Axis::Log("")
        } else {
            Axis::Even("")
        };
        svg(&Plot {
            layout: &SMALL,
            file: String::new(),
            title: self.title.into(),
            x: Axis::Even("step"),
            y,
            lines,
        })
    }

    fn points(&self, curve: &Curve) -> Vec<(f64, f64, Option<f64>)> {
        let drawn = |value: &f64| value.is_finite() && (!self.log || *value > 0.0);
        let point = |record: &Record| {
            let value = (self.of)(record).filter(drawn)?;
            Some((record.step as f64, value, None))
        };
        curve.records().filter_map(point).collect()
    }
}

/// The picture without records.
const EMPTY: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 380 250\" width=\"380\" height=\"250\"/>\n";
