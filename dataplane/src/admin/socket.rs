//! The Unix socket itself: one living dataplane per path.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::net::UnixListener;

/// Root and the socket's group (systemd sets it) may give orders; nobody else may look.
const MODE: u32 = 0o660;

#[derive(Debug, Error)]
pub enum SocketError {
    #[error("{0}: another penstock-dataplane answers there; stop it first (systemctl stop penstock-dataplane)")]
    Alive(PathBuf),
    #[error("{0} is there and no socket; move it away, or set box.run_dir to a directory of Penstock's own")]
    NotASocket(PathBuf),
    #[error("{path}: {source}; box.run_dir must be a directory this process can write")]
    Io { path: PathBuf, source: io::Error },
}

/// A listener whose file goes when it goes.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    inode: u64,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Only our own: a successor may have put its socket there already.
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, over the leftover of a dead process if need be.
///
/// # Errors
/// A living process holds the path, something else than a socket does, or the system refuses.
pub fn bind(path: &Path) -> Result<(UnixListener, Bound), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        // Refused: nobody listens any more. Anything else, a full queue too, is somebody.
        match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => return Err(SocketError::Alive(path.to_owned())),
        }
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    // Under another name until its mode is right: nobody gets in between bind and chmod.
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    let _ = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside).map_err(failed)?;
    let ready = fs::set_permissions(&beside, Permissions::from_mode(MODE)).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = ready {
        let _ = fs::remove_file(&beside);
        return Err(failed(error));
    }
    let inode = inode(path).map_err(failed)?;
    Ok((listener, Bound { path: path.to_owned(), inode }))
}

fn inode(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::symlink_metadata(path)?.ino())
}
