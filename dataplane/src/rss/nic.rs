//! What a NIC's driver says of its receive-side scaling, and the queue of a tuple computed from it.

use serde::{Deserialize, Serialize};

use super::toeplitz::{MIN_KEY, Toeplitz};
use crate::sys::ethtool::{self, FlowType, RssConfig};

/// Whether the queue of a packet can be computed on this interface.
#[derive(Debug, Clone)]
pub enum RssView {
    Toeplitz(NicHash),
    /// Owners are computed by the box's own hash, and hand-off carries what arrives elsewhere.
    Unreadable(Unreadable),
}

/// Why the queue of a packet can't be computed, for `penstock status` and `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("the driver does not report its RSS key and table (veth, tap and some virtual NICs have none)")]
    NotReported,
    #[error("{step}: {error}")]
    Failed { step: &'static str, error: String },
    #[error("the hash function is {0}, not Toeplitz; `ethtool -X INTERFACE hfunc toeplitz` changes it where it can")]
    NotToeplitz(String),
    #[error("the RSS key has {0} bytes, fewer than the {MIN_KEY} that an IPv6 tuple takes")]
    ShortKey(usize),
    #[error("the indirection table has {0} entries, not a power of two: how the hardware reduces the hash is unknown")]
    TableSize(usize),
    #[error("the input is transformed in an unknown way ({0:#x}); `ethtool -X INTERFACE xfrm none` turns that off")]
    Transform(u8),
    #[error(
        "the fields hashed for {flow} are {fields:#x}, neither both addresses nor both addresses and both ports; \
             `ethtool -N INTERFACE rx-flow-hash {flow} sdfn` sets all four"
    )]
    Fields { flow: &'static str, fields: u64 },
}

/// For each kind of packet, whether its ports are hashed beside its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsHashed {
    pub tcp4: bool,
    pub udp4: bool,
    pub tcp6: bool,
    pub udp6: bool,
}

/// What a [`NicHash`] is made from, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicParts {
    pub key: Vec<u8>,
    pub indirection: Vec<u16>,
    pub ports_hashed: PortsHashed,
    pub symmetric_xor: bool,
}

/// The NIC's choice of queue, as a function.
#[derive(Debug, Clone)]
pub struct NicHash {
    pub key: Vec<u8>,
    /// Queue by the hash's low bits; as many entries as a power of two.
    pub indirection: Vec<u16>,
    pub ports_hashed: PortsHashed,
    /// Both copies of source xor destination are hashed in their stead (Linux 6.8 and newer).
    pub symmetric_xor: bool,
    toeplitz: Toeplitz,
}

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

impl RssView {
    /// Asks the driver of `interface` in the current network namespace.
    #[must_use]
    pub fn read(interface: &str) -> Self {
        let config = ethtool::rss_config(interface).map_err(|error| failed("reading the RSS key and table", &error));
        Self::judge(config, |flow| {
            ethtool::hash_fields(interface, flow).map_err(|error| failed("reading the hashed fields", &error))
        })
    }

    fn judge(config: Result<RssConfig, Unreadable>, fields: impl Fn(FlowType) -> Result<u64, Unreadable>) -> Self {
        config.and_then(|config| NicHash::new(config, fields)).map_or_else(Self::Unreadable, Self::Toeplitz)
    }
}

fn failed(step: &'static str, error: &std::io::Error) -> Unreadable {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Unreadable::NotReported,
        _ => Unreadable::Failed { step, error: error.to_string() },
    }
}

