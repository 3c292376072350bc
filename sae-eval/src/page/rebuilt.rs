//! Section 5: some held-out rows, and the latents that rebuild each.

use maud::{Markup, html};

use super::chart::inline_bar;
use super::findings::{Apart, Findings};
use super::latent_link;
use super::rows::{Content, Patch, Shown};
use super::text::{clean, counted, grouped, number, percent};

/// Characters of a row's text.
const TEXT: usize = 300;

pub(super) fn section(findings: &Findings) -> Markup {
    html! {
        section id="rows" aria-labelledby="rows-title" {
            h2.title id="rows-title" { "Rows, taken apart" }
            p.lead {
                "A reconstruction is a sum: each active latent adds its direction. A bar is how much of the row a latent \
                 restores, (n a_j W_dec_j W_V) · (x − b_dec) / ‖x − b_dec‖². The rows go from the best rebuilt to the worst."
            }
            @if findings.apart.is_empty() { p.quiet { "There is no row to show." } }
            div.rows { @for apart in &findings.apart { (row(findings, apart)) } }
        }
    }
}

fn row(findings: &Findings, apart: &Apart) -> Markup {
    let most = apart
        .parts
        .iter()
        .map(|part| part.share.abs())
        .fold(1e-9, f64::max);
    let others = apart.l0 - apart.parts.len();
    html! {
        article.apart {
            h3 { (row_in_words(findings, apart.row)) }
            p.quiet { (counted(apart.l0, "latent", "latents")) " active; " strong { (percent(apart.left)) } " left over" }
            table.parts {
                thead.hidden { tr { th scope="col" { "latent" } th scope="col" { "best class" } th scope="col" { "bar" } th scope="col" { "part" } } }
                tbody {
                    @for part in &apart.parts {
                        tr {
                            th.n scope="row" { (latent_link(part.latent)) }
                            td { (best(findings, part.latent)) }
                            td.wide { (inline_bar(part.share / most, &format!("activation {}", number(f64::from(part.value))))) }
                            td.n { (percent(part.share)) }
                        }
                    }
                    @if others > 0 {
                        tr { th.n scope="row" { "+" (grouped(others as i64)) } td { "all others" } td.wide {} td.n { (percent(apart.rest)) } }
                    }
                }
            }
        }
    }
}

fn best(findings: &Findings, latent: u32) -> String {
    let best = findings
        .latents
        .get(latent as usize)
        .and_then(|latent| latent.best);
    best.map_or(String::new(), |(class, _)| findings.class(class))
}

/// A row: its text if it has one, and its number and class.
pub(super) fn row_in_words(findings: &Findings, row: u64) -> Markup {
    let Some((_, shown)) = findings
        .shown
        .get(findings.place(row))
        .filter(|(other, _)| *other == row)
    else {
        return html! { "row " (row) };
    };
    let about = about(findings, shown);
    match &shown.content {
        Content::Unknown => html! { span.about { (about) } },
        Content::Text(text) => {
            html! { span.text { (clean(text, TEXT)) } " " span.about { (about) } }
        }
        Content::Token { tokens, at } => html! {
            span.text {
                @for (i, token) in tokens.iter().enumerate() {
                    @let (space, word) = split_space(token);
                    @if i > 0 { (clean(space, TEXT)) }
                    @if i == *at { mark { (clean(word, TEXT)) } } @else { (clean(word, TEXT)) }
                }
            }
            " " span.about { (about) }
        },
        Content::Patch(patch) => html! {
            @if let Some(thumbnail) = findings.thumbnails.get(patch.thumbnail) { (picture(patch, &thumbnail.url())) }
            span.about { (about) }
        },
    }
}

/// The space before the word of a token, and the word; a token of spaces alone is a word.
fn split_space(token: &str) -> (&str, &str) {
    let word = token.trim_start();
    match word {
        "" => ("", token),
        word => token.split_at(token.len() - word.len()),
    }
}

/// An image whose other cells are darkened, as the script draws it on cards.
fn picture(patch: &Patch, url: &str) -> Markup {
    let [rows, columns] = patch.grid;
    let alt = patch.cell.map_or("Image".into(), |[row, column]| {
        let (row, column) = (row + 1, column + 1);
        format!("Image with row {row}, column {column} of its patches in light")
    });
    html! {
        span.picture {
            img src=(url) alt=(alt);
            svg viewBox=(format!("0 0 {columns} {rows}")) preserveAspectRatio="none" aria-hidden="true" {
                @if let Some([row, column]) = patch.cell {
                    path.shade fill-rule="evenodd" d=(format!("M0 0H{columns}V{rows}H0ZM{column} {row}h1v1h-1Z")) {}
                    rect.cell x=(column) y=(row) width="1" height="1" {}
                }
            }
        }
    }
}

/// A row's number, document, position and class in words.
fn about(findings: &Findings, shown: &Shown) -> String {
    let mut words = vec![format!("row {}", grouped(shown.row as i64))];
    if let (Some(document), Some(position)) = (shown.document, shown.position) {
        words = vec![format!(
            "document {}, position {position}",
            grouped(document as i64)
        )];
    }
    words.extend(shown.label.map(|label| findings.class(label)));
    words.join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_is_no_part_of_the_word() {
        assert_eq!(split_space(" word"), (" ", "word"));
        assert_eq!(split_space("word "), ("", "word "));
        assert_eq!(split_space("  "), ("", "  "));
    }
}
