//! A model whose latents are spread over processes, for dictionaries that one memory does not hold.
//!
//! Process r of W has a block of latents: their rows of W_dec, W_enc and of everything else that has a row per latent. All have the
//! rest of the model, and see the same batch. So each scores its own latents, and selects from them what one process would select if
//! there were no others; what all together select is among it, because more latents only raise tau, or the k-th largest score. The
//! scores of these few candidates meet in one process, which applies the rule to all of them: the selection is exact. Each process does
//! so for a W-th of the rows; only BatchTopK has to see the whole batch. Then each decodes its own latents, and the sum over the
//! processes is `y = a W_dec`:
//!
//! ```text
//! forward   candidates of every row, and what was made of them; nothing where the rule looks at each score alone (ReLU, JumpReLU)
//!           y  = sum over r of a_r W_dec_r    [B, d]
//! backward  dq = sum over r of dz_r W_enc_r   [B, d]
//! ```
//!
//! What is exchanged does not depend on M. Sums are added up in the order of the processes, and every process gets the same bits: so
//! what all have stays the same in all, and nothing has to be compared.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use sae_comm::{Comm, Local};

use crate::ops::processes::part;
use crate::ops::{self, EncodeOptions, Selection, SparseCodes, SparseValue};

/// How the latents of a model are spread over processes.
#[derive(Clone, Debug)]
pub struct Across {
    comm: Arc<dyn Comm>,
    /// M, of all processes.
    latents: usize,
}

/// What became of candidates.
#[derive(Default)]
struct Decided {
    /// The activation of each candidate; [`DROPPED`] where it was not selected.
    values: Vec<f32>,
    /// Number of selected latents of each row, those of other processes included.
    sizes: Vec<usize>,
}

/// No rule gives a latent this activation: the scores that it selects are finite, and rows that are not become NaN.
const DROPPED: f32 = f32::NEG_INFINITY;

impl Across {
    /// All latents in this process.
    pub fn alone(latents: usize) -> Self {
        Self::new(Arc::new(Local), latents)
    }

    /// `latents` latents, spread over these processes in equal blocks, as far as they are divisible.
    ///
    /// # Panics
    /// If there are fewer latents than processes.
    pub fn new(comm: Arc<dyn Comm>, latents: usize) -> Self {
        assert!(latents >= comm.ranks(), "every process has a latent");
        Self { comm, latents }
    }

    /// Whether other processes have latents, too.
    pub fn is_apart(&self) -> bool {
        self.comm.ranks() > 1
    }

    /// The processes.
    pub fn comm(&self) -> &dyn Comm {
        &*self.comm
    }

    /// The latents of process `rank`.
    pub fn of(&self, rank: usize) -> Range<usize> {
        part(rank, self.comm.ranks(), self.latents)
    }

    /// The latents of this process.
    pub fn own(&self) -> Range<usize> {
        self.of(self.comm.rank())
    }

