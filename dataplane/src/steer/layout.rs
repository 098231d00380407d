//! The maps' bytes, as `bpf/maps.h` has them. Keys and values are plain byte arrays, encoded here:
//! no padding to leak, and nothing unsafe.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ClassCounters, SnatSteer, SteerCounters, SteerError, Steering};

/// Raise with every change of a map's key, value, size or meaning: pins of another layout are
/// replaced, never adopted.
pub(super) const LAYOUT: u32 = 3;

/// Entries per table that can be wanted. The maps hold twice as many, so that a change can add
/// everything new before it deletes anything old.
pub const ADDRESSES: usize = 65_536;
pub const BACKENDS: usize = 65_536;

const WHOLE: u32 = 1;
const ANNOUNCE: u32 = 2;
const VIP: u32 = 4;

/// VIPs of both families.
pub(super) const BUCKETS: usize = 2 * ADDRESSES;
const SLICE_SHIFT: u32 = 24;

const CLASSES: usize = 5;
pub(super) const COUNTERS: usize = 5 + 2 * CLASSES;

pub(super) type Key4 = [u8; 4];
pub(super) type Key6 = [u8; 16];
pub(super) type Backend4 = [u8; 8];
pub(super) type Backend6 = [u8; 20];
pub(super) type LocalValue = [u8; 16];
pub(super) type Present = [u8; 4];
pub(super) type Settings = [u8; 16];

const PRESENT: Present = 1u32.to_ne_bytes();

pub(super) fn settings(dnat4: bool, dnat6: bool, seed: u64) -> Settings {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&u32::from(dnat4).to_ne_bytes());
    bytes[4..8].copy_from_slice(&u32::from(dnat6).to_ne_bytes());
    bytes[8..].copy_from_slice(&seed.to_ne_bytes());
    bytes
}

/// The seed in the settings as they are; 0: there is none yet.
pub(super) fn seed(settings: &Settings) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = *settings;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Packets a slice, of packets a second: at least one.
fn quota(per_second: u32) -> u32 {
    if per_second == 0 {
        return 0;
    }
    let quota = (u64::from(per_second) << SLICE_SHIFT) / 1_000_000_000;
    u32::try_from(quota).unwrap_or(u32::MAX).max(1)
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Local {
    flags: u32,
    ports: [u16; 2],
    quota: u32,
    bucket: u32,
}

impl Local {
    fn encode(self) -> LocalValue {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.ports[0].to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.ports[1].to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.quota.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.bucket.to_ne_bytes());
        bytes
    }
}

/// A [`Steering`] as the maps should hold it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) local4: BTreeMap<Key4, LocalValue>,
    pub(super) local6: BTreeMap<Key6, LocalValue>,
    pub(super) dnat4: BTreeMap<Backend4, Present>,
    pub(super) dnat6: BTreeMap<Backend6, Present>,
}

impl Encoded {
    pub(super) fn new(wanted: &Steering) -> Result<Self, SteerError> {
        let mut encoded = Self::default();
        for (address, local) in locals(wanted)? {
            match address {
                IpAddr::V4(v4) => drop(encoded.local4.insert(v4.octets(), local.encode())),
                IpAddr::V6(v6) => drop(encoded.local6.insert(v6.octets(), local.encode())),
            }
        }
        for &(address, port, protocol) in &wanted.dnat {
            if port == 0 || !matches!(protocol, 6 | 17 | 132) {
                return Err(SteerError::Dnat { address, protocol });
            }
            // The address alone stands for its fragments.
            for (port, protocol) in [(port, protocol), (0, 0)] {
                match address {
                    IpAddr::V4(v4) => drop(encoded.dnat4.insert(backend4(v4, port, protocol), PRESENT)),
                    IpAddr::V6(v6) => drop(encoded.dnat6.insert(backend6(v6, port, protocol), PRESENT)),
                }
            }
        }
        encoded.check_capacity()?;
        Ok(encoded)
    }

    fn check_capacity(&self) -> Result<(), SteerError> {
        let addresses = "fewer VIPs and SNAT addresses on this box: spread the services over several boxes";
        let backends = "fewer dnat backends (mode `nat` needs no entry per backend)";
        for (table, wanted, limit, remedy) in [
            ("IPv4 addresses", self.local4.len(), ADDRESSES, addresses),
            ("IPv6 addresses", self.local6.len(), ADDRESSES, addresses),
            ("IPv4 dnat backends", self.dnat4.len(), BACKENDS, backends),
            ("IPv6 dnat backends", self.dnat6.len(), BACKENDS, backends),
        ] {
            if wanted > limit {
                return Err(SteerError::Capacity { table, wanted, limit, remedy });
            }
        }
        Ok(())
    }
}

