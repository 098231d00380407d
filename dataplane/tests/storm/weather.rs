//! The packets of a storm: valid ones of every kind, what ends answer to what they got, and what becomes of them on
//! a bad way.

use std::net::{IpAddr, SocketAddr};

use penstock_dataplane::pipeline::testkit::{BACK, BOX_MACS, FRONT, Icmp, Pkt, client_mac, node_mac};
use penstock_dataplane::verdict::PortId;
use penstock_dataplane::wire::{PROTO_SCTP, PROTO_TCP, PROTO_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

use super::check::{mend, read, split};
use super::world::Random;

/// A frame, and the port it comes in by.
pub type Arrival = (PortId, Vec<u8>);

const SCTP_CHUNKS: [&[u8]; 6] = [
    &[0, 3, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, b'd', b'a', b't', b'a'],
    &[10, 0, 0, 8, 1, 2, 3, 4],
    &[11, 0, 0, 4],
    &[6, 0, 0, 4],
    &[7, 0, 0, 8, 0, 0, 0, 1],
    &[14, 0, 0, 4],
];

fn init(kind: u8, tag: u32, random: &mut Random) -> Vec<u8> {
    let mut chunk = vec![kind, 0, 0, 20];
    chunk.extend(tag.to_be_bytes());
    chunk.extend([0, 0, 0x10, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    if random.one_in(2) {
        // An address parameter, which the box hides.
        chunk.extend([0, 5, 0, 8, 192, 0, 2, 1]);
        chunk[3] += 8;
    }
    chunk
}

fn chunks(random: &mut Random) -> Vec<u8> {
    SCTP_CHUNKS[random.below(SCTP_CHUNKS.len())].to_vec()
}

/// A packet of a client to a service, most often one that opens a flow.
pub fn of_client(random: &mut Random, client: SocketAddr, vip: SocketAddr, protocol: u8) -> Pkt {
    let flags = [TCP_SYN, TCP_SYN, TCP_SYN, TCP_ACK, TCP_ACK | TCP_FIN, TCP_RST, TCP_RST | TCP_ACK, TCP_ACK];
    let flags = if protocol == PROTO_TCP { flags[random.below(flags.len())] } else { 0 };
    let mut packet = Pkt::between(client, vip, protocol, flags);
    packet.seq = random.number() as u32 & 0xffff;
    if random.one_in(3) {
        packet.timestamp = Some(random.number() as u32);
    }
    if protocol == PROTO_SCTP {
        packet.seq = if random.one_in(2) { 0 } else { 1 + random.below(3) as u32 };
        let tag = 1 + random.below(3) as u32;
        packet.payload = if packet.seq == 0 { init(1, tag, random) } else { chunks(random) };
        return dress(random, packet);
    }
    let payload = vec![b'x'; random.below(40)];
    dress(random, packet.payload(&payload))
}

/// What an end answers to a packet it got, which may go on from there in any way.
pub fn answer(random: &mut Random, got: &[u8]) -> Option<Arrival> {
    let seen = penstock_dataplane::pipeline::testkit::look(got).ok()?;
    let at_node = seen.dmac[1] == 0xee;
    let mut packet = match seen.protocol {
        PROTO_TCP => {
            let flags = [TCP_ACK, TCP_ACK, TCP_ACK, TCP_ACK | TCP_FIN, TCP_RST | TCP_ACK, TCP_RST];
            let syn = seen.flags & (TCP_SYN | TCP_ACK) == TCP_SYN && !random.one_in(4);
            let flags = if syn { TCP_SYN | TCP_ACK } else { flags[random.below(flags.len())] };
            let mut packet = Pkt::answer(&seen, flags);
            if seen.flags & TCP_ACK != 0 && !random.one_in(8) {
                packet.seq = seen.ack;
            }
            packet.payload(&vec![b'y'; random.below(60)])
        }
        PROTO_UDP => Pkt::answer(&seen, 0).payload(&vec![b'z'; random.below(90)]),
        PROTO_SCTP => {
            let mut packet = Pkt::answer(&seen, 0);
            packet.seq = 1 + random.below(3) as u32;
            let tag = 1 + random.below(3) as u32;
            packet.payload = if seen.seq == 0 { init(2, tag, random) } else { chunks(random) };
            packet
        }
        _ => return None,
    };
    if !at_node {
        (packet.smac, packet.dmac) = (client_mac(packet.src.ip()), BOX_MACS[usize::from(FRONT.0)]);
    }
    packet.vlans = seen.vlans;
    Some((if at_node { BACK } else { FRONT }, dress(random, packet).bytes()))
}

/// Options, tags, a TTL, padding.
fn dress(random: &mut Random, mut packet: Pkt) -> Pkt {
    if random.one_in(12) {
        packet.ttl = random.below(4) as u8;
    }
    if random.one_in(12) && packet.src.is_ipv4() {
        packet.ip_options = vec![7, 7, 4, 0, 0, 0, 0, 0];
    }
    if random.one_in(16) {
        packet.vlans = vec![9, 10][..1 + random.below(2)].to_vec();
    }
    packet.padding = if random.one_in(8) { random.below(30) } else { 0 };
    packet.unchecked = packet.protocol != PROTO_TCP && random.one_in(8);
    if random.one_in(40) {
        packet.payload.resize(1200 + random.below(400), b'L');
    }
    packet
}

/// The frame of a packet; of IPv6, now and then, behind extension headers.
pub fn extended(random: &mut Random, frame: Vec<u8>) -> Vec<u8> {
    let Some(whole) = read(&frame).filter(|read| read.src.is_ipv6() && read.fragment.is_none()) else { return frame };
    if !random.one_in(4) {
        return frame;
    }
    let kinds: [(u8, &[u8]); 5] = [
        (0, &[0, 0, 1, 4, 0, 0, 0, 0]),
        (60, &[0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (43, &[0, 0, 4, 0, 0, 0, 0, 0]),
        (51, &[0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]),
        (44, &[0, 0, 0, 0, 1, 2, 3, 4]),
    ];
    let chain: Vec<_> = kinds.into_iter().filter(|_| random.one_in(2)).collect();
    let mut longer = frame[..whole.l3 + 40].to_vec();
    longer[whole.l3 + 6] = chain.first().map_or(whole.protocol, |(kind, _)| *kind);
    for (n, (_, header)) in chain.iter().enumerate() {
        let start = longer.len();
        longer.extend(*header);
        longer[start] = chain.get(n + 1).map_or(whole.protocol, |(kind, _)| *kind);
    }
    longer.extend(&frame[whole.l4..]);
    let len = (longer.len() - whole.l3 - 40 - (frame.len() - whole.end)) as u16;
    longer[whole.l3 + 4..whole.l3 + 6].copy_from_slice(&len.to_be_bytes());
    longer
}

/// A frame in fragments, out of order, with some lost or doubled.
pub fn in_pieces(random: &mut Random, frame: &[u8], id: u32) -> Vec<Vec<u8>> {
    let size = 8 * (1 + random.below(12));
    let mut pieces = split(frame, size, id);
    if pieces.len() < 2 || pieces.len() > 70 {
        return Vec::new();
    }
    for _ in 0..random.below(4) {
        let (a, b) = (random.below(pieces.len()), random.below(pieces.len()));
        pieces.swap(a, b);
    }
    if random.one_in(6) {
        pieces.remove(random.below(pieces.len()));
    }
    if random.one_in(6)
        && let Some(twin) = pieces.first().cloned()
    {
        pieces.push(twin);
    }
    pieces
}

/// An ICMP error about a packet that the box sent, from whoever is on the way; or another ICMP message.
pub fn icmp(random: &mut Random, about: &[u8]) -> Option<Arrival> {
    let sent = read(about)?;
    let back = about[1] == 0xee;
    let v4 = sent.src.is_ipv4();
    let from: IpAddr = if v4 { "192.0.2.77" } else { "2001:db8:77::1" }.parse().ok()?;
    let from = if random.one_in(2) { sent.dst } else { from };
    let kinds: &[u8] = if v4 { &[3, 11, 12, 5] } else { &[1, 2, 3, 4] };
    let mut message = vec![kinds[random.below(kinds.len())], random.below(5) as u8, 0, 0, 0, 0, 5, 0];
    let quote = &about[sent.l3..sent.end];
    let len = [quote.len(), sent.l4 - sent.l3 + 8, random.below(quote.len() + 1)][random.below(3)];
    message.extend(&quote[..len.min(quote.len())]);
    let mut frame = Icmp::message(from, sent.src, &message).bytes();
    let (mac, port) = if back { (node_mac(sent.dst), BACK) } else { (client_mac(sent.dst), FRONT) };
    frame[6..12].copy_from_slice(&mac);
    frame[..6].copy_from_slice(&BOX_MACS[usize::from(port.0)]);
    Some((port, frame))
}

/// Changes a few bytes, the length or all of it. `mended`: what then is still a packet has right checksums.
pub fn mutate(random: &mut Random, frame: &mut Vec<u8>, mended: bool) {
    const VALUES: [u8; 12] = [0, 1, 2, 0x0f, 0x45, 0x4f, 0x60, 0x7f, 0x80, 0xf0, 0xfe, 0xff];
    for _ in 0..1 + random.below(4) {
        if frame.is_empty() {
            return;
        }
        // Mostly headers.
        let reach = if random.one_in(4) { frame.len() } else { frame.len().min(80) };
        let at = random.below(reach);
        frame[at] = match random.below(3) {
            0 => frame[at] ^ 1 << random.below(8),
            1 => VALUES[random.below(VALUES.len())],
            _ => random.number() as u8,
        };
    }
    match random.below(12) {
        0 => frame.truncate(random.below(frame.len() + 1)),
        1 => frame.resize(frame.len() + random.below(100), 0xa5),
        _ => {}
    }
    if mended {
        mend(frame);
    }
}
