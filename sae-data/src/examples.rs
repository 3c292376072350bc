//! `sae-data inspect`: what rows are, with three of them. Strings of files are printed with their control characters
//! escaped.

use anyhow::Result;
use sae_data::{ActivationData, ImagePlace, Meanings, Neighbourhood, Per};

/// Tokens that are shown on each side of a row's own.
const AROUND: usize = 12;
/// Characters of a text that are shown.
const SHOWN: usize = 160;

pub(crate) fn print(data: &ActivationData) -> Result<()> {
    let meanings = data.meanings()?;
    if meanings.is_empty() {
        println!("rows are   not described: there are no tokens, texts or thumbnails");
        return Ok(());
    }
    println!("rows are   {}", kinds(&meanings).join(", "));
    let mut rows = vec![0, data.rows() / 2, data.rows() - 1];
    rows.dedup();
    for row in rows {
        example(&meanings, row)?;
    }
    Ok(())
}

fn kinds(meanings: &Meanings) -> Vec<String> {
    let per = |per| match per {
        Per::Document => "document",
        _ => "row",
    };
    let mut kinds = Vec::new();
    if meanings.has_tokens() {
        let strings = meanings.vocabulary_size();
        kinds.push(match strings {
            Some(strings) => format!("tokens (of {strings} with a string)"),
            None => "tokens (no vocabulary)".into(),
        });
    }
    if meanings.has_positions() {
        kinds.push("positions".into());
    }
    if let Some((count, unit)) = meanings.texts() {
        kinds.push(format!("{count} texts (one per {})", per(unit)));
    }
    if let Some(unit) = meanings.thumbnails() {
        kinds.push(format!("thumbnails (one per {})", per(unit)));
    }
    if let Some(image) = meanings.image_grid() {
        let [rows, columns] = image.grid;
        kinds.push(format!("{rows} x {columns} patches per image"));
    }
    kinds
}

fn example(meanings: &Meanings, row: usize) -> Result<()> {
    let meaning = meanings.row(row)?;
    let mut parts = Vec::new();
    let numbers = [
        ("document", meaning.document),
        ("position", meaning.position),
        ("label", meaning.label),
    ];
    for (name, number) in numbers {
        parts.extend(number.map(|number| format!("{name} {number}")));
    }
    match meaning.place {
        Some(ImagePlace::Patch { row, column }) => {
            parts.push(format!("patch in row {row}, column {column}"));
        }
        Some(ImagePlace::ClassToken) => parts.push("class token".into()),
        _ => {}
    }
    if let Some(token) = meaning.token {
        parts.push(format!("token {:?}", token.to_string()));
        let around = meanings.around(row, AROUND, AROUND)?;
        parts.extend(around.map(|around| passage(&around)));
    }
    if let Some(text) = meanings.text(row)? {
        let shown: String = text.text.chars().take(SHOWN).collect();
        let cut = if shown.len() < text.text.len() {
            "..."
        } else {
            ""
        };
        parts.push(format!("text {shown:?}{cut}"));
    }
    if let Some(picture) = meanings.thumbnail(row)? {
        let (width, height) = (picture.width, picture.height);
        parts.push(format!("thumbnail {width} x {height}"));
    }
    println!("  row {row}: {}", parts.join(", "));
    Ok(())
}

/// The tokens around a row, with its own in double brackets.
fn passage(around: &Neighbourhood) -> String {
    let rows = around.rows.iter().enumerate();
    let tokens = rows.filter_map(|(i, row)| {
        let token = row.token.as_ref()?;
        Some(match i == around.own {
            true => format!("[[{token}]]"),
            false if token.text.is_none() => format!(" {token} "),
            false => token.to_string(),
        })
    });
    let tokens: String = tokens.collect();
    format!("in {tokens:?}")
}
