//! Asks the machine what it has of CUDA, with the same look-ups as CubeCL's.

use std::ffi::c_int;
use std::path::{Path, PathBuf};

use cubecl::cuda::install;
use cudarc::driver::sys::{CUdevice, CUdevice_attribute as Attribute};
use cudarc::{driver, nvrtc};

use super::Version;
use super::judge::{Card, Driver, Facts, Nvrtc};

/// The headers that CubeCL's kernels include, one from each wheel; the standard library's are below `cccl` since CUDA 13.
const HEADERS: [&[&str]; 3] = [
    &["cuda_fp16.h"],
    &["crt/mma.h"],
    &["cccl/cuda/barrier", "cuda/barrier"],
];

pub(super) fn facts() -> Facts {
    Facts {
        driver: driver(),
        nvrtc: nvrtc(),
        headers: headers(),
    }
}

fn driver() -> Driver {
    // SAFETY: it opens libraries by the names of NVIDIA's driver, as CubeCL does; their constructors run.
    if !unsafe { driver::sys::is_culib_present() } {
        return Driver::Absent;
    }
    let started = driver::result::init().and_then(|()| cards());
    match (started, driver_version()) {
        (Ok(cards), Some(cuda)) => Driver::Works { cuda, cards },
        (Err(error), _) => Driver::Fails(error.to_string()),
        (Ok(_), None) => Driver::Fails("no version".into()),
    }
}

fn cards() -> Result<Vec<Card>, driver::DriverError> {
    let count = driver::result::device::get_count()?;
    (0..count)
        .map(|index| {
            let device = driver::result::device::get(index)?;
            let major = attribute(
                device,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            )?;
            let minor = attribute(
                device,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )?;
            Ok(Card {
                name: driver::result::device::get_name(device)?,
                architecture: (10 * major + minor) as u32,
            })
        })
        .collect()
}

fn attribute(device: CUdevice, which: Attribute) -> Result<c_int, driver::DriverError> {
    // SAFETY: the device is one that the driver has just handed out.
    unsafe { driver::result::device::get_attribute(device, which) }
}

/// The newest version of CUDA that the driver knows; the library must be there.
pub(super) fn driver_version() -> Option<Version> {
    let mut version = 0;
    // SAFETY: the driver writes one integer, which outlives the call.
    let answer = unsafe { driver::sys::cuDriverGetVersion(&raw mut version) };
    answer.result().ok()?;
    Some(Version(version as u32 / 1000, version as u32 % 1000 / 10))
}

fn nvrtc() -> Option<Nvrtc> {
    let beside = || install::cuda_path().is_some_and(|root| nvrtc_opens_in(&root));
    if !nvrtc_opens() && !beside() {
        return None;
    }
    let (mut major, mut minor, mut count) = (0, 0, 0);
    // SAFETY: NVRTC writes two integers, which outlive the call.
    let version = unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    version.result().ok()?;
    // SAFETY: NVRTC writes one integer, which outlives the call.
    let counted = unsafe { nvrtc::sys::nvrtcGetNumSupportedArchs(&raw mut count) };
    counted.result().ok()?;
    let mut architectures: Vec<c_int> = vec![0; count as usize];
    // SAFETY: NVRTC writes as many integers as it has just said that there are.
    let listed = unsafe { nvrtc::sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr()) };
    listed.result().ok()?;
    Some(Nvrtc {
        version: Version(major as u32, minor as u32),
        architectures: architectures.into_iter().map(|a| a as u32).collect(),
    })
}

/// Whether NVRTC is found by name, as CubeCL looks for it.
fn nvrtc_opens() -> bool {
    // SAFETY: it opens libraries by the names of NVRTC, as CubeCL does; their constructors run.
    unsafe { nvrtc::sys::is_culib_present() }
}

/// Whether NVRTC is found by name, once those in this folder of CUDA have been opened: a library that is open is found by its name
/// wherever it lies. So a toolkit or the wheels need one variable, CUDA_PATH, and not LD_LIBRARY_PATH as well.
pub(crate) fn nvrtc_opens_in(root: &Path) -> bool {
    let names = ["libnvrtc.so.13", "libnvrtc.so.12"];
    let paths = ["lib64", "lib"]
        .into_iter()
        .flat_map(|dir| names.map(|name| root.join(dir).join(name)));
    paths.filter(|path| path.is_file()).any(|path| {
        // SAFETY: a library with the name of NVRTC, from the folder that the user says CUDA is in; its constructors run.
        match unsafe { libloading::Library::new(&path) } {
            Ok(library) => {
                std::mem::forget(library); // open for good
                nvrtc_opens()
            }
            Err(_) => false,
        }
    })
}

fn headers() -> Option<(PathBuf, Vec<&'static str>)> {
    let root = install::cuda_path()?;
    let include = install::include_path();
    let is_there = |file: &&str| include.join(file).is_file();
    let missing = HEADERS
        .into_iter()
        .filter(|places| !places.iter().any(&is_there))
        .map(|places| places[0])
        .collect();
    Some((root, missing))
}
