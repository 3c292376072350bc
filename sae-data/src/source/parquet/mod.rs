//! Parquet, which has to be decoded: behind the feature `parquet`, because its decoders are a large dependency.
//!
//! Rows are lists of floats, or examples are lists of such rows. The crate `parquet` decodes columns into values and
//! levels (Dremel's definition and repetition levels); the levels say where rows begin and whether a value is missing.
//! Files may come from anywhere, so the claims of a file are checked before the decoder allocates memory for them:
//! `thrift.rs` walks over the footer, `pages.rs` over the page headers, `levels.rs` over the levels.
//!
//! A read begins at the page that holds its first row, and reads all wanted rows of a row group in one pass.

#[cfg(feature = "parquet")]
mod column;
#[cfg(feature = "parquet")]
mod levels;
#[cfg(feature = "parquet")]
mod opening;
#[cfg(feature = "parquet")]
mod pages;
#[cfg(feature = "parquet")]
mod reader;
#[cfg(feature = "parquet")]
mod thrift;

use super::format::{Format, Open};

const NAME: &str = "Parquet";

pub(super) static FORMAT: Format = Format {
    name: NAME,
    about: if cfg!(feature = "parquet") {
        "Parquet"
    } else {
        "Parquet (with the feature \"parquet\")"
    },
    magic: &[b"PAR1"],
    extensions: &["parquet"],
    #[cfg(feature = "parquet")]
    open: Open::Decoded(|path, files, options| {
        Ok(Box::new(reader::Parquet::open(path, files, options)?))
    }),
    #[cfg(not(feature = "parquet"))]
    open: Open::Decoded(|path, _, _| {
        Err(crate::error::DataError::NotCompiled {
            path: path.into(),
            format: NAME,
            feature: "parquet",
        })
    }),
    ..Format::UNNAMED
};
