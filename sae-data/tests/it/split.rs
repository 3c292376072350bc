//! Splits and samples: their rows, their fingerprints, and keys that do not apply to the data.

use std::path::Path;

use ::safetensors::Dtype;
use proptest::prelude::*;
use sae_data::config::HeldOut;
use sae_data::{ActivationData, DataConfig, Fingerprint, Options};

use crate::{config, f32_bytes, npy, numbered, write};

fn rows_of(data: &ActivationData) -> Vec<usize> {
    let values = data.read(0..data.rows()).unwrap();
    values
        .iter()
        .step_by(data.width())
        .map(|v| *v as usize)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Of the whole and of a side of a split: so many rows, in order, none twice, all of them of that side, in few
    /// stretches that are spread from one end to the other.
    #[test]
    fn a_sample_is_spread_over_its_rows(rows in 2usize..6000, sample in 1usize..6000, seed in 0u64..4) {
        let dir = tempfile::tempdir().unwrap();
        let data = ActivationData::open(&numbered(dir.path(), rows.max(30), 1), &Options::default()).unwrap();
        let (train, held_out) = data.split_fraction(0.3, seed).unwrap();
        for side in [data, train, held_out] {
            let all = rows_of(&side);
            let found = rows_of(&side.spread(sample));
            prop_assert_eq!(found.len(), sample.min(all.len()));
            prop_assert!(found.is_sorted_by(|a, b| a < b));
            prop_assert!(found.iter().all(|row| all.binary_search(row).is_ok()));
            prop_assert_eq!(&rows_of(&side.spread(sample)), &found);
            let places: Vec<usize> = found.iter().map(|row| all.binary_search(row).unwrap()).collect();
            let stretches = 1 + places.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
            prop_assert!(stretches <= 128, "{} stretches", stretches);
            // every eighth of the rows has its eighth of the sample, to within two stretches
            let part = found.len() as f64 / 8.0;
            let slack = 2.0 * (found.len() as f64 / 128.0).max(1.0);
            for eighth in 0..8 {
                let bounds = all.len() * eighth / 8..all.len() * (eighth + 1) / 8;
                let inside = places.iter().filter(|place| bounds.contains(place)).count() as f64;
                prop_assert!((inside - part).abs() <= slack, "eighth {}: {} of {}", eighth, inside, found.len());
            }
        }
    }
}

#[test]
fn no_rows_cannot_be_split() {
    let none = ActivationData::from_rows(Vec::new(), 3);
    let message = none.split_fraction(0.1, 0).unwrap_err().to_string();
    assert!(message.contains("each needs at least 2"), "{message}");
}

fn side(config: &DataConfig) -> [Fingerprint; 2] {
    let split = config.open().unwrap();
    [
        split.train.fingerprint().unwrap(),
        split.held_out.fingerprint().unwrap(),
    ]
}

#[test]
fn a_fingerprint_says_which_rows() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&numbered(dir.path(), 500, 3));
    let with = |held_out| DataConfig {
        held_out,
        ..config.clone()
    };
    let fraction = |seed| HeldOut::Fraction {
        fraction: 0.1,
        seed,
    };
    let then = side(&with(fraction(0)));
    assert_eq!(side(&with(fraction(0))), then);
    for (then, now) in then.iter().zip(side(&with(fraction(1)))) {
        assert_eq!(then.rows, now.rows);
        assert!(!then.same_data(&now));
        let words = then.difference(&now).unwrap();
        assert_eq!(
            words,
            "it has as many rows of the same files, but other rows: the split has changed"
        );
    }
    let rows = side(&with(HeldOut::Rows { rows: [0, 49] }));
    assert_eq!(
        then[1].difference(&rows[1]).unwrap(),
        "it had 50 rows, now 49"
    );
}

