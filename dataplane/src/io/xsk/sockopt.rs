//! Socket options of AF_XDP that no crate wraps.
#![allow(unsafe_code, reason = "getsockopt and setsockopt with options rustix does not know")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bind flag of linux/if_xdp.h.
const XDP_USE_SG: u16 = 1 << 4;

/// Microseconds the kernel may poll the queue in one call; it ends earlier, at the packet budget.
const BUSY_POLL_MICROS: libc::c_int = 20;

fn set(fd: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: `setsockopt` wants an open descriptor (borrowed) and `len` readable bytes at the value's
    // address, which it does not keep.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel knows packets in several frames (`XDP_USE_SG`, Linux 6.6): asked of it by a socket for no
/// device, whose flags it looks at first.
///
/// # Errors
/// There is no AF_XDP here, or no permission for it.
pub fn kernel_scatters() -> io::Result<bool> {
    // SAFETY: `socket` takes three numbers and returns a descriptor or -1.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `from_raw_fd` wants an open descriptor that nobody else owns: it was just made.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: XDP_USE_SG,
        sxdp_ifindex: 0,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_xdp>()).unwrap_or_default();
    // SAFETY: `bind` wants an open descriptor and `len` readable bytes at the address, which it does not keep.
    let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
    // No interface has index 0. An older kernel says EINVAL of a flag it does not know.
    Ok(result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL))
}

/// Whether the kernel bound the socket in zero-copy mode.
pub(super) fn is_zero_copy(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut options = libc::xdp_options { flags: 0 };
    let mut len = libc::socklen_t::try_from(size_of::<libc::xdp_options>()).unwrap_or_default();
    // SAFETY: `getsockopt` wants an open descriptor (borrowed) and `len` writable bytes, which the
    // options are; it writes no more than `len` says.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, libc::XDP_OPTIONS, (&raw mut options).cast(), &raw mut len)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// Preferred busy polling (Documentation/networking/af_xdp.rst): the queue's interrupts stay off while the
/// worker polls it by system calls.
pub(super) fn prefer_busy_poll(fd: BorrowedFd<'_>, budget: u16) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 1)?;
    set(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, BUSY_POLL_MICROS)?;
    set(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, budget.into())
}
