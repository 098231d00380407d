//! Who is where: addresses, link-layer addresses, and what the box is asked to serve.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use penstock_configs::desired::{Backend, BackendSet, Desired, Mode, Node, Protocol, Service};
use penstock_configs::file::SnatAddress;

use super::host::Address;

pub(super) const NODE_PORT: u16 = 30_080;
pub(super) const VIP_PORT: u16 = 80;
pub(super) const VIP_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub(super) const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);
const SNAT_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 250);
const SNAT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 0xfa);
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 1);
pub(super) const SET: &str = "nodes";

pub(super) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 3, 0];

pub(super) fn box_mac(port: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, port]
}

pub(super) fn client_mac(index: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, index]
}

pub(super) fn node_mac(index: u8) -> [u8; 6] {
    [2, 0, 0, 0, 2, index]
}

pub(super) fn node_name(index: u8) -> String {
    format!("node{index}")
}

/// A client on the VIPs' own network asks for them by ARP and ND; one behind the router for its gateway.
pub(super) fn client(index: u8, routed: bool) -> Address {
    let host = 100 + index;
    if routed {
        return Address {
            v4: Ipv4Addr::new(198, 51, 100, host),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, u16::from(host)),
            gateway_v4: Some(GATEWAY_V4),
            gateway_v6: Some(GATEWAY_V6),
        };
    }
    Address {
        v4: Ipv4Addr::new(203, 0, 113, host),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, u16::from(host)),
        gateway_v4: None,
        gateway_v6: None,
    }
}

pub(super) fn router() -> Address {
    Address { v4: GATEWAY_V4, v6: GATEWAY_V6, gateway_v4: None, gateway_v6: None }
}

/// Nodes send what is not on their network to the box: `dnat` needs it, `nat` never uses it.
pub(super) fn node(index: u8) -> Address {
    Address {
        v4: Ipv4Addr::new(10, 0, 0, 10 + index),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 0x10 + u16::from(index)),
        gateway_v4: Some(SNAT_V4),
        gateway_v6: Some(SNAT_V6),
    }
}

pub(super) fn node_macs(nodes: u8) -> BTreeMap<IpAddr, [u8; 6]> {
    let of = |index: u8| {
        let address = node(index);
        [(address.v4.into(), node_mac(index)), (address.v6.into(), node_mac(index))]
    };
    (0..nodes).flat_map(of).collect()
}

pub(super) fn snat(ports: [u16; 2]) -> Vec<SnatAddress> {
    [SNAT_V4.into(), SNAT_V6.into()].map(|address: IpAddr| SnatAddress { address, ports, shared: false }).into()
}

pub(super) fn backend(index: u8) -> Backend {
    Backend { node: Some(node_name(index)), weight: 1, ..Backend::default() }
}

/// TCP and UDP on a VIP of each family, all on one set of the nodes.
pub(super) fn desired(nodes: u8, mode: Mode) -> Desired {
    let service = |vip: IpAddr, protocol: Protocol| Service {
        mode,
        set: Some(SET.to_owned()),
        target_port: Some(NODE_PORT),
        ..Service::at(
            format!("{}-{}", protocol.as_str(), if vip.is_ipv4() { "v4" } else { "v6" }),
            vip,
            VIP_PORT,
            protocol,
        )
    };
    let vips: [IpAddr; 2] = [VIP_V4.into(), VIP_V6.into()];
    let node_of =
        |index: u8| Node { name: node_name(index), addresses: vec![node(index).v4.into(), node(index).v6.into()] };
    Desired {
        generation: 1,
        term: None,
        nodes: (0..nodes).map(node_of).collect(),
        sets: vec![BackendSet { name: SET.to_owned(), backends: (0..nodes).map(backend).collect() }],
        services: vips.iter().flat_map(|vip| [service(*vip, Protocol::Tcp), service(*vip, Protocol::Udp)]).collect(),
    }
}
