//! Findings of a model that never was, for tests of the page.

use super::Carried;
use super::decoder::COSINE_BINS;
use super::findings::{Apart, Findings, Latent, Part};
use super::gather::{L0Sums, Point};
use super::rows::{Content, Patch, Shown, Thumbnail};
use super::tally::{BINS, Example, hash};
use super::training::Record;

/// A number from 0 to 1 that depends on two others.
pub(super) fn random(a: u32, b: u64) -> f64 {
    f64::from(hash(a, b)) / 2f64.powi(32)
}

/// Findings of a model that never was; `text` names classes and gives the text of a row.
pub(super) fn synthetic(
    latents: usize,
    classes: usize,
    examples: usize,
    text: impl Fn(u64) -> String,
) -> Findings {
    let rows = (latents * examples * 2) as u64;
    let mut findings = Findings {
        classes: (0..classes as u64).map(&text).collect(),
        rows: 1_000_000,
        ns: vec![Some(1), Some(10), None],
        config: Some(text(0)),
        provenance: Some(serde_json::json!({ "version": text(0), "burn": text(1), "threads": 2 })),
        thumbnails: vec![Thumbnail {
            media_type: "image/png",
            bytes: vec![1, 2, 3],
        }],
        ..Findings::default()
    };
    for j in 0..latents {
        findings.latents.push(latent(j, latents, classes, examples));
        findings
            .decoder
            .plane
            .push([0, 1].map(|axis| random(axis, j as u64) as f32));
        let near = (0..5).map(|k| (hash(k, j as u64) % latents as u32, 0.9 - 0.1 * k as f32));
        findings.decoder.near.push(near.collect());
    }
    findings.decoder.compared = latents.min(4096);
    findings.decoder.cosines = (0..COSINE_BINS as u64).map(|bin| bin * bin).collect();
    findings.shown = (0..rows)
        .map(|row| (row, shown(row, classes, text(row))))
        .collect();
    findings.points = (0..2000).map(point).collect();
    by_class(&mut findings, latents);
    let parts = (0..3).map(|latent| Part {
        latent,
        value: 0.5,
        share: 0.2 - 0.15 * f64::from(latent),
    });
    findings.apart = vec![Apart {
        row: 1,
        l0: 5,
        left: 0.2,
        parts: parts.collect(),
        rest: 0.1,
    }];
    for step in 0..100 {
        let record = Record {
            step,
            fvu: Some(1.0 / (1.0 + step as f64)),
            l0: Some(40.0),
            ..Record::default()
        };
        findings.training.train.push(record.clone());
        findings.training.held_out.push(record);
    }
    findings
}

fn point(row: u64) -> Point {
    Point {
        row,
        norm: random(9, row) as f32,
        l0: hash(10, row) % 80,
        error: random(11, row) as f32,
    }
}

/// Sets L0 and the curves of each class.
fn by_class(findings: &mut Findings, latents: usize) {
    for class in 0..findings.classes.len() {
        let l0 = 30 + class as u64;
        let sums = L0Sums {
            rows: 10,
            sum: 10 * l0,
            squares: 10 * l0 * l0,
        };
        findings.by_class.insert(class, sums);
        let first = (0..10).map(|k| hash(k, class as u64) % latents as u32);
        findings.carried.push(Carried {
            class,
            latents: first.collect(),
            curve: vec![(Some(0.5), Some(0.4)), (Some(0.9), Some(0.2)), (None, None)],
        });
    }
}

fn latent(j: usize, latents: usize, classes: usize, examples: usize) -> Latent {
    let seed = j as u64;
    let example = |k: usize| Example {
        row: (hash(k as u32 + 1000, seed) as usize % (latents * examples * 2)) as u64,
        value: random(k as u32, seed) as f32,
    };
    let class = |k: u32| hash(k + 50, seed) as usize % classes;
    Latent {
        fired: u64::from(hash(1, seed) % 10_000),
        mean: random(2, seed),
        max: random(3, seed) as f32 + 1.0,
        histogram: (
            -8,
            (0..BINS as u32)
                .map(|bin| hash(bin + 100, seed) % 500)
                .collect(),
        ),
        entropy: Some(random(4, seed)),
        best: Some((class(0), random(5, seed))),
        classes: (0..8).map(|k| (class(k), random(k + 60, seed))).collect(),
        strongest: (0..examples).map(example).collect(),
        tenths: (examples..2 * examples).map(example).collect(),
        shades: Vec::new(),
        together: (0..5)
            .map(|k| (hash(k + 70, seed) % latents as u32, 0.3))
            .collect(),
        serves: vec![(class(1), 3)],
    }
}

/// A row of every kind by turns.
fn shown(row: u64, classes: usize, text: String) -> Shown {
    let content = match row % 4 {
        0 => Content::Unknown,
        1 => Content::Token {
            tokens: vec![text.clone(), text],
            at: 1,
        },
        2 => Content::Patch(Patch {
            thumbnail: 0,
            grid: [2, 2],
            cell: Some([0, 1]),
        }),
        _ => Content::Text(text),
    };
    let label = Some(row as usize % classes);
    Shown {
        row,
        document: Some(row / 3),
        position: Some(row % 3),
        label,
        content,
    }
}
