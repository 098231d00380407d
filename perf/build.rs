//! Compiles the lab's BPF programs. The same clang as the dataplane's build needs.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=bpf/traffic.h");
    for program in ["tags", "load", "generate", "sink", "arrivals"] {
        compile(program);
    }
}

fn compile(program: &str) {
    let source = format!("bpf/{program}.bpf.c");
    println!("cargo::rerun-if-changed={source}");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join(format!("{program}.bpf.o"));
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let status = Command::new("clang")
        .args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-c", &source, "-o"])
        .arg(&out)
        // Debian keeps asm/types.h in the multiarch directory, which `-target bpf` does not search.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .status()
        .unwrap_or_else(|error| panic!("starting clang: {error}; on Debian: apt-get install clang libc6-dev"));
    assert!(status.success(), "clang could not compile perf/{source}");
}
