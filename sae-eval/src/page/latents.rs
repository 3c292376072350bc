//! Section 4: all latents in a table, and the data of their cards.

use maud::{Markup, html};
use rayon::prelude::*;
use serde_json::json;

use super::decoder::Near;
use super::findings::{Findings, Latent};
use super::pack::{element, packed};
use super::rows::Content;
use super::tally::Example;
use super::text::{clean, counted, grouped, number, percent};
use super::{latent_link, rebuilt};

/// Latents, and rows, in a piece of the packed data.
const PIECE: usize = 256;
/// Thumbnails in a piece.
const PICTURES: usize = 32;
/// Latents in the table without JavaScript.
const STATIC: usize = 50;
/// Latents that are introduced above the table.
const INTRODUCED: usize = 6;
/// Characters of the text that stands for a latent in the table.
const GLOSS: usize = 72;

/// Columns of the table: the key that the script sorts by, the title, whether it is a number.
const COLUMNS: [(&str, &str, bool); 9] = [
    ("latent", "latent", true),
    ("fired", "frequency", true),
    ("mean", "mean", true),
    ("max", "max", true),
    ("entropy", "entropy", true),
    ("best", "best class", false),
    ("f1", "F1", true),
    ("near", "nearest", true),
    ("cosine", "cosine", true),
];

pub(super) fn section(findings: &Findings) -> Markup {
    let all = findings.latents.len();
    html! {
        section id="latents" aria-labelledby="latents-title" {
            h2.title id="latents-title" { "Latents" }
            p.lead { "What each latent stands for is what its strongest rows have in common." }
            (introduced(findings))
            div.tools.script {
                label for="search" { "Search" }
                input id="search" type="search" autocomplete="off" spellcheck="false" placeholder="number, class or text";
                p id="found" aria-live="polite" { (counted(all, "latent", "latents")) }
            }
            (table(findings))
            div.pages.script {
                button type="button" id="previous" { "Previous" }
                span id="page" {}
                button type="button" id="next" { "Next" }
            }
            noscript { p.note { "The " (STATIC.min(all)) " most frequent latents. With JavaScript the table has all " (grouped(all as i64)) ", search and cards." } }
            (definitions(findings))
        }
    }
}

fn definitions(findings: &Findings) -> Markup {
    let compared = findings.decoder.compared;
    html! {
        details {
            summary { "The columns" }
            ul {
                li { "frequency: part of the held-out rows with a_j ≠ 0; mean and max: of |a_j| over these rows" }
                li { "entropy: of its activation over the classes, as a part of the largest possible; for latents active on at least 10 rows" }
                li { "best class: the class of the largest F1 = 2 TP / (2 TP + FP + FN), taking the latent's firing as the answer, on the held-out rows" }
                li {
                    "nearest: the latent with the largest cosine of the directions W_dec W_V"
                    @if compared < findings.latents.len() { ", for the " (grouped(compared as i64)) " most frequent latents" }
                }
            }
        }
    }
}

/// The latents that tell a class best.
fn introduced(findings: &Findings) -> Markup {
    let mut best: Vec<(u32, usize, f64)> = (0u32..)
        .zip(&findings.latents)
        .filter(|(_, latent)| latent.fired >= 10)
        .filter_map(|(j, latent)| latent.best.map(|(class, f1)| (j, class, f1)))
        .collect();
    best.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
    let mut seen = std::collections::BTreeSet::new();
    best.retain(|(_, class, _)| seen.insert(*class));
    best.truncate(INTRODUCED);
    html! {
        @if !best.is_empty() {
            h3 { "Latents that tell a class best" }
            ul.introduced {
                @for (j, class, f1) in best {
                    @let latent = &findings.latents[j as usize];
                    li {
                        p.head { (latent_link(j)) " " strong { (findings.class(class)) } }
                        p.quiet { "F1 " (format!("{f1:.2}")) ", fires on " (counted(latent.fired as usize, "row", "rows")) }
                        ul { @for example in latent.strongest.iter().take(3) { li { (rebuilt::row_in_words(findings, example.row)) } } }
                    }
                }
            }
        }
    }
}

