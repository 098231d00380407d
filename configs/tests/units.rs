//! The systemd units: what the processes rely on is there, and systemd understands every line.

use std::path::{Path, PathBuf};
use std::process::Command;

fn unit(name: &str) -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (path, text)
}

fn value<'t>(text: &'t str, key: &str) -> &'t str {
    let mut found = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    found.next().unwrap_or_else(|| panic!("no {key}="))
}

#[test]
fn the_dataplane_has_the_rights_and_directories_it_needs() {
    let (_, text) = unit("penstock-dataplane.service");
    let capabilities = value(&text, "CapabilityBoundingSet");
    for needed in ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON", "CAP_IPC_LOCK"] {
        assert!(capabilities.split(' ').any(|name| name == needed), "{needed} is missing");
    }
    assert_eq!(value(&text, "LimitMEMLOCK"), "infinity");
    assert_eq!(value(&text, "RuntimeDirectoryPreserve"), "yes");
    assert_eq!(value(&text, "StateDirectory"), "penstock");
    assert!(value(&text, "ExecReload").contains("kill -HUP $MAINPID"));
    let families = value(&text, "RestrictAddressFamilies");
    for needed in ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_XDP"] {
        assert!(families.split(' ').any(|name| name == needed), "{needed} is missing");
    }
}

#[test]
fn both_units_use_the_directories_of_the_defaults() {
    let defaults = penstock_configs::file::BoxConfig::default();
    for name in ["penstock-dataplane.service", "penstock-control.service"] {
        let (_, text) = unit(name);
        assert_eq!(Path::new("/run").join(value(&text, "RuntimeDirectory")), defaults.run_dir, "{name}");
        assert_eq!(value(&text, "RuntimeDirectoryPreserve"), "yes", "{name}: a stop of one would empty the other's");
    }
    let (_, text) = unit("penstock-dataplane.service");
    assert_eq!(Path::new("/var/lib").join(value(&text, "StateDirectory")), defaults.state_dir);
    assert!(value(&text, "ExecStartPre").contains(&format!("{}/bpf", defaults.run_dir.display())));
}

/// Needs systemd-analyze; skipped, with the reason, where there is none.
#[test]
fn systemd_understands_every_line() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["penstock-dataplane.service", "penstock-control.service"] {
        let (_, text) = unit(name);
        // systemd looks for the programs, which need not be installed here.
        let there = |line: &str| match line.strip_prefix("ExecStart=") {
            Some(command) => {
                let arguments = command.split_once(' ').map_or("", |(_, arguments)| arguments);
                format!("ExecStart=/bin/true {arguments}\n")
            }
            None => format!("{line}\n"),
        };
        std::fs::write(dir.path().join(name), text.lines().map(there).collect::<String>()).expect("written");
    }
    for name in ["penstock-dataplane.service", "penstock-control.service"] {
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(dir.path().join(name))
            .output()
            .expect("systemd-analyze");
        let said = String::from_utf8_lossy(&output.stderr);
        let about_us: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        assert!(output.status.success() && about_us.is_empty(), "{name}: {said}");
    }
}
