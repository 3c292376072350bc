//! The meanings of rows: read as they were exported, mapped through splits, kept by a conversion.

mod refused;
mod visit;

use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use sae_data::convert::{Conversion, convert};
use sae_data::{ActivationData, Element, ImagePlace, Meanings, Options, Per};
use serde_json::Value;

use crate::{f32_bytes, npy, write};

fn open(path: &Path) -> ActivationData {
    ActivationData::open(path, &Options::default()).unwrap()
}

/// The exports that tests/python/write_meanings.py has written: path, and what it says of them.
fn exports() -> Vec<(PathBuf, Value)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/meanings");
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let said = entries.map(|entry| entry.path());
    let said = said.filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });
    said.map(|path| {
        let value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        (path.with_extension(""), value)
    })
    .collect()
}

fn number(value: &Value) -> Option<usize> {
    value.as_u64().map(|n| n as usize)
}

/// Compares rows with what the writer said of them: `row_of` gives the numbers of rows in the whole data set.
fn compare(meanings: &Meanings, rows: usize, number_of: impl Fn(usize) -> usize, said: &Value) {
    let grid = meanings.image_grid().map(|image| image.grid);
    assert_eq!(
        grid,
        said["grid"]
            .as_array()
            .map(|g| [number(&g[0]).unwrap(), number(&g[1]).unwrap()])
    );
    for row in 0..rows {
        let expected = &said["rows"][number_of(row)];
        let found = meanings.row(row).unwrap();
        assert_eq!(found.number, number_of(row));
        assert_eq!(
            (found.document, found.position),
            (number(&expected[0]), number(&expected[1]))
        );
        assert_eq!(
            found.token.as_ref().map(|token| token.id),
            expected[2].as_i64()
        );
        assert_eq!(
            found.token.and_then(|token| token.text).as_deref(),
            expected[3].as_str()
        );
        let document = found.document.unwrap();
        let text = meanings.text(row).unwrap().map(|text| text.text);
        assert_eq!(text.as_deref(), said["texts"][document].as_str());
        let thumbnail = meanings.thumbnail(row).unwrap();
        assert_eq!(thumbnail.is_some(), said["colors"].is_array());
        if let Some(thumbnail) = thumbnail {
            assert_eq!(
                (
                    thumbnail.media_type.name(),
                    thumbnail.width,
                    thumbnail.height
                ),
                ("image/jpeg", 32, 32)
            );
        }
        let expected = grid.and(found.position).map(|position| match position {
            0 => ImagePlace::ClassToken,
            n => ImagePlace::Patch {
                row: (n - 1) / 4,
                column: (n - 1) % 4,
            },
        });
        assert_eq!(found.place, expected);
    }
}

#[test]
fn every_mode_of_the_exporter_is_read() {
    let exports = exports();
    assert_eq!(exports.len(), 13);
    for (path, said) in exports {
        let data = open(&path);
        assert_eq!(
            data.rows(),
            said["rows"].as_array().unwrap().len(),
            "{}",
            path.display()
        );
        let meanings = data.meanings().unwrap();
        assert_eq!(meanings.has_tokens(), said["rows"][0][2].is_number());
        compare(&meanings, data.rows(), |row| row, &said);
    }
}

#[test]
fn a_conversion_keeps_what_rows_are() {
    let dir = tempfile::tempdir().unwrap();
    for (path, said) in exports() {
        let to = dir.path().join(path.file_name().unwrap());
        let conversion = Conversion {
            element: Element::F32,
            shard_rows: 5,
        };
        convert(&open(&path), &to, conversion, |_| {}).unwrap();
        let copy = open(&to);
        compare(&copy.meanings().unwrap(), copy.rows(), |row| row, &said);
        // and again, from the conversion
        let again = dir.path().join("again");
        convert(&copy, &again, conversion, |_| {}).unwrap();
        compare(
            &open(&again).meanings().unwrap(),
            copy.rows(),
            |row| row,
            &said,
        );
        std::fs::remove_dir_all(&again).unwrap();
    }
}

