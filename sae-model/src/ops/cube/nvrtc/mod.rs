//! Every kernel compiled for NVIDIA's cards, on a machine without one.
//!
//! CubeCL writes a kernel as CUDA C++, and NVRTC compiles it as it would on a card of the given architecture, down to machine code:
//! so the compiler says how many registers each takes, and whether it spills any to memory. `ptxas.toml` has these numbers, and a
//! test compares. NVRTC needs no card and no driver; it comes with a CUDA toolkit, or as wheels (docs/TRAINING.md, "CUDA").

mod compile;
mod kernels;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cubecl::CubeKernel;
use cubecl::cuda::install;
use cubecl::ir::{AddressType, DeviceProperties, TargetProperties};
use cubecl::prelude::{BufferCompilationArg, CubeDim, ExecutionMode, KernelSettings};
use serde::{Deserialize, Serialize};

use crate::device;

/// The architectures that are compiled for: A100, and H100 with what it alone has.
const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        name: "sm_80",
        version: 80,
    },
    Architecture {
        name: "sm_90a",
        version: 90,
    },
];

#[derive(Clone, Copy)]
struct Architecture {
    name: &'static str,
    version: u32,
}

/// A kernel with its name in `ptxas.toml`.
struct Listed {
    name: &'static str,
    kernel: Box<dyn Fn(Arc<DeviceProperties>) -> Box<dyn CubeKernel>>,
}

/// A kernel with its name and units per cube.
fn listed<K: CubeKernel + 'static>(
    name: &'static str,
    units: u32,
    make: impl Fn(KernelSettings, Arc<DeviceProperties>, Arc<TargetProperties>) -> K + 'static,
) -> Listed {
    let kernel = move |device: Arc<DeviceProperties>| -> Box<dyn CubeKernel> {
        let dim = *CubeDim::new_1d(units);
        let settings = KernelSettings::new(dim, ExecutionMode::Checked, AddressType::U32);
        Box::new(make(
            settings,
            device,
            Arc::new(TargetProperties::default()),
        ))
    };
    Listed {
        name,
        kernel: Box::new(kernel),
    }
}

/// A buffer of a kernel, of its own.
fn buffer() -> BufferCompilationArg {
    BufferCompilationArg { inplace: None }
}

/// What the assembler says of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    /// Registers per unit.
    registers: u32,
    /// Bytes per unit that are stored to and loaded from memory because there were not enough.
    spills: u32,
}

/// By kernel, by architecture.
type Table = BTreeMap<String, BTreeMap<String, Resources>>;

const HEADER: &str = "\
# Registers per unit, and bytes spilled, that each kernel of this folder takes at most, as NVRTC 13.5 compiles it.
# SAE_UPDATE_DOCS=1 cargo test -p sae-model --features cuda ptxas   writes this file.
";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/cube")
}

/// The folder of CUDA to compile with: the wheels beside the tests' Python (SAE_PYTHON), which `ptxas.toml` is by, or else the
/// program's. The gate does not set CUDA_PATH: the build script of cudarc asks for it, and Burn is compiled again when it changes.
fn toolkit() -> Option<PathBuf> {
    let wheels = std::env::var_os("SAE_PYTHON").and_then(|python| {
        let lib = Path::new(&python).parent()?.parent()?.join("lib");
        let pythons = std::fs::read_dir(lib).ok()?.flatten();
        pythons
            .map(|python| python.path().join("site-packages/nvidia/cu13"))
            .find(|path| path.is_dir())
    });
    let found = wheels.or_else(install::cuda_path);
    found.filter(|root| device::nvrtc_opens_in(root))
}

/// The kernel, for every architecture; what the compilers say of it if they refuse.
fn measured(listed: &Listed, toolkit: &Path) -> Result<BTreeMap<String, Resources>, String> {
    let on = |architecture: Architecture| {
        let kernel = (listed.kernel)(Arc::new(compile::properties(architecture.version)));
        let resources = compile::resources(&*kernel, architecture, toolkit);
        let named = |error| format!("{} for {}: {error}", listed.name, architecture.name);
        Ok((architecture.name.to_string(), resources.map_err(named)?))
    };
    ARCHITECTURES.into_iter().map(on).collect()
}