fn table(findings: &Findings) -> Markup {
    let mut order: Vec<usize> = (0..findings.latents.len()).collect();
    order.sort_by_key(|j| (std::cmp::Reverse(findings.latents[*j].fired), *j));
    order.truncate(STATIC);
    html! {
        div.scroll tabindex="0" role="region" aria-label="Table of latents" {
            table id="table" {
                thead { tr {
                    @for (key, title, numeric) in COLUMNS {
                        th.n[numeric] scope="col" aria-sort=(if key == "fired" { "descending" } else { "none" }) data-key=(key) { (title) }
                    }
                } }
                tbody { @for j in order { (row(findings, j)) } }
            }
        }
    }
}

fn row(findings: &Findings, j: usize) -> Markup {
    let latent = &findings.latents[j];
    let near = nearest(findings, j);
    html! {
        tr {
            th.n scope="row" { (latent_link(j as u32)) }
            td.n { (percent(latent.fired as f64 / findings.rows.max(1) as f64)) }
            td.n { (if latent.fired > 0 { number(latent.mean) } else { "–".into() }) }
            td.n { (if latent.fired > 0 { number(f64::from(latent.max)) } else { "–".into() }) }
            td.n { (latent.entropy.map_or("–".into(), |entropy| format!("{entropy:.2}"))) }
            td { (latent.best.map_or("–".into(), |(class, _)| findings.class(class))) }
            td.n { (latent.best.map_or("–".into(), |(_, f1)| format!("{f1:.2}"))) }
            td.n { @match near { Some((other, _)) => { (latent_link(other)) } None => { "–" } } }
            td.n { (near.map_or("–".into(), |(_, cosine)| format!("{cosine:.2}"))) }
        }
    }
}

fn nearest(findings: &Findings, j: usize) -> Option<Near> {
    findings
        .decoder
        .near
        .get(j)
        .and_then(|near| near.first().copied())
}

/// All data that the script unpacks. Its pieces are packed in parallel: that takes most of the time of the page.
pub(super) fn data(findings: &Findings) -> Markup {
    let latents = findings.latents.par_chunks(PIECE).enumerate();
    let cards = latents.map(|(i, piece)| {
        let cards = (i * PIECE..).zip(piece);
        let cards: Vec<_> = cards.map(|(j, latent)| card(findings, j, latent)).collect();
        json_element(&format!("cards-{i}"), &cards)
    });
    let cards: Vec<Markup> = cards.collect();
    let rows = findings.shown.par_chunks(PIECE).enumerate();
    let rows = rows.map(|(i, piece)| {
        let rows: Vec<_> = piece.iter().map(|(_, shown)| shown.packed()).collect();
        json_element(&format!("rows-{i}"), &rows)
    });
    let rows: Vec<Markup> = rows.collect();
    html! {
        (json_element("meta", &meta(findings)))
        (element("columns", &packed(&columns(findings))))
        (json_element("glosses", &glosses(findings)))
        @for piece in cards { (piece) }
        @for piece in rows { (piece) }
        @for (i, piece) in findings.thumbnails.chunks(PICTURES).enumerate() {
            @let pictures: Vec<String> = piece.iter().map(|picture| picture.url()).collect();
            (json_element(&format!("pictures-{i}"), &pictures))
        }
    }
}

fn json_element(id: &str, value: &impl serde::Serialize) -> Markup {
    let json = serde_json::to_vec(value).expect("numbers and text are JSON");
    element(id, &packed(&json))
}

fn meta(findings: &Findings) -> serde_json::Value {
    let classes: Vec<String> = (0..findings.classes.len())
        .map(|class| findings.class(class))
        .collect();
    json!({
        "latents": findings.latents.len(),
        "rows": findings.rows,
        "classes": classes,
        "piece": PIECE,
        "pictures": PICTURES,
        "compared": findings.decoder.compared,
    })
}