#[test]
fn an_older_fingerprint_compares_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let now = &side(&config(&numbered(dir.path(), 500, 3)))[0];
    let mut old = serde_json::to_value(now).unwrap();
    for key in ["rows_blake3", "tensor", "drop_first_token"] {
        assert!(old.as_object_mut().unwrap().remove(key).is_some(), "{key}");
    }
    let old: Fingerprint = serde_json::from_value(old).unwrap();
    assert!(old.same_data(now) && now.same_data(&old));
    assert_eq!(old.rows_blake3, None);
}

#[test]
fn options_are_part_of_a_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("two.safetensors");
    let tensor = |name| (name, Dtype::F32, vec![4, 5, 2], f32_bytes(&[1.0; 40]));
    write(&path, &[tensor("a"), tensor("b")]);
    let of = |name: &str, drop_first_token| {
        let tensor = Some(name.into());
        let options = Options {
            tensor,
            drop_first_token,
            ..Options::default()
        };
        ActivationData::open(&path, &options)
            .unwrap()
            .fingerprint()
            .unwrap()
    };
    let says = |then: &Fingerprint, now: &Fingerprint| then.difference(now).unwrap();
    let a = of("a", false);
    assert_eq!(
        says(&a, &of("b", false)),
        "it was the tensor \"a\", now \"b\""
    );
    assert_eq!(
        says(&a, &of("a", true)),
        "position 0 of each example is left out, it was not before"
    );
    assert_eq!(
        says(&of("a", true), &a),
        "position 0 of each example was left out, it is not now"
    );
    let other = dir.path().join("b").join("two.safetensors");
    std::fs::create_dir(other.parent().unwrap()).unwrap();
    write(
        &other,
        &[
            tensor("a"),
            ("b", Dtype::F32, vec![4, 5, 2], f32_bytes(&[2.0; 40])),
        ],
    );
    let other = ActivationData::open(
        &other,
        &Options {
            tensor: Some("a".into()),
            ..Options::default()
        },
    );
    assert_eq!(
        says(&a, &other.unwrap().fingerprint().unwrap()),
        "its files have other names or contents"
    );
    let layer = |layer| Fingerprint {
        layer: Some(layer),
        ..a.clone()
    };
    assert_eq!(says(&layer(3), &layer(5)), "it was layer 3, now 5");
}

#[test]
fn later_labels_do_not_change_a_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let before = config(&numbered(dir.path(), 40, 3));
    let labels = dir.path().join("l.npy");
    npy(&labels, "|u1", &[40], &[1; 40]);
    let after = DataConfig {
        labels: Some(labels),
        ..before.clone()
    };
    assert!(after.open().unwrap().train.has_labels());
    assert_eq!(side(&before), side(&after));
}

/// The message of a config that must not open.
fn refused(config: &DataConfig) -> String {
    let message = config.open().expect_err("refused").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn keys_that_do_not_apply_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let named = numbered(dir.path(), 40, 3);
    let plain = dir.path().join("x.npy");
    npy(
        &plain,
        "<f4",
        &[40, 3],
        &f32_bytes(&(0..120).map(|i| i as f32).collect::<Vec<_>>()),
    );
    let of_named = config(&named);
    let of_plain = config(&plain);
    type Change = fn(&mut DataConfig);
    let changes: [(&DataConfig, Change, &str); 7] = [
        (
            &of_named,
            |config| config.held_out_labels = Some("l.npy".into()),
            "data.held_out_labels = \"l.npy\": what is held out is a part",
        ),
        (
            &of_named,
            |config| config.class_names = Some("l.npy".into()),
            "data.class_names = \"l.npy\": there are no classes to name",
        ),
        (
            &of_plain,
            |config| config.tensor = Some("x".into()),
            "data.tensor = \"x\":",
        ),
        (
            &of_plain,
            |config| config.layer = Some(3),
            "data.layer = 3:",
        ),
        (
            &of_named,
            |config| config.window_mb = 1 << 44,
            "data.window_mb = 17592186044416: must be at most 16777216",
        ),
        (
            &of_named,
            |config| config.workers = Some(100_000),
            "data.workers = 100000: must be at most 1024",
        ),
        (
            &of_named,
            |config| config.block_rows = Some(0),
            "data.block_rows = 0: must be at least 1",
        ),
    ];
    for (config, change, says) in changes {
        let mut config = config.clone();
        change(&mut config);
        let message = refused(&config);
        assert!(message.starts_with(says), "{message}");
    }
}

