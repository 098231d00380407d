//! What the box itself is made of, for validation: a VIP that is one of its own addresses or its
//! gateway's would lock someone out.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{NetlinkError, Requests};
use super::raw;
use super::view::{KernelView, route_address};

/// The box as the kernel has it now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Every address with its prefix, and the interface it is on.
    pub addresses: Vec<(String, IpNet)>,
    /// Gateways of the main table's routes.
    pub gateways: Vec<IpAddr>,
    pub interfaces: Vec<Interface>,
    /// `net.ipv4.ip_local_port_range`, which rules IPv6 too.
    pub local_ports: Option<(u16, u16)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub ifindex: u32,
    /// Receive queues in use; where the driver does not say, those it was made with.
    pub rx_queues: u16,
}

/// A box with all of the internet in its table has few gateways, but many routes to look through:
/// after so many, the ones found are taken for all.
const ROUTES_READ: usize = 20_000;

impl HostFacts {
    /// Reads the calling thread's network namespace.
    pub fn read() -> Result<Self, NetlinkError> {
        let mut requests = Requests::open()?;
        let mut view = KernelView::default();
        let mut interfaces = Vec::new();
        let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
        requests.dump("list links", &links, |message| {
            view.apply(&message);
            if let RouteNetlinkMessage::NewLink(link) = message {
                interfaces.push(interface(&link));
            }
            true
        })?;
        let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        requests.dump("list addresses", &addresses, |message| {
            view.apply(&message);
            true
        })?;
        let mut addresses: Vec<(String, IpNet)> = view
            .addresses
            .iter()
            .filter_map(|((ifindex, _), net)| Some((view.links.get(ifindex)?.name.clone(), *net)))
            .collect();
        addresses.sort();
        Ok(Self { addresses, gateways: gateways()?, interfaces, local_ports: local_ports() })
    }
}

fn interface(link: &LinkMessage) -> Interface {
    let mut interface = Interface { name: String::new(), ifindex: link.header.index, rx_queues: 1 };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::NumRxQueues(count) => interface.rx_queues = u16::try_from(*count).unwrap_or(u16::MAX),
            _ => {}
        }
    }
    if let Some(in_use) = raw::rx_queues(&interface.name) {
        interface.rx_queues = in_use;
    }
    interface
}

fn gateways() -> Result<Vec<IpAddr>, NetlinkError> {
    let mut gateways = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        let mut read = 0;
        // A socket of its own: it may be left in the middle of the dump.
        Requests::open()?.dump("list routes", &RouteNetlinkMessage::GetRoute(request), |message| {
            if let RouteNetlinkMessage::NewRoute(route) = message {
                collect_gateways(&route.attributes, &mut gateways);
            }
            read += 1;
            read < ROUTES_READ
        })?;
    }
    gateways.sort_unstable();
    gateways.dedup();
    Ok(gateways)
}

fn collect_gateways(attributes: &[RouteAttribute], gateways: &mut Vec<IpAddr>) {
    for attribute in attributes {
        let gateway = match attribute {
            RouteAttribute::Gateway(address) => route_address(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
            RouteAttribute::MultiPath(hops) => {
                hops.iter().for_each(|hop| collect_gateways(&hop.attributes, gateways));
                None
            }
            _ => None,
        };
        // Few distinct ones among many routes: keeps the list short while it is read.
        if let Some(gateway) = gateway.filter(|gateway| !gateways.contains(gateway)) {
            gateways.push(gateway);
        }
    }
}

fn local_ports() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
