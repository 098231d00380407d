//! The bpffs under the run directory, where links and maps outlive the process.
//!
//! `{run_dir}/bpf/v{layout}/` holds the maps by name and one `link-{ifindex}` per interface. A link
//! lies beside the maps its program uses, so the directory it is found in says what can be adopted.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::SteerError;
use super::layout::LAYOUT;

/// statfs(2).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const LINK_PREFIX: &str = "link-";
/// Kernels with CONFIG_BPF_PRELOAD put these into every new bpffs.
const PRELOADED: [&str; 2] = ["maps.debug", "progs.debug"];

pub(super) fn root(run_dir: &Path) -> PathBuf {
    run_dir.join("bpf")
}

/// Where this build pins; its parent is the bpffs.
pub(super) fn pins(run_dir: &Path) -> PathBuf {
    root(run_dir).join(format!("v{LAYOUT}"))
}

pub(super) fn link(pins: &Path, ifindex: u32) -> PathBuf {
    pins.join(format!("{LINK_PREFIX}{ifindex}"))
}

pub(super) fn is_mounted(path: &Path) -> bool {
    #[allow(
        clippy::cast_sign_loss,
        clippy::unnecessary_cast,
        reason = "f_type's width and sign differ by architecture"
    )]
    statfs(path).is_ok_and(|stat| stat.f_type as u64 & 0xffff_ffff == BPF_FS_MAGIC)
}

/// Mounts the bpffs where none is, and makes this layout's directory. Returns a warning where the mount will die
/// with the process's mount namespace, and the pins with it.
pub(super) fn prepare(run_dir: &Path) -> Result<Option<String>, SteerError> {
    let root = root(run_dir);
    if !is_mounted(&root) {
        let failed = |source: io::Error| SteerError::Mount { path: root.clone(), source };
        fs::create_dir_all(&root).map_err(failed)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("bpf", &root, "bpf", flags, Some(c"mode=0700")).map_err(|error| failed(error.into()))?;
    }
    let warning = dies_with_us(&root).then(|| {
        format!(
            "{0} is mounted in a private mount namespace only: when the process ends it is gone, and the XDP program with it, so the \
             kernel would answer packets of established flows with RST. Mount it outside first: `mount -t bpf bpf {0}` (before `ip \
             netns exec`; systemd: ExecStartPre=+)",
            root.display()
        )
    });
    let pins = pins(run_dir);
    match fs::create_dir(&pins) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(SteerError::Pin { action: "cannot make", path: pins, source: error })
        }
        _ => Ok(warning),
    }
}

/// `ip netns exec` and systemd's sandboxing give a process its own mounts; unless they are shared with init's
/// namespace, what is mounted there nobody else sees, and the last process takes it along.
fn dies_with_us(root: &Path) -> bool {
    // Where init's mounts are not to be read there is nothing to compare with, and no warning.
    let (Ok(root), Ok(mounts)) = (root.canonicalize(), fs::read_to_string("/proc/1/mountinfo")) else { return false };
    // proc_pid_mountinfo(5): the mount point is the fifth field.
    !mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == root))
}

/// A pinned link of ours: on which interface, and beside which layout's maps.
pub(super) struct PinnedAt {
    pub(super) path: PathBuf,
    pub(super) ifindex: u32,
}

/// Every link pinned under any layout; none where no bpffs is mounted.
pub(super) fn links(run_dir: &Path) -> Vec<PinnedAt> {
    let mut found = Vec::new();
    for directory in layouts(run_dir) {
        for path in entries(&directory) {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if let Some(ifindex) = name.strip_prefix(LINK_PREFIX).and_then(|index| index.parse().ok()) {
                found.push(PinnedAt { path, ifindex });
            }
        }
    }
    found
}

/// The directories of all layouts, this build's and others'.
pub(super) fn layouts(run_dir: &Path) -> Vec<PathBuf> {
    let root = root(run_dir);
    if !is_mounted(&root) {
        return Vec::new();
    }
    let is_layout = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.strip_prefix('v').is_some_and(|version| version.parse::<u32>().is_ok())
    };
    entries(&root).into_iter().filter(is_layout).collect()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(listing) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = listing.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

pub(super) fn remove(path: &Path) -> Result<(), SteerError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SteerError::Pin { action: "cannot remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Removes a layout's directory with what is pinned in it; links first, as they use the maps.
pub(super) fn remove_layout(directory: &Path) -> Result<Vec<PathBuf>, SteerError> {
    let (links, maps): (Vec<_>, Vec<_>) = entries(directory)
        .into_iter()
        .partition(|path| path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(LINK_PREFIX)));
    let removed: Vec<PathBuf> = links.into_iter().chain(maps).collect();
    for path in &removed {
        remove(path)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SteerError::Pin { action: "cannot remove", path: directory.to_owned(), source: error })
        }
        _ => Ok(removed),
    }
}

/// Unmounts the bpffs if nothing is left in it; somebody else's pins keep it.
pub(super) fn unmount_empty(run_dir: &Path) -> Result<bool, SteerError> {
    let root = root(run_dir);
    let foreign = |path: &PathBuf| !PRELOADED.iter().any(|name| path.ends_with(name));
    if !is_mounted(&root) || entries(&root).iter().any(foreign) {
        return Ok(false);
    }
    unmount(&root, UnmountFlags::DETACH).map_err(|error| SteerError::Pin {
        action: "cannot unmount",
        path: root.clone(),
        source: error.into(),
    })?;
    // A directory that was there before, or is mounted on twice, may stay.
    let _ = fs::remove_dir(&root);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_directory_is_no_bpffs_and_has_no_pins() {
        let run_dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(run_dir.path().join("bpf/v1")).unwrap();
        fs::write(run_dir.path().join("bpf/v1/link-3"), "").unwrap();
        assert!(!is_mounted(&root(run_dir.path())));
        assert!(links(run_dir.path()).is_empty());
        assert!(!unmount_empty(run_dir.path()).unwrap());
    }
}
