//! The files operators copy: each example is read, validated and held against the code.

use std::path::{Path, PathBuf};

use penstock_configs::source;

fn examples() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let entries = std::fs::read_dir(dir).expect("configs/examples");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "toml"));
    paths.sort();
    assert!(paths.len() >= 5, "examples are missing: {paths:?}");
    paths
}

#[test]
fn each_example_is_good() {
    for path in examples() {
        if let Err(faults) = source::load(&path) {
            panic!("{faults}");
        }
    }
}