impl NicHash {
    fn new(config: RssConfig, fields: impl Fn(FlowType) -> Result<u64, Unreadable>) -> Result<Self, Unreadable> {
        let RssConfig { hash_function, input_transform, key, indirection } = config;
        // An old driver may report no function at all: Toeplitz is what such ones have, but a guess
        // would send replies to the wrong queue for good, so it counts as unreadable.
        if hash_function != ethtool::HASH_TOEPLITZ {
            return Err(Unreadable::NotToeplitz(ethtool::hash_function_name(hash_function)));
        }
        let symmetric_xor = match input_transform {
            0 => false,
            ethtool::TRANSFORM_SYMMETRIC_XOR => true,
            other => return Err(Unreadable::Transform(other)),
        };
        if !indirection.len().is_power_of_two() {
            return Err(Unreadable::TableSize(indirection.len()));
        }
        let toeplitz = Toeplitz::new(&key).ok_or(Unreadable::ShortKey(key.len()))?;
        let ports = |flow: FlowType| -> Result<bool, Unreadable> {
            match fields(flow)? {
                ethtool::FIELDS_ADDRESSES => Ok(false),
                ethtool::FIELDS_ADDRESSES_AND_PORTS => Ok(true),
                fields => Err(Unreadable::Fields { flow: flow.name(), fields }),
            }
        };
        let ports_hashed = PortsHashed {
            tcp4: ports(FlowType::Tcp4)?,
            udp4: ports(FlowType::Udp4)?,
            tcp6: ports(FlowType::Tcp6)?,
            udp6: ports(FlowType::Udp6)?,
        };
        Ok(Self { key, indirection, ports_hashed, symmetric_xor, toeplitz })
    }

    /// `None`: the parts are no NIC's (a key too short, a table that is no power of two).
    #[must_use]
    pub fn from_parts(parts: NicParts) -> Option<Self> {
        let NicParts { key, indirection, ports_hashed, symmetric_xor } = parts;
        let toeplitz = Toeplitz::new(&key).filter(|_| indirection.len().is_power_of_two())?;
        Some(Self { key, indirection, ports_hashed, symmetric_xor, toeplitz })
    }

    #[must_use]
    pub fn parts(&self) -> NicParts {
        NicParts {
            key: self.key.clone(),
            indirection: self.indirection.clone(),
            ports_hashed: self.ports_hashed,
            symmetric_xor: self.symmetric_xor,
        }
    }

    /// The receive queue of a whole (unfragmented) packet. Protocols other than TCP and UDP, like
    /// fragments, hash their addresses alone.
    #[inline]
    #[must_use]
    pub fn queue_of_v4(&self, src: u32, dst: u32, src_port: u16, dst_port: u16, protocol: u8) -> u16 {
        self.queue(self.addresses_v4(src, dst) ^ self.ports_v4(src_port, dst_port, protocol))
    }

    /// See [`Self::queue_of_v4`].
    #[inline]
    #[must_use]
    pub fn queue_of_v6(&self, src: u128, dst: u128, src_port: u16, dst_port: u16, protocol: u8) -> u16 {
        self.queue(self.addresses_v6(src, dst) ^ self.ports_v6(src_port, dst_port, protocol))
    }

