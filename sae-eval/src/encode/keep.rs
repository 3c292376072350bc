//! Which entries of a batch's codes are written: `--latents`, `--top`, and never zeros.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sae_model::SparseCodes;

/// Bytes of the longest list of latents that is read.
const MAX_LIST: u64 = 64 << 20;

/// The entries to keep.
#[derive(Debug, Default)]
pub(crate) struct Keep {
    /// Whether each latent is kept; `None` for all.
    latents: Option<Vec<bool>>,
    /// The number of entries of a row, largest first; `None` for all.
    top: Option<usize>,
}

/// Entries of consecutive rows. Latents ascend within a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Entries {
    /// Entries of row i are `offsets[i]..offsets[i + 1]`; begins with 0.
    pub(crate) offsets: Vec<usize>,
    /// Latent of each entry.
    pub(crate) latents: Vec<u32>,
    /// Value of each entry.
    pub(crate) values: Vec<f32>,
}

impl Entries {
    /// Leaves out the first `rows` rows.
    pub(crate) fn drop_first(&mut self, rows: usize) {
        let first = self.offsets[rows];
        self.latents.drain(..first);
        self.values.drain(..first);
        self.offsets.drain(..rows);
        self.offsets.iter_mut().for_each(|offset| *offset -= first);
    }

    /// Replaces every value by `round` of it, and leaves out entries that become zero.
    pub(crate) fn rounded(self, round: impl Fn(f32) -> f32) -> Self {
        let mut rounded = Self {
            offsets: vec![0],
            ..Self::default()
        };
        for row in self.offsets.windows(2) {
            for entry in row[0]..row[1] {
                let value = round(self.values[entry]);
                if value != 0.0 {
                    rounded.latents.push(self.latents[entry]);
                    rounded.values.push(value);
                }
            }
            rounded.offsets.push(rounded.latents.len());
        }
        rounded
    }
}

impl Keep {
    /// Keeps these latents (`None`: all of the `count`), and of each row the `top` largest values (`None`: all).
    pub(crate) fn new(latents: Option<&[u32]>, top: Option<usize>, count: usize) -> Self {
        let latents = latents.map(|list| {
            let mut kept = vec![false; count];
            list.iter().for_each(|j| kept[*j as usize] = true);
            kept
        });
        Self { latents, top }
    }

    /// Returns true if all entries that are not zero are kept.
    pub(crate) fn is_everything(&self) -> bool {
        self.latents.is_none() && self.top.is_none()
    }

    /// The entries to keep.
    pub(crate) fn of(&self, codes: &SparseCodes) -> Entries {
        let (values, latents) = (codes.host_values(), codes.pattern.indices());
        let is_kept = |entry: &usize| {
            let kept = self.latents.as_ref();
            values[*entry] != 0.0 && kept.is_none_or(|kept| kept[latents[*entry] as usize])
        };
        let mut entries = Entries {
            offsets: vec![0],
            ..Entries::default()
        };
        let mut row = Vec::new();
        for number in 0..codes.pattern.rows() {
            row.clear();
            row.extend(codes.pattern.row(number).filter(is_kept));
            if let Some(top) = self.top.filter(|top| *top < row.len()) {
                // Entries ascend by latent, so that of equal values the lower latent is kept.
                let order = |a: &usize, b: &usize| values[*b].total_cmp(&values[*a]).then(a.cmp(b));
                row.select_nth_unstable_by(top, order);
                row.truncate(top);
                row.sort_unstable();
            }
            entries.latents.extend(row.iter().map(|at| latents[*at]));
            entries.values.extend(row.iter().map(|at| values[*at]));
            entries.offsets.push(entries.latents.len());
        }
        entries
    }
}

