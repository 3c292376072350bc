//! Which rows show much the same: tokens of one passage. Of those, one is enough among a latent's strongest rows.

use super::described::BEFORE;

/// Two tokens of a document at most this far apart are near each other: as many as a card shows before a token, so that no
/// example shows another one's token before its own.
pub(super) const NEAR: usize = BEFORE;
/// Tokens of a piece. Any two of them are near each other, and no token is near those of more than the next piece on
/// each side.
pub(super) const PIECE: usize = NEAR + 1;

/// Finds the places of rows in the pieces of their documents, while the rows pass in order.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Document and piece of the last row.
    last: Option<(i64, usize)>,
    /// The first row there.
    first: u64,
}

impl Pieces {
    /// The place of a row among the rows of its piece; it is at the place `at` of its document.
    pub(super) fn place(&mut self, row: u64, (document, at): (i64, usize)) -> u8 {
        let piece = Some((document, at / PIECE));
        if self.last != piece {
            (self.last, self.first) = (piece, row);
        }
        (row - self.first) as u8 // less than PIECE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_pieces_by_hand() {
        // the place 3 of the first document has been left out
        let places = [0, 1, 2].into_iter().chain(4..13).map(|place| (7, place));
        let places = places.chain([(8, 11), (8, 12), (9, 0)]);
        let mut pieces = Pieces::default();
        let found: Vec<u8> = (0..)
            .zip(places)
            .map(|(row, at)| pieces.place(row, at))
            .collect();
        assert_eq!(found, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 0, 1, 0]);
    }
}