#[test]
fn the_name_of_a_tensor_may_apply_to_one_side_only() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("x.npy");
    npy(&plain, "<f4", &[40, 3], &f32_bytes(&[1.5; 120]));
    let both = DataConfig {
        tensor: Some("activations".into()),
        held_out: HeldOut::Path(plain),
        ..config(&numbered(dir.path(), 40, 3))
    };
    assert_eq!(both.open().unwrap().held_out.rows(), 40);
}

#[test]
fn saev_has_no_tensors_to_choose_from() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/saev");
    let shards = std::fs::read_dir(corpus)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let options = Options {
        tensor: Some("x".into()),
        layer: Some(8),
        ..Options::default()
    };
    let message = ActivationData::open(&shards, &options)
        .expect_err("refused")
        .to_string();
    assert!(message.starts_with("tensor = \"x\":"), "{message}");
}

#[test]
fn one_row_is_too_few() {
    let dir = tempfile::tempdir().unwrap();
    let ten = config(&numbered(dir.path(), 10, 3));
    let message = refused(&ten);
    assert!(
        message.starts_with("data.held_out = { fraction = 0.1 }: "),
        "{message}"
    );
    assert!(
        message.contains(
            "with 10 rows, 1 would be held out and 9 left to train on; each needs at least 2"
        ),
        "{message}"
    );
    let rows = |rows| DataConfig {
        held_out: HeldOut::Rows { rows },
        ..ten.clone()
    };
    assert!(refused(&rows([1, 10])).contains("9 would be held out and 1 left to train on"));
    assert_eq!(rows([1, 3]).open().unwrap().held_out.rows(), 2);
    let one = dir.path().join("one.npy");
    npy(&one, "<f4", &[1, 3], &f32_bytes(&[1.0, 2.0, 3.0]));
    let path = DataConfig {
        held_out: HeldOut::Path(one.clone()),
        ..ten.clone()
    };
    assert!(
        refused(&path).starts_with("data.held_out = "),
        "{}",
        refused(&path)
    );
    let train = DataConfig {
        train: one,
        held_out: HeldOut::Path(ten.train.clone()),
        ..ten
    };
    assert!(
        refused(&train).starts_with("data.train = "),
        "{}",
        refused(&train)
    );
}

#[test]
fn paths_become_absolute() {
    let relative: DataConfig = serde_json::from_value(serde_json::json!({
        "train": "a.npy", "held_out": "b/c.npy", "labels": "l.npy", "held_out_labels": "/m.npy",
        "class_embeddings": "e.npy", "class_names": "n.json",
    }))
    .unwrap();
    let here = std::env::current_dir().unwrap();
    let absolute = relative.absolute();
    assert_eq!(absolute.train, here.join("a.npy"));
    assert_eq!(absolute.held_out, HeldOut::Path(here.join("b/c.npy")));
    assert_eq!(absolute.labels, Some(here.join("l.npy")));
    assert_eq!(absolute.held_out_labels, Some("/m.npy".into()));
    assert_eq!(absolute.class_embeddings, Some(here.join("e.npy")));
    assert_eq!(absolute.class_names, Some(here.join("n.json")));
    assert_eq!(absolute.absolute(), absolute);
}

#[test]
fn documents_of_unrelated_files_are_not_joined() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        let zeros = ("doc", Dtype::I64, vec![4], vec![0; 32]);
        let x = ("x", Dtype::F32, vec![4, 2], f32_bytes(&[1.0; 8]));
        write(&dir.path().join(format!("{name}.safetensors")), &[x, zeros]);
    }
    let data = ActivationData::open(dir.path(), &Options::default()).unwrap();
    assert_eq!(data.info().documents.as_ref().unwrap().count(), 3);
}
