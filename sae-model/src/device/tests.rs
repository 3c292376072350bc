//! The table of devices, and that documents and programs follow it.

use super::*;

fn read(path: &str) -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(path)).expect("a file")
}

/// The list "Add a device" of CONTRIBUTING.md.
#[test]
fn every_device_has_a_feature_of_every_program_and_stands_in_the_docs() {
    let (config, training) = (read("docs/CONFIG.md"), read("docs/TRAINING.md"));
    for device in DeviceName::every() {
        let key = config.lines().find(|line| line.starts_with("| `device`"));
        let name = device.to_string();
        assert!(
            key.is_some_and(|key| key.contains(&name)),
            "docs/CONFIG.md: {name}"
        );
        let row = format!("| {} |", device.meaning());
        assert!(training.contains(&row), "docs/TRAINING.md: {row}");
        for program in ["sae-model", "sae-train", "sae-eval", "sae-bench"] {
            let manifest = read(&format!("{program}/Cargo.toml"));
            let feature = format!("\n{name} = [");
            let has = device == DeviceName::Cpu || manifest.contains(&feature);
            assert!(has, "{program}: no feature {name}");
        }
    }
}

#[test]
fn the_names_are_those_of_the_table() {
    let counted = |name: DeviceName| {
        let with_index = (name.kind().named)(Some(0)).is_some();
        let plain = name.to_string();
        match with_index {
            true => format!("{plain} or {plain}:N"),
            false => plain,
        }
    };
    let names: Vec<String> = DeviceName::every().map(counted).collect();
    assert_eq!(NAMES, names.join(", "));
}

#[test]
fn names_round_trip() {
    for name in ["cpu", "ndarray", "wgpu", "wgpu:3", "cuda", "cuda:7"] {
        assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
    }
    for name in ["", "gpu", "cpu:0", "wgpu:", "wgpu:x", "cuda:-1", "CPU"] {
        let error = name.parse::<DeviceName>().unwrap_err();
        assert_eq!(error, DeviceError::Unknown { name: name.into() });
    }
}

#[test]
fn other_names_are_answered_with_what_to_use() {
    for name in ["metal", "vulkan:1", "rocm"] {
        let error = name.parse::<DeviceName>().unwrap_err();
        assert!(matches!(error, DeviceError::NotOffered { .. }), "{error}");
        assert!(error.to_string().contains("\"wgpu\""), "{error}");
    }
}
