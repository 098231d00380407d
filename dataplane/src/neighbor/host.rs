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
    /// `net.ipv4.ip_local_reserved_ports`: the kernel gives these out to nobody who does not ask for one.
    pub reserved_ports: String,
    /// Ports of listening TCP sockets and of bound UDP ones, at any address but loopback.
    pub listeners: Vec<u16>,
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
        Ok(Self {
            addresses,
            gateways: gateways()?,
            interfaces,
            local_ports: local_ports(),
            reserved_ports: std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default(),
            listeners: listeners(),
        })
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

/// Of the calling thread's namespace, as netlink's answers are.
fn listeners() -> Vec<u16> {
    let mut ports = Vec::new();
    // Socket states as the kernel numbers them: TCP_LISTEN, and TCP_CLOSE for UDP that is not connected.
    for (file, state) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        let path = format!("/proc/thread-self/net/{file}");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        ports.extend(text.lines().skip(1).filter_map(|line| listener(line, state)));
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The port of a line of /proc/net/tcp and its like, if it is in that state and not at a loopback address.
fn listener(line: &str, state: &str) -> Option<u16> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.rsplit_once(':')?;
    if fields.nth(1)? != state || is_loopback(address) {
        return None;
    }
    u16::from_str_radix(port, 16).ok()
}

/// Addresses are words of 32 bits, each in the machine's order.
fn is_loopback(hex: &str) -> bool {
    let word = |text: &str| u32::from_str_radix(text, 16).map(u32::to_ne_bytes).unwrap_or_default();
    match hex.len() {
        8 => word(hex)[0] == 127,
        32 => hex[..24].bytes().all(|digit| digit == b'0') && word(&hex[24..]) == [0, 0, 0, 1],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_of_this_namespace_are_found() {
        let tcp = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let udp = std::net::UdpSocket::bind("[::]:0").unwrap();
        let inward = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listeners();
        assert!(found.contains(&tcp.local_addr().unwrap().port()));
        assert!(found.contains(&udp.local_addr().unwrap().port()));
        assert!(!found.contains(&inward.local_addr().unwrap().port()), "loopback is in nobody's way");
    }

    #[test]
    fn lines_of_proc() {
        let line = "   0: 0100A8C0:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0";
        assert_eq!(listener(line, "0A"), Some(443));
        assert_eq!(listener(line, "07"), None);
        assert_eq!(listener(&line.replace("0100A8C0", "0100007F"), "0A"), None);
        let six = "   1: 00000000000000000000000001000000:0035 0:0 07";
        assert_eq!(listener(six, "07"), None);
        assert_eq!(listener(&six.replace("01000000", "00000000"), "07"), Some(53));
        assert_eq!(listener("sl local", "0A"), None);
    }
}
