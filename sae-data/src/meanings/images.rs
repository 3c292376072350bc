//! Rows that are parts of images: where in the image they lie.

use std::path::Path;

use crate::error::DataError;
use crate::source::{INDEX, ImageGrid, ShardIndex};

/// Most rows or columns of patches.
const MAX_SIDE: usize = 4096;

/// Where in an image a row lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImagePlace {
    /// A patch.
    Patch {
        /// Row of the grid, from the top.
        row: usize,
        /// Column of the grid, from the left.
        column: usize,
    },
    /// The class token, which stands for the whole image.
    ClassToken,
    /// A token without a place in the image, such as a register token.
    NoPlace,
}

/// The grid of a data set, if it has one.
pub(super) fn grid(path: &Path) -> Result<Option<ImageGrid>, DataError> {
    if !path.is_dir() || !path.join(INDEX).exists() {
        return Ok(None);
    }
    let Some(image) = ShardIndex::read(path)?.image else {
        return Ok(None);
    };
    if image.grid.iter().any(|side| !(1..=MAX_SIDE).contains(side)) {
        let reason = format!("a grid of {:?}; a side has 1 to {MAX_SIDE}", image.grid);
        return Err(DataError::damaged(&path.join(INDEX), "JSON", 0, reason));
    }
    Ok(Some(image))
}

/// The place of a position of the model's input.
pub(super) fn place(image: ImageGrid, position: usize) -> ImagePlace {
    let [rows, columns] = image.grid;
    match position.checked_sub(image.first_patch) {
        Some(patch) if patch < rows * columns => ImagePlace::Patch {
            row: patch / columns,
            column: patch % columns,
        },
        _ if position == 0 && image.class_token => ImagePlace::ClassToken,
        _ => ImagePlace::NoPlace,
    }
}
