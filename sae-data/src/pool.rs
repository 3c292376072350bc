//! Buffers that come back: a batch is megabytes, and fresh memory costs more to get than to fill.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{AllocationProperty, Bytes, DType, TensorData};

/// Buffers of one size that wait to be used again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool(Arc<Mutex<Vec<Vec<f32>>>>);

impl Pool {
    /// A buffer of `len` elements, whatever they are.
    pub(crate) fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match free.iter().position(|buffer| buffer.len() == len) {
            Some(at) => free.swap_remove(at),
            None => vec![0.0; len],
        }
    }

    /// `values` as a tensor `[rows, width]`; when that is dropped, the buffer comes back.
    pub(crate) fn lend(&self, values: Vec<f32>, rows: usize, width: usize) -> TensorData {
        let pool = self.clone();
        let owned = bytes::Bytes::from_owner(Lent { values, pool });
        let bytes = Bytes::from_shared(owned, AllocationProperty::Native);
        TensorData::from_bytes(bytes, [rows, width], DType::F32)
    }
}

/// A buffer in use.
struct Lent {
    values: Vec<f32>,
    pool: Pool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.values)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        // As many as are in use at most; sizes that are no longer asked for make room.
        if free
            .first()
            .is_some_and(|other| other.len() != values.len())
        {
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
    fn a_buffer_comes_back_when_its_tensor_is_gone() {
        let pool = Pool::default();
        let buffer = vec![1.0, 2.0, 3.0, 4.0];
        let place = buffer.as_ptr();
        let tensor = Tensor::<2>::from_data(pool.lend(buffer, 2, 2), &Device::flex());
        assert_eq!(
            tensor.clone().into_data().iter::<f32>().collect::<Vec<_>>(),
            [1.0, 2.0, 3.0, 4.0]
        );
        let doubled = tensor.clone() * 2.0;
        let other = pool.take(4);
        assert_ne!(other.as_ptr(), place, "still in use");
        drop(tensor);
        assert_eq!(
            doubled.into_data().iter::<f32>().collect::<Vec<_>>(),
            [2.0, 4.0, 6.0, 8.0]
        );
        let back = pool.take(4);
        assert_eq!(back.as_ptr(), place);
    }
}
