//! What CUDA needs at run time, looked for before Burn does.
//!
//! CubeCL opens the driver and NVRTC (the compiler of its kernels), and looks for CUDA's headers, on a thread of its own when the
//! first kernel runs, and panics there at the first thing that is missing. Here all of it is looked for, and one error says what
//! to do. `probe` asks the machine, `judge` is what follows from the answers.

#[cfg(any(test, feature = "cuda"))]
mod judge;
#[cfg(feature = "cuda")]
mod probe;

#[cfg(all(test, feature = "cuda"))]
pub(crate) use probe::nvrtc_opens_in;

use std::fmt;
use std::path::PathBuf;

#[cfg(feature = "cuda")]
use burn::tensor::Device;

#[cfg(feature = "cuda")]
use super::{DeviceError, DeviceName};

/// A version of CUDA: major, minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Something that CUDA needs and that was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaNeed {
    /// There is no library of the driver.
    #[error(
        "NVIDIA's driver: there is no libcuda.so.1; install the driver (Debian: apt-get install nvidia-driver), in a container \
         start it with access to the GPU (docker run --gpus all)"
    )]
    Driver,
    /// The driver does not start.
    #[error("a driver that starts: it says {0}")]
    Start(String),
    /// The driver starts, and has no card.
    #[error("a card: the driver finds none; see nvidia-smi, and the variable CUDA_VISIBLE_DEVICES")]
    Card,
    /// There is no library of NVRTC.
    #[error("NVRTC, which compiles the kernels: there is no libnvrtc.so.13 or libnvrtc.so.12")]
    Nvrtc,
    /// The driver cannot load what NVRTC compiles.
    #[error(
        "a driver for CUDA {nvrtc}, which NVRTC compiles for: it is one for CUDA {driver}; update the driver, or take NVRTC and \
         headers of CUDA {driver}: from a toolkit, or since 13.0 by pip install 'nvidia-cuda-nvrtc=={driver}.*' and the like"
    )]
    NewerDriver {
        /// The newest version that the driver knows.
        driver: Version,
        /// The version of NVRTC.
        nvrtc: Version,
    },
    /// NVRTC does not compile for the card.
    #[error("another version of NVRTC: {nvrtc} does not compile for {card} (sm_{architecture})")]
    OtherNvrtc {
        /// The version of NVRTC.
        nvrtc: Version,
        /// Name of the card.
        card: String,
        /// Its compute capability, `10 major + minor`.
        architecture: u32,
    },
    /// There is no folder of headers.
    #[error("CUDA's headers: neither the variable CUDA_PATH nor /usr/local/cuda names a folder")]
    Headers,
    /// The folder of headers does not have these.
    #[error("CUDA's headers: {} has no include/{}", dir.display(), missing.join(", no include/"))]
    TheseHeaders {
        /// The folder, with `include` in it.
        dir: PathBuf,
        /// Files below `include`.
        missing: Vec<&'static str>,
    },
}

impl CudaNeed {
    /// Whether any toolkit, and the wheels of any, has it.
    fn is_in_toolkit(&self) -> bool {
        matches!(
            self,
            Self::Nvrtc | Self::Headers | Self::TheseHeaders { .. }
        )
    }
}

/// How to get NVRTC and headers. Run on Debian 12: 62 MB to download, 176 MB on disk.
const TOOLKIT: &str = "\
NVRTC and headers are in every CUDA toolkit (export CUDA_PATH to its folder), and on PyPI:
  python3 -m venv ~/cuda
  ~/cuda/bin/pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl
  export CUDA_PATH=$(echo ~/cuda/lib/python3*/site-packages/nvidia/cu13)";

/// A list of everything that is missing, and how to get it, from the end of a line on.
pub(super) fn said(needs: &[CudaNeed]) -> String {
    let mut text: String = needs.iter().map(|need| format!("\n- {need}")).collect();
    if needs.iter().any(CudaNeed::is_in_toolkit) {
        text.push('\n');
        text.push_str(TOOLKIT);
    }
    text
}

/// The card with the index that the name has, or the first, once everything that it needs is found.
#[cfg(feature = "cuda")]
pub(super) fn open(device: DeviceName) -> Result<Device, DeviceError> {
    let index = device.index().unwrap_or(0);
    match judge::judge(probe::facts(), index) {
        (needs, _) if !needs.is_empty() => Err(DeviceError::NoCuda { device, needs }),
        (_, found) if index >= found => Err(DeviceError::NoCard { device, found }),
        _ => Ok(Device::cuda(index)),
    }
}

/// The card's name, its driver and the version of CUDA that this is for: `NVIDIA H100 PCIe, driver 570.86.15, CUDA 12.8`.
#[cfg(feature = "cuda")]
pub(super) fn card(device: &Device) -> Option<String> {
    let name = device.clone().inner().identity()?.name;
    // Linux alone has this file.
    let driver = std::fs::read_to_string("/sys/module/nvidia/version");
    let parts = [
        Some(name),
        driver
            .ok()
            .map(|version| format!("driver {}", version.trim())),
        probe::driver_version().map(|version| format!("CUDA {version}")),
    ];
    Some(parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}
