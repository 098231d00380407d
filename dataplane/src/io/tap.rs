//! Back to the kernel: a TAP device for packets that were steered to us and prove not ours.
//!
//! The kernel sees what is written as arriving on the device, so a unicast destination becomes the device's own
//! address: with the interface's, it would be a packet for another host (`PACKET_OTHERHOST`) and be
//! dropped. Where `net.ipv4.conf.all.rp_filter` is 1 (strict) the kernel drops what the route back would
//! not take by the TAP; 2 (loose) and 0 are fine.
//!
//! What the kernel routes into the device is received; it has whole checksums, as no offload is enabled.
//!
//! The device has one queue. All workers write to it, each packet a system call; the first alone reads. With
//! a queue per worker the kernel moves a flow to the queue its last reply was written by, in the middle
//! of the flow: a handshake's ACK was overtaken by the request and the close, and the node answered it
//! with a RST.
#![allow(unsafe_code, reason = "ioctls that configure a network device")]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use arrayvec::ArrayVec;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};

use super::{Burst, Frame, FramePool, LARGEST_PACKET, MOST_FRAMES, PacketMemory, Port, PortStats};

const DEVICE: &str = "/dev/net/tun";

/// An Ethernet header: the kernel refuses anything shorter.
const SHORTEST: usize = 14;

/// An MTU any frame has room for.
const ONE_FRAME: u16 = 1500;

#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("{DEVICE}: {source}; load the tun module (`modprobe tun`), or let the container have the device")]
    NoDevice { source: io::Error },
    #[error("TAP device {name:?}: a name has 1 to 15 bytes, no slash and no space")]
    BadName { name: String },
    #[error("TAP device {name}: no permission: run as root or with CAP_NET_ADMIN")]
    Permission { name: String },
    #[error(
        "TAP device {name}: the name is taken, by another program or a device of another kind \
         (`ip -d link show {name}`); is another dataplane running?"
    )]
    Taken { name: String },
    #[error("TAP device {name}: {what}: {source}")]
    Setup { name: String, what: &'static str, source: io::Error },
}

/// The device behind the ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapDevice {
    pub name: String,
    pub mac: [u8; 6],
    pub index: u32,
}

/// A worker's end of the TAP device's queue.
pub struct TapPort {
    queue: OwnedFd,
    /// The one that receives.
    reads: bool,
    mac: [u8; 6],
    /// Where the end of a packet is read that one frame has no room for; empty: none is so large.
    overflow: Box<[u8]>,
    too_large: u64,
    refused: u64,
}

/// Makes the device `name` (it goes with the last of its ports) with `ports` ends, and brings it up.
/// `mtu` is the largest of the ports served: what came in by them must fit.
pub fn open(name: &str, ports: u16, mtu: u16) -> Result<(Vec<TapPort>, TapDevice), TapError> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', ' ', '\0']) || name == "." || name == ".."
    {
        return Err(TapError::BadName { name: name.into() });
    }
    let setup = |what| move |source| TapError::Setup { name: name.into(), what, source };
    let queue = attach(name)?;
    // Best effort: no router is behind the device and nobody to share an address with. It keeps its
    // link-local address: the kernel sends no neighbour solicitation (for an IPv6 VIP) without one.
    // IPv6 may be switched off for new interfaces, and is not for this one's VIPs.
    for setting in ["disable_ipv6", "router_solicitations", "accept_ra", "accept_dad"] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{setting}"), "0");
    }
    let control = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
        .map_err(|error| setup("a socket to configure it")(error.into()))?;
    let mut request = Request::new(name);
    request.set_mtu(control.as_fd(), mtu).map_err(setup("setting its MTU"))?;
    let mac = request.mac(control.as_fd()).map_err(setup("reading its address"))?;
    request.set_up(control.as_fd()).map_err(setup("bringing it up"))?;
    let index = rustix::net::netdevice::name_to_index(&control, name)
        .map_err(|error| setup("reading its index")(error.into()))?;
    // Frames have 1,792 bytes of room at least.
    let overflow = |reads| if reads && mtu > ONE_FRAME { vec![0; LARGEST_PACKET] } else { Vec::new() };
    let end = |reads, queue| TapPort { queue, reads, mac, overflow: overflow(reads).into(), too_large: 0, refused: 0 };
    let writers = (1..ports).map(|_| Ok(end(false, queue.try_clone().map_err(setup("sharing its queue"))?)));
    let mut ports = writers.collect::<Result<Vec<_>, TapError>>()?;
    ports.insert(0, end(true, queue));
    Ok((ports, TapDevice { name: name.into(), mac, index }))
}

/// Makes the device; its one queue.
fn attach(name: &str) -> Result<OwnedFd, TapError> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
    let file: File = file.map_err(|source| TapError::NoDevice { source })?;
    match Request::new(name).attach(file.as_fd()) {
        Ok(()) => Ok(file.into()),
        Err(source) => Err(match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TapError::Permission { name: name.into() },
            Some(libc::EBUSY | libc::EINVAL) => TapError::Taken { name: name.into() },
            _ => TapError::Setup { name: name.into(), what: "making it", source },
        }),
    }
}

