//! Packets of the benchmark's flows: one template per flow and direction.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::bail;
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use penstock_dataplane::wire::{self, Family, Parsed, Tuple, V4, V6};

/// Room for Ethernet, IPv6 and TCP.
const ROOM: usize = 80;
/// The smallest frame an Ethernet has, without its checksum.
const SMALLEST: usize = 60;

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const BOX_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 0], [2, 0, 0, 0, 1, 1]];
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];

/// Where the TCP sequence number stands, which carries the flow's number for the bare limit.
pub const SEQ_V4: usize = 14 + 20 + 4;
pub const SEQ_V6: usize = 14 + 40 + 4;
/// In datagrams of IPv4 it is the first that they carry.
pub const DATA_V4: usize = 14 + 20 + 8;

/// A packet as bytes.
#[derive(Clone, Copy)]
pub struct Template {
    len: u16,
    bytes: [u8; ROOM],
}

impl Template {
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

#[derive(Debug, Clone, Copy)]
pub enum TcpFlags {
    Syn,
    SynAck,
    Ack,
    Push,
    FinAck,
    /// Acknowledges the other's FIN, behind its own.
    LastAck,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoints {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub src_port: u16,
    pub dst_port: u16,
}

impl Endpoints {
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port }
    }
}

/// A client's packet to the box. `flow` becomes the sequence number, which both ends begin with.
pub fn from_client(ends: Endpoints, flags: TcpFlags, flow: u32) -> anyhow::Result<Template> {
    let received = if matches!(flags, TcpFlags::LastAck) { 2 } else { 1 };
    tcp(CLIENT_MAC, BOX_MACS[0], ends, flags, flow, flow.wrapping_add(received))
}

/// A node's packet to the box; its FIN follows the client's.
pub fn from_node(ends: Endpoints, flags: TcpFlags, flow: u32) -> anyhow::Result<Template> {
    let received = if matches!(flags, TcpFlags::FinAck) { 2 } else { 1 };
    tcp(NODE_MAC, BOX_MACS[1], ends, flags, flow, flow.wrapping_add(received))
}

/// The same of UDP.
pub fn datagram_from_client(ends: Endpoints, flow: u32) -> anyhow::Result<Template> {
    udp(CLIENT_MAC, BOX_MACS[0], ends, flow)
}

pub fn datagram_from_node(ends: Endpoints, flow: u32) -> anyhow::Result<Template> {
    udp(NODE_MAC, BOX_MACS[1], ends, flow)
}

fn udp(src: [u8; 6], dst: [u8; 6], ends: Endpoints, flow: u32) -> anyhow::Result<Template> {
    let data = flow.to_be_bytes();
    let packet = ip(src, dst, ends)?.udp(ends.src_port, ends.dst_port);
    let mut bytes = [0; ROOM];
    let len = packet.size(data.len());
    packet.write(&mut &mut bytes[..], &data)?;
    Ok(Template { len: len.max(SMALLEST) as u16, bytes })
}

fn ip(src: [u8; 6], dst: [u8; 6], ends: Endpoints) -> anyhow::Result<PacketBuilderStep<IpHeaders>> {
    let ethernet = PacketBuilder::ethernet2(src, dst);
    match (ends.src, ends.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Ok(ethernet.ipv4(src.octets(), dst.octets(), 64)),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Ok(ethernet.ipv6(src.octets(), dst.octets(), 64)),
        _ => bail!("a packet between two families"),
    }
}

fn tcp(src: [u8; 6], dst: [u8; 6], ends: Endpoints, flags: TcpFlags, flow: u32, ack: u32) -> anyhow::Result<Template> {
    let sent = match flags {
        TcpFlags::FinAck => 1,
        TcpFlags::LastAck => 2,
        _ => 0,
    };
    let plain = ip(src, dst, ends)?.tcp(ends.src_port, ends.dst_port, flow.wrapping_add(sent), 64_000);
    let packet = match flags {
        TcpFlags::Syn => plain.syn(),
        TcpFlags::SynAck => plain.syn().ack(ack),
        TcpFlags::Ack | TcpFlags::LastAck => plain.ack(ack),
        TcpFlags::Push => plain.ack(ack).psh(),
        TcpFlags::FinAck => plain.ack(ack).fin(),
    };
    let mut bytes = [0; ROOM];
    let len = packet.size(0);
    packet.write(&mut &mut bytes[..], &[])?;
    Ok(Template { len: len.max(SMALLEST) as u16, bytes })
}

/// The addresses and ports of a packet the pipeline has sent on.
pub fn endpoints(bytes: &[u8]) -> anyhow::Result<Endpoints> {
    let Ok(Parsed::Ip(packet)) = wire::parse(bytes) else { bail!("the pipeline sent a malformed packet") };
    Ok(if packet.v6 { ends_of::<V6>(&V6::tuple(bytes, &packet)) } else { ends_of::<V4>(&V4::tuple(bytes, &packet)) })
}

fn ends_of<F: Family>(tuple: &Tuple<F::Addr>) -> Endpoints {
    Endpoints { src: F::to_ip(tuple.src), dst: F::to_ip(tuple.dst), src_port: tuple.src_port, dst_port: tuple.dst_port }
}

/// The client of the n-th flow: a million addresses, then the next port of each.
pub fn client(v6: bool, n: u64) -> (IpAddr, u16) {
    let host = (n & 0xf_ffff) as u32;
    let port = 1_024 + (n >> 20) % 64_000;
    (address(v6, Ipv4Addr::new(100, 64, 0, 0), 0xc, host), port as u16)
}

pub fn vip(v6: bool, service: u32) -> IpAddr {
    address(v6, Ipv4Addr::new(10, 200, 0, 0), 0xf, service)
}

pub fn node(v6: bool, n: u32) -> IpAddr {
    address(v6, Ipv4Addr::new(10, 1, 0, 1), 0xa, n)
}

pub fn snat(v6: bool, n: u32) -> IpAddr {
    address(v6, Ipv4Addr::new(10, 2, 0, 1), 0xb, n)
}

fn address(v6: bool, base: Ipv4Addr, net: u16, host: u32) -> IpAddr {
    if v6 {
        let low = u128::from(host) + 1;
        Ipv6Addr::from(u128::from(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, 0)) + low).into()
    } else {
        Ipv4Addr::from(u32::from(base) + host).into()
    }
}
