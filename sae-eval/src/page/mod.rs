//! `report.html`: a report to look at, in one file that needs no network. (`compare/`: `compare.html`, in the same way.)
//!
//! `gather.rs` collects while the held-out rows pass, `findings.rs` makes of it what is shown, and there is one file per
//! section. Pictures and tables are written here; the page's script only adds search, order, cards and the switch of
//! the theme. Templates escape every text, and the page's own policy lets no script run but that one.

mod axis;
mod chart;
mod classes;
mod cofiring;
pub(crate) mod compare;
mod decoder;
mod described;
mod findings;
mod gather;
mod inputs;
mod latents;
mod map;
mod nearby;
mod pack;
mod rebuilt;
mod rows;
pub(crate) mod shades;
pub(crate) mod strongest;
mod tally;
pub(crate) mod text;
mod through;
mod training;
mod verdict;

#[cfg(test)]
mod synthetic;
#[cfg(test)]
mod tests;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::report::Report;
pub(crate) use findings::{Carried, Findings};

pub(crate) use gather::Gather;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = concat!(include_str!("theme.js"), include_str!("page.js"));

/// The sections: their ids and titles.
const SECTIONS: [(&str, &str); 6] = [
    ("verdict", "Verdict"),
    ("inputs", "Inputs"),
    ("map", "Map"),
    ("latents", "Latents"),
    ("rows", "Rows"),
    ("classes", "Classes"),
];

/// The whole page.
pub(crate) fn render(report: &Report, findings: &Findings) -> String {
    let title = text::name(&report.run) + " · sparse autoencoder";
    let through = report.tail.is_some().then_some(through::TITLE);
    let sections: Vec<(&str, &str)> = SECTIONS.into_iter().chain(through).collect();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            (head(&title, STYLE, SCRIPT))
            body {
                a.skip href="#main" { "Skip to the report" }
                (navigation(&sections))
                main id="main" {
                    (verdict::section(report, findings))
                    (inputs::section(report, findings))
                    (map::section(findings))
                    (latents::section(findings))
                    (rebuilt::section(findings))
                    (classes::section(report, findings))
                    (through::section(report.tail.as_ref()))
                }
                footer { p { "Made by sae-eval " (text::name(&report.version)) ". This file needs no network." } }
                dialog id="card" aria-labelledby="card-title" {}
                (latents::data(findings))
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

/// The head of a page that allows no script and no style but these.
fn head(title: &str, style: &str, script: &str) -> Markup {
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; base-uri 'none'; form-action 'none'",
        pack::policy_hash(script),
        pack::policy_hash(style),
    );
    html! {
        head {
            meta charset="utf-8";
            meta http-equiv="Content-Security-Policy" content=(policy);
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            meta name="referrer" content="no-referrer";
            title { (title) }
            style { (PreEscaped(style)) }
        }
    }
}

fn navigation(sections: &[(&str, &str)]) -> Markup {
    html! {
        header.bar-top {
            nav aria-label="Sections" {
                @for (id, title) in sections { a href={ "#" (id) } { (title) } }
            }
            button.theme.script type="button" id="theme" aria-label="Switch between light and dark" { "Dark" }
        }
    }
}

/// A link to a latent's card.
fn latent_link(latent: u32) -> Markup {
    html! { a.latent href={ "#latent-" (latent) } { (latent) } }
}
