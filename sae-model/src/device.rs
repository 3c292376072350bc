//! Devices, by the names that configs and command lines use.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

/// The name of a device: `cpu`, `ndarray`, `wgpu` or `wgpu:1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// Burn's Flex backend: the CPU, always compiled in.
    Cpu,
    /// Burn's NdArray backend: the CPU, to check Flex against. Cargo feature `ndarray`.
    NdArray,
    /// A GPU through wgpu (Vulkan, Metal, DirectX): the best one, or the one with this index. A software rasterizer
    /// (llvmpipe) is used if there is no GPU. Cargo feature `wgpu`.
    Wgpu(Option<usize>),
}

/// The reason why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No device has this name.
    #[error(
        "device = \"{name}\" is not a device; use \"cpu\", \"ndarray\", \"wgpu\" or \"wgpu:N\""
    )]
    Unknown {
        /// The name.
        name: String,
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
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown { name: name.into() };
        match name {
            "cpu" => Ok(Self::Cpu),
            "ndarray" => Ok(Self::NdArray),
            "wgpu" => Ok(Self::Wgpu(None)),
            _ => {
                let index = name.strip_prefix("wgpu:").ok_or_else(unknown)?;
                index
                    .parse()
                    .map(|i| Self::Wgpu(Some(i)))
                    .map_err(|_| unknown())
            }
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::NdArray => f.write_str("ndarray"),
            Self::Wgpu(None) => f.write_str("wgpu"),
            Self::Wgpu(Some(index)) => write!(f, "wgpu:{index}"),
        }
    }
}

impl DeviceName {
    /// Opens the device, without autodiff.
    ///
    /// # Errors
    /// [`DeviceError`] if it is not compiled in or the machine does not have it.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            #[cfg(feature = "ndarray")]
            #[allow(deprecated)] // see lib.rs
            Self::NdArray => Ok(Device::ndarray()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(index) => open_wgpu(self, index),
            #[cfg(not(all(feature = "ndarray", feature = "wgpu")))]
            device => {
                let feature = if device == Self::NdArray {
                    "ndarray"
                } else {
                    "wgpu"
                };
                Err(DeviceError::NotCompiled { device, feature })
            }
        }
    }
}

#[cfg(feature = "wgpu")]
fn open_wgpu(device: DeviceName, index: Option<usize>) -> Result<Device, DeviceError> {
    use burn::tensor::{DeviceKind, DeviceType};
    if index.is_none() && std::env::var_os("CUBECL_WGPU_DEFAULT_DEVICE").is_some() {
        return Ok(Device::wgpu(DeviceKind::DefaultDevice)); // the user has chosen with this variable
    }
    let available = Device::enumerate(DeviceType::Wgpu);
    // Best first; a software rasterizer (`Cpu`) comes last.
    let adapters: Vec<Device> = (0..16)
        .map(DeviceKind::DiscreteGpu)
        .chain((0..16).map(DeviceKind::IntegratedGpu))
        .chain((0..16).map(DeviceKind::VirtualGpu))
        .chain([DeviceKind::Cpu])
        .map(Device::wgpu)
        .filter(|candidate| available.iter().any(|device| device == candidate))
        .collect();
    let found = adapters.len();
    adapters
        .into_iter()
        .nth(index.unwrap_or(0))
        .ok_or(DeviceError::NoAdapter { device, found })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list "Add a device" of CONTRIBUTING.md.
    #[test]
    fn every_device_has_a_feature_of_every_program_and_stands_in_the_docs() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("a file");
        let config = read("docs/CONFIG.md");
        for device in [DeviceName::Cpu, DeviceName::NdArray, DeviceName::Wgpu(None)] {
            let key = config.lines().find(|line| line.starts_with("| `device`"));
            let name = device.to_string();
            assert!(
                key.is_some_and(|key| key.contains(&name)),
                "docs/CONFIG.md: {name}"
            );
            for program in ["sae-train", "sae-eval"] {
                let manifest = read(&format!("{program}/Cargo.toml"));
                let feature = format!("\n{name} = [");
                let has = device == DeviceName::Cpu || manifest.contains(&feature);
                assert!(has, "{program}: no feature {name}");
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for name in ["cpu", "ndarray", "wgpu", "wgpu:3"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        for name in ["", "cuda", "wgpu:", "wgpu:x", "wgpu:-1", "CPU"] {
            let error = name.parse::<DeviceName>().unwrap_err();
            assert_eq!(error, DeviceError::Unknown { name: name.into() });
        }
    }
}
