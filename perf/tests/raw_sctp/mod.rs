//! Both ends of an SCTP association on raw sockets, for kernels that have no SCTP of their own. Each end takes a packet
//! only if its CRC32c, recomputed in full, is right.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use penstock_dataplane::wire::sctp::{self, COOKIE_ACK, COOKIE_ECHO, DATA, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK};
use rustix::net::{AddressFamily, Protocol as IpProtocol, SocketType, socket};

pub const PORT: u16 = 2905;
pub const CLIENT_PORT: u16 = 40_001;
pub const CLIENT_TAG: u32 = 0xc11e_0001;
pub const NODE_TAG: u32 = 0x40de_0001;
pub const HEADER: usize = sctp::HEADER;

/// A raw SCTP socket; std has none, and the calls are the same.
pub fn open(v6: bool) -> UdpSocket {
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let protocol = IpProtocol::from_raw(std::num::NonZeroU32::new(132).expect("a protocol"));
    let socket = UdpSocket::from(socket(family, SocketType::RAW, Some(protocol)).expect("a raw socket"));
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    socket
}

pub fn chunk(kind: u8, body: &[u8]) -> Vec<u8> {
    let [a, b] = u16::try_from(4 + body.len()).expect("short").to_be_bytes();
    let mut bytes = [&[kind, 3, a, b], body].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

pub fn init(kind: u8, tag: u32) -> Vec<u8> {
    chunk(kind, &[&tag.to_be_bytes()[..], &[0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]].concat())
}

pub fn packet(ports: [u16; 2], tag: u32, chunks: &[u8]) -> Vec<u8> {
    let mut bytes = ports.map(u16::to_be_bytes).as_flattened().to_vec();
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(chunks);
    let sum = sctp::right_checksum(&bytes);
    bytes[8..12].copy_from_slice(&sum);
    bytes
}

/// The next packet that is whole and right, and its sender; `None`: none came in time.
pub fn receive(socket: &UdpSocket, v6: bool, port: u16) -> Option<(Vec<u8>, IpAddr)> {
    let mut buffer = vec![0; 70_000];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).ok()?;
        // IPv4 raw sockets show the IP header.
        let start = if v6 { 0 } else { usize::from(buffer[0] & 15) * 4 };
        let bytes = buffer[start..len].to_vec();
        if bytes.len() < HEADER || bytes[2..4] != port.to_be_bytes() {
            continue;
        }
        assert_eq!(bytes[8..12], sctp::right_checksum(&bytes), "a wrong CRC32c came through");
        return Some((bytes, from.ip()));
    }
}

/// Answers like an SCTP stack that echoes data.
pub fn serve(v6: bool, port: u16, stop: &AtomicBool) -> Vec<IpAddr> {
    let socket = open(v6);
    let mut clients = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Some((bytes, from)) = receive(&socket, v6, port) else { continue };
        let chunks = sctp::read(&bytes);
        let answer = if chunks.has(INIT) {
            init(INIT_ACK, NODE_TAG)
        } else if chunks.has(COOKIE_ECHO) {
            chunk(COOKIE_ACK, &[])
        } else if chunks.has(SHUTDOWN) {
            chunk(SHUTDOWN_ACK, &[])
        } else if chunks.has(DATA) {
            assert_eq!(chunks.tag, NODE_TAG);
            bytes[HEADER..].to_vec()
        } else {
            continue;
        };
        clients.push(from);
        let ports = [port, u16::from_be_bytes([bytes[0], bytes[1]])];
        let answer = packet(ports, CLIENT_TAG, &answer);
        socket.send_to(&answer, SocketAddr::new(from, 0)).expect("sent");
    }
    clients
}

/// Sends from [`CLIENT_PORT`] to [`PORT`] until what comes back begins so. A question that was repeated has two answers:
/// the second may come to the next one.
#[track_caller]
pub fn ask(socket: &UdpSocket, v6: bool, tag: u32, chunks: &[u8], answer: &[u8]) -> Vec<u8> {
    for _ in 0..10 {
        socket.send(&packet([CLIENT_PORT, PORT], tag, chunks)).expect("sent");
        while let Some((bytes, _)) = receive(socket, v6, CLIENT_PORT) {
            assert_eq!(bytes[..2], PORT.to_be_bytes());
            assert_eq!(sctp::read(&bytes).tag, CLIENT_TAG);
            if bytes[HEADER..].starts_with(answer) {
                return bytes[HEADER..].to_vec();
            }
        }
    }
    panic!("no answer {:?} to a packet of {} bytes", &answer[..1], HEADER + chunks.len());
}
