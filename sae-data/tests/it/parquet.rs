//! Parquet: the rows of splits, and how much of a file is read for them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use ::parquet::data_type::{FloatType, Int32Type};
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

/// Writes examples of these numbers of rows of width 2, each with a list of so many token ids: 0, 1, 2, ...
fn with_tokens(path: &Path, rows: &[usize], tokens: &[usize]) {
    let schema = "message m { \
        required group acts (LIST) { repeated group list { required group element (LIST) { \
            repeated group list { required float element; } } } } \
        required group token_ids (LIST) { repeated group list { required int32 element; } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = File::create(path).unwrap();
    let mut file = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut first = 0;
    for (rows, tokens) in rows.chunks(3).zip(tokens.chunks(3)) {
        let mut group = file.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let levels = rows
            .iter()
            .flat_map(|n| (0..2 * n).map(|i| if i == 0 { 0 } else { 1 + (i % 2) as i16 }));
        let levels: Vec<i16> = levels.collect();
        let whole = vec![2; levels.len()];
        let values: Vec<f32> = (0..levels.len()).map(|i| i as f32).collect();
        let writer = column.typed::<FloatType>();
        writer
            .write_batch(&values, Some(&whole), Some(&levels))
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let levels: Vec<i16> = tokens
            .iter()
            .flat_map(|n| (0..*n).map(|i| i16::from(i > 0)))
            .collect();
        let ids: Vec<i32> = (first..).take(levels.len()).collect();
        first += levels.len() as i32;
        let writer = column.typed::<Int32Type>();
        writer
            .write_batch(&ids, Some(&vec![1; ids.len()]), Some(&levels))
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    file.close().unwrap();
}

#[test]
fn a_token_belongs_to_each_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let lengths = [3, 1, 4, 2, 5, 2, 6];
    with_tokens(&path, &lengths, &lengths);
    for drop_first_token in [false, true] {
        let options = Options {
            drop_first_token,
            ..Options::default()
        };
        let data = ActivationData::open(&path, &options).unwrap();
        let meanings = data.meanings().unwrap();
        let ids = (0..data.rows()).map(|row| meanings.row(row).unwrap().token.unwrap().id);
        let starts = lengths.iter().scan(0, |at, length| {
            *at += length;
            Some(*at - length)
        });
        let starts: Vec<usize> = starts.collect();
        let kept = |row: &usize| !drop_first_token || !starts.contains(row);
        let expected: Vec<i64> = (0..23).filter(kept).map(|row| row as i64).collect();
        assert_eq!(ids.collect::<Vec<i64>>(), expected);
    }
}

#[test]
fn other_numbers_of_tokens_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let lengths = [3, 1, 4, 2, 5, 2, 6];
    for (tokens, count) in [
        ([3, 1, 4, 2, 5, 2, 5], 22),
        ([3, 1, 5, 2, 5, 2, 5], 23), // as many as rows, but not in the same examples
        ([30, 10, 40, 20, 50, 20, 60], 80),
    ] {
        with_tokens(&path, &lengths, &tokens);
        let data = ActivationData::open(&path, &Options::default()).unwrap();
        let message = data.meanings().unwrap_err().to_string();
        let expected = format!("{count} tokens for 23 rows");
        assert!(message.contains(&expected), "{message}");
    }
}