/// An `ifreq` of one device. Each method fills in the part its ioctl reads, and reads only what it wrote.
struct Request(libc::ifreq);

impl Request {
    /// `name` has been checked to leave room for the final zero.
    fn new(name: &str) -> Self {
        // SAFETY: `zeroed` wants all-zero bytes to be a value of the type: an `ifreq` is a byte array
        // and a union of integers, addresses and pointers of C, which all may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        Self(request)
    }

    fn ioctl(&mut self, fd: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<()> {
        // SAFETY: these requests (TUNSETIFF, SIOC[GS]IF*) want an open descriptor (borrowed) and read and
        // write one `ifreq` at the address, which they do not keep.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut self.0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn attach(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let flags = libc::IFF_TAP | libc::IFF_NO_PI;
        self.0.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        self.ioctl(fd, libc::TUNSETIFF)
    }

    fn set_mtu(&mut self, fd: BorrowedFd<'_>, mtu: u16) -> io::Result<()> {
        self.0.ifr_ifru.ifru_mtu = mtu.into();
        self.ioctl(fd, libc::SIOCSIFMTU)
    }

    fn mac(&mut self, fd: BorrowedFd<'_>) -> io::Result<[u8; 6]> {
        self.ioctl(fd, libc::SIOCGIFHWADDR)?;
        // SAFETY: reading a union wants the field to be what was written: SIOCGIFHWADDR wrote `ifru_hwaddr`.
        let address = unsafe { self.0.ifr_ifru.ifru_hwaddr };
        Ok(std::array::from_fn(|index| address.sa_data[index].cast_unsigned()))
    }

    fn set_up(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.ioctl(fd, libc::SIOCGIFFLAGS)?;
        // SAFETY: reading a union wants the field to be what was written: SIOCGIFFLAGS wrote `ifru_flags`.
        let flags = unsafe { self.0.ifr_ifru.ifru_flags };
        self.0.ifr_ifru.ifru_flags = flags | libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
        self.ioctl(fd, libc::SIOCSIFFLAGS)
    }
}

/// What became of a packet offered to the kernel.
enum Written {
    Taken,
    /// No room now, or the device is down.
    Full,
    /// It is no packet the kernel would ever take.
    Refused,
}

impl TapPort {
    fn write(&self, memory: &PacketMemory, frame: &Frame) -> Written {
        if frame.len() < SHORTEST {
            return Written::Refused;
        }
        let parts: ArrayVec<IoSlice<'_>, MOST_FRAMES> = memory.parts(frame).map(IoSlice::new).collect();
        loop {
            return match rustix::io::writev(&self.queue, &parts) {
                Ok(_) => Written::Taken,
                Err(Errno::INTR) => continue,
                Err(Errno::INVAL) => Written::Refused,
                Err(_) => Written::Full,
            };
        }
    }
}

impl Port for TapPort {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut Burst) -> usize {
        if !self.reads {
            return 0;
        }
        let before = out.len();
        let room = pool.memory().room();
        while !out.is_full() {
            let Some(mut frame) = pool.take() else { break };
            pool.memory().set_len(&mut frame, room);
            let first = IoSliceMut::new(pool.memory().bytes_mut(&mut frame));
            let Ok(len) = rustix::io::readv(&self.queue, &mut [first, IoSliceMut::new(&mut self.overflow)]) else {
                pool.give(frame);
                break;
            };
            // A packet that fills the room to the last byte was cut: the MTU leaves some.
            if len < SHORTEST || len >= room + self.overflow.len() {
                self.too_large += 1;
                pool.give(frame);
                continue;
            }
            pool.memory().set_len(&mut frame, len.min(room));
            let rest = self.overflow.get(..len.saturating_sub(room)).unwrap_or_default();
            match pool.extend(frame, rest) {
                Some(frame) => out.push(frame),
                None => self.too_large += 1,
            }
        }
        out.len() - before
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let mut taken = 0;
        for frame in frames.iter_mut() {
            let packet = pool.memory().bytes_mut(frame);
            // The group bit: broadcast and multicast reach every device.
            if packet.first().is_some_and(|first| first & 1 == 0) && packet.len() >= SHORTEST {
                packet[..6].copy_from_slice(&self.mac);
            }
            match self.write(pool.memory(), frame) {
                Written::Taken => {}
                Written::Refused => self.refused += 1,
                Written::Full => break,
            }
            taken += 1;
        }
        frames.drain(..taken).for_each(|frame| pool.give(frame));
        taken
    }

    fn service(&mut self, _pool: &mut FramePool) {}

    /// The kernel copies: nothing stays here.
    fn frames_held(&self) -> usize {
        0
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.reads.then(|| self.queue.as_fd())
    }

    fn stats(&self) -> PortStats {
        PortStats { rx_dropped: self.too_large, tx_invalid: self.refused, ..PortStats::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_cut_or_refuse_are_refused_here() {
        for name in ["", "sixteen-bytes-is", "a/b", "a b", ".", ".."] {
            assert!(matches!(open(name, 1, 1500), Err(TapError::BadName { .. })), "{name:?}");
        }
    }
}