/// What is not as the table says it.
fn differences(table: &Table, now: &Table) -> Vec<String> {
    let mut found = Vec::new();
    for (kernel, architectures) in now {
        for (architecture, is) in architectures {
            match table.get(kernel).and_then(|of| of.get(architecture)) {
                None => found.push(format!("{kernel} for {architecture}: no row")),
                Some(most) if is.registers > most.registers || is.spills > most.spills => {
                    found.push(format!(
                        "{kernel} for {architecture}: {is:?}, at most {most:?}"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    let gone = table.keys().filter(|kernel| !now.contains_key(*kernel));
    found.extend(gone.map(|kernel| format!("{kernel}: there is no such kernel")));
    found
}

#[test]
fn every_kernel_compiles_for_cuda_within_ptxas_toml() {
    let Some(toolkit) = toolkit() else {
        assert!(
            std::env::var_os("CUDA_PATH").is_none(),
            "CUDA_PATH names a folder without NVRTC"
        );
        // not eprintln!: the test harness would swallow it
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED compiling the kernels for CUDA: no NVRTC; see docs/TRAINING.md, \"CUDA\""
        );
        return;
    };
    let list = kernels::kernels();
    let (mut now, mut refused) = (Table::new(), Vec::new());
    for listed in &list {
        match measured(listed, &toolkit) {
            Ok(resources) => {
                let before = now.insert(listed.name.into(), resources);
                assert!(before.is_none(), "two kernels are {}", listed.name);
            }
            Err(error) => refused.push(error),
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    let path = folder().join("ptxas.toml");
    if std::env::var_os("SAE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, written(&now)).expect("it can be written");
    }
    let text = std::fs::read_to_string(&path).expect("ptxas.toml");
    let table: Table = toml::from_str(&text).expect("kernels, architectures, resources");
    let found = differences(&table, &now);
    assert!(found.is_empty(), "ptxas.toml:\n{}", found.join("\n"));
}

/// One line per architecture.
fn written(table: &Table) -> String {
    let mut text = HEADER.to_string();
    for (kernel, architectures) in table {
        text += &format!("\n[\"{kernel}\"]\n");
        for (architecture, Resources { registers, spills }) in architectures {
            text += &format!("{architecture} = {{ registers = {registers}, spills = {spills} }}\n");
        }
    }
    text
}

/// The kernels in the sources, as `module::function`.
fn in_sources(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            in_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source");
            let module = path.file_stem().expect("a name").to_string_lossy();
            let mut lines = text.lines().map(str::trim);
            while lines.any(|line| line.starts_with("#[cube(launch")) {
                let function = lines
                    .find_map(|line| line.split_once("fn "))
                    .expect("a function");
                let end = function.1.find(['(', '<']).expect("parameters");
                found.insert(format!("{module}::{}", &function.1[..end]));
            }
        }
    }
}

#[test]
fn every_kernel_of_the_folder_is_listed() {
    let mut kernels = BTreeSet::new();
    in_sources(&folder(), &mut kernels);
    assert!(kernels.contains("sparsemax::forward"), "{kernels:?}");
    let listed = kernels::kernels();
    kernels.retain(|kernel| {
        !listed
            .iter()
            .any(|l| l.name.split(',').next() == Some(kernel))
    });
    assert!(kernels.is_empty(), "not in nvrtc/kernels.rs: {kernels:?}");
}

#[test]
fn more_registers_spills_and_unknown_kernels_are_found() {
    let row = |kernel: &str, registers, spills| {
        let resources = Resources { registers, spills };
        let of = BTreeMap::from([("sm_80".to_string(), resources)]);
        (kernel.to_string(), of)
    };
    let table = Table::from([row("a", 32, 0), row("b", 32, 8), row("gone", 1, 0)]);
    assert_eq!(
        toml::from_str::<Table>(&written(&table)).expect("as it was written"),
        table
    );
    let now = Table::from([row("a", 33, 0), row("b", 30, 12), row("new", 1, 0)]);
    let found = differences(&table, &now);
    assert_eq!(found.len(), 4, "{found:?}");
    let fewer = Table::from([row("a", 31, 0), row("b", 32, 8), row("gone", 1, 0)]);
    assert!(differences(&table, &fewer).is_empty());
}
