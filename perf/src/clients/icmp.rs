//! `ping`, with the kernel's own datagram ICMP sockets: it checks checksums and matches identifiers.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::uninterrupted;
use crate::lab::Netns;

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// Sends `count` echo requests, each with `size` bytes of payload, one after another; every reply must
/// carry the request's payload and sequence number.
pub fn ping(ns: &Netns, target: IpAddr, count: u16, size: usize) -> Result<()> {
    // Datagram ICMP sockets are for the groups of this range.
    ns.sysctl("net.ipv4.ping_group_range", "0 2147483647")?;
    ns.run(|| {
        let socket =
            open(target, Duration::from_secs(10)).with_context(|| format!("an ICMP socket towards {target}"))?;
        for sequence in 1..=count {
            exchange(&socket, target.is_ipv6(), sequence, size)
                .with_context(|| format!("echo request {sequence} of {count} to {target}"))?;
        }
        Ok(())
    })
}

/// One small echo request that is given little time: is anybody there yet?
pub fn probe(ns: &Netns, target: IpAddr) -> Result<()> {
    ns.sysctl("net.ipv4.ping_group_range", "0 2147483647")?;
    ns.run(|| exchange(&open(target, Duration::from_millis(50))?, target.is_ipv6(), 1, 0))
}

fn open(target: IpAddr, patience: Duration) -> io::Result<UdpSocket> {
    let (family, protocol) = match target {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    // std has no ICMP socket type; connect, send and receive are the same calls on this one.
    let socket = UdpSocket::from(socket(family, SocketType::DGRAM, Some(protocol))?);
    socket.connect(SocketAddr::new(target, 0))?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

fn exchange(socket: &UdpSocket, v6: bool, sequence: u16, size: usize) -> Result<()> {
    let (request_type, reply_type) =
        if v6 { (ECHO_REQUEST_V6, ECHO_REPLY_V6) } else { (ECHO_REQUEST_V4, ECHO_REPLY_V4) };
    // Type, code, checksum and identifier (both the kernel's), sequence number, payload.
    let mut request = vec![request_type, 0, 0, 0, 0, 0];
    request.extend(sequence.to_be_bytes());
    request.extend((0..size).map(|index| index.to_le_bytes()[0]));
    socket.send(&request)?;
    let mut reply = vec![0; request.len() + 64];
    let length = uninterrupted(|| socket.recv(&mut reply)).context("no reply")?;
    ensure!(reply[0] == reply_type && reply[1] == 0, "type {} code {} came back", reply[0], reply[1]);
    ensure!(reply[6..length] == request[6..], "another payload came back");
    Ok(())
}
