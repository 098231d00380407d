//! The lab's address plan and shape. Documentation ranges for the outside (RFC 5737, RFC 3849),
//! private ones for the nodes, as in a real cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How the box is wired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// Clients on one interface of the box, nodes on another.
    #[default]
    TwoArm,
    /// Clients, nodes and box on one segment; the box has one interface.
    OneArm,
}

/// VLAN tags on the wire between a segment and the box, pushed and popped at the segment's end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tags {
    #[default]
    None,
    /// 802.1Q, VLAN 100.
    Vlan,
    /// 802.1ad VLAN 200 outside, 802.1Q VLAN 100 inside.
    QinQ,
}

/// An address of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DualAddr {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl DualAddr {
    /// The address of the family asked for.
    #[must_use]
    pub fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

/// A /24 and a /64 whose hosts have the same number in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Network {
    #[must_use]
    pub fn host(&self, number: u8) -> DualAddr {
        let [a, b, c, _] = self.v4.octets();
        let mut groups = self.v6.segments();
        // The number's decimal digits as hex, so that 10.0.0.12 and fd00:10::12 are visibly one host.
        groups[7] = u16::from(number / 100) << 8 | u16::from(number / 10 % 10) << 4 | u16::from(number % 10);
        DualAddr { v4: Ipv4Addr::new(a, b, c, number), v6: groups.into() }
    }

    #[must_use]
    pub fn cidrs(&self) -> [String; 2] {
        [format!("{}/24", self.v4), format!("{}/64", self.v6)]
    }
}

/// Where the clients are in the two-arm lab.
pub const CLIENT_NET: Network =
    Network { v4: Ipv4Addr::new(198, 51, 100, 0), v6: Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0) };
/// Between the box and the clients' router, where there is one.
pub const UPLINK_NET: Network =
    Network { v4: Ipv4Addr::new(192, 0, 2, 0), v6: Ipv6Addr::new(0x2001, 0xdb8, 0x2, 0, 0, 0, 0, 0) };
/// Where the nodes are, and in the one-arm lab everybody.
pub const NODE_NET: Network =
    Network { v4: Ipv4Addr::new(10, 0, 0, 0), v6: Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0) };
/// VIPs come from here. No host has an address of it: the box answers ARP and ND for its VIPs.
pub const VIP_NET: Network =
    Network { v4: Ipv4Addr::new(203, 0, 113, 0), v6: Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 0) };

pub const BOX_HOST: u8 = 1;
pub const ROUTER_HOST: u8 = 2;
const FIRST_CLIENT: u8 = 101;
const FIRST_NODE: u8 = 11;
const SNAT_HOST: u8 = 200;
const FIRST_VIP: u8 = 10;

/// Hosts of one kind that fit the plan.
pub const MAX_HOSTS: usize = 80;

impl Topology {
    #[must_use]
    pub fn client_net(self) -> Network {
        match self {
            Self::TwoArm => CLIENT_NET,
            Self::OneArm => NODE_NET,
        }
    }

    #[must_use]
    pub fn client(self, index: usize) -> DualAddr {
        self.client_net().host(FIRST_CLIENT + small(index))
    }

    #[must_use]
    pub fn node(self, index: usize) -> DualAddr {
        NODE_NET.host(FIRST_NODE + small(index))
    }

    /// The box's interfaces: towards the clients, towards the nodes (the same in one-arm).
    #[must_use]
    pub fn interfaces(self) -> [&'static str; 2] {
        match self {
            Self::TwoArm => ["clients0", "nodes0"],
            Self::OneArm => ["lan0", "lan0"],
        }
    }
}

/// The `index`-th VIP.
#[must_use]
pub fn vip(index: usize) -> DualAddr {
    VIP_NET.host(FIRST_VIP + small(index))
}

/// The dedicated SNAT address: on the nodes' segment, configured on no host.
#[must_use]
pub fn snat() -> DualAddr {
    NODE_NET.host(SNAT_HOST)
}

/// A host's hardware address, by its name; `None` for those that have several interfaces.
#[must_use]
pub fn mac(host: &str) -> Option<String> {
    let (kind, index) = host.split_at(host.find(|c: char| c.is_ascii_digit())?);
    let kind = match kind {
        "client" => 0xc1,
        "node" => 0x0d,
        _ => return None,
    };
    // Locally administered, unicast.
    Some(format!("02:00:00:00:{kind:02x}:{:02x}", index.parse::<u8>().ok()?))
}

fn small(index: usize) -> u8 {
    assert!(index < MAX_HOSTS, "the address plan has room for {MAX_HOSTS} hosts of a kind");
    u8::try_from(index).expect("below MAX_HOSTS")
}

#[cfg(test)]
mod tests {
    use super::{MAX_HOSTS, NODE_NET, Topology, snat, vip};

    #[test]
    fn both_families_show_the_same_number() {
        assert_eq!(NODE_NET.host(12).v4.to_string(), "10.0.0.12");
        assert_eq!(NODE_NET.host(12).v6.to_string(), "fd00:10::12");
        assert_eq!(snat().v6.to_string(), "fd00:10::200");
    }

    #[test]
    fn no_two_hosts_share_an_address() {
        let mut all = vec![snat().v4, NODE_NET.host(1).v4];
        for index in 0..MAX_HOSTS {
            all.extend([Topology::OneArm.client(index).v4, Topology::OneArm.node(index).v4, vip(index).v4]);
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
