//! Tests that need root, namespaces and AF_XDP say so here. `make test` counts the line a skipped
//! test prints: `SKIPPED: <test>: <reason>`.

use std::process::Command;
use std::sync::OnceLock;

use rustix::net::{AddressFamily, SocketType, socket};

/// Set by a CI that must not skip: a missing privilege then fails the test.
const REQUIRE: &str = "PENSTOCK_REQUIRE_PRIVILEGED";

/// Why labs can't be made here, in words; `None`: they can.
#[must_use]
pub fn missing() -> Option<&'static str> {
    static ANSWER: OnceLock<Option<String>> = OnceLock::new();
    ANSWER.get_or_init(|| probe().err()).as_deref()
}

/// For the first line of a privileged test: `if !require("privileged_x") { return; }`.
///
/// # Panics
/// When the privilege is missing and `PENSTOCK_REQUIRE_PRIVILEGED` is set.
#[must_use]
pub fn require(test: &str) -> bool {
    let Some(reason) = missing() else { return true };
    assert!(std::env::var_os(REQUIRE).is_none(), "{test}: {reason}, and {REQUIRE} is set");
    println!("SKIPPED: {test}: {reason}");
    false
}

fn probe() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root: network namespaces and AF_XDP need it".into());
    }
    for tool in ["ip", "tc", "ethtool"] {
        if Command::new(tool).arg("-V").output().is_err() && Command::new(tool).arg("--version").output().is_err() {
            return Err(format!("`{tool}` is missing (Debian: apt-get install iproute2 ethtool)"));
        }
    }
    let name = format!("pl-probe-{}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).output().map_err(|e| format!("starting ip: {e}"))?;
    if !made.status.success() {
        // A half-made namespace leaves its file.
        let _ = std::fs::remove_file(format!("/run/netns/{name}"));
        let why = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        return Err(format!("no network namespaces here (an unprivileged container?): {why}"));
    }
    let _ = Command::new("ip").args(["netns", "del", &name]).output();
    // The dataplane's sockets; a kernel without CONFIG_XDP_SOCKETS or a seccomp filter refuses them.
    socket(AddressFamily::XDP, SocketType::RAW, None).map_err(|error| format!("no AF_XDP sockets here: {error}"))?;
    Ok(())
}
