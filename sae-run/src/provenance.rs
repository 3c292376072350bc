//! Where the numbers of a run come from: the content of `provenance.json`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The two sides of a run's data, each described by a `D`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sides<D> {
    /// The training data.
    pub train: D,
    /// The data that the run is judged on.
    pub held_out: D,
}

impl<D> Sides<D> {
    /// Both sides, each with its key in a config.
    pub fn by_key(&self) -> [(&'static str, &D); 2] {
        [
            ("data.train", &self.train),
            ("data.held_out", &self.held_out),
        ]
    }
}

/// A saved model that a run started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Where it lay.
    pub path: PathBuf,
    /// BLAKE3 of its `sae.safetensors`.
    pub blake3: String,
}

/// A change of the number of steps of a run, at a checkpoint from which it goes on. The steps before it are those of a run of
/// `from` steps, those after it of one of `to` steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raise {
    /// Number of steps done at the checkpoint.
    pub at: usize,
    /// Number of steps of the run before.
    pub from: usize,
    /// Number of steps of the run from there on.
    pub to: usize,
    /// The identity of the run that checkpoints up to this one have.
    pub run: String,
}

/// Where the numbers of a run come from. `D` identifies one side of its data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance<D> {
    /// Version of `sae-train`.
    pub version: String,
    /// Version of Burn.
    pub burn: String,
    /// Commit of the source tree that the program was built from, with `+` if it was changed.
    pub git_revision: Option<String>,
    /// Name of the device.
    pub device: String,
    /// The card behind the device, and its driver; none for a processor, and where an earlier version wrote the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
    /// Number of compute threads.
    pub threads: usize,
    /// Seed of the run.
    pub seed: u64,
    /// The data.
    #[serde(flatten)]
    pub data: Sides<D>,
    /// Variance of the examined rows of each side. It shows changes that the samples in fingerprints miss.
    pub variances: [f64; 2],
    /// The saved model that the run started from, if it did not start from fresh parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Origin>,
    /// Every change of the number of steps, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raised: Vec<Raise>,
}

/// A device and the card behind it, if it is known: `cuda on NVIDIA H100 PCIe, driver 570.86.15, CUDA 12.8`.
pub fn on_card(device: &str, card: Option<&str>) -> String {
    match card {
        Some(card) => format!("{device} on {card}"),
        None => device.into(),
    }
}

impl<D> Provenance<D> {
    /// The differences to `now` that may change the last bits of the numbers, though the run is the same.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let facts = |of: &Self| {
            let threads = match of.device.as_str() {
                "cpu" => String::new(), // any number gives the same bytes
                _ => format!("{} threads", of.threads),
            };
            let revision = of.git_revision.as_deref().unwrap_or("?");
            let burn = format!("Burn {}", of.burn);
            let version = format!("sae-train {}", of.version);
            let card = of.card.clone().unwrap_or_default();
            let revision = format!("revision {revision}");
            [burn, version, revision, threads, card]
        };
        let pairs = facts(self).into_iter().zip(facts(now));
        pairs
            .filter(|(then, now)| then != now && !then.is_empty())
            .map(|(then, now)| format!("{then}, now {now}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(burn: &str, device: &str, threads: usize) -> Provenance<String> {
        Provenance {
            version: "1".into(),
            burn: burn.into(),
            git_revision: None,
            device: device.into(),
            card: None,
            threads,
            seed: 0,
            data: Sides {
                train: "a".into(),
                held_out: "b".into(),
            },
            variances: [1.0, 0.5],
            from: None,
            raised: Vec::new(),
        }
    }

    #[test]
    fn differences_that_may_change_bits_are_named() {
        let then = provenance("0.22.1", "ndarray", 2);
        let now = provenance("0.23.0", "ndarray", 4);
        assert_eq!(
            then.differences(&now),
            ["Burn 0.22.1, now Burn 0.23.0", "2 threads, now 4 threads"]
        );
        let cpu = |threads| provenance("0.22.1", "cpu", threads);
        assert!(cpu(1).differences(&cpu(9)).is_empty());
        let on = |card: Option<&str>| Provenance {
            card: card.map(str::to_string),
            ..provenance("0.22.1", "cuda", 1)
        };
        let (a100, h100) = (on(Some("A100, driver 1")), on(Some("H100, driver 1")));
        assert_eq!(
            a100.differences(&h100),
            ["A100, driver 1, now H100, driver 1"]
        );
        assert!(on(None).differences(&h100).is_empty()); // written before cards were
    }

    #[test]
    fn the_file_is_flat_and_keeps_its_order() {
        let provenance = provenance("0.22.1", "cpu", 2);
        let json = serde_json::to_string(&provenance).unwrap();
        assert_eq!(
            json,
            r#"{"version":"1","burn":"0.22.1","git_revision":null,"device":"cpu","threads":2,"seed":0,"train":"a","held_out":"b","variances":[1.0,0.5]}"#
        );
        let read: Provenance<String> = serde_json::from_str(&json).unwrap();
        assert_eq!(read, provenance);
        // Evaluation reads only the data.
        let sides: Sides<String> =
            serde_json::from_str(r#"{"train": "a", "held_out": "b"}"#).unwrap();
        assert_eq!(sides, provenance.data);
    }
}
