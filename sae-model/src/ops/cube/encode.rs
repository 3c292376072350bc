//! Codes on a device: rounds of latents are screened (`product.rs`), rows raise their bounds after each (`raise.rs`), and what is
//! left is scored again and selected (`settle.rs`).
//!
//! The host waits once per batch, for two numbers: whether some row had more candidates than room (then the batch is done again with
//! as much room as it needs), and the longest row of codes, which is how many slots every row gets. Room for candidates only grows
//! and changes no code.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::prelude::{CubeCount, CubeDim};

use super::batch::{self, DIGITS, LEVELS};
use super::entries::{DeviceEntries, empty, read, upload, zeros};
use super::product::{self, COLUMNS, SIDE, TILE, UNBOUNDED};
use super::raise;
use super::settle::{self, Rule};
use super::sink::{self, Screened};
use super::units::{NAN_BITS, UNITS};
use super::{elementwise, one_cube_per_row};
use crate::ops::SparseValue;
use crate::ops::precision::{Precision, precision};
use crate::ops::selection::Selection;

/// Candidates per row that there is room for at first.
const ROOM: usize = 1024;
/// Latents of the first round.
const FIRST: usize = 1024;
/// Each round has this many times the latents of all before.
const GROWTH: usize = 8;

/// The most room that a batch has needed: where the next one starts.
static ENOUGH: AtomicUsize = AtomicUsize::new(ROOM);

/// How a batch is screened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Screening {
    /// By [`product::screen()`], on any device.
    Tiles,
    /// By a matrix product of cubek (`sink.rs`).
    Product(Precision),
    /// By [`product::screen`] with factors that are rounded to this precision: tests of its margin need no tensor cores.
    #[cfg(test)]
    Rounded(Precision),
}

/// What the tests screen by, if they ask for something.
#[cfg(test)]
static ASKED: std::sync::Mutex<Option<Screening>> = std::sync::Mutex::new(None);

/// Screens by this from now on, or by what the process is set to.
#[cfg(test)]
pub(in crate::ops) fn screen_by(asked: Option<Screening>) {
    *ASKED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner) = asked;
}

impl Screening {
    /// What the process is set to, if the device can do it.
    fn on(client: &Client) -> Self {
        #[cfg(test)]
        if let Some(asked) = *ASKED
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            return asked;
        }
        match precision() {
            Precision::F32 => Self::Tiles,
            asked if sink::multiplies(client, asked) => Self::Product(asked),
            asked => {
                static ONCE: Once = Once::new();
                ONCE.call_once(|| tracing::warn!("this device has no tensor cores for {asked:?}: scores are looked through in F32"));
                Self::Tiles
            }
        }
    }

    fn precision(self) -> Precision {
        match self {
            Self::Tiles => Precision::F32,
            Self::Product(precision) => precision,
            #[cfg(test)]
            Self::Rounded(precision) => precision,
        }
    }

    /// A matrix as the product reads it.
    fn factor(self, matrix: &CubeTensor) -> CubeTensor {
        match self {
            Self::Tiles => matrix.clone(),
            Self::Product(precision) => sink::in_precision(matrix, precision),
            #[cfg(test)]
            Self::Rounded(precision) => rounded(matrix, precision),
        }
    }
}

