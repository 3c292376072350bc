//! A model whose latents are spread over processes, for dictionaries that one memory does not hold.
//!
//! Process r of W has a block of latents: their rows of W_dec, W_enc and of everything else that has a row per latent. All have the
//! rest of the model, and see the same batch. So each scores its own latents, and selects from them what one process would select if
//! there were no others; what all together select is among it, because more latents only raise tau, or the k-th largest score. The
//! processes tell each other the scores of these few candidates, and each applies the rule to all of them: the selection is exact.
//! Then each decodes its own latents, and the sum over the processes is `y = a W_dec`:
//!
//! ```text
//! forward   candidates of every row      about W L0 numbers per row; nothing where the rule looks at each score alone (ReLU, JumpReLU)
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

use crate::ops::{self, EncodeOptions, Selection, SparseCodes, SparseValue};

/// How the latents of a model are spread over processes.
#[derive(Clone, Debug)]
pub struct Across {
    comm: Arc<dyn Comm>,
    /// M, of all processes.
    latents: usize,
}

/// What all processes together have selected.
struct Settled {
    /// Own entries that were selected.
    entries: Vec<usize>,
    /// Entries of row i are `offsets[i]..offsets[i + 1]` of those.
    offsets: Vec<usize>,
    /// The activation of each.
    values: Vec<f32>,
    /// Number of selected latents of each row, those of other processes included.
    sizes: Vec<usize>,
}

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
        let start = |rank: usize| {
            (self.latents as u128 * rank as u128 / self.comm.ranks() as u128) as usize
        };
        start(rank)..start(rank + 1)
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
        let pattern = &codes.pattern;
        let lengths: Vec<usize> = pattern.row_lengths().collect();
        let settled = self.settled(&codes.host_values(), &lengths, selection);
        let kept = codes.kept(&settled.entries, settled.offsets);
        match selection {
            Selection::Sparsemax(Probability) => {
                let (values, sizes) = (settled.values, Arc::new(settled.sizes));
                kept.as_weights(values, sizes, self.comm.clone())
            }
            _ => kept,
        }
    }

    /// Takes part in what the other processes select from their latents for `rows` rows, with none of its own.
    pub(crate) fn selects_nothing(&self, rows: usize, selection: Selection) {
        if !selection.is_by_score() {
            self.settled(&[], &vec![0; rows], selection);
        }
    }

    /// Applies the rule to the candidates of all processes; `lengths[i]` of the own `values` are of row i.
    fn settled(&self, values: &[f32], lengths: &[usize], selection: Selection) -> Settled {
        let (rank, rows) = (self.comm.rank(), lengths.len());
        let said: Vec<u8> = lengths
            .iter()
            .flat_map(|length| (*length as u32).to_le_bytes())
            .collect();
        let lengths = self.comm.gather_bytes(&said);
        let lengths: Vec<_> = lengths.iter().map(|bytes| read(bytes)).collect();
        let values = self.comm.gather(values);
        // in the order of latents
        let mut at = vec![0; lengths.len()];
        let mut candidates = Vec::with_capacity(rows);
        let mut own = Vec::with_capacity(rows); // where those of this process begin, in the row and in all
        for row in 0..rows {
            let mut all = Vec::new();
            for (of, lengths) in lengths.iter().enumerate() {
                if of == rank {
                    own.push((all.len(), at[of]));
                }
                let end = at[of] + lengths[row];
                all.extend_from_slice(&values[of][at[of]..end]);
                at[of] = end;
            }
            candidates.push(all);
        }
        let chosen = ops::cpu::encode::of_candidates(candidates, selection);
        let mut settled = Settled {
            entries: Vec::new(),
            offsets: vec![0],
            values: Vec::new(),
            sizes: chosen.pattern.row_lengths().collect(),
        };
        for (row, (in_row, in_all)) in own.into_iter().enumerate() {
            for entry in chosen.pattern.row(row) {
                let place = chosen.pattern.indices()[entry] as usize;
                if (in_row..in_row + lengths[rank][row]).contains(&place) {
                    settled.entries.push(in_all + place - in_row);
                    settled.values.push(chosen.values[entry]);
                }
            }
            settled.offsets.push(settled.entries.len());
        }
        settled
    }
}

/// Numbers of entries.
fn read(bytes: &[u8]) -> Vec<usize> {
    let (numbers, _) = bytes.as_chunks::<4>();
    let number = |four: &[u8; 4]| u32::from_le_bytes(*four) as usize;
    numbers.iter().map(number).collect()
}

#[cfg(test)]
mod tests;