#[test]
fn both_sides_of_a_split_know_their_rows() {
    for (path, said) in exports() {
        let data = open(&path);
        if data.rows() < 4 {
            continue; // each side needs two rows
        }
        let (train, held_out) = data.split_fraction(0.5, 1).unwrap();
        for side in [train, held_out] {
            let meanings = side.meanings().unwrap();
            let numbers = side.rows_in_source(0..side.rows());
            compare(&meanings, side.rows(), |row| numbers[row], &said);
        }
    }
}

/// 3 documents of 4, 1 and 3 rows: token `10 d + p` at position `p + 1`, row `r` has norm `r + 1`.
fn tokens(dir: &Path) -> PathBuf {
    let rows: Vec<(i64, i32)> = [4, 1, 3]
        .iter()
        .zip(0..)
        .flat_map(|(len, d)| (0..*len).map(move |p| (d, p)))
        .collect();
    let words =
        |f: &dyn Fn(&(i64, i32)) -> i32| rows.iter().flat_map(|row| f(row).to_le_bytes()).collect();
    let path = dir.join("x.safetensors");
    let values: Vec<f32> = (1..=rows.len()).map(|norm| norm as f32).collect();
    let documents = rows
        .iter()
        .flat_map(|(d, _)| (7 * d).to_le_bytes())
        .collect();
    write(
        &path,
        &[
            ("activations", Dtype::F32, vec![8, 1], f32_bytes(&values)),
            ("doc", Dtype::I64, vec![8], documents),
            (
                "tokens",
                Dtype::I32,
                vec![8],
                words(&|(d, p)| 10 * *d as i32 + p),
            ),
            ("positions", Dtype::I32, vec![8], words(&|(_, p)| p + 1)),
        ],
    );
    path
}

#[test]
fn a_neighbourhood_has_the_rows_of_the_document_and_names_those_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = tokens(dir.path());
    std::fs::write(dir.path().join("x.vocab.json"), r#"["a", " b", null, "d"]"#).unwrap();
    let data = open(&path);
    let limit = sae_data::MaxNorm::Norm(7.5); // leaves out the last row
    let within = data.within(limit.number().unwrap(), |_| {}).unwrap();
    assert_eq!(within.rows(), 7);
    let meanings = within.meanings().unwrap();
    let around = meanings.around(1, usize::MAX, usize::MAX).unwrap().unwrap();
    assert_eq!((around.own, around.before, around.after), (1, 0, 0));
    let shown: Vec<String> = around
        .rows
        .iter()
        .map(|row| row.token.as_ref().unwrap().to_string())
        .collect();
    assert_eq!(shown, ["a", " b", "2", "d"]);
    let around = meanings.around(2, 1, 0).unwrap().unwrap();
    assert_eq!(
        (around.rows.len(), around.own, around.before, around.after),
        (2, 1, 1, 1)
    );
    let around = meanings.around(6, 9, 9).unwrap().unwrap();
    let rows: Vec<_> = around.rows.iter().map(|row| row.row).collect();
    assert_eq!(rows, [Some(5), Some(6), None]);
    assert_eq!(around.rows[2].token.as_ref().unwrap().id, 22);
    assert_eq!(around.rows[2].position, Some(3));
    let left_out = within.left_out().unwrap().meanings().unwrap();
    assert_eq!(left_out.row(0).unwrap().number, 7);
}

