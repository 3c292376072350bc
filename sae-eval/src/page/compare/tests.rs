//! The page of a comparison: nothing in a text becomes markup, no number breaks it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sae_model::stats::Histogram;

use super::super::tests::{assert_closed, deceives, scan, strings, unpacked};
use super::{SCRIPT, STYLE, render};
use crate::compare::data::{
    ComparedRun, Comparison, DataSet, Definition, Difference, LeftOut, Matched, Pair, Recipe,
    Spread, Stability,
};
use crate::packed::{Column, PackedColumns};
use crate::report::escape::tests::hostile;

/// Values of a run, all of them `value`.
fn values(text: &str, value: f64) -> BTreeMap<String, f64> {
    let names = [
        "fvu",
        "l0_mean",
        "l0_median",
        "l0_p5",
        "l0_p95",
        "dead_latents",
        "cosine",
        "top_n_activations",
        "probe_1_balanced_accuracy",
        "probe_20_balanced_accuracy",
        "training_seconds",
        "training_peak_memory_bytes",
        "evaluation_seconds",
    ];
    let mut values: BTreeMap<String, f64> = names.map(|name| (name.to_string(), value)).into();
    for n in [text, "10"] {
        values.insert(format!("top_n_on_{n}"), value);
        values.insert(format!("top_n_off_{n}"), value);
    }
    values
}

fn run(text: &str, value: f64, recipe: usize) -> ComparedRun {
    ComparedRun {
        name: text.into(),
        path: text.into(),
        page: (recipe == 0).then(|| "x/reports/report.html".into()),
        recipe,
        seed: Some(3),
        n_latents: 4,
        values: values(text, value),
        top_n: vec!["10".into(), text.into()],
        l0_histogram: Histogram {
            edges: vec![0.0, 1.0, 2.0, 3.0],
            counts: vec![0, 5, 9],
        },
        notes: vec![text.into()],
    }
}

fn recipe(text: &str, value: f64, letter: &str, runs: Vec<usize>) -> Recipe {
    let spread = Spread {
        mean: value,
        sd: Some(value),
        runs: runs.len(),
    };
    Recipe {
        letter: letter.into(),
        name: text.into(),
        architecture: text.into(),
        data_set: 0,
        spreads: values(text, value)
            .into_keys()
            .map(|key| (key, spread))
            .collect(),
        runs,
    }
}

fn matched(text: &str, value: f64) -> Matched {
    Matched {
        matching: text.into(),
        pairs: 4,
        mean_cosine: value,
        recur: value,
        same: value,
        curve: vec![value; 101],
    }
}

/// The stability of two runs.
fn stability(text: &str, value: f64) -> Stability {
    let single = value as f32;
    let latents = PackedColumns::new(vec![
        ("latent".into(), Column::U32(vec![0, 1, 2, 3])),
        ("fired".into(), Column::I32(vec![0, 9, 1, -1])),
        ("recurs".into(), Column::I32(vec![-1, 1, 0, 0])),
        (
            "mean".into(),
            Column::F32(vec![f32::NAN, single, single, 0.5]),
        ),
        (
            "cosine".into(),
            Column::F32(vec![f32::NAN, single, single, 0.5]),
        ),
        ("partner".into(), Column::I32(vec![-1, 3, 2, 0])),
    ]);
    Stability {
        recipe: 0,
        runs: vec![0, 1],
        alive: vec![3, 4],
        pairs: vec![Pair {
            runs: [0, 1],
            matched: matched(text, value),
        }],
        random: matched(text, value),
        latents,
        rows: 9,
    }
}

/// A comparison whose every string is `text`, and whose every number is `value`.
fn comparison(text: &str, value: f64) -> Comparison {
    Comparison {
        schema: text.into(),
        schema_version: 1,
        version: text.into(),
        seconds: value,
        definitions: vec![
            Definition {
                name: "stability".into(),
                text: text.into(),
            },
            Definition {
                name: text.into(),
                text: text.into(),
            },
        ],
        notes: vec![text.into()],
        left_out: vec![LeftOut {
            run: text.into(),
            reason: text.into(),
        }],
        data_sets: vec![
            DataSet {
                path: text.into(),
                rows: 9,
                width: 2,
                front: vec![0, 1],
            },
            DataSet {
                path: text.into(),
                rows: 9,
                width: 2,
                front: vec![],
            },
        ],
        recipes: vec![
            recipe(text, value, "A", vec![0, 1]),
            recipe(text, value, "B", vec![2]),
        ],
        runs: vec![
            run(text, value, 0),
            run(text, value, 0),
            run(text, value, 1),
        ],
        differences: vec![Difference {
            key: text.into(),
            values: vec![Some(text.into()), None],
        }],
        stability: vec![stability(text, value)],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_text_becomes_markup(text in hostile()) {
        let text = format!("</script><!--<script>\u{2028}\u{202e}\"'`&amp;]]></style></title>{text}");
        let [plain, scanned] = ["x", &text].map(|text| scan(&render(&comparison(text, 0.5))));
        prop_assert_eq!(&scanned.tags, &plain.tags);
        for text in &scanned.texts {
            prop_assert!(!text.chars().any(deceives), "{text:?}");
        }
        for (id, content) in &scanned.raw {
            match id.as_str() {
                "style " => prop_assert_eq!(content, STYLE),
                "script " => prop_assert_eq!(content, SCRIPT),
                "script columns-0" => prop_assert_eq!(unpacked(content).len(), 4 * 6 * 4),
                _ => {
                    let json = serde_json::from_slice(&unpacked(content)).unwrap();
                    strings(&json, &mut |text| assert!(!text.chars().any(deceives), "{text:?}"));
                }
            }
        }
    }

    #[test]
    fn no_number_breaks_the_page(value in any::<f64>()) {
        let page = render(&comparison("x", value));
        scan(&page);
        let marks = page.split("<svg").skip(1).flat_map(|svg| svg.split("</svg>").next()).collect::<String>();
        let places = marks.split([' ', '>']).filter(|part| ["x=", "y=", "d=", "cx=", "cy=", "width=", "height="].iter().any(|key| part.starts_with(key)));
        for place in places {
            prop_assert!(!place.contains("NaN") && !place.contains("inf"), "{place}");
        }
    }
}

#[test]
fn the_page_allows_its_own_script_and_style_alone() {
    assert_closed(&render(&comparison("x", 0.5)), SCRIPT);
    assert!(SCRIPT.lines().count() < 300);
}

#[test]
fn what_is_not_known_is_a_dash_and_no_section_is_lost() {
    let mut of = comparison("x", 0.5);
    of.stability.clear();
    of.notes.clear();
    of.left_out.clear();
    of.runs.iter_mut().for_each(|run| {
        run.values.clear();
        run.top_n.clear();
        run.notes.clear();
        run.l0_histogram = Histogram {
            edges: vec![],
            counts: vec![],
        };
    });
    of.recipes
        .iter_mut()
        .for_each(|recipe| recipe.spreads.clear());
    let page = render(&of);
    let titles = scan(&page)
        .tags
        .iter()
        .filter(|tag| tag.starts_with("<h2 "))
        .count();
    assert_eq!(
        titles,
        super::SECTIONS.len() - 1,
        "the first section has the title of the page"
    );
    assert!(!page.contains("Before you read on"));
}
