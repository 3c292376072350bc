//! Workers for the data loader and for a plain conversion of the same bytes in memory.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use clap::ValueEnum;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use sae_data::{ActivationData, ActivationLoader, Element, Options, Streaming};
use serde_json::{Value, json};

use crate::protocol::Job;

/// The work of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Takes one epoch of shuffled batches from the loader.
    Stream,
    /// Converts all elements in memory on every core, with `half`: the yardstick.
    Copy,
    /// The same with the loader's own conversion, whose writes bypass the cache.
    CopyOwn,
}

#[derive(clap::Args)]
pub(crate) struct Arguments {
    work: Work,
    path: PathBuf,
    batch: usize,
    window_mb: usize,
}

/// Builds the job for the arguments, on a file of f16 rows.
pub(crate) fn job(arguments: &Arguments) -> Result<Job> {
    let (path, batch) = (&arguments.path, arguments.batch);
    let data = ActivationData::open(path, &Options::default())?;
    let rows = data.rows() / batch * batch;
    match arguments.work {
        Work::Stream => Ok(stream(&data, batch, arguments.window_mb)),
        Work::Copy => copy(path, [rows, data.width()], |bytes, out| {
            bytemuck::cast_slice::<u8, f16>(bytes).convert_to_f32_slice(out);
        }),
        Work::CopyOwn => copy(path, [rows, data.width()], |bytes, out| {
            Element::F16.to_f32(bytes, out)
        }),
    }
}

/// Reports a turn that began at `start` and delivered `rows`.
fn turn(start: Instant, rows: usize) -> Result<Value> {
    Ok(json!({ "seconds": start.elapsed().as_secs_f64(), "rows": rows }))
}

/// Takes one epoch of batches. Batches that were prepared during the others' turns are taken first and not timed.
fn stream(data: &ActivationData, batch: usize, window_mb: usize) -> Job {
    let streaming = Streaming {
        window_mb,
        block_rows: None,
        workers: sae_data::config::default_workers(),
        seed: 0,
    };
    let prepared = 2 * streaming.plan(data).window_rows().div_ceil(batch);
    let timed = data.rows() / batch;
    let device = Device::flex();
    let steps = prepared + timed;
    let loader = ActivationLoader::training(
        data,
        batch,
        &streaming,
        0..usize::MAX / batch,
        steps,
        &device,
    );
    Box::new(move || {
        let mut batches = loader.iter();
        for _ in 0..prepared {
            batches.next().context("the loader ended")??;
        }
        let start = Instant::now();
        for batch in batches {
            batch?;
        }
        turn(start, timed * batch)
    })
}

/// Converts all elements in pieces of 1 MiB.
fn copy(
    path: &Path,
    [rows, width]: [usize; 2],
    convert: impl Fn(&[u8], &mut [f32]) + Sync + 'static,
) -> Result<Job> {
    const PIECE: usize = 1 << 19;
    let elements = rows * width;
    let bytes = std::fs::read(path).with_context(|| format!("{}", path.display()))?;
    let source = bytes[bytes.len() - 2 * elements..].to_vec(); // without the header, and aligned
    let mut destination = vec![1.0f32; elements];
    Ok(Box::new(move || {
        let start = Instant::now();
        let pieces = destination
            .par_chunks_mut(PIECE)
            .zip(source.par_chunks(2 * PIECE));
        pieces.for_each(|(out, bytes)| convert(bytes, out));
        turn(start, rows)
    }))
}
