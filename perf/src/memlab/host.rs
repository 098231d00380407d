//! A host: a card, a smoltcp stack on it, and what runs on the stack: clients or a node's server.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::client::Client;
use super::fin_guard::FinGuard;
use super::nic::Nic;
use super::node::Node;

/// What a TCP socket may have in flight, and room for what it receives: more, so that no window is ever
/// closed. smoltcp 0.14 believes an overtaken ACK that closes it, and then stops retransmitting for good.
const TCP_IN_FLIGHT: usize = 8 * 1024;
const TCP_ROOM: usize = 2 * TCP_IN_FLIGHT;

/// Where a host is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
    pub(super) gateway_v4: Option<Ipv4Addr>,
    pub(super) gateway_v6: Option<Ipv6Addr>,
}

/// What runs on a host.
pub(super) enum Role {
    Client(Client),
    Node(Node),
    /// Nothing: it only answers for its addresses.
    Router,
}

pub(super) struct Host {
    pub(super) mac: [u8; 6],
    pub(super) address: Address,
    inbox: VecDeque<Vec<u8>>,
    nic: Nic,
    stack: Interface,
    sockets: SocketSet<'static>,
    fin_guard: FinGuard,
    pub(super) role: Role,
    /// When it wants to be polled.
    pub(super) wakes_at: u64,
}

impl Host {
    pub(super) fn new(mac: [u8; 6], address: Address, role: Role, seed: u64, now: u64) -> Self {
        let mut nic = Nic::default();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = seed;
        let mut stack = Interface::new(config, &mut nic, instant(now));
        stack.update_ip_addrs(|addresses| {
            for cidr in [IpCidr::new(address.v4.into(), 24), IpCidr::new(address.v6.into(), 64)] {
                addresses.push(cidr).expect("a stack has room for an address of each family");
            }
        });
        let routes = stack.routes_mut();
        if let Some(gateway) = address.gateway_v4 {
            routes.add_default_ipv4_route(gateway).expect("a stack has room for a default route");
        }
        if let Some(gateway) = address.gateway_v6 {
            routes.add_default_ipv6_route(gateway).expect("a stack has room for a default route of each family");
        }
        let sockets = SocketSet::new(Vec::new());
        let (inbox, fin_guard) = (VecDeque::new(), FinGuard::default());
        Self { mac, address, inbox, nic, stack, sockets, fin_guard, role, wakes_at: now }
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        address == self.address.v4 || address == self.address.v6
    }

    pub(super) fn client(&mut self) -> Option<(&mut Client, &mut Interface, &mut SocketSet<'static>)> {
        match &mut self.role {
            Role::Client(client) => Some((client, &mut self.stack, &mut self.sockets)),
            Role::Node(_) | Role::Router => None,
        }
    }

    pub(super) fn node(&self) -> Option<&Node> {
        match &self.role {
            Role::Node(node) => Some(node),
            Role::Client(_) | Role::Router => None,
        }
    }

    pub(super) fn deliver(&mut self, frame: Vec<u8>) {
        self.inbox.push_back(frame);
    }

    pub(super) fn is_due(&self, now: u64) -> bool {
        !self.inbox.is_empty() || self.wakes_at <= now
    }

    /// Lets the stack and what runs on it work, until neither has more to do now.
    pub(super) fn poll(&mut self, now: u64) {
        let mut first = true;
        while first || !self.inbox.is_empty() {
            first = false;
            // Listeners first, for what may open connections.
            self.work(now);
            // One frame at a time: an ACK that follows a third duplicate before smoltcp 0.14 has sent
            // anything stops its retransmissions for good, as in `fin_guard`.
            if let Some(frame) = self.inbox.pop_front() {
                let admitted = match &mut self.role {
                    Role::Node(node) => node.admits(&frame, &mut self.sockets),
                    Role::Client(_) | Role::Router => true,
                };
                if admitted && !self.fin_guard.keeps_back(&frame, &self.sockets) {
                    self.nic.received.push_back(frame);
                }
            }
            self.stack.poll(instant(now), &mut self.nic, &mut self.sockets);
            self.work(now);
            self.stack.poll(instant(now), &mut self.nic, &mut self.sockets);
        }
        let stack = self.stack.poll_at(instant(now), &self.sockets);
        let stack = stack.map_or(u64::MAX, |at| u64::try_from(at.total_micros()).unwrap_or(now));
        let work = match &self.role {
            Role::Client(client) => client.wakes_at(),
            Role::Node(node) => node.wakes_at(),
            Role::Router => u64::MAX,
        };
        self.wakes_at = stack.min(work).max(now + 1);
    }

    fn work(&mut self, now: u64) {
        match &mut self.role {
            Role::Client(client) => client.work(&mut self.sockets, now),
            Role::Node(node) => node.work(&mut self.sockets, now),
            Role::Router => {}
        }
    }

    /// What the stack has sent since the last call.
    pub(super) fn take_sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.nic.sent)
    }
}

pub(super) fn tcp_socket() -> tcp::Socket<'static> {
    let room = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
    tcp::Socket::new(room(TCP_ROOM), room(TCP_IN_FLIGHT))
}

pub(super) fn udp_socket() -> udp::Socket<'static> {
    let room = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 32 * 1024]);
    udp::Socket::new(room(), room())
}

fn instant(now: u64) -> Instant {
    Instant::from_micros(i64::try_from(now).unwrap_or(i64::MAX))
}
