//! Section 7, if a tail was named: what goes on in the rest of the model.

use maud::{Markup, html};

use super::text::{clean, grouped, percent};
use crate::report::criteria::Estimate;
use crate::report::tail::{ByPosition, TailClasses, TailSection};

/// Id and title of the section.
pub(super) const TITLE: (&str, &str) = ("through", "Through the model");

pub(super) fn section(tail: Option<&TailSection>) -> Markup {
    let Some(tail) = tail else {
        return html! {};
    };
    html! {
        section id=(TITLE.0) aria-labelledby="through-title" {
            h2.title id="through-title" { (TITLE.1) }
            p.lead {
                "The rest of " (clean(&tail.model, 200)) " goes on from layer " (tail.layer) ", with "
                (grouped(tail.replaced as i64)) " of " (grouped(tail.tokens as i64)) " tokens replaced by their reconstructions, in "
                (grouped(tail.documents as i64)) " documents."
                @if let Some(norm) = tail.max_norm {
                    " " (grouped(tail.beyond_max_norm as i64)) " rows of a norm above " (format!("{norm:.1}")) " stay as they are."
                }
            }
            @if !tail.metrics.is_empty() { (losses(&tail.metrics)) (positions(&tail.by_position)) }
            @if let Some(classes) = &tail.classes { (answers(classes)) (each_class(classes)) }
        }
    }
}

/// A table that scrolls on its own where it is too wide.
fn table(label: &str, head: &[&str], rows: &[Vec<String>]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table {
                thead { tr { @for (at, title) in head.iter().enumerate() {
                    @if at == 0 { th scope="col" { (title) } } @else { th.n scope="col" { (title) } }
                } } }
                tbody { @for row in rows { tr { @for (at, cell) in row.iter().enumerate() {
                    @if at == 0 { th scope="row" { (cell) } } @else { td.n { (cell) } }
                } } } }
            }
        }
    }
}

fn losses(metrics: &[Estimate]) -> Markup {
    let number = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.4}"));
    let row = |metric: &Estimate| {
        vec![
            metric.name.clone(),
            number(metric.value),
            format!("{} to {}", number(metric.low), number(metric.high)),
        ]
    };
    let rows: Vec<Vec<String>> = metrics.iter().map(row).collect();
    html! {
        (table("Loss of the model", &["", "value", "95 % interval"], &rows))
        details { summary { "How it is measured" } ul { @for metric in metrics {
            li { (metric.name) ": " (metric.formula) }
        } } }
    }
}

fn positions(rows: &[ByPosition]) -> Markup {
    let row = |one: &ByPosition| {
        vec![
            format!("{} to {}", one.from, one.to),
            grouped(one.predictions as i64),
            format!("{:.4}", one.ce_clean),
            format!("{:.4}", one.ce_sae),
            format!("{:.4}", one.kl_sae),
            one.loss_recovered
                .map_or("-".into(), |part| format!("{part:.4}")),
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
    let head = [
        "positions",
        "predictions",
        "CE clean",
        "CE",
        "KL",
        "loss recovered",
    ];
    table("Loss by position", &head, &rows)
}

fn answers(classes: &TailClasses) -> Markup {
    let row =
        |one: &crate::report::TopNRow| vec![clean(&one.n, 20), percent(one.on), percent(one.off)];
    let rows: Vec<Vec<String>> = classes.top_n.iter().map(row).collect();
    html! {
        (table("Mean accuracy of the model by number of latents", &["latents per class", "on", "off"], &rows))
        p.note {
            "At all tokens of a document only the first n latents of its class stay (on), or all others (off), and the head of the \
             model answers. Mean accuracy over classes; with the activations as they are: " (percent(classes.clean)) "."
        }
    }
}

fn each_class(classes: &TailClasses) -> Markup {
    let share = |share: &Option<f64>| share.map_or("–".into(), percent);
    let ns = classes
        .top_n
        .iter()
        .flat_map(|row| ["on", "off"].map(|side| format!("{side} {}", row.n)));
    let head: Vec<String> = ["class", "documents", "as they are"]
        .map(String::from)
        .into_iter()
        .chain(ns)
        .collect();
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> = classes
        .per_class
        .iter()
        .map(|class| {
            let each = class
                .on
                .iter()
                .zip(&class.off)
                .flat_map(|(on, off)| [share(on), share(off)]);
            let first = [
                clean(&class.class, 100),
                grouped(class.documents as i64),
                share(&class.clean),
            ];
            first.into_iter().chain(each).collect()
        })
        .collect();
    html! {
        details { summary { "Each class" } (table("Accuracy of each class", &head, &rows)) }
    }
}
