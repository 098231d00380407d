//! The real API server on a real Unix socket, on a thread of its own, over the engine in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use penstock_configs::file::SnatAddress;
use penstock_configs::validate::BoxContext;
use penstock_dataplane::admin::{self, AdminHandle};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::memory_engine::MemoryEngine;

pub(crate) struct ApiServer {
    pub(crate) engine: Arc<MemoryEngine>,
    pub(crate) admin: AdminHandle,
    pub(crate) socket: PathBuf,
    directory: Option<TempDir>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    pub(crate) fn start() -> Self {
        Self::in_directory(tempfile::tempdir().expect("a temporary directory"))
    }

    /// A process with nothing in memory over what an earlier one left on disk.
    pub(crate) fn in_directory(directory: TempDir) -> Self {
        let engine = Arc::new(MemoryEngine::default());
        let (admin, _) =
            AdminHandle::start(Arc::clone(&engine) as Arc<_>, &state_dir(directory.path()), the_box(), None);
        let socket = directory.path().join("run/dataplane.sock");
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (served, path) = (admin.clone(), socket.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let server = tokio::spawn(admin::serve(served, path.clone(), async {
                    let _ = stopped.await;
                }));
                while std::os::unix::net::UnixStream::connect(&path).is_err() && !server.is_finished() {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                let _ = ready.send(());
                server.await.expect("no panic in the server").expect("the socket could be bound");
            });
        });
        is_ready.recv().expect("the server came up");
        Self { engine, admin, socket, directory: Some(directory), stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        state_dir(self.directory.as_ref().expect("running").path())
    }

    /// Stops the server; what it kept on disk remains.
    pub(crate) fn stop(mut self) -> TempDir {
        self.end();
        self.directory.take().expect("stopped once")
    }

    pub(crate) fn restart(self) -> Self {
        Self::in_directory(self.stop())
    }

    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            assert!(outcome.is_ok() || std::thread::panicking(), "the server's thread panicked");
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// A box with a SNAT address of each family.
fn the_box() -> BoxContext {
    let snat = ["10.0.0.250", "fd00::250"].map(|address| SnatAddress {
        address: address.parse().expect("an address"),
        ports: [1024, 65535],
        shared: false,
    });
    BoxContext { snat: snat.into(), ..BoxContext::default() }
}

fn state_dir(directory: &Path) -> PathBuf {
    directory.join("state")
}
