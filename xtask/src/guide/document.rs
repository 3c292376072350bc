//! The guide as Markdown, from the same data as `guide.json`.

use super::Guide;
use super::measured::{Group, name};
use super::recommend::{RULE, Recommendation};
use super::verdict::Verdict;
use crate::results::columns::{Column, FVU, L0};
use crate::results::numbers::{Form, text};
use crate::results::queue::BySeed;
use crate::results::tables::{cell_text, markdown, thousands};

/// How to read the verification.
const READING: &str = "Spread is the larger standard deviation over the seeds, of those at the best k and at the recommended \
    one. Reconstruction (FVU, loss recovered) gets better with every latent, so its best k says nothing: the table says what a \
    doubling of k takes away of the error (FVU, 1 - loss recovered). There is a knee at k if the doubling beyond it gains at \
    most half of what the one before it gained. Only k/2, k and 2k were tried.";

impl Guide {
    pub(super) fn markdown(&self, columns: &[Column]) -> String {
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let mut out = format!(
            "# A k for {}\n\nSparse attention, {} steps, M = {}, {} {}; revision {}.\n\n",
            plain(&self.name),
            thousands(self.steps),
            thousands(self.n_latents),
            if seeds.len() == 1 { "seed" } else { "seeds" },
            seeds.join(", "),
            plain(&self.revision)
        );
        match &self.recommendation {
            Some(found) => out += &recommended(found),
            None => out += "**No k**: no run of sparse attention has come to its end.\n\n",
        }
        out += &list("Warnings", &self.warnings);
        out += &list("Runs that failed", &self.failed);
        if !self.verdicts.is_empty() {
            out += &format!(
                "## Verification\n\n{}\n",
                table(&self.groups, columns, seeds.len())
            );
            out += &match seeds.len() {
                1 => "One seed: a small difference may be chance.\n\n".to_string(),
                n => format!("Mean ± standard deviation over {n} seeds.\n\n"),
            };
            out += &list("Notes of these runs", &self.notes);
            for verdict in &self.verdicts {
                out += &compared(verdict, &self.groups);
            }
            out += &format!("{READING}\n");
        }
        out
    }
}

fn recommended(found: &Recommendation) -> String {
    let number = |value: f64| text((value, None), Form::Decimals(1));
    let percent = |value: f64| text((value, None), Form::Percent);
    let fvu = found.fvu.map(|fvu| text((fvu, None), Form::Decimals(4)));
    let rows = [
        ("L0 of held-out rows: mean", Some(number(found.l0_mean))),
        ("median", found.l0_median.map(number)),
        ("5th percentile", found.l0_p5.map(number)),
        ("95th percentile", found.l0_p95.map(number)),
        ("95th / 5th percentile", found.spread.map(number)),
        (
            "L0 in training, at half of the steps",
            found.training_l0_halfway.map(number),
        ),
        (
            "L0 in training, at the end",
            found.training_l0_final.map(number),
        ),
        ("FVU", fvu),
        ("dead latents", found.dead_share.map(percent)),
    ];
    let row =
        |(what, value): (&str, Option<String>)| vec![what.into(), value.unwrap_or("-".into())];
    let table = markdown(&["sparse attention", ""], &[0], rows.map(row).into());
    let (k, fit) = (found.k, found.fit());
    format!("**k = {k}** for TopK and for BatchTopK.\n\n{RULE}\n\n{table}\n{fit}\n\n")
}

/// One row per candidate; a column that no run has a number of is left out.
fn table(groups: &[Group], columns: &[Column], seeds: usize) -> String {
    let has = |column: &&Column| groups.iter().any(|group| group.mean(&column.at).is_some());
    let columns: Vec<&Column> = columns.iter().filter(has).collect();
    let none = BySeed::new();
    let row = |group: &Group| {
        let values = columns.iter().map(|column| {
            let values = group.numbers.get(&column.at).unwrap_or(&none);
            cell_text(values, seeds, column.form)
        });
        [group.candidate.label()]
            .into_iter()
            .chain(values)
            .collect()
    };
    let titles = columns.iter().map(|column| match column.title.as_str() {
        "5 %" => "L0, 5 %",
        "95 %" => "L0, 95 %",
        title => title,
    });
    let titles: Vec<&str> = [""].into_iter().chain(titles).collect();
    markdown(&titles, &[0], groups.iter().map(row).collect())
}

/// An architecture: what each criterion says, the verdict, and how it stands beside sparse attention.
fn compared(verdict: &Verdict, groups: &[Group]) -> String {
    let row = |judged: &super::verdict::Judged| {
        vec![
            judged.criterion.clone(),
            judged.best.to_string(),
            judged.words(),
        ]
    };
    let rows = verdict.judged.iter().map(row).collect();
    let table = markdown(
        &["criterion", "best k", "at the recommended k"],
        &[0, 2],
        rows,
    );
    let words = verdict.words();
    let beside = beside(verdict, groups).unwrap_or_default();
    format!(
        "### {}\n\n{table}\n{words}{beside}\n\n",
        name(verdict.architecture)
    )
}

/// FVU at k beside that of sparse attention.
fn beside(verdict: &Verdict, groups: &[Group]) -> Option<String> {
    let of = |k| {
        groups.iter().find(move |group| {
            let own = group.candidate;
            own.k == k && (k.is_none() || own.architecture == verdict.architecture)
        })
    };
    let (attention, own) = (of(None)?, of(Some(verdict.k))?);
    let ratio = own.mean(FVU)? / attention.mean(FVU)? - 1.0;
    let side = if ratio < 0.0 { "below" } else { "above" };
    let by = text((ratio.abs(), None), Form::Percent);
    let l0 = |group: &Group| Some(text((group.mean(L0)?, None), Form::Decimals(1)));
    Some(format!(
        " Its FVU there is {by} {side} that of sparse attention (L0 {} and {}).",
        l0(own)?,
        l0(attention)?
    ))
}

/// A list with a title; nothing where it is empty.
fn list(title: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let lines: String = lines
        .iter()
        .map(|line| format!("- {}\n", plain(line)))
        .collect();
    format!("{title}:\n\n{lines}\n")
}

/// Text from files, on one line and without meaning to Markdown, HTML or a terminal.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            c if c.is_control() => out.push(' '),
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '`' | '*' | '[' | ']' | '|' | '\\' | '#' | '~' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_files_stays_text() {
        let hostile = "# <b>a</b> | `x` [l](u)\n*y* \u{1b}[2J & ~~z~~";
        let expected =
            "\\# &lt;b>a&lt;/b> \\| \\`x\\` \\[l\\](u) \\*y\\*  \\[2J &amp; \\~\\~z\\~\\~";
        assert_eq!(plain(hostile), expected);
    }
}