/// The table's columns of 4 bytes per latent, one after the other: fired u32, mean f32, max f32, entropy f32, best
/// class i32, F1 f32, nearest i32, cosine f32, place in the plane 2 f32. NaN and -1 stand for none.
fn columns(findings: &Findings) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(findings.latents.len() * 40);
    let float = |value: Option<f64>| value.map_or(f32::NAN, |value| value as f32).to_le_bytes();
    let int = |value: Option<usize>| value.map_or(-1, |value| value as i32).to_le_bytes();
    let plane = |j: usize, axis: usize| {
        let place = findings.decoder.plane.get(j)?;
        Some(f64::from(place[axis]))
    };
    type Column<'a> = &'a dyn Fn(usize, &Latent) -> [u8; 4];
    let columns: [Column; 10] = [
        &|_, latent| (latent.fired.min(u64::from(u32::MAX)) as u32).to_le_bytes(),
        &|_, latent| float((latent.fired > 0).then_some(latent.mean)),
        &|_, latent| float((latent.fired > 0).then_some(f64::from(latent.max))),
        &|_, latent| float(latent.entropy),
        &|_, latent| int(latent.best.map(|best| best.0)),
        &|_, latent| float(latent.best.map(|best| best.1)),
        &|j, _| int(nearest(findings, j).map(|near| near.0 as usize)),
        &|j, _| float(nearest(findings, j).map(|near| f64::from(near.1))),
        &|j, _| float(plane(j, 0)),
        &|j, _| float(plane(j, 1)),
    ];
    for column in columns {
        for (j, latent) in findings.latents.iter().enumerate() {
            bytes.extend(column(j, latent));
        }
    }
    bytes
}

/// For each latent the text of its strongest row; an empty list if no row has a text.
fn glosses(findings: &Findings) -> Vec<String> {
    let glosses: Vec<String> = findings
        .latents
        .iter()
        .map(|latent| gloss(findings, latent))
        .collect();
    if glosses.iter().all(String::is_empty) {
        Vec::new()
    } else {
        glosses
    }
}

fn gloss(findings: &Findings, latent: &Latent) -> String {
    let first = latent
        .strongest
        .first()
        .and_then(|example| findings.shown.get(findings.place(example.row)));
    match first.map(|(_, shown)| &shown.content) {
        Some(Content::Text(text)) => clean(text, GLOSS),
        Some(Content::Token { tokens, at }) => {
            let around = at.saturating_sub(5)..tokens.len().min(at + 4);
            clean(&tokens[around].concat(), GLOSS)
        }
        _ => String::new(),
    }
}

/// A card: `[first half octave, counts, classes, strongest, tenths, nearest, together, serves, shades]`.
fn card(findings: &Findings, j: usize, latent: &Latent) -> serde_json::Value {
    let short = |value: f64| (value * 1e4).round() / 1e4;
    let four = |value: f32| format!("{value:.4e}").parse::<f64>().unwrap_or(0.0);
    let examples = |of: &[Example]| -> Vec<_> {
        of.iter()
            .map(|e| (findings.place(e.row), four(e.value)))
            .collect()
    };
    let near =
        |of: &[Near]| -> Vec<_> { of.iter().map(|(j, c)| (*j, short(f64::from(*c)))).collect() };
    let classes: Vec<_> = latent
        .classes
        .iter()
        .map(|(class, part)| (*class, short(*part)))
        .collect();
    json!([
        latent.histogram.0,
        latent.histogram.1,
        classes,
        examples(&latent.strongest),
        examples(&latent.tenths),
        near(findings.decoder.near.get(j).map_or(&[], Vec::as_slice)),
        near(&latent.together),
        latent.serves,
        latent.shades,
    ])
}