fn locals(wanted: &Steering) -> Result<BTreeMap<IpAddr, Local>, SteerError> {
    let mut locals: BTreeMap<IpAddr, Local> = BTreeMap::new();
    let mut seen: BTreeMap<IpAddr, &SnatSteer> = BTreeMap::new();
    for snat in &wanted.snat {
        if let Some(first) = seen.insert(snat.address, snat)
            && first != snat
        {
            let problem = "given twice with different ports or sharing".to_owned();
            return Err(SteerError::Snat { address: snat.address, problem, remedy: "one [[snat]] entry per address" });
        }
        if snat.ports[0] > snat.ports[1] {
            let problem = format!("ports {} to {} are no range", snat.ports[0], snat.ports[1]);
            return Err(SteerError::Snat { address: snat.address, problem, remedy: "the lower port first" });
        }
        // A shared address is announced by the kernel, whose it is.
        let flags = if snat.shared { 0 } else { WHOLE | ANNOUNCE };
        locals.insert(snat.address, Local { flags, ports: snat.ports, ..Local::default() });
    }
    for &(address, announce) in &wanted.vips {
        let local = locals.entry(address).or_default();
        if seen.get(&address).is_some_and(|snat| snat.shared) {
            let problem = "shared with the kernel and a VIP at once".to_owned();
            return Err(SteerError::Snat { address, problem, remedy: "another address for one of the two" });
        }
        local.flags |= WHOLE | VIP | if announce { ANNOUNCE } else { 0 };
    }
    // Of an address that is a SNAT address too, nodes' replies could not be told from a flood.
    let policed = locals.iter_mut().filter(|(address, local)| local.flags & VIP != 0 && !seen.contains_key(address));
    for (bucket, (_, local)) in (0..).zip(policed).filter(|_| wanted.new_per_vip > 0) {
        (local.quota, local.bucket) = (quota(wanted.new_per_vip), bucket);
    }
    Ok(locals)
}

fn backend4(address: Ipv4Addr, port: u16, protocol: u8) -> Backend4 {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&address.octets());
    key[4..6].copy_from_slice(&port.to_be_bytes());
    key[6] = protocol;
    key
}

fn backend6(address: Ipv6Addr, port: u16, protocol: u8) -> Backend6 {
    let mut key = [0; 20];
    key[..16].copy_from_slice(&address.octets());
    key[16..18].copy_from_slice(&port.to_be_bytes());
    key[18] = protocol;
    key
}

/// One CPU's counters added to the sum.
pub(super) fn add_counters(sum: &mut SteerCounters, cpu: &[u64; COUNTERS]) {
    let [passed, unserved, malformed, policed, split, classes @ ..] = cpu;
    sum.passed += passed;
    sum.unserved += unserved;
    sum.malformed += malformed;
    sum.policed += policed;
    sum.split += split;
    let (redirected, no_socket) = classes.split_at(CLASSES);
    add_class(&mut sum.redirected, redirected);
    add_class(&mut sum.no_socket, no_socket);
}

