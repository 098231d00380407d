//! The announcer on real ports: packet sockets that send its frames and hear other hosts, and
//! multicast memberships, for which the kernel sends MLD, on a port and on its VLANs' interfaces. Only requests
//! for our addresses are steered to the packet path, so other hosts' answers arrive here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::Mac;
use super::announce::{Action, Announcer};
use super::frames::{ETHERTYPE_ARP, ETHERTYPE_IPV6, FRAME_ROOM};
use super::mirror::Link;
use super::raw;
use super::view::Vlan;
use crate::verdict::PortId;
use crate::wire::{Tags, tags};

/// A port's two packet sockets.
struct PortSockets {
    ifindex: u32,
    arp: OwnedFd,
    nd: OwnedFd,
}

impl PortSockets {
    fn open(ifindex: u32) -> io::Result<Self> {
        let arp = raw::packet_socket(ifindex, ETHERTYPE_ARP)?;
        let nd = raw::packet_socket(ifindex, ETHERTYPE_IPV6)?;
        raw::attach_nd_filter(&nd)?;
        Ok(Self { ifindex, arp, nd })
    }

    /// Sends the frame as it is, and in the tags of each VLAN the box is a member of on the link.
    fn send(&self, frame: &[u8], vlans: &[PortVlan]) -> io::Result<()> {
        let socket = if frame[12..14] == ETHERTYPE_ARP.to_be_bytes() { &self.arp } else { &self.nd };
        rustix::net::send(socket, frame, SendFlags::empty())?;
        for (tags, _) in vlans {
            let mut room = [0; FRAME_ROOM + 8];
            room[..frame.len()].copy_from_slice(frame);
            let len = tags::retag(&mut room, frame.len(), *tags).unwrap_or(frame.len());
            rustix::net::send(socket, &room[..len], SendFlags::empty())?;
        }
        Ok(())
    }
}

/// A VLAN's tags, and the kernel's interface in it.
type PortVlan = (Tags, u32);

/// The announcer, driven.
pub struct Announcements {
    announcer: Announcer,
    ports: BTreeMap<u8, PortSockets>,
    vlans: BTreeMap<u8, Vec<PortVlan>>,
    memberships: Memberships,
    /// What fails on a port, in words; cleared when it works again.
    faults: BTreeMap<(u8, &'static str), String>,
}

impl Announcements {
    #[must_use]
    pub fn new(announcer: Announcer) -> Self {
        Self {
            announcer,
            ports: BTreeMap::new(),
            vlans: BTreeMap::new(),
            memberships: Memberships::default(),
            faults: BTreeMap::new(),
        }
    }

    /// The ports as the mirror has them ([`super::mirror::Hops::links`]).
    pub fn set_links(&mut self, links: &[Link]) {
        self.ports
            .retain(|port, sockets| links.iter().any(|link| link.port.0 == *port && link.ifindex == sockets.ifindex));
        for link in links {
            let port = link.port.0;
            if self.ports.contains_key(&port) {
                continue;
            }
            match PortSockets::open(link.ifindex) {
                Ok(sockets) => {
                    self.ports.insert(port, sockets);
                    self.faults.remove(&(port, "listen"));
                }
                Err(error) => {
                    let name = &link.name;
                    let fault = format!("no packet socket on {name}, its VIPs are not announced: {error}");
                    self.faults.insert((port, "listen"), fault);
                }
            }
        }
        self.announcer.set_links(links);
        self.forget_memberships();
    }

    /// The VLANs of each port ([`super::mirror::Hops::vlans`]): what is announced on it is announced in them too.
    /// A switch that snoops does so VLAN by VLAN: the groups of the port are joined in each.
    pub fn set_vlans(&mut self, vlans: &[Vlan]) {
        self.vlans.clear();
        for Vlan { port, tags, ifindex } in vlans {
            let tags = tags.iter().flatten().fold(Tags::NONE, |tags, tag| tags.with(tag.ethertype, tag.id));
            self.vlans.entry(port.0).or_default().push((tags, *ifindex));
        }
        self.forget_memberships();
        for port in self.vlans.keys() {
            let Some(sockets) = self.ports.get(port) else { continue };
            for group in self.memberships.groups(sockets.ifindex) {
                self.announcer.join_again(PortId(*port), group);
            }
        }
    }

    /// Those of interfaces that are gone went with them, but the socket remembers them: another interface of the same
    /// index would be joined by name only.
    fn forget_memberships(&mut self) {
        let ports = self.ports.values().map(|port| port.ifindex);
        let here: HashSet<u32> = ports.chain(self.vlans.values().flatten().map(|(_, ifindex)| *ifindex)).collect();
        let joined: Vec<_> = self.memberships.joined.keys().copied().collect();
        for (ifindex, group) in joined.into_iter().filter(|(ifindex, _)| !here.contains(ifindex)) {
            let _ = self.memberships.leave(ifindex, group);
        }
    }

