//! Devices, by the names that configs and command lines use.
//!
//! Everything that is known of a kind of device is one row of `KINDS`: parsing, errors, help and documents read it there.

mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

#[cfg(all(test, feature = "cuda"))]
pub(crate) use cuda::nvrtc_opens_in;
pub use cuda::{CudaNeed, Version};

/// The names of all devices, as documents say them.
pub const NAMES: &str = "cpu, ndarray, wgpu or wgpu:N, cuda or cuda:N";

/// The name of a device: `cpu`, `ndarray`, `wgpu`, `wgpu:1`, `cuda` or `cuda:1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceName {
    /// Burn's Flex backend: the CPU, always compiled in.
    Cpu,
    /// Burn's NdArray backend: the CPU, to check Flex against. Cargo feature `ndarray`.
    NdArray,
    /// A GPU through wgpu (Vulkan, Metal, DirectX): the best one, or the one with this index. A software rasterizer
    /// (llvmpipe) is used if there is no GPU. Cargo feature `wgpu`.
    Wgpu(Option<usize>),
    /// An NVIDIA GPU through CUDA: the first one, or the one with this index. Cargo feature `cuda`.
    Cuda(Option<usize>),
}

/// How one device of a kind is used.
struct Access {
    open: fn(DeviceName) -> Result<Device, DeviceError>,
    /// The card behind an open device, and its driver.
    card: fn(&Device) -> Option<String>,
}

/// What is known of a kind of device.
struct Kind {
    /// Its name, which is also that of the Cargo feature that adds it.
    name: &'static str,
    /// The device of this kind with an index, or the one to take without; none if there is but one, and it is asked for by index.
    named: fn(Option<usize>) -> Option<DeviceName>,
    /// Whether it computes in memory of its own, not in the process's.
    on_gpu: bool,
    /// What it is.
    meaning: &'static str,
    /// How it is used; none if it is not compiled in.
    access: Option<Access>,
}

/// The second, if the build has the feature.
macro_rules! with_feature {
    ($feature:literal, $access:expr) => {{
        #[cfg(feature = $feature)]
        let access = Some($access);
        #[cfg(not(feature = $feature))]
        let access = None;
        access
    }};
}

/// All kinds of devices. To add one: a variant of [`DeviceName`], a row, and the name in [`NAMES`].
static KINDS: [Kind; 4] = [
    Kind {
        name: "cpu",
        named: |index| index.is_none().then_some(DeviceName::Cpu),
        on_gpu: false,
        meaning: "all cores of the processor, by our own kernels",
        access: Some(Access {
            open: |_| Ok(Device::flex()),
            card: |_| None,
        }),
    },
    Kind {
        name: "ndarray",
        named: |index| index.is_none().then_some(DeviceName::NdArray),
        on_gpu: false,
        meaning: "the processor, by another backend of Burn: a second opinion",
        #[allow(deprecated)] // see lib.rs
        access: with_feature!(
            "ndarray",
            Access {
                open: |_| Ok(Device::ndarray()),
                card: |_| None,
            }
        ),
    },
    Kind {
        name: "wgpu",
        named: |index| Some(DeviceName::Wgpu(index)),
        on_gpu: true,
        meaning: "a GPU through Vulkan, Metal or DirectX; software Vulkan where there is none",
        access: with_feature!(
            "wgpu",
            Access {
                open: wgpu::open,
                card: wgpu::card,
            }
        ),
    },
    Kind {
        name: "cuda",
        named: |index| Some(DeviceName::Cuda(index)),
        on_gpu: true,
        meaning: "an NVIDIA GPU through CUDA",
        access: with_feature!(
            "cuda",
            Access {
                open: cuda::open,
                card: cuda::card,
            }
        ),
    },
];

/// Names that people try, and what to do instead.
const NOT_OFFERED: [(&str, &str); 3] = [
    (
        "metal",
        "wgpu uses Metal on macOS; use device = \"wgpu\" (Cargo feature `wgpu`)",
    ),
    (
        "vulkan",
        "wgpu uses Vulkan where it is there; use device = \"wgpu\" (Cargo feature `wgpu`)",
    ),
    (
        "rocm",
        "CubeCL compiles for ROCm by LLVM alone, which this build leaves out; use device = \"wgpu\" (Cargo feature `wgpu`), \
         which reaches AMD's cards through Vulkan",
    ),
];

