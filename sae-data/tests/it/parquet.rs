//! Parquet: the rows of splits, and how much of a file is read for them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use ::parquet::data_type::FloatType;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use sae_data::config::HeldOut;
use sae_data::{ActivationData, DataConfig, Options};

use crate::config;
use crate::reading::count;

/// Writes `rows` of `width` into one row group, in pages of `page` bytes.
fn parquet_file(path: &Path, values: &[f32], width: usize, page: usize, dictionary: bool) {
    let schema = "message m { required group acts (LIST) { repeated group list { required float element; } } }";
    let properties = WriterProperties::builder()
        .set_data_page_size_limit(page)
        .set_write_batch_size(width)
        .set_dictionary_enabled(dictionary)
        .set_dictionary_page_size_limit(2000);
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = File::create(path).unwrap();
    let mut file = SerializedFileWriter::new(file, schema, Arc::new(properties.build())).unwrap();
    let mut group = file.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    for row in values.chunks(width) {
        let repetition: Vec<i16> = (0..width).map(|i| i16::from(i > 0)).collect();
        let writer = column.typed::<FloatType>();
        writer
            .write_batch(row, Some(&vec![1; width]), Some(&repetition))
            .unwrap();
    }
    column.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Both sides of splits, whole and in parts, against the values themselves.
    #[test]
    fn parquet_gives_the_rows_of_a_split(
        rows in 20usize..3000, width in 1usize..9, page in 40usize..4000, fraction in 0.05f64..0.95,
        at in 0.0f64..1.0, sample in 1usize..200, dictionary in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let values: Vec<f32> = (0..rows * width).map(|i| i as f32).collect();
        parquet_file(&path, &values, width, page, dictionary);
        let data = ActivationData::open(&path, &Options::default()).unwrap();
        let (train, held_out) = data.split_fraction(fraction.clamp(2.5 / rows as f64, 1.0 - 2.5 / rows as f64), 0).unwrap();
        for side in [data.spread(sample), held_out.spread(sample), train, held_out] {
            let all = side.read(0..side.rows()).unwrap();
            for row in all.chunks(width) {
                let first = row[0] as usize;
                prop_assert!(first.is_multiple_of(width));
                prop_assert_eq!(row, &values[first..first + width]);
            }
            let firsts: Vec<f32> = all.iter().step_by(width).copied().collect();
            prop_assert!(firsts.is_sorted_by(|a, b| a < b));
            let from = (at * (side.rows() - 1) as f64) as usize;
            let to = (from + 1 + sample).min(side.rows());
            prop_assert_eq!(&side.read(from..to).unwrap()[..], &all[from * width..to * width]);
            let blocks: Vec<Vec<f32>> = side.blocks(sample).collect::<Result<_, _>>().unwrap();
            prop_assert!(blocks[..blocks.len() - 1].iter().all(|block| block.len() == sample * width));
            prop_assert_eq!(blocks.concat(), all);
        }
    }
}

/// Pages of a row group are read about once by each pass, whatever is held out: not once for each stretch.
#[test]
#[cfg(target_os = "linux")]
fn one_large_row_group_is_not_read_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, width) = (40_000, 16);
    let values: Vec<f32> = (0..rows * width)
        .map(|i| (i * 7919 % 10_007) as f32)
        .collect();
    let path = dir.path().join("x.parquet");
    parquet_file(&path, &values, width, 1 << 16, false);
    let bytes = path.metadata().unwrap().len() as f64;
    for held_out in [
        HeldOut::default(),
        HeldOut::Fraction {
            fraction: 0.5,
            seed: 1,
        },
        HeldOut::Rows {
            rows: [10_000, 14_000],
        },
    ] {
        let config = DataConfig {
            held_out,
            ..config(&path)
        };
        let (checked, streamed) = count(&config);
        // each side may read every page once; where a read begins and ends, a page is read twice
        assert!(
            (checked as f64) < 4.0 * bytes,
            "{:?}: {checked} of {bytes} bytes",
            config.held_out
        );
        assert!(
            (streamed as f64) < 6.0 * bytes,
            "{:?}: {streamed} of {bytes} bytes",
            config.held_out
        );
    }
}