/// The latents that `text` names: a list such as `3,17,40-60`, or a file with numbers and ranges, separated by commas
/// or white space. In ascending order, each once.
///
/// # Errors
/// If it is neither, or names no latent or one that a model with `count` latents does not have.
pub(crate) fn named(text: &str, count: usize) -> Result<Vec<u32>> {
    let is_list = text
        .chars()
        .all(|c| c.is_ascii_digit() || ",- ".contains(c));
    let list = match is_list && !Path::new(text).exists() {
        true => text.to_string(),
        false => sae_run::read_text(Path::new(text), MAX_LIST).with_context(|| {
            format!("--latents {text}: neither a list such as 3,17,40-60 nor a file of one")
        })?,
    };
    let words = list.split(|c: char| c == ',' || c.is_whitespace());
    let mut latents = BTreeSet::new();
    for word in words.filter(|word| !word.is_empty()) {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else {
            bail!("--latents {text}: {word:?} is neither a latent nor a range such as 40-60");
        };
        ensure!(
            first <= last,
            "--latents {text}: {word} is empty; a range such as 40-60 begins with its smaller number"
        );
        ensure!(
            (last as usize) < count,
            "--latents {text}: there is no latent {last}; the model has latents 0 to {}",
            count - 1
        );
        latents.extend(first..=last);
    }
    ensure!(!latents.is_empty(), "--latents {text}: it names no latent");
    Ok(latents.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn codes() -> SparseCodes {
        let dense = [
            0.0, 3.0, 1.0, 0.0, 3.0, // two equal values
            0.0, 0.0, 0.0, 0.0, 0.0, // nothing
            -5.0, 0.5, 0.0, -1.0, 0.25, // scores may be negative
        ];
        SparseCodes::from_dense(&dense, 5, &Device::flex())
    }

    fn kept(latents: Option<&[u32]>, top: Option<usize>) -> Entries {
        Keep::new(latents, top, 5).of(&codes())
    }

    #[test]
    fn all_entries_but_zeros_are_kept() {
        let all = kept(None, None);
        assert_eq!(all.offsets, [0, 3, 3, 7]);
        assert_eq!(all.latents, [1, 2, 4, 0, 1, 3, 4]);
        assert_eq!(all.values, [3.0, 1.0, 3.0, -5.0, 0.5, -1.0, 0.25]);
    }

    #[test]
    fn the_largest_values_are_kept_and_ties_go_to_the_lower_latent() {
        let one = kept(None, Some(1));
        assert_eq!((one.offsets, one.latents), (vec![0, 1, 1, 2], vec![1, 1]));
        let three = kept(None, Some(3));
        assert_eq!(three.latents, [1, 2, 4, 1, 3, 4]);
        assert_eq!(kept(None, Some(9)), kept(None, None));
    }

    #[test]
    fn the_largest_are_chosen_among_the_latents_that_are_asked_for() {
        let some = kept(Some(&[0, 2, 4]), Some(1));
        assert_eq!((some.offsets, some.latents), (vec![0, 1, 1, 2], vec![4, 4]));
    }

    #[test]
    fn rows_can_be_dropped_and_values_rounded() {
        let mut entries = kept(None, None);
        entries.drop_first(1);
        assert_eq!(entries.offsets, [0, 0, 4]);
        assert_eq!(entries.latents, [0, 1, 3, 4]);
        let whole = entries.rounded(f32::trunc);
        assert_eq!(whole.offsets, [0, 0, 2]);
        assert_eq!(
            (whole.latents, whole.values),
            (vec![0, 3], vec![-5.0, -1.0])
        );
    }

    #[test]
    fn lists_and_files_name_latents() {
        assert_eq!(named("7,3, 5-6,3", 8).unwrap(), [3, 5, 6, 7]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "2\n0-1,\n\n4 ").unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(named(path, 8).unwrap(), [0, 1, 2, 4]);
        for (wrong, says) in [
            ("8", "there is no latent 8; the model has latents 0 to 7"),
            ("3-9", "there is no latent 9"),
            ("5-3", "5-3 is empty"),
            ("1-", "\"1-\" is neither"),
            (",", "names no latent"),
            ("", "names no latent"),
            ("none.txt", "neither a list such as 3,17,40-60 nor a file"),
            ("99999999999", "is neither a latent"),
        ] {
            let message = format!("{:#}", named(wrong, 8).unwrap_err());
            assert!(message.contains(says), "{wrong}: {message}");
        }
    }
}
