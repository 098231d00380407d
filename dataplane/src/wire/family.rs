//! The two address families behind one trait, so that flows and rewriting are written once and
//! compiled for each.

use std::fmt::Debug;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::{Packet, bytes_at};
use crate::hash::{FlowHasher, owner_hash_v4, owner_hash_v6, pick_hash_v4, pick_hash_v6};
use crate::rss::NicHash;

/// An address family.
pub trait Family: Copy + Default + 'static {
    /// The address as a number whose big-endian bytes stand in the packet.
    type Addr: Copy + Eq + Ord + Hash + Debug + Default + Send + Sync + 'static;
    const V6: bool;

    fn tuple(packet: &[u8], headers: &Packet) -> Tuple<Self::Addr>;
    fn hash(hasher: &FlowHasher, tuple: &Tuple<Self::Addr>) -> u64;
    /// The hash that chooses a backend: the same on every box.
    fn pick_hash(tuple: &Tuple<Self::Addr>) -> u64;
    /// The hash that chooses the worker that owns a client's flow.
    fn owner_hash(client: Self::Addr, client_port: u16, protocol: u8) -> u32;
    /// The receive queue a NIC would choose.
    fn queue(nic: &NicHash, tuple: &Tuple<Self::Addr>) -> u16;
    /// An address no packet on a wire may have as its source.
    fn is_martian(addr: Self::Addr) -> bool;
    /// Writes both addresses, takes one from the TTL or hop limit and mends the IP header's own
    /// checksum. Returns what the addresses changed in the transport checksum.
    fn readdress(packet: &mut [u8], l3: usize, src: Self::Addr, dst: Self::Addr) -> Sum;
    fn ttl(packet: &[u8], l3: usize) -> u8;
    fn to_ip(addr: Self::Addr) -> IpAddr;
    fn from_ip(addr: IpAddr) -> Option<Self::Addr>;
    /// The first bits of an address.
    fn prefix(addr: Self::Addr, bits: u8) -> Self::Addr;
}

/// A transport 5-tuple as it stands in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple<A> {
    pub src: A,
    pub dst: A,
    pub src_port: u16,
    pub dst_port: u16,
    pub protocol: u8,
}

impl<A: Copy + Eq> Tuple<A> {
    /// Equality without a branch per field: of a packet and its flow all are nearly always the same.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (self.src == other.src)
            & (self.dst == other.dst)
            & (self.src_port == other.src_port)
            & (self.dst_port == other.dst_port)
            & (self.protocol == other.protocol)
    }

    /// The tuple of the packets that answer.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port, ..*self }
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct V4;

impl Family for V4 {
    type Addr = u32;
    const V6: bool = false;

    #[inline(always)]
    fn tuple(packet: &[u8], headers: &Packet) -> Tuple<u32> {
        let [s0, s1, s2, s3, d0, d1, d2, d3] = bytes_at::<8>(packet, usize::from(headers.l3) + 12);
        let [sp0, sp1, dp0, dp1] = bytes_at::<4>(packet, usize::from(headers.l4));
        Tuple {
            src: u32::from_be_bytes([s0, s1, s2, s3]),
            dst: u32::from_be_bytes([d0, d1, d2, d3]),
            src_port: u16::from_be_bytes([sp0, sp1]),
            dst_port: u16::from_be_bytes([dp0, dp1]),
            protocol: headers.protocol,
        }
    }

    #[inline(always)]
    fn hash(hasher: &FlowHasher, t: &Tuple<u32>) -> u64 {
        hasher.v4(t.src, t.dst, t.src_port, t.dst_port, t.protocol)
    }

    #[inline]
    fn pick_hash(t: &Tuple<u32>) -> u64 {
        pick_hash_v4(t.src, t.src_port, t.dst, t.dst_port, t.protocol)
    }

    #[inline]
    fn owner_hash(client: u32, client_port: u16, protocol: u8) -> u32 {
        owner_hash_v4(client, client_port, protocol)
    }

    #[inline]
    fn queue(nic: &NicHash, t: &Tuple<u32>) -> u16 {
        nic.queue_of_v4(t.src, t.dst, t.src_port, t.dst_port, t.protocol)
    }

    fn is_martian(addr: u32) -> bool {
        // RFC 6890: "this network", loopback, multicast, reserved with broadcast.
        matches!(addr >> 24, 0 | 127) || addr >> 28 >= 0xe
    }

