//! Compiles the XDP program (`bpf/steer.bpf.c`) to an object the loader embeds.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

const INSTALL: &str = "apt-get install --no-install-recommends clang linux-libc-dev libc6-dev";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=PENSTOCK_CLANG");
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    let variable = |name: &str| env::var(name).map_err(|error| format!("cargo did not set {name}: {error}"));
    let object = PathBuf::from(variable("OUT_DIR")?).join("steer.bpf.o");
    let clang = env::var("PENSTOCK_CLANG").unwrap_or_else(|_| "clang".into());
    // The program reads packets in the byte order of the machine it will run on.
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb",
        _ => "bpfel",
    };
    let mut command = Command::new(&clang);
    command.args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", target]);
    if let Some(include) = arch_include(&variable("CARGO_CFG_TARGET_ARCH")?) {
        command.arg("-I").arg(include);
    }
    command.args(["-c", "bpf/steer.bpf.c", "-o"]).arg(&object);

    let output = command.output().map_err(|error| {
        format!("cannot run `{clang}`, which compiles the XDP program: {error}\n  remedy: {INSTALL}\n  (or name another clang in PENSTOCK_CLANG)")
    })?;
    if !output.status.success() {
        let _ = fs::remove_file(&object);
        return Err(format!(
            "`{clang}` could not compile bpf/steer.bpf.c ({}):\n{}\n  if headers are missing: {INSTALL}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(())
}

/// Debian keeps `asm/types.h` in a directory per architecture that `-target bpf` does not search.
fn arch_include(arch: &str) -> Option<PathBuf> {
    let triplet = match arch {
        "x86" => "i386-linux-gnu".to_owned(),
        "arm" => "arm-linux-gnueabihf".to_owned(),
        "powerpc64" => "powerpc64le-linux-gnu".to_owned(),
        other => format!("{other}-linux-gnu"),
    };
    let path = Path::new("/usr/include").join(triplet);
    path.is_dir().then_some(path)
}