    /// The queue that a packet would come to, by its destination port: for the search of a SNAT
    /// port whose replies (src: the node, dst: the SNAT address) come home. The addresses are
    /// hashed once, a candidate costs four look-ups.
    #[inline]
    pub fn queue_by_dst_port_v4(&self, src: u32, dst: u32, src_port: u16, protocol: u8) -> impl Fn(u16) -> u16 + '_ {
        let addresses = self.addresses_v4(src, dst);
        move |dst_port| self.queue(addresses ^ self.ports_v4(src_port, dst_port, protocol))
    }

    /// See [`Self::queue_by_dst_port_v4`].
    #[inline]
    pub fn queue_by_dst_port_v6(&self, src: u128, dst: u128, src_port: u16, protocol: u8) -> impl Fn(u16) -> u16 + '_ {
        let addresses = self.addresses_v6(src, dst);
        move |dst_port| self.queue(addresses ^ self.ports_v6(src_port, dst_port, protocol))
    }

    #[inline]
    fn queue(&self, hash: u32) -> u16 {
        // A power of two of entries, checked in `new`; `get` spares a panic branch.
        self.indirection.get(hash as usize & (self.indirection.len() - 1)).copied().unwrap_or(0)
    }

    #[inline]
    fn addresses_v4(&self, src: u32, dst: u32) -> u32 {
        let (src, dst) = if self.symmetric_xor { (src ^ dst, src ^ dst) } else { (src, dst) };
        self.toeplitz.addresses_v4(src, dst)
    }

    #[inline]
    fn addresses_v6(&self, src: u128, dst: u128) -> u32 {
        let (src, dst) = if self.symmetric_xor { (src ^ dst, src ^ dst) } else { (src, dst) };
        self.toeplitz.addresses_v6(src, dst)
    }

    #[inline]
    fn ports_v4(&self, src: u16, dst: u16, protocol: u8) -> u32 {
        let hashed = match protocol {
            PROTOCOL_TCP => self.ports_hashed.tcp4,
            PROTOCOL_UDP => self.ports_hashed.udp4,
            _ => false,
        };
        let (src, dst) = if self.symmetric_xor { (src ^ dst, src ^ dst) } else { (src, dst) };
        if hashed { self.toeplitz.ports_v4(src, dst) } else { 0 }
    }

    #[inline]
    fn ports_v6(&self, src: u16, dst: u16, protocol: u8) -> u32 {
        let hashed = match protocol {
            PROTOCOL_TCP => self.ports_hashed.tcp6,
            PROTOCOL_UDP => self.ports_hashed.udp6,
            _ => false,
        };
        let (src, dst) = if self.symmetric_xor { (src ^ dst, src ^ dst) } else { (src, dst) };
        if hashed { self.toeplitz.ports_v6(src, dst) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::toeplitz::tests::MICROSOFT_KEY;
    use super::*;

    fn config() -> RssConfig {
        RssConfig {
            hash_function: ethtool::HASH_TOEPLITZ,
            input_transform: 0,
            key: MICROSOFT_KEY.to_vec(),
            indirection: (0..128).map(|i| i % 4).collect(),
        }
    }

    fn all_ports(_: FlowType) -> Result<u64, Unreadable> {
        Ok(ethtool::FIELDS_ADDRESSES_AND_PORTS)
    }

    fn reason(config: RssConfig, fields: impl Fn(FlowType) -> Result<u64, Unreadable>) -> Unreadable {
        match RssView::judge(Ok(config), fields) {
            RssView::Unreadable(reason) => reason,
            RssView::Toeplitz(nic) => panic!("taken for readable: {nic:?}"),
        }
    }

    /// The first vectors of Microsoft's suite, through a table of 128 over 4 queues.
    #[test]
    fn queues_follow_hash_and_indirection() {
        let nic = NicHash::new(config(), all_ports).unwrap();
        let (src, dst) = (0x4209_95bb, 0xa18e_6450);
        assert_eq!(nic.queue_of_v4(src, dst, 2794, 1766, 6), (0x51cc_c178 % 128 % 4) as u16);
        assert_eq!(nic.queue_of_v4(src, dst, 2794, 1766, 1), (0x323e_8fc2_u32 % 128 % 4) as u16);
        let src6 = 0x3ffe_2501_0200_1fff_0000_0000_0000_0007;
        let dst6 = 0x3ffe_2501_0200_0003_0000_0000_0000_0001;
        assert_eq!(nic.queue_of_v6(src6, dst6, 2794, 1766, 17), (0x4020_7d3d % 128 % 4) as u16);
    }

    #[test]
    fn ports_count_only_where_the_driver_hashes_them() {
        let nic = NicHash::new(config(), |flow| {
            Ok(match flow {
                FlowType::Udp4 | FlowType::Udp6 => ethtool::FIELDS_ADDRESSES,
                FlowType::Tcp4 | FlowType::Tcp6 => ethtool::FIELDS_ADDRESSES_AND_PORTS,
            })
        })
        .unwrap();
        let queues = |protocol| -> Vec<u16> {
            let mut queues: Vec<u16> = (1..100).map(|port| nic.queue_of_v4(1, 2, port, 443, protocol)).collect();
            queues.sort_unstable();
            queues.dedup();
            queues
        };
        assert_eq!(queues(6), [0, 1, 2, 3]);
        assert_eq!(queues(17).len(), 1);
        assert_eq!(nic.ports_hashed, PortsHashed { tcp4: true, udp4: false, tcp6: true, udp6: false });
    }

    #[test]
    fn symmetric_xor_brings_both_directions_to_one_queue() {
        let symmetric =
            NicHash::new(RssConfig { input_transform: ethtool::TRANSFORM_SYMMETRIC_XOR, ..config() }, all_ports)
                .unwrap();
        let plain = NicHash::new(config(), all_ports).unwrap();
        let meets = |nic: &NicHash| {
            (1..200_u16)
                .filter(|&port| {
                    nic.queue_of_v4(0x0a00_0001, 0x0a00_0002, port, 443, 6)
                        == nic.queue_of_v4(0x0a00_0002, 0x0a00_0001, 443, port, 6)
                        && nic.queue_of_v6(1 << 77, 2, port, 443, 6) == nic.queue_of_v6(2, 1 << 77, 443, port, 6)
                })
                .count()
        };
        assert_eq!(meets(&symmetric), 199);
        assert!(meets(&plain) < 100);
    }

    #[test]
    fn the_search_by_port_agrees_with_the_whole_tuple() {
        for transform in [0, ethtool::TRANSFORM_SYMMETRIC_XOR] {
            let nic = NicHash::new(RssConfig { input_transform: transform, ..config() }, all_ports).unwrap();
            let (v4, v6) = (nic.queue_by_dst_port_v4(7, 9, 31443, 6), nic.queue_by_dst_port_v6(7, 9, 31443, 17));
            for port in (1024..=u16::MAX).step_by(97) {
                assert_eq!(v4(port), nic.queue_of_v4(7, 9, 31443, port, 6));
                assert_eq!(v6(port), nic.queue_of_v6(7, 9, 31443, port, 17));
            }
        }
    }

    #[test]
    fn what_can_not_be_computed_is_refused_by_name() {
        let cases = [
            (RssConfig { hash_function: 4, ..config() }, Unreadable::NotToeplitz("crc32".into())),
            (RssConfig { hash_function: 0, ..config() }, Unreadable::NotToeplitz("unnamed".into())),
            (RssConfig { input_transform: 2, ..config() }, Unreadable::Transform(2)),
            (RssConfig { key: vec![1; 16], ..config() }, Unreadable::ShortKey(16)),
            (RssConfig { indirection: vec![], ..config() }, Unreadable::TableSize(0)),
            (RssConfig { indirection: vec![0; 100], ..config() }, Unreadable::TableSize(100)),
        ];
        for (config, expected) in cases {
            assert_eq!(reason(config, all_ports), expected);
        }
        let one_port = |flow| if flow == FlowType::Udp6 { Ok(0x70) } else { all_ports(flow) };
        assert_eq!(reason(config(), one_port), Unreadable::Fields { flow: "udp6", fields: 0x70 });
        assert_eq!(reason(config(), |_| Err(Unreadable::NotReported)), Unreadable::NotReported);
    }

    #[test]
    fn an_unknown_interface_fails_by_name() {
        for name in ["pmg-none", "a-name-longer-than-an-interface-has", "nul\0"] {
            let RssView::Unreadable(Unreadable::Failed { step, error }) = RssView::read(name) else {
                panic!("{name}: not a failure");
            };
            assert!(step.contains("RSS key") && !error.is_empty());
        }
    }

    /// Privileged: makes a pair of veths in this namespace; says so and skips where it may not.
    #[test]
    fn veth_reports_no_rss() {
        let link = |arguments: &[&str]| Command::new("ip").arg("link").args(arguments).output();
        let name = format!("pmg{}", std::process::id() % 1_000_000);
        let peer = format!("{name}p");
        let made = link(&["add", &name, "type", "veth", "peer", "name", &peer]);
        if !made.as_ref().is_ok_and(|output| output.status.success()) {
            println!("skipped: no veth can be made here: {made:?}");
            return;
        }
        let view = RssView::read(&name);
        link(&["del", &name]).unwrap();
        let RssView::Unreadable(reason) = view else { panic!("a veth has no RSS: {view:?}") };
        assert_eq!(reason, Unreadable::NotReported);
    }
}
