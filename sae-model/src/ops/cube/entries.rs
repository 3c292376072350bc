//! The entries of codes on a device.

use std::sync::OnceLock;

use burn::tensor::DType;
use burn_cubecl::ops::into_data_sync;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{CubeCount, CubeDim, CubeElement};

use super::by_latent;
use super::units::UNITS;
use super::{elementwise, one_cube_per_row};

/// The entries of row i are slots `starts[i]..starts[i] + counts[i]`; what lies between them belongs to nobody.
#[derive(Debug)]
pub(in crate::ops) struct DeviceEntries {
    rows: usize,
    latents: usize,
    slots: usize,
    /// `[B]`, u32.
    pub(super) starts: CubeTensor,
    /// `[B]`, u32.
    pub(super) counts: CubeTensor,
    /// Latent of each slot, u32.
    pub(super) indices: CubeTensor,
    by_latent: OnceLock<ByLatent>,
}

/// The same entries latent by latent, in ascending order of rows.
#[derive(Debug)]
pub(super) struct ByLatent {
    /// `[M + 1]`, u32.
    pub(super) offsets: CubeTensor,
    /// Row and slot of each entry, u32.
    pub(super) rows: CubeTensor,
    pub(super) slots: CubeTensor,
}

/// An uninitialised vector on the device of `like`.
pub(super) fn empty(like: &CubeTensor, len: usize, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, [len].into(), dtype)
}

/// A vector of zeros on the device of `like`.
pub(super) fn zeros(like: &CubeTensor, len: usize, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    zeros_client(client, device, [len].into(), dtype)
}

/// A copy of numbers of the host on the device of `like`.
pub(super) fn upload(like: &CubeTensor, values: &[u32]) -> CubeTensor {
    let handle = like.client.create_from_slice(u32::as_bytes(values));
    CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        [values.len()].into(),
        handle,
        DType::U32,
    )
}

/// Numbers of a device on the host, which waits for them.
pub(super) fn read(tensor: &CubeTensor) -> Vec<u32> {
    let data = into_data_sync(tensor.clone());
    let values: Vec<u32> = data.try_to_vec().expect("a tensor of u32");
    let bytes = size_of_val(values.as_slice());
    tracing::trace!(target: "sae_model::host", bytes, "read from the device");
    values
}

impl DeviceEntries {
    /// The entries of `stride` slots per row.
    pub(super) fn strided(
        (rows, latents, stride): (usize, usize, usize),
        counts: CubeTensor,
        indices: CubeTensor,
    ) -> Self {
        let starts: Vec<u32> = (0..rows).map(|row| (row * stride) as u32).collect();
        Self {
            rows,
            latents,
            slots: rows * stride,
            starts: upload(&indices, &starts),
            counts,
            indices,
            by_latent: OnceLock::new(),
        }
    }

    /// A copy of entries that the host has.
    pub(in crate::ops) fn upload(
        latents: usize,
        offsets: &[usize],
        indices: &[u32],
        like: &CubeTensor,
    ) -> Self {
        let starts: Vec<u32> = offsets.iter().map(|at| *at as u32).collect();
        let counts: Vec<u32> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Self {
            rows: counts.len(),
            latents,
            slots: indices.len(),
            starts: upload(like, &starts[..counts.len()]),
            counts: upload(like, &counts),
            indices: upload(like, indices),
            by_latent: OnceLock::new(),
        }
    }

    /// Row offsets and the latent of each entry, on the host.
    pub(in crate::ops) fn read(&self) -> (Vec<usize>, Vec<u32>) {
        let (starts, counts, indices) =
            (read(&self.starts), read(&self.counts), read(&self.indices));
        let (mut offsets, mut entries) = (vec![0], Vec::new());
        for (start, count) in starts.iter().zip(&counts) {
            let row = *start as usize..(*start + *count) as usize;
            entries.extend_from_slice(&indices[row]);
            offsets.push(entries.len());
        }
        (offsets, entries)
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of slots.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Whether there is nothing to launch a kernel for.
    pub(super) fn is_empty(&self) -> bool {
        self.slots == 0
    }

    /// The entries latent by latent, made at the first call.
    pub(super) fn by_latent(&self) -> &ByLatent {
        self.by_latent.get_or_init(|| self.make_by_latent())
    }

    fn make_by_latent(&self) -> ByLatent {
        let (like, client) = (&self.indices, self.indices.client.clone());
        let (rows, latents) = (self.rows as u32, self.latents as u32);
        let cubes = || one_cube_per_row(self.rows);
        let units = CubeDim::new_1d(UNITS);
        let arg = |tensor: &CubeTensor| tensor.clone().into_buffer_arg();
        let tally = zeros(like, self.latents, DType::U32);
        let offsets = zeros(like, self.latents + 1, DType::U32);
        let (entry_rows, entry_slots) = (
            empty(like, self.slots.max(1), DType::U32),
            empty(like, self.slots.max(1), DType::U32),
        );
        if !self.is_empty() {
            let entries = || (arg(&self.starts), arg(&self.counts), arg(&self.indices));
            let (starts, counts, indices) = entries();
            by_latent::count::launch(
                &client,
                cubes(),
                units,
                starts,
                counts,
                indices,
                arg(&tally),
                rows,
            );
            let next = empty(like, self.latents, DType::U32);
            by_latent::scan::launch(
                &client,
                CubeCount::Static(1, 1, 1),
                units,
                arg(&tally),
                arg(&offsets),
                arg(&next),
                latents,
            );
            let (starts, counts, indices) = entries();
            by_latent::place::launch(
                &client,
                cubes(),
                units,
                starts,
                counts,
                indices,
                arg(&next),
                arg(&entry_rows),
                arg(&entry_slots),
                rows,
            );
            let (starts, counts, indices) = entries();
            by_latent::order::launch(
                &client,
                one_cube_per_row(self.latents),
                units,
                starts,
                counts,
                indices,
                arg(&offsets),
                arg(&entry_rows),
                arg(&entry_slots),
                rows,
                latents,
            );
        }
        ByLatent {
            offsets,
            rows: entry_rows,
            slots: entry_slots,
        }
    }

    /// Sums over rows of `values [slots]`, `[M]`.
    pub(super) fn column_sums(&self, values: &CubeTensor) -> CubeTensor {
        if self.is_empty() {
            return zeros(values, self.latents, DType::F32);
        }
        let by_latent = self.by_latent();
        let out = empty(values, self.latents, DType::F32);
        let (cubes, units) = elementwise(self.latents);
        by_latent::column_sums::launch(
            &values.client,
            cubes,
            units,
            values.clone().into_buffer_arg(),
            by_latent.offsets.clone().into_buffer_arg(),
            by_latent.slots.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            self.latents as u32,
        );
        out
    }
}
