//! The tallies of all latents, and the rule by which rows count among a latent's strongest: one row per passage (`nearby.rs`).
//! The page and the files for Neuronpedia show the rows that are found here.

use std::ops::Range;

use anyhow::Result;
use sae_data::ActivationData;
use sae_model::SparseCodes;

use super::described::Described;
use super::nearby::Pieces;
use super::rows::Places;
use super::tally::{Example, SPARE, Tally};

/// Most strongest rows of a latent that anything shows.
pub(crate) const TOP: usize = 10;

/// The document of a row, and its place there among the rows of the data set, from 0.
type Place = (i64, usize);

/// The tallies of all latents.
pub(crate) struct Tallies {
    pub(super) each: Vec<Tally>,
    /// Pieces of documents of which a tally keeps the strongest row.
    candidates: usize,
    /// If rows are tokens of passages.
    pieces: Option<Pieces>,
    pub(super) places: Places,
    /// What the rows are, if the data says it.
    pub(super) described: Option<Described>,
}

impl Tallies {
    /// For rows of `data`, and up to `examples` strongest rows of each latent.
    pub(crate) fn new(data: &ActivationData, latents: usize, examples: usize) -> Result<Self> {
        let described = Described::of(data)?;
        let passages = described.as_ref().is_some_and(|of| of.has_passages(data));
        Ok(Self {
            each: vec![Tally::default(); latents],
            candidates: if passages { SPARE * examples } else { examples },
            pieces: passages.then(Pieces::default),
            places: Places::of(data),
            described,
        })
    }

    /// The place of a row in its piece. Rows come in order, each once.
    pub(super) fn place_in_piece(&mut self, row: u64, place: Option<Place>) -> u8 {
        match (&mut self.pieces, place) {
            (Some(pieces), Some(place)) => pieces.place(row, place),
            _ => 0,
        }
    }

    /// Adds the activation of a latent on a row, at a place of its piece.
    pub(super) fn add(&mut self, latent: u32, row: (u64, u8), value: f32) {
        self.each[latent as usize].add(latent, row, value, self.candidates);
    }

    /// Adds the codes of the next rows, from `start` on.
    pub(crate) fn add_rows(&mut self, data: &ActivationData, start: usize, codes: &SparseCodes) {
        let rows = start..start + codes.pattern.rows();
        let places = self.places.in_documents(data, rows.clone());
        let (values, latents) = (codes.host_values(), codes.pattern.indices());
        for (i, row) in rows.enumerate() {
            let into = self.place_in_piece(row as u64, places.as_ref().map(|places| places[i]));
            for at in codes.pattern.row(i) {
                self.add(latents[at], (row as u64, into), values[at]);
            }
        }
    }

    /// Number of rows on which a latent is active.
    pub(crate) fn fired(&self, latent: u32) -> u64 {
        self.each[latent as usize].fired
    }

    /// The rows on which a latent is strongest, strongest first: at most `most`, one per passage.
    pub(crate) fn strongest(&self, latent: u32, most: usize) -> Vec<Example> {
        let near = |row| -> Range<u64> {
            let described = self.described.as_ref();
            described.map_or(row..row + 1, |of| of.near(row))
        };
        self.each[latent as usize].strongest(most, near)
    }
}