    /// The sum over all processes, the same in each; differentiable in this process's summand.
    pub fn sum<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.is_apart() {
            true => ops::sum_over(x, self.comm.clone()),
            false => x,
        }
    }

    /// The sum over all processes of a count.
    pub fn count(&self, own: usize) -> usize {
        let all = self.comm.gather_bytes(&(own as u64).to_le_bytes());
        let count = |bytes: &Vec<u8>| {
            let bytes = bytes[..].try_into().expect("eight bytes of each process");
            u64::from_le_bytes(bytes) as usize
        };
        all.iter().map(count).sum()
    }

    /// The least of a number `[1]` that each process may have; none if none has one.
    pub fn least(&self, own: Option<Tensor<1>>) -> Option<Tensor<1>> {
        if !self.is_apart() {
            return own;
        }
        let number = |own: &Tensor<1>| own.clone().into_scalar::<f32>().to_le_bytes();
        let said = own.as_ref().map_or(Vec::new(), |own| number(own).to_vec());
        let all = self.comm.gather_bytes(&said);
        let numbers = all.iter().filter_map(|bytes| bytes[..].try_into().ok());
        let least = numbers.map(f32::from_le_bytes).reduce(f32::min)?;
        let device = match own {
            Some(own) => own.device(),
            None => burn::tensor::Device::flex(),
        };
        Some(Tensor::from_data([least], &device))
    }

    /// Queries `[B, d]`, of which every process has the same: their gradient is the sum of those of all latents.
    pub(crate) fn given(&self, queries: Tensor<2>) -> Tensor<2> {
        match self.is_apart() {
            true => ops::given_to(queries, self.comm.clone()),
            false => queries,
        }
    }

    /// The codes of this process's latents (see [`ops::encode`]) that all latents together select.
    pub(crate) fn encode(
        &self,
        queries: Tensor<2>,
        dictionary: Tensor<2>,
        options: EncodeOptions,
        selection: Selection,
    ) -> SparseCodes {
        use SparseValue::{Probability, Score};
        if !self.is_apart() {
            return ops::encode(queries, dictionary, options, selection);
        }
        let here = match selection {
            Selection::Sparsemax(Probability) => Selection::Sparsemax(Score),
            other => other,
        };
        let codes = ops::encode(queries, dictionary, options, here);
        if selection.is_by_score() {
            return codes;
        }
        let lengths: Vec<usize> = codes.pattern.row_lengths().collect();
        let decided = self.decided(&codes.host_values(), &lengths, selection);
        let (mut entries, mut offsets) = (Vec::new(), vec![0]);
        for row in 0..lengths.len() {
            let selected = |entry: &usize| decided.values[*entry] != DROPPED;
            entries.extend(codes.pattern.row(row).filter(selected));
            offsets.push(entries.len());
        }
        let kept = codes.kept(&entries, offsets);
        match selection {
            Selection::Sparsemax(Probability) => {
                let weights = entries.iter().map(|entry| decided.values[*entry]);
                let sizes = Arc::new(decided.sizes);
                kept.as_weights(weights.collect(), sizes, self.comm.clone())
            }
            _ => kept,
        }
    }

    /// Takes part in what the other processes select from their latents for `rows` rows, with none of its own.
    pub(crate) fn selects_nothing(&self, rows: usize, selection: Selection) {
        if !selection.is_by_score() {
            self.decided(&[], &vec![0; rows], selection);
        }
    }

    /// What becomes of the own candidates, of which `lengths[i]` are of row i, among those of all processes.
    fn decided(&self, values: &[f32], lengths: &[usize], selection: Selection) -> Decided {
        let (ranks, rows) = (self.comm.ranks(), lengths.len());
        let is_of_batch = matches!(selection, Selection::BatchTopK(_));
        let rows_of = |rank: usize| match is_of_batch {
            true => 0..rows, // every process decides for itself
            false => part(rank, ranks, rows),
        };
        let mut starts = vec![0];
        starts.extend(lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        let message = |to: usize| {
            let rows = rows_of(to);
            let counts = lengths[rows.clone()].iter().map(|length| packed(*length));
            let values = &values[starts[rows.start]..starts[rows.end]];
            counts.chain(values.iter().copied()).collect()
        };
        let received = self.comm.exchange((0..ranks).map(message).collect());
        let own = self.comm.rank();
        let mut answers = decide(&received, rows_of(own).len(), selection);
        if is_of_batch {
            return answers.swap_remove(own);
        }
        let answer = |answer: Decided| {
            let sizes = answer.sizes.into_iter().map(packed);
            sizes.chain(answer.values).collect()
        };
        let answers = answers.into_iter().map(answer).collect();
        let mut decided = Decided::default();
        for (from, answer) in self.comm.exchange(answers).iter().enumerate() {
            let (sizes, values) = answer.split_at(rows_of(from).len());
            decided.sizes.extend(sizes.iter().copied().map(unpacked));
            decided.values.extend(values);
        }
        decided
    }
}

/// A count among numbers that are moved and not computed with.
fn packed(count: usize) -> f32 {
    f32::from_bits(count as u32)
}

fn unpacked(number: f32) -> usize {
    number.to_bits() as usize
}

/// Applies the rule to candidates of `rows` rows: each process's numbers of candidates, and then their scores. Returns what becomes of
/// those of each process.
fn decide<'a>(received: &'a [Vec<f32>], rows: usize, selection: Selection) -> Vec<Decided> {
    let of_process = |message: &'a Vec<f32>| {
        let (counts, values) = message.split_at(rows);
        (counts.iter().copied().map(unpacked).collect(), values)
    };
    let all: Vec<(Vec<usize>, &[f32])> = received.iter().map(of_process).collect();
    let mut at = vec![0; all.len()];
    let candidates = (0..rows).map(|row| {
        let mut of_row = Vec::new(); // in the order of latents
        for (at, (counts, values)) in at.iter_mut().zip(&all) {
            of_row.extend_from_slice(&values[*at..*at + counts[row]]);
            *at += counts[row];
        }
        of_row
    });
    let chosen = ops::cpu::encode::of_candidates(candidates.collect(), selection);
    let sizes: Vec<usize> = chosen.pattern.row_lengths().collect();
    let nothing = |(_, values): &(_, &[f32])| Decided {
        values: vec![DROPPED; values.len()],
        sizes: sizes.clone(),
    };
    let mut decided: Vec<Decided> = all.iter().map(nothing).collect();
    let mut at = vec![0; all.len()];
    for row in 0..rows {
        let mut entries = chosen.pattern.row(row).peekable();
        let mut first = 0; // of a process, among the row's candidates
        for ((at, (counts, _)), decided) in at.iter_mut().zip(&all).zip(&mut decided) {
            let end = first + counts[row];
            let place = |entry: &usize| chosen.pattern.indices()[*entry] as usize;
            while let Some(entry) = entries.next_if(|entry| place(entry) < end) {
                decided.values[*at + place(&entry) - first] = chosen.values[entry];
            }
            (*at, first) = (*at + counts[row], end);
        }
    }
    decided
}

#[cfg(test)]
mod tests;