/// The numbers of this precision, as float32: bf16 to the nearest, TF32 cut off.
#[cfg(test)]
fn rounded(matrix: &CubeTensor, precision: Precision) -> CubeTensor {
    let round = |bits: u32| match precision {
        Precision::F32 => bits,
        Precision::Tf32 => bits & !0x1fff,
        Precision::Bf16 => (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000,
    };
    let host = burn_cubecl::ops::into_data_sync(matrix.clone());
    let host: Vec<f32> = host.try_to_vec().expect("a float32 matrix");
    let bits: Vec<u32> = host.iter().map(|value| round(value.to_bits())).collect();
    let mut tensor = upload(matrix, &bits);
    tensor.dtype = DType::F32;
    tensor
}

/// Starts again with so much room per row.
#[cfg(test)]
pub(in crate::ops) fn start_with_room(room: usize) {
    ENOUGH.store(room, Ordering::Relaxed);
}

/// The input of the encoder: `z = q E^T + bias` where the mask is not 0.
pub(super) struct Input {
    /// `[B, d]`.
    pub(super) queries: CubeTensor,
    /// `[M, d]`.
    pub(super) dictionary: CubeTensor,
    /// `[M]`, where there are any.
    pub(super) bias: Option<CubeTensor>,
    pub(super) thresholds: Option<CubeTensor>,
    pub(super) mask: Option<CubeTensor>,
    /// B, M and d.
    pub(super) shape: [usize; 3],
}

/// The codes of a batch.
pub(super) struct Encoded {
    pub(super) values: CubeTensor,
    pub(super) scores: Option<CubeTensor>,
    pub(super) entries: DeviceEntries,
    pub(super) stride: usize,
}

/// A selection as kernels take it.
struct Chosen {
    rule: Rule,
    k: u32,
    threshold: f32,
    half_band: f32,
}

impl From<Selection> for Chosen {
    fn from(selection: Selection) -> Self {
        let mut chosen = Self {
            rule: Rule::Score,
            k: 0,
            threshold: 0.0,
            half_band: 0.0,
        };
        match selection {
            Selection::Sparsemax(SparseValue::Score) => {}
            Selection::Sparsemax(SparseValue::Probability) => chosen.rule = Rule::Probability,
            Selection::Threshold(threshold) => {
                chosen.rule = Rule::Threshold;
                chosen.threshold = threshold;
            }
            Selection::TopK(k) => {
                chosen.rule = Rule::TopK;
                chosen.k = k as u32;
            }
            Selection::BatchTopK(k) => {
                chosen.rule = Rule::BatchTopK;
                chosen.k = k as u32;
            }
            Selection::JumpRelu { bandwidth } => {
                chosen.rule = Rule::JumpRelu;
                chosen.half_band = bandwidth / 2.0;
            }
        }
        chosen
    }
}

impl Chosen {
    /// The bound before anything is known: only positive scores are selected by TopK and BatchTopK, and JumpReLU's thresholds are
    /// taken off the scores.
    fn first_bound(&self) -> f32 {
        match self.rule {
            Rule::Probability | Rule::Score => UNBOUNDED,
            Rule::Threshold => self.threshold,
            Rule::TopK | Rule::BatchTopK | Rule::JumpRelu => 0.0,
        }
    }

    /// Whether candidates raise the bound.
    fn rises(&self) -> bool {
        !matches!(self.rule, Rule::Threshold | Rule::JumpRelu)
    }
}

/// Encodes a batch of at least one row, by at least one latent.
pub(super) fn encode(input: &Input, selection: Selection) -> Encoded {
    let chosen = Chosen::from(selection);
    let work = Work::new(input, &chosen);
    let [rows, latents, _] = input.shape;
    let mut room = ENOUGH
        .load(Ordering::Relaxed)
        .min(latents.next_power_of_two());
    loop {
        let candidates = work.collect(room);
        work.settle(&candidates);
        let [most, longest] = candidates.largest(rows);
        if most <= room {
            return work.compacted(candidates, longest);
        }
        room = most.next_power_of_two();
        ENOUGH.fetch_max(room, Ordering::Relaxed);
    }
}

/// The latents of each round.
fn rounds(latents: usize, chosen: &Chosen) -> Vec<(u32, u32)> {
    let (mut rounds, mut first) = (Vec::new(), 0);
    let mut last = if chosen.rises() { FIRST } else { latents };
    while first < latents {
        rounds.push((first as u32, last.min(latents) as u32));
        first = last;
        last *= GROWTH;
    }
    rounds
}

/// What all rounds of a batch share.
struct Work<'a> {
    input: &'a Input,
    chosen: &'a Chosen,
    screening: Screening,
    /// Queries and dictionary as the screening reads them.
    factors: [CubeTensor; 2],
    /// `||q||` of every row.
    norms: CubeTensor,
    /// See [`product::latents_table()`].
    table: CubeTensor,
}

/// The candidates of a batch, `room` slots per row.
struct Candidates {
    room: usize,
    counts: CubeTensor,
    most: CubeTensor,
    values: CubeTensor,
    indices: CubeTensor,
    /// JumpReLU's; else one number that nobody reads.
    scores: CubeTensor,
}

impl Candidates {
    /// The most candidates that a row had, and the most entries that it has now.
    fn largest(&self, rows: usize) -> [usize; 2] {
        let out = empty(&self.counts, 2, DType::U32);
        settle::largest::launch(
            &self.counts.client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(UNITS),
            self.most.clone().into_buffer_arg(),
            self.counts.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            rows as u32,
        );
        let out = read(&out);
        [out[0] as usize, out[1] as usize]
    }
}

