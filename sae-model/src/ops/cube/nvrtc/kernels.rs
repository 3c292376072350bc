//! The kernels that are compiled for CUDA without a card: a line for each, and for each of its variants.

use super::{Listed, buffer, listed};
use crate::ops::cube::product::SIDE;
use crate::ops::cube::rows::{Form, Side};
use crate::ops::cube::settle::Rule;
use crate::ops::cube::sums::Summand;
use crate::ops::cube::units::UNITS;
use crate::ops::cube::{
    adam, batch, by_latent, decode, product, raise, rows, settle, sparsemax, sums,
};

/// All kernels of `ops/cube`, as `module::function, variant`. A kernel gets a line here, and then its row in `ptxas.toml`:
/// `SAE_UPDATE_DOCS=1 cargo test -p sae-model --features cuda ptxas`.
///
/// After name and units per cube stands what `#[cube(launch)]` makes of the function: its name in camel case, and `new` with the
/// settings, the properties of device and target, and per parameter `buffer()`, `()` for a scalar, or the value of a comptime.
#[rustfmt::skip] // one line per kernel
pub(super) fn kernels() -> Vec<Listed> {
    vec![
        listed("adam::step", 2 * UNITS, |s, d, t| adam::step::Step::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), (), (), (), (), ())),
        listed("adam::step_on_rows", UNITS, |s, d, t| adam::step_on_rows::StepOnRows::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), (), (), (), (), (), (), ())),
        listed("batch::count_digits, first level", UNITS, |s, d, t| batch::count_digits::CountDigits::new(s, d, t, buffer(), buffer(), buffer(), buffer(), (), (), 20, 11)),
        listed("batch::keep_largest", UNITS, |s, d, t| batch::keep_largest::KeepLargest::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), (), ())),
        listed("batch::pick_digit, first level", 1, |s, d, t| batch::pick_digit::PickDigit::new(s, d, t, buffer(), buffer(), buffer(), 20, 11)),
        listed("batch::share_room", UNITS, |s, d, t| batch::share_room::ShareRoom::new(s, d, t, buffer(), buffer(), buffer(), buffer(), (), ())),
        listed("by_latent::count", UNITS, |s, d, t| by_latent::count::Count::new(s, d, t, buffer(), buffer(), buffer(), buffer(), ())),
        listed("by_latent::scan", UNITS, |s, d, t| by_latent::scan::Scan::new(s, d, t, buffer(), buffer(), buffer(), ())),
        listed("by_latent::place", UNITS, |s, d, t| by_latent::place::Place::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), ())),
        listed("by_latent::order", UNITS, |s, d, t| by_latent::order::Order::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), ())),
        listed("by_latent::transposed_times, one pair", UNITS, |s, d, t| by_latent::transposed_times::TransposedTimes::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), false)),
        listed("by_latent::transposed_times, two pairs", UNITS, |s, d, t| by_latent::transposed_times::TransposedTimes::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), true)),
        listed("by_latent::column_sums", 2 * UNITS, |s, d, t| by_latent::column_sums::ColumnSums::new(s, d, t, buffer(), buffer(), buffer(), buffer(), ())),
        listed("decode::times", UNITS, |s, d, t| decode::times::Times::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), ())),
        listed("decode::gather, of latents", UNITS, |s, d, t| decode::gather::Gather::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), (), false)),
        listed("decode::centred", UNITS, |s, d, t| decode::centred::Centred::new(s, d, t, buffer(), buffer(), buffer(), buffer(), ())),
        listed("decode::jumps, of scores", UNITS, |s, d, t| decode::jumps::Jumps::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), false)),
        listed("decode::jumps, of thresholds", UNITS, |s, d, t| decode::jumps::Jumps::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), true)),
        listed("product::row_norms", UNITS, |s, d, t| product::row_norms::RowNorms::new(s, d, t, buffer(), buffer(), (), ())),
        listed("product::latents_table, everything", 2 * UNITS, |s, d, t| product::latents_table::LatentsTable::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), true, true, true)),
        listed("product::screen", SIDE * SIDE, |s, d, t| product::screen::Screen::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), (), ())),
        listed("raise::raise, Score", UNITS, |s, d, t| raise::raise::Raise::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), Rule::Score)),
        listed("raise::raise, TopK", UNITS, |s, d, t| raise::raise::Raise::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), Rule::TopK)),
        listed("raise::raise, BatchTopK", UNITS, |s, d, t| raise::raise::Raise::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), Rule::BatchTopK)),
        listed("rows::along", UNITS, |s, d, t| rows::along::Along::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), (), (), (), Form::PowerInRange)),
        listed("rows::bias_sums, normalize", 2 * UNITS, |s, d, t| rows::bias_sums::BiasSums::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), (), (), Side::Normalize)),
        listed("rows::bias_sums, restore", 2 * UNITS, |s, d, t| rows::bias_sums::BiasSums::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), (), (), Side::Restore)),
        listed("rows::column_sums", 2 * UNITS, |s, d, t| rows::column_sums::ColumnSums::new(s, d, t, buffer(), buffer(), (), ())),
        listed("rows::error_gradient", 2 * UNITS, |s, d, t| rows::error_gradient::ErrorGradient::new(s, d, t, buffer(), buffer(), buffer(), buffer(), ())),
        listed("rows::normalize, power", UNITS, |s, d, t| rows::normalize::Normalize::new(s, d, t, buffer(), buffer(), buffer(), buffer(), (), (), (), (), (), (), true, Form::Power)),
        listed("rows::normalize, power in range", UNITS, |s, d, t| rows::normalize::Normalize::new(s, d, t, buffer(), buffer(), buffer(), buffer(), (), (), (), (), (), (), true, Form::PowerInRange)),
        listed("rows::restore", 2 * UNITS, |s, d, t| rows::restore::Restore::new(s, d, t, buffer(), buffer(), buffer(), buffer(), (), (), (), true)),
        listed("settle::settle, Probability", UNITS, |s, d, t| settle::settle::Settle::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), (), (), (), (), Rule::Probability, true)),
        listed("settle::settle, Score", UNITS, |s, d, t| settle::settle::Settle::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), (), (), (), (), Rule::Score, true)),
        listed("settle::settle, Threshold", UNITS, |s, d, t| settle::settle::Settle::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), (), (), (), (), Rule::Threshold, true)),
        listed("settle::settle, TopK", UNITS, |s, d, t| settle::settle::Settle::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), (), (), (), (), Rule::TopK, true)),
        listed("settle::settle, BatchTopK", UNITS, |s, d, t| settle::settle::Settle::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), (), (), (), (), Rule::BatchTopK, true)),
        listed("settle::settle, JumpRelu", UNITS, |s, d, t| settle::settle::Settle::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), (), (), (), (), (), (), Rule::JumpRelu, true)),
        listed("decode::dots", UNITS, |s, d, t| decode::dots::Dots::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), buffer(), (), ())),
        listed("settle::largest", UNITS, |s, d, t| settle::largest::Largest::new(s, d, t, buffer(), buffer(), buffer(), ())),
        listed("settle::compact", 2 * UNITS, |s, d, t| settle::compact::Compact::new(s, d, t, buffer(), buffer(), buffer(), buffer(), buffer(), (), (), ())),
        listed("sparsemax::forward, probability", UNITS, |s, d, t| sparsemax::forward::Forward::new(s, d, t, buffer(), buffer(), buffer(), (), (), (), false)),
        listed("sparsemax::forward, score", UNITS, |s, d, t| sparsemax::forward::Forward::new(s, d, t, buffer(), buffer(), buffer(), (), (), (), true)),
        listed("sparsemax::backward, probability", UNITS, |s, d, t| sparsemax::backward::Backward::new(s, d, t, buffer(), buffer(), buffer(), buffer(), (), (), (), false)),
        listed("sparsemax::backward, score", UNITS, |s, d, t| sparsemax::backward::Backward::new(s, d, t, buffer(), buffer(), buffer(), buffer(), (), (), (), true)),
        listed("sums::partial_sums", UNITS, |s, d, t| sums::partial_sums::PartialSums::new(s, d, t, buffer(), buffer(), buffer(), (), Summand::Itself)),
        listed("sums::partial_sums, squared differences", UNITS, |s, d, t| sums::partial_sums::PartialSums::new(s, d, t, buffer(), buffer(), buffer(), (), Summand::SquaredDifference)),
    ]
}
