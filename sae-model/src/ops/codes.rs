//! Sparse codes store the active latents of each row and their values, without a `[B, M]` matrix.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::tensor::{Device, Int, Tensor, TensorData};

/// The positions of the entries of a sparse `[B, M]` matrix: row by row, in ascending order of latents within each row.
#[derive(Debug, Default)]
pub struct Pattern {
    latents: usize,
    /// Entries of row i are `offsets[i]..offsets[i + 1]`.
    offsets: Vec<usize>,
    /// Latent of each entry.
    indices: Vec<u32>,
    by_latent: OnceLock<ByLatent>,
}

/// The same entries: latent by latent, in ascending order of rows within each latent.
#[derive(Debug)]
pub(crate) struct ByLatent {
    /// Entries of latent j are `offsets[j]..offsets[j + 1]` of the two lists below.
    pub(crate) offsets: Vec<usize>,
    /// Row of each entry.
    pub(crate) rows: Vec<u32>,
    /// Position of each entry in the row order.
    pub(crate) positions: Vec<u32>,
}

impl Pattern {
    /// Creates a pattern from the row offsets and the latent of each entry.
    ///
    /// # Panics
    /// If the offsets do not ascend from 0 to the number of entries, or a latent is not below `latents`.
    pub fn new(latents: usize, offsets: Vec<usize>, indices: Vec<u32>) -> Self {
        assert!(
            offsets.first() == Some(&0) && offsets.last() == Some(&indices.len()),
            "row offsets must go from 0 to the number of entries"
        );
        assert!(offsets.is_sorted(), "row offsets must ascend");
        assert!(
            indices.iter().all(|j| (*j as usize) < latents),
            "latents must be below {latents}"
        );
        Self {
            latents,
            offsets,
            indices,
            by_latent: OnceLock::new(),
        }
    }

    /// Number of rows B.
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of latents M.
    pub fn latents(&self) -> usize {
        self.latents
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// True if there are no entries.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Latent of each entry, row by row.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Entries of row `row`.
    pub fn row(&self, row: usize) -> Range<usize> {
        self.offsets[row]..self.offsets[row + 1]
    }

    /// Number of entries of each row.
    pub fn row_lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.offsets.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// Repeats one number per row, `[B, 1]`, for each entry of the row, `[entries]`. Carries no gradient.
    pub(crate) fn at_entries(&self, per_row: Tensor<2>) -> Tensor<1> {
        let device = per_row.device();
        let per_row: Vec<f32> = per_row.into_data().iter().collect();
        let lengths = self.row_lengths();
        let values: Vec<f32> = lengths
            .zip(per_row)
            .flat_map(|(length, value)| std::iter::repeat_n(value, length))
            .collect();
        let shape = [values.len()];
        Tensor::from_data(TensorData::new(values, shape), &device)
    }

    /// The entries latent by latent, computed at the first call.
    pub(crate) fn by_latent(&self) -> &ByLatent {
        self.by_latent.get_or_init(|| {
            let mut offsets = vec![0; self.latents + 1];
            for j in &self.indices {
                offsets[*j as usize + 1] += 1;
            }
            for j in 0..self.latents {
                offsets[j + 1] += offsets[j];
            }
            let mut next = offsets.clone();
            let mut rows = vec![0; self.len()];
            let mut positions = vec![0; self.len()];
            for row in 0..self.rows() {
                for entry in self.row(row) {
                    let place = &mut next[self.indices[entry] as usize];
                    rows[*place] = row as u32;
                    positions[*place] = entry as u32;
                    *place += 1;
                }
            }
            ByLatent {
                offsets,
                rows,
                positions,
            }
        })
    }
}

/// Latent activations of a batch as (values, indices, row offsets).
///
/// An entry may be zero: JumpReLU keeps latents just below their threshold, because its gradient needs them.
#[derive(Clone, Debug)]
pub struct SparseCodes {
    /// Activation of each entry, in the order of the pattern.
    pub values: Tensor<1>,
    /// The positions of the entries.
    pub pattern: Arc<Pattern>,
    /// Score of each entry, for JumpReLU; else empty.
    pub(crate) scores: Arc<Vec<f32>>,
}

/// The latents a of a batch.
#[derive(Clone, Debug)]
pub enum Latents {
    /// Sparse codes.
    Sparse(SparseCodes),
    /// A dense `[B, M]` tensor: the result of sparsemax on a GPU.
    Dense(Tensor<2>),
}

impl Latents {
    /// Firing frequency: the fraction of rows on which each latent is active, `[M]`. Carries no gradient.
    pub fn firing_frequency(&self) -> Tensor<1> {
        match self {
            Self::Sparse(codes) => {
                let rows = codes.pattern.rows().max(1) as f32;
                let counts = codes.firing_counts();
                let values: Vec<f32> = counts.iter().map(|n| *n as f32 / rows).collect();
                let shape = [values.len()];
                let device = codes.values.device().inner();
                Tensor::from_data(TensorData::new(values, shape), &device)
            }
            Self::Dense(a) => {
                let [rows, _] = a.dims();
                let active = a.clone().inner().not_equal_elem(0.0).float();
                active.sum_dim(0).squeeze_dim::<1>(0) / rows as f64
            }
        }
    }

