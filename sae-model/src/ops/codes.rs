//! Sparse codes store the active latents of each row and their values, without a `[B, M]` matrix.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::backend::Dispatch;
use burn::tensor::{Device, Int, Tensor, TensorData};
use sae_comm::Comm;

use super::backend::SaeOps;

/// The positions of the entries of a sparse `[B, M]` matrix: row by row, in ascending order of latents within each row.
///
/// Entries are made where the codes are: on the host by the CPU's kernels, on a GPU by its own. Each side is copied to the other
/// when it is asked for, once. Values lie in *slots*, one for each entry; a GPU gives every row the same number of slots and leaves
/// those beyond its entries at zero, so that no host has to know how many there are.
#[derive(Debug, Default)]
pub struct Pattern {
    rows: usize,
    latents: usize,
    /// Slots of a row, where all rows have as many: codes that a GPU made.
    stride: Option<usize>,
    host: OnceLock<Entries>,
    #[cfg(feature = "cube")]
    device: OnceLock<super::cube::DeviceEntries>,
}

/// The entries on the host.
#[derive(Debug, Default)]
struct Entries {
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
        let rows = offsets.len() - 1;
        let entries = Entries {
            offsets,
            indices,
            by_latent: OnceLock::new(),
        };
        Self {
            rows,
            latents,
            host: OnceLock::from(entries),
            ..Self::default()
        }
    }

    /// The pattern of codes that a GPU has made, with `stride` slots per row.
    #[cfg(feature = "cube")]
    pub(super) fn of_device(
        (rows, latents): (usize, usize),
        stride: usize,
        entries: super::cube::DeviceEntries,
    ) -> Self {
        Self {
            rows,
            latents,
            stride: Some(stride),
            device: OnceLock::from(entries),
            ..Self::default()
        }
    }

    /// The entries on the host, copied there at the first call.
    fn host(&self) -> &Entries {
        #[cfg(feature = "cube")]
        {
            self.host.get_or_init(|| {
                let device = self.device.get().expect("entries lie somewhere");
                let (offsets, indices) = device.read();
                Entries {
                    offsets,
                    indices,
                    by_latent: OnceLock::new(),
                }
            })
        }
        #[cfg(not(feature = "cube"))]
        self.host.get().expect("entries lie on the host")
    }

    /// The entries on the device of `like`, copied there at the first call.
    #[cfg(feature = "cube")]
    pub(super) fn on_device(
        &self,
        like: &burn_cubecl::tensor::CubeTensor,
    ) -> &super::cube::DeviceEntries {
        self.device.get_or_init(|| {
            let Entries {
                offsets, indices, ..
            } = self.host();
            super::cube::DeviceEntries::upload(self.latents, offsets, indices, like)
        })
    }

    /// Number of rows B.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of latents M.
    pub fn latents(&self) -> usize {
        self.latents
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.host().indices.len()
    }

    /// True if there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Latent of each entry, row by row.
    pub fn indices(&self) -> &[u32] {
        &self.host().indices
    }

    /// Entries of row `row`.
    pub fn row(&self, row: usize) -> Range<usize> {
        let offsets = &self.host().offsets;
        offsets[row]..offsets[row + 1]
    }

    /// Number of entries of each row.
    pub fn row_lengths(&self) -> impl Iterator<Item = usize> + '_ {
        let offsets = &self.host().offsets;
        offsets.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// The values of the entries, from those of the slots.
    fn of_slots(&self, slots: Vec<f32>) -> Vec<f32> {
        let Some(stride) = self.stride else {
            return slots;
        };
        let rows = slots.chunks_exact(stride.max(1)).zip(self.row_lengths());
        rows.flat_map(|(row, length)| &row[..length])
            .copied()
            .collect()
    }

    /// The entries latent by latent, computed at the first call.
    pub(crate) fn by_latent(&self) -> &ByLatent {
        let Entries {
            indices: latents,
            by_latent,
            ..
        } = self.host();
        by_latent.get_or_init(|| {
            let mut offsets = vec![0; self.latents + 1];
            for j in latents {
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
                    let place = &mut next[latents[entry] as usize];
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

/// The latents a of a batch, as (values, indices, row offsets).
///
/// An entry may be zero: JumpReLU keeps latents just below their threshold, because its gradient needs them.
#[derive(Clone, Debug)]
pub struct SparseCodes {
    /// Activation of each slot of the pattern: on the CPU, one per entry, in the order of the pattern. See
    /// [`host_values`](Self::host_values).
    pub values: Tensor<1>,
    /// The positions of the entries.
    pub pattern: Arc<Pattern>,
    /// Score of each slot, for JumpReLU; else empty.
    pub(crate) scores: Tensor<1>,
}

impl SparseCodes {
    /// Firing frequency: the fraction of rows on which each latent is active, `[M]`. Carries no gradient.
    pub fn firing_frequency(&self) -> Tensor<1> {
        let rows = self.pattern.rows().max(1) as f64;
        let active = self.values.clone().inner().not_equal_elem(0.0).float();
        super::column_sums(active, &self.pattern) / rows
    }

    /// The same codes on the host, without gradient if they were not there.
    pub fn on_host(self) -> Self {
        match self.pattern.stride {
            None => self,
            Some(_) => {
                let host = Device::flex();
                let pattern = &self.pattern;
                let offsets = (0..=pattern.rows()).map(|row| pattern.host().offsets[row]);
                let copy = Pattern::new(
                    pattern.latents(),
                    offsets.collect(),
                    pattern.indices().to_vec(),
                );
                let scores = match self.scores.dims()[0] {
                    0 => Vec::new(),
                    _ => pattern.of_slots(host_vec(&self.scores)),
                };
                let shape = [scores.len()];
                Self {
                    scores: Tensor::from_data(TensorData::new(scores, shape), &host),
                    ..Self::new(self.host_values(), copy, &host)
                }
            }
        }
    }

    /// Codes of the host on another device, without gradient.
    pub fn to_device(self, device: &Device) -> Self {
        if self.values.device() == *device {
            return self;
        }
        let to = |values: Tensor<1>| Tensor::from_data(values.into_data(), device);
        Self {
            values: to(self.values),
            pattern: self.pattern,
            scores: to(self.scores),
        }
    }

    /// The same codes with other values, one per slot.
    pub(crate) fn with_values(&self, values: Tensor<1>) -> Self {
        Self {
            values,
            pattern: self.pattern.clone(),
            scores: self.scores.clone(),
        }
    }

    /// The codes of the latents below `size`.
    pub(crate) fn below(&self, size: u32) -> Self {
        let pattern = &self.pattern;
        let device = self.values.device();
        if pattern.stride.is_some() {
            let latents = 0..pattern.latents() as u32;
            let taken: Vec<f32> = latents.map(|j| f32::from(j < size)).collect();
            let taken = TensorData::new(taken, [pattern.latents()]);
            let taken = self.at_entries(Tensor::from_data(taken, &device));
            return self.with_values(self.values.clone() * taken);
        }
        let (mut kept, mut offsets) = (Vec::new(), vec![0]);
        for row in 0..pattern.rows() {
            let entries = pattern.row(row);
            kept.extend(entries.filter(|entry| pattern.indices()[*entry] < size));
            offsets.push(kept.len());
        }
        self.kept(&kept, offsets)
    }

    /// Some of the entries, of codes on the CPU: those of row i are `offsets[i]..offsets[i + 1]` of `entries`.
    pub(crate) fn kept(&self, entries: &[usize], offsets: Vec<usize>) -> Self {
        let (pattern, device) = (&self.pattern, self.values.device());
        let latent = |entry: &usize| pattern.indices()[*entry];
        let indices = entries.iter().map(latent).collect();
        let places: Vec<i32> = entries.iter().map(|entry| *entry as i32).collect();
        let places = TensorData::new(places, [entries.len()]);
        let places = Tensor::<1, Int>::from_data(places, &device);
        Self {
            values: self.values.clone().select(0, places),
            pattern: Arc::new(Pattern::new(pattern.latents(), offsets, indices)),
            scores: Tensor::zeros([0], &device),
        }
    }

    /// The attention weights `weights`, one per entry, of the scores that these codes have: their rows go on in other processes
    /// (`sizes`, see [`SaeOps::spread_weights`]).
    pub(crate) fn as_weights(
        &self,
        weights: Vec<f32>,
        sizes: Arc<Vec<usize>>,
        comm: Arc<dyn Comm>,
    ) -> Self {
        let weights = TensorData::new(weights, [self.pattern.len()]);
        let weights = Tensor::<1>::from_data(weights, &self.values.device());
        let values = Dispatch::spread_weights(
            self.values.clone().into_dispatch(),
            weights.into_dispatch(),
            self.pattern.clone(),
            sizes,
            comm,
        );
        self.with_values(Tensor::from_dispatch(values))
    }

    /// Divides every activation by the same number.
    pub(crate) fn divided(mut self, by: f64) -> Self {
        if by != 1.0 {
            self.values = self.values / by;
        }
        self
    }

    /// Gathers `vector [M]` at the latent of each entry: one number per slot, zero where there is no entry. Its gradient is
    /// that of the sums over rows.
    pub fn at_entries(&self, vector: Tensor<1>) -> Tensor<1> {
        super::at_entries(vector, &self.pattern)
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
            scores: Tensor::zeros([0], device),
        }
    }

    /// The activation of each entry, in the order of the pattern, on the host.
    pub fn host_values(&self) -> Vec<f32> {
        self.pattern.of_slots(host_vec(&self.values))
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

fn host_vec(values: &Tensor<1>) -> Vec<f32> {
    let data = values.clone().inner().into_data();
    data.try_to_vec().expect("values are float32")
}
