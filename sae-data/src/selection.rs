//! A selection of rows: the whole data set, a side of a split, or a sample.
//!
//! A split is a short list of stretches of consecutive rows, so it needs little memory for any number of rows, and both
//! of its sides are read in long pieces.

use std::ops::Range;

use crate::shuffle::Shuffle;
use crate::source::{Documents, Info};

/// Number of stretches into which a data set is cut to hold out a fraction.
const STRETCHES: usize = 4096;

/// Number of stretches in a sample.
const SAMPLE_STRETCHES: usize = 128;

/// Ascending, disjoint ranges of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    ranges: Vec<Range<usize>>,
    /// Rows before each range.
    before: Vec<usize>,
    rows: usize,
}

impl Selection {
    /// The given ranges, without empty ones; adjacent ranges are joined.
    pub(crate) fn new(given: impl IntoIterator<Item = Range<usize>>) -> Self {
        let (mut ranges, mut before, mut rows) = (Vec::<Range<usize>>::new(), Vec::new(), 0);
        for range in given.into_iter().filter(|range| !range.is_empty()) {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => {
                    before.push(rows);
                    ranges.push(range.clone());
                }
            }
            rows += range.len();
        }
        Self {
            ranges,
            before,
            rows,
        }
    }

    /// Number of selected rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The ranges.
    pub(crate) fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// A sample of `rows` rows, fewer than there are, in evenly spread stretches of about the same length.
    pub(crate) fn spread(&self, rows: usize) -> Self {
        let stretches = rows.min(SAMPLE_STRETCHES);
        let left_out = self.rows - rows;
        let share = |of: usize, i: usize| (of as u128 * i as u128 / stretches as u128) as usize;
        let stretch = |i: usize| {
            let start = share(rows, i) + share(left_out, i);
            start..start + share(rows, i + 1) - share(rows, i)
        };
        Self::new((0..stretches).flat_map(|i| self.pieces(stretch(i))))
    }

    /// The selected rows `rows`, as ranges of rows of the data set.
    pub(crate) fn pieces(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let first = self
            .before
            .partition_point(|before| *before <= rows.start)
            .saturating_sub(1);
        let ranges = self.ranges[first..].iter().zip(&self.before[first..]);
        ranges
            .take_while(move |(_, before)| **before < rows.end)
            .map(move |(range, before)| {
                let start = range.start + rows.start.saturating_sub(*before);
                let end = range.end.min(range.start + (rows.end - before));
                start..end
            })
    }

    /// The number of a row of the data set among the selected rows, if it is one of them.
    pub(crate) fn position(&self, row: usize) -> Option<usize> {
        let at = self.ranges.partition_point(|range| range.end <= row);
        let range = self.ranges.get(at).filter(|range| range.contains(&row))?;
        Some(self.before[at] + row - range.start)
    }

    /// `(all others, left_out)`; `left_out` are numbers of selected rows, in order.
    pub(crate) fn without(&self, left_out: &[usize]) -> (Self, Self) {
        let starts = std::iter::once(0).chain(left_out.iter().map(|row| row + 1));
        let ends = left_out.iter().copied().chain([self.rows]);
        let kept = starts
            .zip(ends)
            .filter(|(start, end)| start < end)
            .flat_map(|(start, end)| self.pieces(start..end));
        let beyond = left_out.iter().flat_map(|row| self.pieces(*row..row + 1));
        (Self::new(kept), Self::new(beyond))
    }

    /// All other rows of a data set of `rows` rows.
    fn complement(&self, rows: usize) -> Self {
        let starts = std::iter::once(0).chain(self.ranges.iter().map(|range| range.end));
        let ends = self.ranges.iter().map(|range| range.start).chain([rows]);
        Self::new(starts.zip(ends).map(|(start, end)| start..end))
    }

    /// `(train, held out)` with about `fraction` of the rows held out: whole stretches, chosen by `seed`; with documents,
    /// stretches of whole documents.
    pub(crate) fn split_fraction(info: &Info, fraction: f64, seed: u64) -> (Self, Self) {
        let cut = |row: usize| next_start(info, row.min(info.rows));
        let length = info.rows.div_ceil(STRETCHES).max(1);
        let mut bounds: Vec<usize> = (0..=info.rows.div_ceil(length))
            .map(|i| cut(i * length))
            .collect();
        bounds.dedup();
        let wanted = (fraction * info.rows as f64).round() as usize;
        let order = Shuffle::new(bounds.len() - 1, seed, 0);
        let mut held_out = Vec::new();
        let mut rows = 0;
        for position in 0..bounds.len() - 1 {
            if rows >= wanted {
                break;
            }
            let stretch = order.row(position);
            held_out.push(bounds[stretch]..bounds[stretch + 1]);
            rows += held_out.last().map_or(0, Range::len);
        }
        held_out.sort_by_key(|range| range.start);
        let held_out = Self::new(held_out);
        (held_out.complement(info.rows), held_out)
    }

    /// `(train, held out)` with `rows` held out, or with the documents that begin there.
    pub(crate) fn split_rows(info: &Info, rows: Range<usize>) -> (Self, Self) {
        let bounds = next_start(info, rows.start)..next_start(info, rows.end);
        let held_out = Self::new(std::iter::once(bounds));
        (held_out.complement(info.rows), held_out)
    }
}