impl<'a> Work<'a> {
    fn new(input: &'a Input, chosen: &'a Chosen) -> Self {
        let [rows, latents, width] = input.shape;
        let (q, c) = (&input.queries, &input.dictionary);
        let norms_of = |x: &CubeTensor, rows: usize| {
            let norms = empty(x, rows, DType::F32);
            product::row_norms::launch(
                &x.client,
                one_cube_per_row(rows),
                CubeDim::new_1d(UNITS),
                x.clone().into_buffer_arg(),
                norms.clone().into_buffer_arg(),
                rows as u32,
                width as u32,
            );
            norms
        };
        let (norms, of_latents) = (norms_of(q, rows), norms_of(c, latents));
        let table = empty(q, latents * COLUMNS as usize, DType::F32);
        let or_norms = |vector: &Option<CubeTensor>| {
            let vector = vector.clone().unwrap_or_else(|| of_latents.clone());
            vector.into_buffer_arg()
        };
        let screening = Screening::on(&q.client);
        let (cubes, units) = elementwise(latents);
        product::latents_table::launch(
            &q.client,
            cubes,
            units,
            of_latents.clone().into_buffer_arg(),
            or_norms(&input.bias),
            or_norms(&input.mask),
            or_norms(&input.thresholds),
            table.clone().into_buffer_arg(),
            latents as u32,
            screening.precision().margin(width),
            chosen.half_band,
            input.bias.is_some(),
            input.mask.is_some(),
            chosen.rule == Rule::JumpRelu,
        );
        Self {
            input,
            chosen,
            screening,
            factors: [q, c].map(|matrix| screening.factor(matrix)),
            norms,
            table,
        }
    }

    /// The candidates of all latents.
    fn collect(&self, room: usize) -> Candidates {
        let [rows, latents, _] = self.input.shape;
        let q = &self.input.queries;
        let jumps = self.chosen.rule == Rule::JumpRelu;
        let candidates = Candidates {
            room,
            counts: zeros(q, rows, DType::U32),
            most: zeros(q, rows, DType::U32),
            values: empty(q, rows * room, DType::F32),
            indices: empty(q, rows * room, DType::U32),
            scores: empty(q, if jumps { rows * room } else { 1 }, DType::F32),
        };
        let bits = self.chosen.first_bound().to_bits();
        let mut bounds = upload(q, &vec![bits; rows]);
        bounds.dtype = DType::F32;
        for (first, last) in rounds(latents, self.chosen) {
            self.screen(&candidates, &bounds, (first, last));
            if self.chosen.rises() {
                self.raise(&candidates, &bounds);
            }
        }
        candidates
    }

    /// Appends the candidates among the latents of a round.
    fn screen(&self, candidates: &Candidates, bounds: &CubeTensor, (first, last): (u32, u32)) {
        let [rows, _, width] = self.input.shape;
        let [queries, dictionary] = &self.factors;
        if let Screening::Product(precision) = self.screening {
            let screened = Screened {
                queries,
                dictionary,
                table: &self.table,
                norms: &self.norms,
                bounds,
                counts: &candidates.counts,
                values: &candidates.values,
                indices: &candidates.indices,
                latents: (first, last),
                room: candidates.room as u32,
            };
            return screened.launch(precision);
        }
        product::screen::launch(
            &queries.client,
            CubeCount::Static(
                (last - first).div_ceil(TILE),
                (rows as u32).div_ceil(TILE),
                1,
            ),
            CubeDim::new_2d(SIDE, SIDE),
            queries.clone().into_buffer_arg(),
            dictionary.clone().into_buffer_arg(),
            self.table.clone().into_buffer_arg(),
            self.norms.clone().into_buffer_arg(),
            bounds.clone().into_buffer_arg(),
            candidates.counts.clone().into_buffer_arg(),
            candidates.values.clone().into_buffer_arg(),
            candidates.indices.clone().into_buffer_arg(),
            rows as u32,
            first,
            last,
            width as u32,
            candidates.room as u32,
        );
    }

    /// Raises the bounds of all rows.
    fn raise(&self, candidates: &Candidates, bounds: &CubeTensor) {
        let rows = self.input.shape[0];
        let batch_bound = match self.chosen.rule {
            Rule::BatchTopK => self.nth_largest(candidates, 1).1,
            _ => empty(bounds, 1, DType::F32),
        };
        raise::raise::launch(
            &bounds.client,
            one_cube_per_row(rows),
            CubeDim::new_1d(UNITS),
            self.table.clone().into_buffer_arg(),
            self.norms.clone().into_buffer_arg(),
            batch_bound.into_buffer_arg(),
            bounds.clone().into_buffer_arg(),
            candidates.counts.clone().into_buffer_arg(),
            candidates.most.clone().into_buffer_arg(),
            candidates.values.clone().into_buffer_arg(),
            candidates.indices.clone().into_buffer_arg(),
            rows as u32,
            candidates.room as u32,
            self.chosen.k,
            self.chosen.rule,
        );
    }

