//! Binding a socket to a queue, and what to say when it fails.
#![allow(unsafe_code, reason = "xsk-rs calls making a socket unsafe")]

use std::error::Error;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use penstock_configs::file::ZeroCopy;
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue};

use super::umem::WorkerUmem;
use super::{XskConfig, XskError};

/// The kernel takes some 20 ms to let go of a queue after its socket closed, and more than a second where every core
/// is busy: it does it in a work queue. A restart of a box under load must not fail for that.
const BUSY_WAIT: Duration = Duration::from_secs(5);
const BUSY_STEP: Duration = Duration::from_millis(5);

/// The rings of a bound socket.
pub(super) type Rings = (TxQueue, RxQueue, FillQueue, CompQueue);

/// Creates and binds the socket, retrying while the queue is busy. Returns whether the queue had to be waited for.
pub(super) fn bind(
    worker: &WorkerUmem,
    interface: &str,
    queue: u32,
    config: &XskConfig,
) -> Result<(Rings, bool), XskError> {
    let started = Instant::now();
    let mut retried = false;
    loop {
        let source = match try_bind(worker, interface, queue, config) {
            Ok(rings) => return Ok((rings, retried)),
            Err(source) => source,
        };
        if source.raw_os_error() != Some(libc::EBUSY) || started.elapsed() >= BUSY_WAIT {
            return Err(explain(worker, interface, queue, config, source, started.elapsed()));
        }
        retried = true;
        std::thread::sleep(BUSY_STEP);
    }
}

fn try_bind(worker: &WorkerUmem, interface: &str, queue: u32, config: &XskConfig) -> io::Result<Rings> {
    let ring = QueueSize::new(worker.ring_size).map_err(io::Error::other)?;
    // With neither flag the kernel tries zero-copy and then copies.
    let mode = match config.zero_copy {
        _ if config.generic => BindFlags::XDP_COPY,
        ZeroCopy::Off => BindFlags::XDP_COPY,
        ZeroCopy::Require => BindFlags::XDP_ZEROCOPY,
        ZeroCopy::Auto => BindFlags::empty(),
    };
    let scatter = if config.scatter { BindFlags::XDP_USE_SG } else { BindFlags::empty() };
    let socket_config = SocketConfig::builder()
        .rx_queue_size(ring)
        .tx_queue_size(ring)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(mode | scatter | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    let name: Interface = interface.parse().map_err(io::Error::other)?;
    // SAFETY: `new` wants program loading inhibited where a UMEM's (interface, queue) is bound twice: it
    // is inhibited always.
    let opened = unsafe { Socket::new(socket_config, &worker.umem, &name, queue) };
    let (tx, rx, rings) = opened.map_err(|error| os_error(&error))?;
    // No rings of its own: this worker has the queue open already.
    let (fill, comp) = rings.ok_or_else(|| io::Error::from_raw_os_error(libc::EBUSY))?;
    Ok((tx, rx, fill, comp))
}

/// The system's error under one of xsk-rs's.
pub(super) fn os_error(error: &(dyn Error + 'static)) -> io::Error {
    let code = error.source().and_then(|source| source.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    code.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

fn explain(
    worker: &WorkerUmem,
    interface: &str,
    queue: u32,
    config: &XskConfig,
    source: io::Error,
    waited: Duration,
) -> XskError {
    let interface = interface.to_owned();
    let shares_zero_copy =
        worker.siblings.open.load(Ordering::Relaxed) > 0 && worker.siblings.zero_copy.load(Ordering::Relaxed);
    match source.raw_os_error() {
        Some(libc::EBUSY) => XskError::QueueBusy { interface, queue, waited_ms: waited.as_millis() },
        Some(libc::ENODEV) => XskError::NoInterface { interface },
        Some(libc::EPERM | libc::EACCES) => XskError::Permission,
        Some(libc::EAFNOSUPPORT) => XskError::NoAfXdp,
        Some(libc::EINVAL) => XskError::NoQueue { interface, queue },
        Some(libc::EOPNOTSUPP) if shares_zero_copy => XskError::MixedZeroCopy { interface, queue },
        Some(libc::EOPNOTSUPP) if config.zero_copy == ZeroCopy::Require => {
            XskError::ZeroCopyUnsupported { interface, queue, scatter: config.scatter }
        }
        _ => XskError::Socket { interface, queue, what: "binding an AF_XDP socket", source },
    }
}