    /// Converts to sparse codes; a dense tensor is copied to the host.
    pub fn into_codes(self) -> SparseCodes {
        match self {
            Self::Sparse(codes) => codes,
            Self::Dense(a) => {
                let [_, latents] = a.dims();
                let device = a.device();
                let dense: Vec<f32> = a.into_data().iter().collect();
                SparseCodes::from_dense(&dense, latents, &device)
            }
        }
    }

    /// Divides every activation by the same number.
    pub(crate) fn divided(self, by: f64) -> Self {
        match self {
            latents if by == 1.0 => latents,
            Self::Sparse(mut codes) => {
                codes.values = codes.values / by;
                Self::Sparse(codes)
            }
            Self::Dense(a) => Self::Dense(a * (1.0 / by)),
        }
    }
}

impl SparseCodes {
    /// Gathers `vector [M]` at the latent of each entry, `[entries]`.
    pub fn at_entries(&self, vector: Tensor<1>) -> Tensor<1> {
        let ids: Vec<i32> = self.pattern.indices().iter().map(|j| *j as i32).collect();
        let ids = TensorData::new(ids, [self.pattern.len()]);
        let device = vector.device();
        vector.select(0, Tensor::<1, Int>::from_data(ids, &device))
    }

    /// Creates codes from a dense row-major `[B, M]` matrix; zeros are left out.
    pub fn from_dense(dense: &[f32], latents: usize, device: &Device) -> Self {
        let (mut offsets, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in dense.chunks_exact(latents) {
            let active = row.iter().enumerate().filter(|(_, a)| **a != 0.0);
            for (j, a) in active {
                indices.push(j as u32);
                values.push(*a);
            }
            offsets.push(indices.len());
        }
        Self::new(values, Pattern::new(latents, offsets, indices), device)
    }

    /// Creates codes from values in the order of `pattern`.
    ///
    /// # Panics
    /// If there is not exactly one value per entry.
    pub fn new(values: Vec<f32>, pattern: Pattern, device: &Device) -> Self {
        assert_eq!(values.len(), pattern.len(), "one value per entry");
        let shape = [values.len()];
        Self {
            values: Tensor::from_data(TensorData::new(values, shape), device),
            pattern: Arc::new(pattern),
            scores: Arc::default(),
        }
    }

    /// Copies the values to the host.
    pub fn host_values(&self) -> Vec<f32> {
        let data = self.values.clone().inner().into_data();
        data.try_to_vec().expect("values are float32")
    }

    /// Number of rows on which each latent is active (not zero), `[M]`.
    pub fn firing_counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.pattern.latents()];
        for (j, a) in self.pattern.indices().iter().zip(self.host_values()) {
            counts[*j as usize] += u32::from(a != 0.0);
        }
        counts
    }

    /// Converts to a dense `[B, M]` tensor on `device`.
    pub fn to_dense(&self, device: &Device) -> Tensor<2> {
        let [rows, latents] = [self.pattern.rows(), self.pattern.latents()];
        let mut dense = vec![0.0; rows * latents];
        let values = self.host_values();
        for row in 0..rows {
            for entry in self.pattern.row(row) {
                dense[row * latents + self.pattern.indices()[entry] as usize] = values[entry];
            }
        }
        Tensor::from_data(TensorData::new(dense, [rows, latents]), device)
    }
}