    /// The n-th largest of a batch as `[found, room]` (`batch.rs`), by so many levels of digits, and as a number.
    fn nth_largest(&self, candidates: &Candidates, levels: usize) -> (CubeTensor, CubeTensor) {
        let rows = self.input.shape[0];
        let client = &candidates.counts.client;
        let state = upload(&candidates.counts, &[0, self.chosen.k * rows as u32]);
        let bound = empty(&candidates.counts, 1, DType::F32);
        let tally = zeros(&candidates.counts, DIGITS as usize, DType::U32);
        for (shift, bits) in &LEVELS[..levels] {
            batch::count_digits::launch(
                client,
                one_cube_per_row(rows),
                CubeDim::new_1d(UNITS),
                candidates.values.clone().into_buffer_arg(),
                candidates.counts.clone().into_buffer_arg(),
                state.clone().into_buffer_arg(),
                tally.clone().into_buffer_arg(),
                rows as u32,
                candidates.room as u32,
                *shift,
                *bits,
            );
            batch::pick_digit::launch(
                client,
                CubeCount::Static(1, 1, 1),
                CubeDim::new_1d(1),
                tally.clone().into_buffer_arg(),
                state.clone().into_buffer_arg(),
                bound.clone().into_buffer_arg(),
                *shift,
                *bits,
            );
        }
        (state, bound)
    }

    /// Scores the candidates again and selects.
    fn settle(&self, candidates: &Candidates) {
        let [rows, _, width] = self.input.shape;
        let norms = || self.norms.clone().into_buffer_arg();
        let or_norms = |vector: &Option<CubeTensor>| match vector {
            Some(vector) => vector.clone().into_buffer_arg(),
            None => self.table.clone().into_buffer_arg(),
        };
        settle::settle::launch(
            &candidates.counts.client,
            one_cube_per_row(rows),
            CubeDim::new_1d(UNITS),
            self.input.queries.clone().into_buffer_arg(),
            self.input.dictionary.clone().into_buffer_arg(),
            or_norms(&self.input.bias),
            or_norms(&self.input.thresholds),
            norms(),
            candidates.counts.clone().into_buffer_arg(),
            candidates.most.clone().into_buffer_arg(),
            candidates.values.clone().into_buffer_arg(),
            candidates.indices.clone().into_buffer_arg(),
            candidates.scores.clone().into_buffer_arg(),
            rows as u32,
            width as u32,
            candidates.room as u32,
            self.chosen.k,
            self.chosen.threshold,
            self.chosen.half_band,
            NAN_BITS,
            self.chosen.rule,
            self.input.bias.is_some(),
        );
        if self.chosen.rule == Rule::BatchTopK {
            self.keep_largest(candidates);
        }
    }

    /// The last part of BatchTopK: of the exact scores, the n largest of the batch.
    fn keep_largest(&self, candidates: &Candidates) {
        let rows = self.input.shape[0];
        let (state, _) = self.nth_largest(candidates, LEVELS.len());
        let room_of = empty(&candidates.counts, rows, DType::U32);
        let client = &candidates.counts.client;
        batch::share_room::launch(
            client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(UNITS),
            candidates.values.clone().into_buffer_arg(),
            candidates.counts.clone().into_buffer_arg(),
            state.clone().into_buffer_arg(),
            room_of.clone().into_buffer_arg(),
            rows as u32,
            candidates.room as u32,
        );
        batch::keep_largest::launch(
            client,
            one_cube_per_row(rows),
            CubeDim::new_1d(UNITS),
            state.into_buffer_arg(),
            room_of.into_buffer_arg(),
            candidates.counts.clone().into_buffer_arg(),
            candidates.values.clone().into_buffer_arg(),
            candidates.indices.clone().into_buffer_arg(),
            rows as u32,
            candidates.room as u32,
        );
    }

    /// The codes with as many slots per row as the longest needs.
    fn compacted(&self, from: Candidates, longest: usize) -> Encoded {
        let [rows, latents, _] = self.input.shape;
        let stride = longest.max(1);
        let slots = rows * stride;
        let indices = empty(&from.counts, slots, DType::U32);
        let copy = |values: &CubeTensor| {
            let out = empty(&from.counts, slots, DType::F32);
            let (cubes, units) = elementwise(slots);
            settle::compact::launch(
                &from.counts.client,
                cubes,
                units,
                from.counts.clone().into_buffer_arg(),
                values.clone().into_buffer_arg(),
                from.indices.clone().into_buffer_arg(),
                out.clone().into_buffer_arg(),
                indices.clone().into_buffer_arg(),
                slots as u32,
                from.room as u32,
                stride as u32,
            );
            out
        };
        let values = copy(&from.values);
        let scores = (self.chosen.rule == Rule::JumpRelu).then(|| copy(&from.scores));
        let shape = (rows, latents, stride);
        Encoded {
            values,
            scores,
            entries: DeviceEntries::strided(shape, from.counts, indices),
            stride,
        }
    }
}
