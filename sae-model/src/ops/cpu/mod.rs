//! The CPU kernels, which take slices and return vectors. `flex.rs` makes operations of Burn's CPU backend of them.

mod batch_topk;
mod blocking;
pub(crate) mod decode;
pub(crate) mod encode;
mod flex;
pub(crate) mod gradient;
mod product;
pub(crate) mod rows;
mod select;
pub(crate) mod simd;
pub(crate) mod sparsemax;
mod tau;