fn add_class(sum: &mut ClassCounters, cpu: &[u64]) {
    let fields = [&mut sum.vip, &mut sum.snat, &mut sum.snat_shared, &mut sum.dnat, &mut sum.neighbor];
    for (field, value) in fields.into_iter().zip(cpu) {
        *field += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vip(address: &str, announce: bool) -> (IpAddr, bool) {
        (address.parse().unwrap(), announce)
    }

    fn snat(address: &str, ports: [u16; 2], shared: bool) -> SnatSteer {
        SnatSteer { address: address.parse().unwrap(), ports, shared }
    }

    #[test]
    fn values_have_the_layout_of_maps_h() {
        let wanted = Steering {
            vips: vec![vip("203.0.113.10", true), vip("2001:db8::10", false)],
            snat: vec![snat("10.0.0.1", [1024, 65535], false), snat("10.0.0.2", [40000, 50000], true)],
            dnat: vec![("10.0.0.12".parse().unwrap(), 0x1234, 6)],
            new_per_vip: 0,
        };
        let encoded = Encoded::new(&wanted).unwrap();
        let flags = |value: &LocalValue| u32::from_ne_bytes(value[..4].try_into().unwrap());
        assert_eq!(flags(&encoded.local4[&[203, 0, 113, 10]]), 7);
        assert_eq!(flags(&encoded.local6.values().next().copied().unwrap()), 5);
        assert_eq!(flags(&encoded.local4[&[10, 0, 0, 1]]), 3);
        let shared = encoded.local4[&[10, 0, 0, 2]];
        assert_eq!(flags(&shared), 0);
        assert_eq!(shared[4..6], 40_000u16.to_ne_bytes());
        assert_eq!(shared[6..8], 50_000u16.to_ne_bytes());
        let keys: Vec<_> = encoded.dnat4.keys().copied().collect();
        assert_eq!(keys, [[10, 0, 0, 12, 0, 0, 0, 0], [10, 0, 0, 12, 0x12, 0x34, 6, 0]]);
    }

    #[test]
    fn quotas_are_per_vip_and_never_of_a_snat_address() {
        let mut wanted = Steering {
            vips: vec![vip("10.0.0.1", false), vip("10.0.0.2", true), vip("2001:db8::10", true)],
            snat: vec![snat("10.0.0.1", [1024, 2048], false), snat("10.0.0.3", [1024, 2048], false)],
            new_per_vip: 60_000,
            ..Steering::default()
        };
        let of = |value: &LocalValue| [8, 12].map(|at| u32::from_ne_bytes(value[at..at + 4].try_into().unwrap()));
        let encoded = Encoded::new(&wanted).unwrap();
        let quotas: Vec<_> = encoded.local4.values().map(of).collect();
        assert_eq!(quotas, [[0, 0], [1006, 0], [0, 0]]);
        assert_eq!(encoded.local6.values().map(of).collect::<Vec<_>>(), [[1006, 1]]);
        wanted.new_per_vip = 0;
        let encoded = Encoded::new(&wanted).unwrap();
        assert!(encoded.local4.values().chain(encoded.local6.values()).all(|value| of(value) == [0, 0]));
        assert_eq!((quota(1), quota(60), quota(u32::MAX)), (1, 1, 72_057_594));
    }

    #[test]
    fn an_address_that_is_vip_and_snat_is_both() {
        let wanted = Steering {
            vips: vec![vip("10.0.0.1", false)],
            snat: vec![snat("10.0.0.1", [1024, 2048], false)],
            ..Steering::default()
        };
        let value = Encoded::new(&wanted).unwrap().local4[&[10, 0, 0, 1]];
        assert_eq!(value[..4], 7u32.to_ne_bytes());
    }

    #[test]
    fn one_vip_of_many_services_is_announced_if_any_wants_it() {
        let wanted = Steering { vips: vec![vip("10.0.0.1", true), vip("10.0.0.1", false)], ..Steering::default() };
        assert_eq!(Encoded::new(&wanted).unwrap().local4[&[10, 0, 0, 1]][..4], 7u32.to_ne_bytes());
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let cases = [
            (vec![], vec![snat("10.0.0.1", [5, 9], true), snat("10.0.0.1", [10, 20], true)], "given twice"),
            (vec![], vec![snat("10.0.0.1", [9, 5], true)], "no range"),
            (vec![vip("10.0.0.1", true)], vec![snat("10.0.0.1", [5, 9], true)], "VIP at once"),
        ];
        for (vips, snat, expected) in cases {
            let error = Encoded::new(&Steering { vips, snat, ..Steering::default() }).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("10.0.0.1"), "{error}");
        }
        let dnat = vec![("10.0.0.12".parse().unwrap(), 53, 47)];
        let error = Encoded::new(&Steering { dnat, ..Steering::default() }).unwrap_err().to_string();
        assert!(error.contains("protocol 47"), "{error}");
    }

    #[test]
    fn too_many_addresses_are_refused_whole() {
        let vips = (0..=ADDRESSES as u32).map(|n| (IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + n)), true)).collect();
        let error = Encoded::new(&Steering { vips, ..Steering::default() }).unwrap_err();
        assert!(matches!(error, SteerError::Capacity { wanted: 65_537, limit: 65_536, .. }), "{error}");
    }

    #[test]
    fn counters_fall_into_their_fields() {
        let mut sum = SteerCounters::default();
        let cpu: [u64; COUNTERS] = std::array::from_fn(|index| index as u64 + 1);
        add_counters(&mut sum, &cpu);
        add_counters(&mut sum, &cpu);
        assert_eq!((sum.passed, sum.unserved, sum.malformed), (2, 4, 6));
        assert_eq!((sum.policed, sum.split), (8, 10));
        assert_eq!((sum.redirected.vip, sum.redirected.neighbor), (12, 20));
        assert_eq!((sum.no_socket.vip, sum.no_socket.neighbor), (22, 30));
    }
}