    /// See [`Announcer::set`].
    pub fn set(&mut self, wanted: &[(PortId, IpAddr)]) {
        self.announcer.set(wanted);
    }

    /// See [`Announcer::resume`].
    pub fn resume(&mut self, held: &[(PortId, IpAddr)]) {
        self.announcer.resume(held);
    }

    /// See [`Announcer::on_conflict`].
    pub fn on_conflict(&mut self, port: PortId, address: IpAddr, mac: Mac) {
        self.announcer.on_conflict(port, address, mac);
    }

    /// See [`Announcer::claimed`].
    pub fn claimed(&self) -> impl Iterator<Item = (PortId, IpAddr)> + '_ {
        self.announcer.claimed()
    }

    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        self.faults.values().cloned().chain(self.announcer.notices()).collect()
    }

    /// Readable when [`Self::on_readable`] has work. They change with [`Self::set_links`].
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.ports.values().flat_map(|port| [port.arp.as_fd(), port.nd.as_fd()])
    }

    /// Hears what other hosts say.
    pub fn on_readable(&mut self) {
        let mut buffer = [0; 256];
        for (port, sockets) in &self.ports {
            for socket in [&sockets.arp, &sockets.nd] {
                while let Ok((len, _)) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()) {
                    self.announcer.on_packet(PortId(*port), &buffer[..len]);
                }
            }
        }
    }

    /// See [`Announcer::poll`].
    pub fn poll(&mut self, now: Instant) {
        for action in self.announcer.poll(now) {
            let (Action::Send { port, .. } | Action::Join { port, .. } | Action::Leave { port, .. }) = action;
            let Some(sockets) = self.ports.get(&port.0) else { continue };
            let vlans = self.vlans.get(&port.0).map_or(&[][..], Vec::as_slice);
            let mut interfaces = std::iter::once(sockets.ifindex).chain(vlans.iter().map(|(_, ifindex)| *ifindex));
            let (what, result) = match action {
                Action::Send { frame, .. } => ("send announcements", sockets.send(&frame, vlans)),
                Action::Join { group, .. } => {
                    let joined = interfaces.try_for_each(|ifindex| self.memberships.join(ifindex, group));
                    if joined.is_err() {
                        self.announcer.join_again(port, group);
                    }
                    ("join multicast groups", joined)
                }
                Action::Leave { group, .. } => (
                    "leave multicast groups",
                    // One that is gone keeps it from none of the others.
                    interfaces.map(|ifindex| self.memberships.leave(ifindex, group)).fold(Ok(()), Result::and),
                ),
            };
            match result {
                Ok(()) => {
                    self.faults.remove(&(port.0, what));
                }
                // The link went down a moment ago: its return brings new announcements.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(error) => {
                    let fault = format!("cannot {what} on link {}: {error}", sockets.ifindex);
                    self.faults.insert((port.0, what), fault);
                }
            }
        }
    }
}

/// Solicited-node groups the kernel is a member of for us. The memory a socket may use for them is
/// bounded (`net.core.optmem_max`, some hundreds): another one is opened when it is used up.
#[derive(Default)]
struct Memberships {
    sockets: Vec<OwnedFd>,
    joined: HashMap<(u32, Ipv6Addr), usize>,
}

impl Memberships {
    /// Those joined on an interface.
    fn groups(&self, ifindex: u32) -> impl Iterator<Item = Ipv6Addr> {
        self.joined.keys().filter(move |(on, _)| *on == ifindex).map(|(_, group)| *group)
    }

    fn join(&mut self, ifindex: u32, group: Ipv6Addr) -> io::Result<()> {
        if self.joined.contains_key(&(ifindex, group)) {
            return Ok(());
        }
        for (index, socket) in self.sockets.iter().enumerate() {
            match sockopt::set_ipv6_add_membership(socket, &group, ifindex) {
                Err(Errno::NOMEM | Errno::NOBUFS) => {}
                // Already a member by this socket: the interface was seen under another port.
                Ok(()) | Err(Errno::ADDRINUSE) => {
                    self.joined.insert((ifindex, group), index);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        let socket = rustix::net::socket_with(AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_ipv6_add_membership(&socket, &group, ifindex)?;
        self.sockets.push(socket);
        self.joined.insert((ifindex, group), self.sockets.len() - 1);
        Ok(())
    }

    fn leave(&mut self, ifindex: u32, group: Ipv6Addr) -> io::Result<()> {
        let Some(index) = self.joined.remove(&(ifindex, group)) else { return Ok(()) };
        sockopt::set_ipv6_drop_membership(&self.sockets[index], &group, ifindex)?;
        Ok(())
    }
}