/// The first row at or after `row` at which a split may cut.
fn next_start(info: &Info, row: usize) -> usize {
    let documents = info.documents.as_ref();
    documents.map_or(row, |documents: &Documents| {
        documents.next_start(row, info.rows)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Element;
    use proptest::prelude::*;

    fn info(rows: usize, documents: Option<Documents>) -> Info {
        Info {
            path: "x".into(),
            format: "npy",
            files: Vec::new(),
            element: Element::F32,
            rows,
            width: 1,
            documents,
            labelled: false,
            tensor: None,
            layer: None,
            drop_first_token: false,
            preferred_block: None,
        }
    }

    fn listed(selection: &Selection) -> Vec<usize> {
        selection.ranges.iter().cloned().flatten().collect()
    }

    proptest! {
        #[test]
        fn splits_share_out_all_rows(lengths in prop::collection::vec(0usize..9, 1..400), fraction in 0.01f64..0.99, seed in any::<u64>()) {
            let rows: usize = lengths.iter().sum();
            prop_assume!(rows > 0);
            let starts: Vec<usize> = lengths.iter().scan(0, |at, len| { *at += len; Some(*at - len) }).collect();
            for documents in [None, Some(Documents::Starts(starts.clone()))] {
                let info = info(rows, documents.clone());
                let (train, held_out) = Selection::split_fraction(&info, fraction, seed);
                let (a, b) = (listed(&train), listed(&held_out));
                let mut all = [a.clone(), b.clone()].concat();
                all.sort_unstable();
                prop_assert_eq!(all, (0..rows).collect::<Vec<_>>());
                if let Some(documents) = documents {
                    let of: Vec<usize> = a.iter().map(|row| documents.of(*row)).collect();
                    prop_assert!(b.iter().all(|row| of.binary_search(&documents.of(*row)).is_err()));
                } else {
                    let wanted = (fraction * rows as f64).round() as usize;
                    prop_assert_eq!(b.len(), wanted);
                }
            }
        }

        #[test]
        fn pieces_are_the_rows_in_order(cuts in prop::collection::btree_set(0usize..200, 2..20), a in 0usize..200, b in 0usize..200) {
            let cuts: Vec<usize> = cuts.into_iter().collect();
            let selection = Selection::new(cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]));
            let all = listed(&selection);
            let (a, b) = (a.min(b).min(all.len()), a.max(b).min(all.len()));
            let found: Vec<usize> = selection.pieces(a..b).flatten().collect();
            prop_assert_eq!(found, all[a..b].to_vec());
            for row in 0..201 {
                prop_assert_eq!(selection.position(row), all.iter().position(|found| *found == row));
            }
        }
    }

    proptest! {
        #[test]
        fn rows_left_out_are_gone_and_known(
            cuts in prop::collection::btree_set(0usize..200, 2..20),
            chosen in prop::collection::btree_set(0usize..200, 0..40),
        ) {
            let cuts: Vec<usize> = cuts.into_iter().collect();
            let selection = Selection::new(cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]));
            let all = listed(&selection);
            let left_out: Vec<usize> = chosen.into_iter().filter(|row| *row < all.len()).collect();
            let (kept, beyond) = selection.without(&left_out);
            let named: Vec<usize> = left_out.iter().map(|row| all[*row]).collect();
            prop_assert_eq!(listed(&beyond), named.clone());
            let others: Vec<usize> = all.into_iter().filter(|row| !named.contains(row)).collect();
            prop_assert_eq!(kept.rows(), others.len());
            prop_assert_eq!(listed(&kept), others);
        }
    }

    #[test]
    fn the_fraction_is_spread_over_a_large_data_set() {
        let info = info(10_000_000, None);
        let (train, held_out) = Selection::split_fraction(&info, 0.1, 0);
        assert_eq!(train.rows() + held_out.rows(), 10_000_000);
        assert!(
            held_out.rows().abs_diff(1_000_000) < 2500,
            "{}",
            held_out.rows()
        );
        let quarters: Vec<usize> = (0..4)
            .map(|i| {
                held_out
                    .ranges
                    .iter()
                    .filter(|r| r.start / 2_500_000 == i)
                    .count()
            })
            .collect();
        assert!(
            quarters.iter().all(|n| (60..140).contains(n)),
            "{quarters:?}"
        );
        let (train, held_out) = Selection::split_rows(&info, 5..9);
        assert_eq!(
            (train.rows(), listed(&held_out)),
            (9_999_996, vec![5, 6, 7, 8])
        );
    }
}
