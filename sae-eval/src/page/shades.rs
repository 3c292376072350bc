//! How strongly a latent is active on the tokens around its examples. While the rows passed it was not known which of them
//! would be shown, so only the codes of a sample of them are there; the others are read and encoded once more.

use anyhow::Result;

use super::findings::Latent;
use super::rows::Showing;
use crate::criteria::sample::Sample;
use crate::evaluate::Passes;
use crate::model::Model;

/// Most tokens around examples: 24 MB.
pub(crate) const MOST: usize = 3 << 19;

const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// A token around an example of a latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wanted {
    pub(crate) row: u64,
    pub(crate) latent: u32,
    pub(crate) example: u16,
    pub(crate) place: u16,
}

/// Sets the shades of all latents, or of the first ones if there are too many tokens.
pub(super) fn shade(
    latents: &mut [Latent],
    showing: &dyn Showing,
    sample: &Sample,
    passes: &Passes,
    model: &Model,
) -> Result<()> {
    let (mut wanted, mut tokens) = (Vec::new(), 0);
    for (j, latent) in (0u32..).zip(latents.iter_mut()) {
        let examples: Vec<u64> = latent
            .strongest
            .iter()
            .chain(&latent.tenths)
            .map(|e| e.row)
            .collect();
        for (example, row) in (0u16..).zip(examples) {
            let Some(window) = showing.window(row) else {
                return Ok(());
            };
            latent.shades.push("0".repeat(window.len()));
            for (place, row) in (0u16..).zip(window) {
                let Some(row) = row else { continue };
                tokens += 1;
                let want = Wanted {
                    row,
                    latent: j,
                    example,
                    place,
                };
                match sample.of_row(row as usize) {
                    Some(codes) => {
                        let found = codes.iter().find(|(k, _)| *k == j);
                        latent.set(want, found.map_or(0.0, |(_, a)| *a));
                    }
                    None => wanted.push(want),
                }
            }
        }
        if tokens > MOST {
            break;
        }
    }
    activations(wanted, passes, model, |want, value| {
        latents[want.latent as usize].set(*want, value);
    })
}

/// Tells `set` the activation of each latent on the token where it is wanted; every row is encoded once.
pub(crate) fn activations(
    mut wanted: Vec<Wanted>,
    passes: &Passes,
    model: &Model,
    mut set: impl FnMut(&Wanted, f32),
) -> Result<()> {
    wanted.sort_unstable();
    for part in wanted.chunk_by(|a, b| a.row / passes.batch as u64 == b.row / passes.batch as u64) {
        encode(part, passes, model, &mut set)?;
    }
    Ok(())
}

/// Encodes the rows of a stretch.
fn encode(
    wanted: &[Wanted],
    passes: &Passes,
    model: &Model,
    set: &mut impl FnMut(&Wanted, f32),
) -> Result<()> {
    let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else {
        return Ok(());
    };
    let (start, end) = (first.row as usize, last.row as usize + 1);
    let rows = passes.run.data.held_out.read(start..end)?;
    let codes = model.encode(passes.tensor(&rows, end - start)).codes;
    let (values, indices) = (codes.host_values(), codes.pattern.indices());
    for want in wanted {
        let entries = codes.pattern.row(want.row as usize - start);
        let at = indices[entries.clone()]
            .iter()
            .position(|j| *j == want.latent);
        set(want, at.map_or(0.0, |at| values[entries.start + at]));
    }
    Ok(())
}

impl Latent {
    /// Sets a shade, which is 0 at first.
    fn set(&mut self, Wanted { example, place, .. }: Wanted, value: f32) {
        let digit = shade_of(value.abs(), self.max);
        if digit > 0 {
            let place = usize::from(place);
            let digit = DIGITS[usize::from(digit)];
            self.shades[usize::from(example)].replace_range(place..place + 1, digit);
        }
    }
}

/// A digit from 0, not active, to 9, the latent's largest activation.
fn shade_of(value: f32, max: f32) -> u8 {
    match value > 0.0 && max > 0.0 {
        true => ((value / max * 9.0).ceil() as u8).clamp(1, 9),
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_by_hand() {
        let shades = [0.0, 0.01, 0.5, 1.0, 2.0, f32::NAN].map(|value| shade_of(value, 1.0));
        assert_eq!(shades, [0, 1, 5, 9, 9, 0]);
        assert_eq!(shade_of(1.0, 0.0), 0);
    }
}
