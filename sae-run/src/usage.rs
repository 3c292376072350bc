//! How much time and memory a process needed, so that runs can be compared by it.

use serde::{Deserialize, Serialize};

/// The content of `usage.json`: the needs of the process that finished a run. Processes that were interrupted before it
/// are not in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Steps that the process trained.
    pub steps: usize,
    /// Seconds that it needed for them, validation included.
    pub seconds: f64,
    /// Its [`peak_memory`].
    #[serde(default)]
    pub peak_memory_bytes: Option<u64>,
}

/// The largest amount of memory in bytes that this process has had in RAM so far, without that of a GPU. `None` where the
/// system does not tell: it is read from `/proc/self/status`, which Linux has.
pub fn peak_memory() -> Option<u64> {
    peak_in(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn peak_in(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_bytes() {
        let status = "Name:\tsae\nVmPeak:\t  900 kB\nVmHWM:\t   1234 kB\nVmRSS:\t 100 kB\n";
        assert_eq!(peak_in(status), Some(1234 * 1024));
        assert_eq!(peak_in("VmHWM:\tmuch\n"), None);
        assert_eq!(peak_in(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_used_counts() {
        let before = peak_memory().unwrap();
        let block = vec![1u8; 64 << 20];
        let sum: u64 = block.iter().step_by(4096).map(|b| u64::from(*b)).sum();
        assert_eq!(sum, (64 << 20) / 4096);
        assert!(peak_memory().unwrap() >= before.max(64 << 20));
    }
}
