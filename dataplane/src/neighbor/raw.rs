//! The three system calls rustix has no safe form of: binding a packet socket to an interface,
//! attaching a filter to it, and asking a driver for its queues.
#![allow(unsafe_code, reason = "three calls with C structures; each says why it is sound")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::frames::{ADVERTISEMENT, NEXT_HEADER_ICMPV6, SOLICITATION};

/// Room for a structure's size in the kernel's 32-bit length.
const fn socket_len<T>() -> libc::socklen_t {
    // The structures passed here are a few dozen bytes.
    size_of::<T>() as libc::socklen_t
}

/// A non-blocking packet socket that hears one EtherType on one interface; 0: it only sends.
pub(crate) fn packet_socket(ifindex: u32, ethertype: u16) -> io::Result<OwnedFd> {
    // Protocol 0 hears nothing until it is bound: no packet of another interface slips in before.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: i32::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: bind reads `socket_len` bytes at the pointer, which is an initialised sockaddr_ll that
    // outlives the call; the descriptor is open, owned by `socket`.
    let result =
        unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), socket_len::<libc::sockaddr_ll>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Lets only untagged neighbour solicitations and advertisements through to the packet socket: all
/// the IPv6 traffic the kernel gets would be copied to it otherwise.
pub(super) fn attach_nd_filter(socket: &impl AsFd) -> io::Result<()> {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const NEXT_HEADER_AT: u32 = 14 + 6;
    const TYPE_AT: u32 = 14 + 40;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        op(LOAD_BYTE, 0, 0, NEXT_HEADER_AT),
        op(JUMP_EQUAL, 0, 3, u32::from(NEXT_HEADER_ICMPV6)),
        op(LOAD_BYTE, 0, 0, TYPE_AT),
        op(JUMP_EQUAL, 2, 0, u32::from(SOLICITATION)),
        op(JUMP_EQUAL, 1, 0, u32::from(ADVERTISEMENT)),
        op(RETURN, 0, 0, 0),
        op(RETURN, 0, 0, u32::MAX),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: setsockopt reads a sock_fprog and the `len` instructions it points to; both outlive the
    // call, which copies them. The descriptor is open while borrowed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            socket_len::<libc::sock_fprog>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct ethtool_channels` of linux/ethtool.h.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Receive queues in use, if the interface's driver tells.
pub(crate) fn rx_queues(interface: &str) -> Option<u16> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return None;
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut channels).cast() },
    };
    // SAFETY: SIOCETHTOOL reads an ifreq with a terminated name (the last byte is never written) and
    // writes the structure its data points to, of the size its command implies; both live on this
    // stack frame throughout. The descriptor is open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return None;
    }
    u16::try_from(channels.rx + channels.combined).ok().filter(|count| *count > 0)
}
