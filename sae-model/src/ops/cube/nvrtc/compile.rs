//! From a kernel to what the assembler says of it, with the options of CubeCL's own server (cubecl-cuda 0.11.3, `runtime.rs` and
//! `compute/context.rs`).

use std::ffi::{CStr, CString};
use std::path::Path;

use cubecl::cuda::{CudaCompilationOptions, CudaCompiler};
use cubecl::ir::features::{Features, Plane};
use cubecl::ir::{
    DeviceIdentity, DeviceProperties, HardwareProperties, MemoryDeviceProperties, VectorSize,
};
use cubecl::profile::TimingMethod;
use cubecl::{Compiler, CubeKernel, define_kernel};
use cudarc::nvrtc::result as nvrtc;

use super::{Architecture, Resources};

/// The properties of a card, as far as kernels are written by them.
pub(super) fn properties(version: u32) -> DeviceProperties {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        max_shared_memory_size: if version >= 90 { 227 } else { 163 } * 1024,
        max_cube_count: (i32::MAX as u32, u32::from(u16::MAX), u32::from(u16::MAX)),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(if version >= 90 { 132 } else { 108 }),
        num_tensor_cores: Some(4),
        min_tensor_cores_dim: Some(8),
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let features = Features {
        copy_async: true,
        memory_reinterpret: true,
        alignment: true,
        cube_cluster: version >= 90,
        plane: Plane::Ops | Plane::Sync | Plane::NonUniformControlFlow,
        ..Features::default()
    };
    DeviceProperties::new(
        features,
        MemoryDeviceProperties::new(20 << 30, 512),
        hardware,
        TimingMethod::Device,
        DeviceIdentity::default(),
    )
}

/// The kernel's registers and spills on an architecture; the compiler's words if it refuses.
pub(super) fn resources(
    kernel: &dyn CubeKernel,
    architecture: Architecture,
    toolkit: &Path,
) -> Result<Resources, String> {
    let source = source(kernel, architecture)?;
    let log = log_of(&source, architecture.name, toolkit)?;
    parsed(&log).ok_or(format!("no registers in: {log}"))
}

fn source(kernel: &dyn CubeKernel, architecture: Architecture) -> Result<String, String> {
    let mut options = CudaCompilationOptions::default();
    options.cpp.warp_size = 32;
    let supported = &mut options.cpp.supports_features;
    (supported.fast_math, supported.dp4a) = (true, true);
    (supported.grid_constants, supported.fast_tanh) = (true, true);
    supported.clusters = architecture.version >= 90;
    supported.elect_sync = architecture.version >= 90;
    let definition = define_kernel(kernel).map_err(|error| error.to_string())?;
    let compiled = CudaCompiler::default().compile(definition, &options);
    Ok(compiled.map_err(|error| error.to_string())?.to_string())
}

/// What NVRTC prints of a source that it has compiled to machine code.
fn log_of(source: &str, architecture: &str, toolkit: &Path) -> Result<String, String> {
    let include = toolkit.join("include");
    let path = |dir: &Path| format!("--include-path={}", dir.display());
    let options = [
        format!("--gpu-architecture={architecture}"),
        path(&include),
        path(&include.join("cccl")),
        "-lineinfo".into(),
        "--ptxas-options=-v".into(),
    ];
    let text = CString::new(source).map_err(|error| error.to_string())?;
    let program = nvrtc::create_program(&text, None).map_err(|error| error.to_string())?;
    // SAFETY: the program has just been made, of a text that outlives it.
    let compiled = unsafe { nvrtc::compile_program(program, &options) };
    // SAFETY: the program is there until the next line.
    let log = unsafe { nvrtc::get_program_log(program) };
    // SAFETY: nothing uses the program after this.
    let _ = unsafe { nvrtc::destroy_program(program) };
    let log = log.map_err(|error| error.to_string())?;
    let bytes: Vec<u8> = log.iter().map(|c| *c as u8).collect();
    let log = CStr::from_bytes_until_nul(&bytes).map_err(|error| error.to_string())?;
    let log = log.to_string_lossy().into_owned();
    match compiled {
        Ok(()) => Ok(log),
        Err(error) => Err(format!("{error}\n{log}\n{source}")),
    }
}

/// Of `... 0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads ... Used 40 registers, used 1 barriers`.
fn parsed(log: &str) -> Option<Resources> {
    let before = |what: &str| {
        let (head, _) = log.split_once(what)?;
        head.rsplit([' ', '\n']).next()?.parse::<u32>().ok()
    };
    Some(Resources {
        registers: before(" registers")?,
        spills: before(" bytes spill stores")? + before(" bytes spill loads")?,
    })
}

#[test]
fn the_assembler_is_understood() {
    let log = "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'f' for 'sm_80'\n    \
               0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\nptxas info    : Used 40 registers, used 1 barriers";
    let (registers, spills) = (40, 12);
    assert_eq!(parsed(log), Some(Resources { registers, spills }));
    assert_eq!(parsed("error"), None);
}