/// The reason why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No device has this name.
    #[error("device = \"{name}\" is not a device; use {NAMES}")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A way to compute that exists, but not here.
    #[error("device = \"{name}\" is not offered: {instead}")]
    NotOffered {
        /// The name.
        name: String,
        /// Why, and what to use.
        instead: &'static str,
    },
    /// The device is known, but this build does not include it.
    #[error("device = \"{device}\" is not compiled in: it needs the Cargo feature `{feature}`")]
    NotCompiled {
        /// The requested device.
        device: DeviceName,
        /// The Cargo feature that adds it.
        feature: &'static str,
    },
    /// The machine has no such adapter.
    #[error(
        "device = \"{device}\": no such graphics adapter ({found} found); install a GPU driver, or a \
         software Vulkan device (Debian: apt-get install mesa-vulkan-drivers libvulkan1), or use \
         device = \"cpu\""
    )]
    NoAdapter {
        /// The requested device.
        device: DeviceName,
        /// Number of adapters found.
        found: usize,
    },
    /// The machine has CUDA, but no card with this index.
    #[error("device = \"{device}\": no such card; CUDA finds {found}, and counts from cuda:0")]
    NoCard {
        /// The requested device.
        device: DeviceName,
        /// Number of cards found, at least 1.
        found: usize,
    },
    /// The machine lacks something that CUDA needs.
    #[error("device = \"{device}\" needs what was not found:{}", cuda::said(.needs))]
    NoCuda {
        /// The requested device.
        device: DeviceName,
        /// Everything that is missing.
        needs: Vec<CudaNeed>,
    },
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index.parse())),
            None => (text, None),
        };
        if let Some((name, instead)) = NOT_OFFERED.into_iter().find(|(other, _)| *other == name) {
            let name = name.into();
            return Err(DeviceError::NotOffered { name, instead });
        }
        let kind = KINDS.iter().find(|kind| kind.name == name);
        let index = index.transpose().ok();
        kind.zip(index)
            .and_then(|(kind, index)| (kind.named)(index))
            .ok_or_else(|| DeviceError::Unknown { name: text.into() })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().name)?;
        match self.index() {
            Some(index) => write!(f, ":{index}"),
            None => Ok(()),
        }
    }
}

impl DeviceName {
    /// One device of every kind: the one that is used if no index is given.
    pub fn every() -> impl Iterator<Item = Self> {
        KINDS.iter().filter_map(|kind| (kind.named)(None))
    }

    /// What the device is.
    pub fn meaning(self) -> &'static str {
        self.kind().meaning
    }

    /// Whether the device computes in memory of its own, not in the process's.
    pub fn is_gpu(self) -> bool {
        self.kind().on_gpu
    }

    /// Opens the device, without autodiff.
    ///
    /// # Errors
    /// [`DeviceError`] if it is not compiled in or the machine does not have it.
    pub fn open(self) -> Result<Device, DeviceError> {
        let Kind { name, access, .. } = self.kind();
        let access = access.as_ref().ok_or(DeviceError::NotCompiled {
            device: self,
            feature: name,
        })?;
        (access.open)(self)
    }

    /// The card behind this device, which `device` is, and its driver, for provenance and reports; none for a processor.
    pub fn card(self, device: &Device) -> Option<String> {
        let access = self.kind().access.as_ref()?;
        (access.card)(device)
    }

    fn index(self) -> Option<usize> {
        match self {
            Self::Cpu | Self::NdArray => None,
            Self::Wgpu(index) | Self::Cuda(index) => index,
        }
    }

    fn kind(self) -> &'static Kind {
        let of = |kind: &&Kind| (kind.named)(self.index()) == Some(self);
        KINDS.iter().find(of).expect("every device has a row")
    }
}

#[cfg(test)]
mod tests;