#[test]
fn examples_have_positions_and_tokens_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    npy(&path, "<f4", &[3, 4, 1], &f32_bytes(&[1.0; 12]));
    std::fs::write(
        dir.path().join("x.texts.jsonl"),
        "{\"text\": \"a\"}\n{\"text\": \"b\", \"label\": 1}\n{\"text\": \"c\"}",
    )
    .unwrap();
    let ids: Vec<u8> = (0..12i64).flat_map(i64::to_le_bytes).collect();
    write(
        &dir.path().join("x.tokens.safetensors"),
        &[("tokens", Dtype::I64, vec![3, 4], ids)],
    );
    for drop_first_token in [false, true] {
        let options = Options {
            drop_first_token,
            ..Options::default()
        };
        let data = ActivationData::open(&path, &options).unwrap();
        let meanings = data.meanings().unwrap();
        assert_eq!(meanings.texts(), Some((3, Per::Document)));
        let skipped = usize::from(drop_first_token);
        for row in 0..data.rows() {
            let (document, place) = (row / (4 - skipped), row % (4 - skipped) + skipped);
            let found = meanings.row(row).unwrap();
            assert_eq!(
                (found.document, found.position),
                (Some(document), Some(place))
            );
            assert_eq!(found.token.unwrap().id as usize, 4 * document + place);
            assert_eq!(
                meanings.text(row).unwrap().unwrap().text,
                ["a", "b", "c"][document]
            );
        }
    }
}

#[test]
fn the_samples_of_this_repository_say_what_their_rows_are() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
    for (name, rows) in [("train", 12_796), ("heldout", 2_404)] {
        let data = open(&samples.join(format!("wordnet_minilm/{name}.safetensors")));
        assert_eq!(data.meanings().unwrap().texts(), Some((rows, Per::Row)));
    }
    let data = open(&samples.join("smollm2/heldout.safetensors"));
    let meanings = data.meanings().unwrap();
    let documents = data.info().documents.as_ref().unwrap();
    assert_eq!(meanings.texts(), Some((documents.count(), Per::Document)));
    for document in 0..documents.count() {
        let row = documents.start(document);
        assert_eq!(
            meanings.row(row).unwrap().position,
            Some(1),
            "position 0 is left out"
        );
        // the tokens, one after the other, are the text from the second token on, up to the context
        let around = meanings.around(row, 0, usize::MAX).unwrap().unwrap();
        let tokens = around
            .rows
            .into_iter()
            .map(|row| row.token.unwrap().to_string());
        let (tokens, text) = (
            tokens.collect::<String>(),
            meanings.text(row).unwrap().unwrap(),
        );
        let start = text.text.find(&tokens).expect("the tokens are in the text");
        assert!((1..16).contains(&start), "document {document}: {start}");
    }
}

#[test]
fn rows_without_anything_have_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    npy(&path, "<f4", &[3, 1], &f32_bytes(&[1.0; 3]));
    for data in [open(&path), ActivationData::from_rows(vec![1.0; 3], 1)] {
        let meanings = data.meanings().unwrap();
        assert!(meanings.is_empty());
        let row = meanings.row(2).unwrap();
        assert_eq!(
            (row.number, row.document, row.position, row.token),
            (2, None, None, None)
        );
        assert_eq!(meanings.text(0).unwrap(), None);
        assert_eq!(meanings.thumbnail(0).unwrap(), None);
        assert_eq!(meanings.around(0, 1, 1).unwrap(), None);
    }
}

#[test]
fn files_beside_the_data_are_no_data() {
    let dir = tempfile::tempdir().unwrap();
    npy(
        &dir.path().join("part-1.npy"),
        "<f4",
        &[3, 1],
        &f32_bytes(&[1.0; 3]),
    );
    let ids = [4i32, 5, 6]
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    write(
        &dir.path().join("tokens.safetensors"),
        &[("tokens", Dtype::I32, vec![3], ids)],
    );
    std::fs::write(dir.path().join("vocab.json"), "[\"aa\", \"{\"]").unwrap();
    std::fs::write(
        dir.path().join("texts.jsonl"),
        "{\"text\": \"\"}\n".repeat(3),
    )
    .unwrap();
    let data = open(dir.path());
    assert_eq!(data.info().files.len(), 1);
    let meanings = data.meanings().unwrap();
    assert_eq!(meanings.row(2).unwrap().token.unwrap().to_string(), "6");
    assert_eq!(meanings.texts(), Some((3, Per::Row)));
}
