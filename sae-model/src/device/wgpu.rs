//! GPUs through wgpu: which one is meant, and what it is called.

use burn::tensor::{Device, DeviceKind, DeviceType};

use super::{DeviceError, DeviceName};

/// More adapters than a machine has of one type.
const MOST: usize = 16;

/// The adapter with the index that the name has, or the best one.
pub(super) fn open(name: DeviceName) -> Result<Device, DeviceError> {
    if name.index().is_none() && std::env::var_os("CUBECL_WGPU_DEFAULT_DEVICE").is_some() {
        return Ok(Device::wgpu(DeviceKind::DefaultDevice)); // the user has chosen with this variable
    }
    let available = Device::enumerate(DeviceType::Wgpu);
    // Best first; a software rasterizer (`Cpu`) comes last.
    let adapters: Vec<Device> = (0..MOST)
        .map(DeviceKind::DiscreteGpu)
        .chain((0..MOST).map(DeviceKind::IntegratedGpu))
        .chain((0..MOST).map(DeviceKind::VirtualGpu))
        .chain([DeviceKind::Cpu])
        .map(Device::wgpu)
        .filter(|candidate| available.iter().any(|device| device == candidate))
        .collect();
    let found = adapters.len();
    adapters
        .into_iter()
        .nth(name.index().unwrap_or(0))
        .ok_or(DeviceError::NoAdapter {
            device: name,
            found,
        })
}

/// What the adapter calls itself: `llvmpipe (LLVM 15.0.6, 256 bits)`. CubeCL tells no more of it, and Vulkan's loader may crash if
/// it is asked beside CubeCL.
pub(super) fn card(device: &Device) -> Option<String> {
    Some(device.clone().inner().identity()?.name)
}