    #[inline(always)]
    fn readdress(packet: &mut [u8], l3: usize, src: u32, dst: u32) -> Sum {
        let Some(header) = packet.get_mut(l3..).and_then(|rest| rest.first_chunk_mut::<20>()) else {
            return Sum::default();
        };
        let [_, _, _, _, _, _, _, _, ttl, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
        let addresses = Sum::delta([s0, s1, s2, s3], src.to_be_bytes()).with([d0, d1, d2, d3], dst.to_be_bytes());
        let less = ttl.wrapping_sub(1);
        let [c0, c1] = addresses.with([ttl, protocol], [less, protocol]).apply([c0, c1]);
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (src.to_be_bytes(), dst.to_be_bytes());
        header[8..].copy_from_slice(&[less, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3]);
        addresses
    }

    #[inline]
    fn ttl(packet: &[u8], l3: usize) -> u8 {
        packet.get(l3 + 8).copied().unwrap_or(0)
    }

    fn to_ip(addr: u32) -> IpAddr {
        Ipv4Addr::from(addr).into()
    }

    fn from_ip(addr: IpAddr) -> Option<u32> {
        match addr {
            IpAddr::V4(addr) => Some(addr.into()),
            IpAddr::V6(_) => None,
        }
    }

    fn prefix(addr: u32, bits: u8) -> u32 {
        addr & u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0)
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct V6;

impl Family for V6 {
    type Addr = u128;
    const V6: bool = true;

    #[inline(always)]
    fn tuple(packet: &[u8], headers: &Packet) -> Tuple<u128> {
        let l3 = usize::from(headers.l3);
        let [sp0, sp1, dp0, dp1] = bytes_at::<4>(packet, usize::from(headers.l4));
        Tuple {
            src: u128::from_be_bytes(bytes_at(packet, l3 + 8)),
            dst: u128::from_be_bytes(bytes_at(packet, l3 + 24)),
            src_port: u16::from_be_bytes([sp0, sp1]),
            dst_port: u16::from_be_bytes([dp0, dp1]),
            protocol: headers.protocol,
        }
    }

    #[inline(always)]
    fn hash(hasher: &FlowHasher, t: &Tuple<u128>) -> u64 {
        hasher.v6(t.src, t.dst, t.src_port, t.dst_port, t.protocol)
    }

    #[inline]
    fn pick_hash(t: &Tuple<u128>) -> u64 {
        pick_hash_v6(t.src, t.src_port, t.dst, t.dst_port, t.protocol)
    }

    #[inline]
    fn owner_hash(client: u128, client_port: u16, protocol: u8) -> u32 {
        owner_hash_v6(client, client_port, protocol)
    }

    #[inline]
    fn queue(nic: &NicHash, t: &Tuple<u128>) -> u16 {
        nic.queue_of_v6(t.src, t.dst, t.src_port, t.dst_port, t.protocol)
    }

    fn is_martian(addr: u128) -> bool {
        // Unspecified, loopback, IPv4-mapped, multicast. Link-local clients exist on the segment itself.
        addr <= 1 || addr >> 32 == 0xffff || addr >> 120 == 0xff
    }

    #[inline(always)]
    fn readdress(packet: &mut [u8], l3: usize, src: u128, dst: u128) -> Sum {
        let Some(header) = packet.get_mut(l3..).and_then(|rest| rest.first_chunk_mut::<40>()) else {
            return Sum::default();
        };
        header[7] = header[7].wrapping_sub(1);
        let (old_src, old_dst): ([u8; 16], [u8; 16]) = (bytes_at(header, 8), bytes_at(header, 24));
        header[8..24].copy_from_slice(&src.to_be_bytes());
        header[24..40].copy_from_slice(&dst.to_be_bytes());
        Sum::delta(old_src, src.to_be_bytes()).with(old_dst, dst.to_be_bytes())
    }

    #[inline]
    fn ttl(packet: &[u8], l3: usize) -> u8 {
        packet.get(l3 + 7).copied().unwrap_or(0)
    }

    fn to_ip(addr: u128) -> IpAddr {
        Ipv6Addr::from(addr).into()
    }

    fn from_ip(addr: IpAddr) -> Option<u128> {
        match addr {
            IpAddr::V6(addr) => Some(addr.into()),
            IpAddr::V4(_) => None,
        }
    }

    fn prefix(addr: u128, bits: u8) -> u128 {
        addr & u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0)
    }
}
