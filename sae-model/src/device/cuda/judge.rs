//! What follows from what was found of CUDA.

use std::path::PathBuf;

use super::{CudaNeed, Version};

/// What was found of CUDA.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) driver: Driver,
    pub(super) nvrtc: Option<Nvrtc>,
    /// The folder that CubeCL takes headers from, and those that it lacks.
    pub(super) headers: Option<(PathBuf, Vec<&'static str>)>,
}

#[derive(Clone, Debug)]
pub(super) enum Driver {
    Absent,
    Fails(String),
    Works { cuda: Version, cards: Vec<Card> },
}

#[derive(Clone, Debug)]
pub(super) struct Card {
    pub(super) name: String,
    /// Compute capability, `10 major + minor`.
    pub(super) architecture: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Nvrtc {
    pub(super) version: Version,
    /// The compute capabilities that it compiles for.
    pub(super) architectures: Vec<u32>,
}

/// Everything that is missing to compute on the card with this index, and the number of cards.
pub(super) fn judge(facts: Facts, index: usize) -> (Vec<CudaNeed>, usize) {
    let mut needs = Vec::new();
    let (driver, cards) = match facts.driver {
        Driver::Absent => {
            needs.push(CudaNeed::Driver);
            (None, Vec::new())
        }
        Driver::Fails(reason) => {
            needs.push(CudaNeed::Start(reason));
            (None, Vec::new())
        }
        Driver::Works { cuda, cards } => {
            needs.extend(cards.is_empty().then_some(CudaNeed::Card));
            (Some(cuda), cards)
        }
    };
    let found = cards.len();
    match facts.nvrtc {
        None => needs.push(CudaNeed::Nvrtc),
        Some(nvrtc) => {
            needs.extend(driver.and_then(|driver| older(driver, nvrtc.version)));
            needs.extend(
                cards
                    .into_iter()
                    .nth(index)
                    .and_then(|card| nvrtc.lacks(card)),
            );
        }
    }
    match facts.headers {
        None => needs.push(CudaNeed::Headers),
        Some((dir, missing)) if !missing.is_empty() => {
            needs.push(CudaNeed::TheseHeaders { dir, missing });
        }
        Some(_) => {}
    }
    (needs, found)
}

/// NVRTC writes the newest PTX that it knows, and a driver loads none that is newer than itself. CUDA 12.5 and 12.6 have one PTX.
fn older(driver: Version, nvrtc: Version) -> Option<CudaNeed> {
    let loads = nvrtc <= driver || (driver, nvrtc) == (Version(12, 5), Version(12, 6));
    (!loads).then_some(CudaNeed::NewerDriver { driver, nvrtc })
}

impl Nvrtc {
    fn lacks(&self, card: Card) -> Option<CudaNeed> {
        let Card { name, architecture } = card;
        let compiles = self.architectures.contains(&architecture);
        (!compiles).then_some(CudaNeed::OtherNvrtc {
            nvrtc: self.version,
            card: name,
            architecture,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::said;
    use super::*;

    /// A machine where nothing is missing.
    fn complete() -> Facts {
        Facts {
            driver: Driver::Works {
                cuda: Version(13, 0),
                cards: vec![Card {
                    name: "NVIDIA A100".into(),
                    architecture: 80,
                }],
            },
            nvrtc: Some(Nvrtc {
                version: Version(13, 0),
                architectures: vec![75, 80, 90],
            }),
            headers: Some(("/cuda".into(), Vec::new())),
        }
    }

    fn needs(facts: Facts) -> Vec<CudaNeed> {
        judge(facts, 0).0
    }

    #[test]
    fn a_complete_machine_needs_nothing() {
        let (needs, found) = judge(complete(), 5);
        assert_eq!((needs, found), (Vec::new(), 1)); // `open` compares 5 with 1
    }

    #[test]
    fn everything_that_is_missing_is_said_at_once() {
        let nothing = Facts {
            driver: Driver::Absent,
            nvrtc: None,
            headers: None,
        };
        let needs = needs(nothing);
        let all = [CudaNeed::Driver, CudaNeed::Nvrtc, CudaNeed::Headers];
        assert_eq!(needs, all);
        let text = said(&needs);
        for part in ["libcuda.so.1", "libnvrtc.so.13", "CUDA_PATH", "pip install"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_driver_that_does_not_start_or_has_no_card() {
        let with = |driver| Facts {
            driver,
            ..complete()
        };
        let fails = needs(with(Driver::Fails("no device".into())));
        assert_eq!(fails, [CudaNeed::Start("no device".into())]);
        let text = said(&fails);
        assert!(
            text.contains("no device") && !text.contains("pip"),
            "{text}"
        );
        let (cuda, cards) = (Version(13, 0), Vec::new());
        let none = needs(with(Driver::Works { cuda, cards }));
        assert_eq!(none, [CudaNeed::Card]);
    }

    #[test]
    fn nvrtc_fits_the_driver_and_the_card() {
        let with = |version, architectures: &[u32]| Facts {
            nvrtc: Some(Nvrtc {
                version,
                architectures: architectures.to_vec(),
            }),
            ..complete()
        };
        assert_eq!(needs(with(Version(12, 9), &[80])), []);
        let (driver, nvrtc) = (Version(13, 0), Version(13, 1));
        let newer = CudaNeed::NewerDriver { driver, nvrtc };
        assert_eq!(needs(with(nvrtc, &[80])), [newer]);
        assert_eq!(older(Version(12, 5), Version(12, 6)), None);
        assert!(older(Version(12, 5), Version(12, 7)).is_some());
        let other = CudaNeed::OtherNvrtc {
            nvrtc: Version(12, 0),
            card: "NVIDIA A100".into(),
            architecture: 80,
        };
        assert_eq!(needs(with(Version(12, 0), &[90])), [other]);
    }

    #[test]
    fn headers_that_a_folder_lacks_are_named() {
        let (dir, missing) = (PathBuf::from("/cuda"), vec!["crt/mma.h", "cuda_fp16.h"]);
        let facts = Facts {
            headers: Some((dir.clone(), missing.clone())),
            ..complete()
        };
        let found = needs(facts);
        assert_eq!(found, [CudaNeed::TheseHeaders { dir, missing }]);
        let text = said(&found);
        assert!(
            text.contains("/cuda has no include/crt/mma.h, no include/cuda_fp16.h"),
            "{text}"
        );
    }
}
