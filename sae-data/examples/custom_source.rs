//! A data source of your own: rows that are computed, read through the same loader as files.
//!
//! ```sh
//! cargo run -p sae-data --example custom_source
//! ```

use std::error::Error;
use std::f32::consts::TAU;
use std::ops::Range;
use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use sae_data::{ActivationData, ActivationLoader, DataError, Element, Info, Source, Streaming};

/// Waves: element `j` of row `i` is `sin(2 pi i j / rows)`.
#[derive(Debug)]
struct Waves {
    info: Info,
}

impl Waves {
    fn new(rows: usize, width: usize) -> Self {
        let info = Info::new("waves", "computed", Element::F32, [rows, width]);
        Self { info }
    }
}

impl Source for Waves {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read(
        &self,
        pieces: &[Range<usize>],
        _scratch: &mut Vec<u8>,
        out: &mut [Option<&mut [f32]>],
    ) -> Result<(), DataError> {
        let rows = pieces.iter().cloned().flatten();
        for (row, place) in rows.zip(out) {
            let Some(place) = place else { continue }; // nobody wants this row
            for (j, x) in place.iter_mut().enumerate() {
                *x = (TAU * (row * j) as f32 / self.info.rows as f32).sin();
            }
        }
        Ok(())
    }

    fn labels(&self, _pieces: &[Range<usize>]) -> Result<Option<Vec<i64>>, DataError> {
        Ok(None)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let source: Arc<dyn Source> = Arc::new(Waves::new(1000, 16));
    let data = ActivationData::from_source(source);
    let (train, held_out) = data.split_fraction(0.1, 0)?;
    println!(
        "{} rows to train on, {} held out",
        train.rows(),
        held_out.rows()
    );
    let streaming = Streaming::default();
    let loader = ActivationLoader::training(&train, 100, &streaming, 0..9, 9, &Device::flex());
    for (step, batch) in loader.iter().enumerate() {
        let norm = batch?
            .activations
            .square()
            .mean()
            .sqrt()
            .into_scalar::<f32>();
        println!("batch {step}: root mean square {norm:.4}");
    }
    Ok(())
}
