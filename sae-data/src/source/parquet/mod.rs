//! Parquet, which has to be decoded: behind the feature `parquet`, because its decoders are a large dependency.
//!
//! Rows are lists of floats, or examples are lists of such rows. To the rest of the crate a column of a row group is a
//! store of its decoded values, without nulls and at equal distances, so rows are found in it as in a file (`column.rs`).
//! The levels of the values (Dremel's definition and repetition levels) say where rows begin and whether a value is
//! missing; they are checked page by page while values are read, and then forgotten (`levels.rs`).
//!
//! Files may come from anywhere, so the claims of a file are checked before the decoder allocates memory for them:
//! `thrift.rs` walks over the footer, `pages.rs` over the page headers.

#[cfg(feature = "parquet")]
mod column;
#[cfg(feature = "parquet")]
mod levels;
#[cfg(feature = "parquet")]
mod opening;
#[cfg(feature = "parquet")]
mod pages;
#[cfg(feature = "parquet")]
mod thrift;
#[cfg(feature = "parquet")]
mod tokens;

use super::format::Format;

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
    add: opening::add,
    #[cfg(not(feature = "parquet"))]
    add: |_, file, _| {
        Err(crate::error::DataError::NotCompiled {
            path: file.path.clone(),
            format: NAME,
            feature: "parquet",
        })
    },
    #[cfg(feature = "parquet")]
    row_integers: Some(tokens::find),
    ..Format::UNNAMED
};
