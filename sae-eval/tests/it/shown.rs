//! The page's rows are what the data set says: tokens with their shades, and cells of images.

use std::ops::Range;

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::trained::{LATENTS, Trained};

/// The rows of the document of `row`, from 10 before it to 5 behind it.
fn around(documents: &[i64], row: usize) -> Range<usize> {
    let inside = |other: &usize| documents[*other] == documents[row];
    let start = (row.saturating_sub(10)..row).find(inside).unwrap_or(row);
    let last = (row..documents.len().min(row + 6)).rfind(inside);
    start..last.unwrap_or(row) + 1
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().expect("a count")).expect("small")
}

#[test]
fn tokens_are_those_that_the_exporter_wrote() {
    let run = Trained::on("tokens");
    let page = run.page();
    let [documents, ids, positions] = ["doc", "tokens", "positions"].map(|name| run.integers(name));
    let words = run.words();
    let rows = page.list("rows");
    assert!(rows.len() > 300, "{}", rows.len());
    for packed in &rows {
        let row = number(&packed[0]);
        assert_eq!(packed[1], documents[row]);
        assert_eq!(packed[2], positions[row]);
        assert_eq!(packed[3], -1, "no class");
        let window = around(&documents, row);
        let tokens: Vec<&String> = window.clone().map(|r| &words[ids[r] as usize]).collect();
        assert_eq!(packed[4], json!({ "t": tokens, "i": row - window.start }));
    }
    let [first, last] = ["[CLS]", "[SEP]"].map(|mark| json!(mark));
    let shown = |mark| rows.iter().any(|row| row[4]["t"][0] == mark);
    assert!(
        shown(first) && !shown(last),
        "windows begin where glosses do"
    );
    assert!(page.html.contains("By position in the document"));
}

#[test]
fn shades_are_ninths_of_the_largest_activation() {
    let run = Trained::on("tokens");
    let page = run.page();
    let (documents, codes) = (run.integers("doc"), run.codes());
    let (rows, largest) = (page.list("rows"), page.largest());
    let cards = page.list("cards");
    assert_eq!(cards.len(), LATENTS);
    let (mut shaded, mut strongest) = (0, 0);
    for (j, card) in cards.iter().enumerate() {
        let examples = [3, 4].map(|list| card[list].as_array().unwrap());
        let examples: Vec<&Value> = examples.into_iter().flatten().collect();
        let shades = card[8].as_array().unwrap();
        assert_eq!(examples.len(), shades.len(), "latent {j}");
        for (example, shades) in examples.iter().zip(shades) {
            let row = number(&rows[number(&example[0])][0]);
            let digit = |r: usize| match codes[r * LATENTS + j].abs() {
                0.0 => '0',
                a => char::from(b'0' + ((9.0 * (a / largest[j])).ceil() as u8).clamp(1, 9)),
            };
            let expected: String = around(&documents, row).map(digit).collect();
            assert_eq!(*shades, expected, "latent {j}, row {row}");
            shaded += expected.bytes().filter(|digit| *digit != b'0').count();
        }
        if let Some(shades) = shades.first() {
            let row = number(&rows[number(&examples[0][0])][0]);
            let own = row - around(&documents, row).start;
            strongest += usize::from(shades.as_str().unwrap().as_bytes()[own] == b'9');
        }
    }
    let live = cards.iter().filter(|card| card[3] != json!([])).count();
    assert!(live > LATENTS / 2, "{live} latents are active");
    assert_eq!(strongest, live, "the strongest row has the darkest shade");
    assert!(shaded > 2000, "{shaded}");
}

#[test]
fn cells_are_those_of_the_exporters_grid() {
    let run = Trained::on("patches");
    let page = run.page();
    let [documents, positions, labels] =
        ["doc", "positions", "labels"].map(|name| run.integers(name));
    let pictures = page.list("pictures");
    let rows = page.list("rows");
    let mut whole = 0;
    for packed in &rows {
        let row = number(&packed[0]);
        assert_eq!(packed[1], documents[row]);
        assert_eq!(packed[2], positions[row]);
        assert_eq!(packed[3], labels[row]);
        let content = &packed[4];
        assert_eq!(content["g"], json!([7, 7]));
        match positions[row] {
            0 => {
                whole += 1;
                assert!(
                    content["c"].is_null(),
                    "the class token is of the whole image"
                );
            }
            p => assert_eq!(content["c"], json!([(p - 1) / 7, (p - 1) % 7])),
        }
        let url = pictures[number(&content["p"])].as_str().unwrap();
        let bytes = url.strip_prefix("data:image/jpeg;base64,").unwrap();
        let file = run.data.join(format!("thumbnails/{}.jpg", documents[row]));
        assert_eq!(
            BASE64.decode(bytes.as_bytes()).unwrap(),
            std::fs::read(file).unwrap()
        );
    }
    assert!(rows.len() > 200 && whole > 0, "{} {whole}", rows.len());
    assert!(pictures.len() > 5 && pictures.len() <= 60);
    assert!(page.html.contains("By position in the document"));
}
