//! Reuses the memory of batches: a batch has megabytes, and to allocate fresh memory costs more than to fill it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{AllocationProperty, Bytes, DType, TensorData};
use memmap2::MmapMut;

/// Memory for float32 values, at first zeros. It begins at a page, so rows of whole cache lines are aligned to them.
#[derive(Debug)]
pub(crate) struct Buffer {
    map: MmapMut,
    len: usize,
}

impl Buffer {
    fn new(len: usize) -> std::io::Result<Self> {
        let map = MmapMut::map_anon((4 * len).max(1))?;
        Ok(Self { map, len })
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.map[..4 * self.len])
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.map[..4 * self.len])
    }
}

/// Free buffers of one size.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool(Arc<Mutex<Vec<Buffer>>>);

impl Pool {
    /// A buffer of `len` elements with arbitrary values.
    pub(crate) fn take(&self, len: usize) -> std::io::Result<Buffer> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match free.iter().position(|buffer| buffer.len == len) {
            Some(at) => Ok(free.swap_remove(at)),
            None => Buffer::new(len),
        }
    }

    /// `values` as a tensor `[rows, width]`; the buffer returns to the pool when the tensor is dropped.
    pub(crate) fn lend(&self, values: Buffer, rows: usize, width: usize) -> TensorData {
        let owner = Lent {
            values: Some(values),
            pool: self.clone(),
        };
        let bytes = Bytes::from_shared(bytes::Bytes::from_owner(owner), AllocationProperty::Native);
        TensorData::from_bytes(bytes, [rows, width], DType::F32)
    }
}

/// A buffer in use.
struct Lent {
    values: Option<Buffer>,
    pool: Pool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.values.as_deref().map_or(&[], bytemuck::cast_slice)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(values) = self.values.take() else {
            return;
        };
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Never more buffers than were in use at a time; buffers of another size are freed.
        if free.first().is_some_and(|other| other.len != values.len) {
            free.clear();
        }
        free.push(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tensor};

    #[test]
    fn a_buffer_returns_when_its_tensor_is_dropped() {
        let pool = Pool::default();
        let mut buffer = pool.take(4).unwrap();
        assert_eq!(*buffer, [0.0; 4]);
        buffer.copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        let place = buffer.as_ptr();
        let tensor = Tensor::<2>::from_data(pool.lend(buffer, 2, 2), &Device::flex());
        assert_eq!(
            tensor.clone().into_data().iter::<f32>().collect::<Vec<_>>(),
            [1.0, 2.0, 3.0, 4.0]
        );
        let doubled = tensor.clone() * 2.0;
        let other = pool.take(4).unwrap();
        assert_ne!(other.as_ptr(), place, "still in use");
        drop(tensor);
        assert_eq!(
            doubled.into_data().iter::<f32>().collect::<Vec<_>>(),
            [2.0, 4.0, 6.0, 8.0]
        );
        assert_eq!(pool.take(4).unwrap().as_ptr(), place);
    }
}
