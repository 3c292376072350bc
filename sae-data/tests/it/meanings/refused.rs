//! Files about rows that are wrong: refused, with the file and the place.

use ::safetensors::Dtype;
use sae_data::convert::{Conversion, convert};
use sae_data::{ActivationData, DataError, Element, Text};
use serde_json::json;

use super::{open, tokens};
use crate::{f32_bytes, npy, write};

fn error(data: &ActivationData) -> String {
    data.meanings().unwrap_err().to_string()
}

#[test]
fn wrong_numbers_of_entries_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = tokens(dir.path());
    let texts = dir.path().join("x.texts.jsonl");
    std::fs::write(&texts, "{\"text\": \"\"}\n".repeat(4)).unwrap();
    assert!(matches!(
        open(&path).meanings(),
        Err(DataError::Meanings {
            entries: 4,
            rows: 8,
            documents: Some(3),
            ..
        })
    ));
    for lines in [3, 8] {
        std::fs::write(&texts, "{\"text\": \"\"}\n".repeat(lines)).unwrap();
        assert_eq!(open(&path).meanings().unwrap().texts().unwrap().0, lines);
    }
    std::fs::remove_file(&texts).unwrap();
    for name in ["tokens", "positions"] {
        let wrong = dir.path().join("wrong.safetensors");
        let ids = vec![0; 4 * 7];
        write(
            &wrong,
            &[
                ("x", Dtype::F32, vec![8, 1], f32_bytes(&[1.0; 8])),
                (name, Dtype::I32, vec![7], ids),
            ],
        );
        let said = error(&open(&wrong));
        assert!(
            said.contains("wrong.safetensors") && said.contains(&format!("7 {name} for 8 rows")),
            "{said}"
        );
    }
    // a tensor of floats has the name by chance
    let floats = dir.path().join("floats.safetensors");
    write(
        &floats,
        &[
            ("x", Dtype::F32, vec![8, 1], f32_bytes(&[1.0; 8])),
            ("tokens", Dtype::F32, vec![7], f32_bytes(&[0.0; 7])),
        ],
    );
    assert!(!open(&floats).meanings().unwrap().has_tokens());
}

#[test]
fn lines_that_are_no_texts_are_refused_with_their_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    npy(&path, "<f4", &[6, 1], &f32_bytes(&[1.0; 6]));
    let texts = dir.path().join("x.texts.jsonl");
    let long = json!({ "text": "é".repeat(Text::MAX) }).to_string();
    let lines = [
        "{\"text\": \"ok\"}",
        "no JSON",
        "{\"text\": 3}",
        "",
        "[\"text\"]",
        &long,
    ];
    std::fs::write(&texts, lines.join("\n")).unwrap();
    let data = open(&path);
    let meanings = data.meanings().unwrap();
    assert_eq!(meanings.text(0).unwrap().unwrap().text, "ok");
    for row in 1..5 {
        let error = meanings.text(row).unwrap_err();
        assert!(
            matches!(error, DataError::Line { line, .. } if line == row + 1),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains(&format!("x.texts.jsonl, line {}: ", row + 1)),
            "{error}"
        );
    }
    let text = meanings.text(5).unwrap().unwrap();
    assert_eq!((text.text.len(), text.whole), (Text::MAX, false));
    let conversion = Conversion {
        element: Element::F32,
        shard_rows: 5,
    };
    let to = dir.path().join("to");
    assert!(matches!(
        convert(&data, &to, conversion, |_| {}),
        Err(DataError::Line { line: 2, .. })
    ));
    std::fs::write(&texts, "{\"text\": \"ok\"}\n".repeat(6)).unwrap();
    assert!(matches!(meanings.text(0), Err(DataError::Changed { .. })));
}

#[test]
fn vocabularies_and_thumbnails_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = tokens(dir.path());
    let vocabulary = dir.path().join("vocab.json");
    for wrong in ["{\"a\": 0}", "[1]", "[\"a\"", "\"a\""] {
        std::fs::write(&vocabulary, wrong).unwrap();
        let said = error(&open(&path));
        assert!(said.contains("vocab.json"), "{said}");
    }
    std::fs::write(&vocabulary, json!(["x".repeat(10_000)]).to_string()).unwrap();
    let meanings = open(&path).meanings().unwrap();
    assert_eq!(
        meanings.row(0).unwrap().token.unwrap().text.unwrap().len(),
        256
    );

    let thumbnails = dir.path().join("x.thumbnails");
    std::fs::create_dir(&thumbnails).unwrap();
    let png = |side: u32| {
        let size = [side.to_be_bytes(), 9u32.to_be_bytes()].concat();
        [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", &size[..]].concat()
    };
    let wrong = [
        b"GIF89a".to_vec(),
        b"\xff\xd8\xff\xe0\0\0".to_vec(),
        png(5000),
        png(0),
        vec![0; (1 << 20) + 1],
    ];
    for bytes in wrong {
        std::fs::write(thumbnails.join("1.jpg"), bytes).unwrap();
        let meanings = open(&path).meanings().unwrap();
        let error = meanings.thumbnail(4).unwrap_err();
        assert!(error.to_string().contains("1.jpg"), "{error}");
        assert_eq!(
            meanings.thumbnail(0).unwrap(),
            None,
            "one that is missing is no error"
        );
    }
    std::fs::write(thumbnails.join("1.jpg"), png(7)).unwrap();
    let found = open(&path)
        .meanings()
        .unwrap()
        .thumbnail(4)
        .unwrap()
        .unwrap();
    assert_eq!(
        (found.media_type.name(), found.width, found.height),
        ("image/png", 7, 9)
    );
}
