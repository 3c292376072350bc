//! Stands in for cubecl-llvm, so that CUDA builds without LLVM: README.md says why, and when it can go.
//!
//! Every item is one that cubecl-cuda 0.11.3 names, with the shape that it uses. With its feature `cpp` none of them does
//! anything at run time but [`nvptx::ptx_version::PtxVersion::for_driver`], which answers that it knows no version.

use core::ffi::c_char;
use core::fmt;

use cubecl_core::ir::nvidia::SmArch;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::{BufferIOAttr, KernelDefinition};

/// What kernels would be compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// PTX.
    #[default]
    Nvptx,
}

/// A compiler that refuses every kernel.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What it would compile for.
    pub target: LlvmTarget,
}

/// The options of a [`PlironCompiler`].
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// AMD's architecture, which there is none of here.
    pub arch: Option<()>,
    /// NVIDIA's architecture.
    pub sm_arch: Option<SmArch>,
    /// The newest version of PTX that the driver loads.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether scalars are passed as grid constants.
    pub grid_constants: bool,
}

/// A kernel compiled to PTX. None is ever made.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// The PTX, ended by a zero.
    pub ptx: Vec<c_char>,
    /// Name of the function.
    pub entrypoint: String,
    /// LLVM's text of the module.
    pub ir: String,
    /// Dynamic shared memory, in bytes.
    pub shared_memory_size: usize,
    /// Which buffers it reads and writes.
    pub io: Vec<BufferIOAttr>,
}

/// What compiling makes. None is ever made.
#[non_exhaustive]
pub enum PlironArtifact {
    /// A kernel for NVIDIA's cards.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NvptxCode(module) = self;
        f.write_str(&module.ir)
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _: KernelDefinition,
        _: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "built without LLVM; enable cubecl's feature cuda-cpp".into(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}

/// The names of the module of the same name.
pub mod nvptx {
    /// The names of the module of the same name.
    pub mod ptx_version {
        use core::fmt;

        /// A version of PTX.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(u32);

        impl PtxVersion {
            /// None: NVRTC chooses the version that it writes.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "ptx{}", self.0)
            }
        }
    }
}

/// The names of the module of the same name.
pub mod shared {
    /// The names of the module of the same name.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// What kernels would be compiled for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// PTX.
            Nvptx,
        }

        /// Takes nothing away: only LLVM's compiler has features of a device that it cannot use.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}
