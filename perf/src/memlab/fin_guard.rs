//! Keeps from smoltcp what would make it forget its FIN.
//!
//! smoltcp 0.14 takes three duplicate ACKs for a lost segment also when only its FIN is in flight: it stops
//! the retransmission timer to send again the first bytes of an empty buffer, which it then does not, and
//! the FIN is never sent again (`seq_to_transmit` asks for a buffer that is not empty, `dispatch` has
//! cleared the timer by then). A duplicate ACK in that state tells nothing else, so it is not delivered.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use penstock_dataplane::wire::{self, Packet, Parsed, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Transport};
use smoltcp::iface::SocketSet;
use smoltcp::socket::Socket;
use smoltcp::socket::tcp::State;

/// Connections remembered; those forgotten have long ended.
const REMEMBERED: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct FinGuard {
    /// The last acknowledgement by peer and own port.
    acknowledged: BTreeMap<(SocketAddr, u16), u32>,
}

impl FinGuard {
    /// Whether the stack must not have a frame.
    pub(super) fn keeps_back(&mut self, frame: &[u8], sockets: &SocketSet<'static>) -> bool {
        let Ok(Parsed::Ip(packet)) = wire::parse(frame) else { return false };
        if packet.transport != Transport::Tcp || packet.tcp_flags & TCP_ACK == 0 {
            return false;
        }
        let l4 = usize::from(packet.l4);
        let (peer, own_port) = (source(frame, &packet), wire::be16(frame, l4 + 2));
        let ack = wire::be32(frame, l4 + 8);
        if self.acknowledged.len() >= REMEMBERED {
            self.acknowledged.clear();
        }
        let repeated = self.acknowledged.insert((peer, own_port), ack) == Some(ack);
        let header = usize::from(wire::bytes_at::<1>(frame, l4 + 12)[0] >> 4) * 4;
        let pure = packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0 && l4 + header == usize::from(packet.end);
        repeated && pure && sockets.iter().any(|(_, socket)| only_fin_in_flight(socket, peer, own_port))
    }
}

/// Who sent an IP packet with ports.
pub(super) fn source(frame: &[u8], packet: &Packet) -> SocketAddr {
    let l3 = usize::from(packet.l3);
    let address = if packet.v6 {
        IpAddr::from(wire::bytes_at::<16>(frame, l3 + 8))
    } else {
        IpAddr::from(wire::bytes_at::<4>(frame, l3 + 12))
    };
    SocketAddr::new(address, wire::be16(frame, usize::from(packet.l4)))
}

fn only_fin_in_flight(socket: &Socket<'_>, peer: SocketAddr, own_port: u16) -> bool {
    let Socket::Tcp(socket) = socket else { return false };
    let is_peer =
        socket.remote_endpoint().is_some_and(|end| end.port == peer.port() && IpAddr::from(end.addr) == peer.ip());
    is_peer
        && socket.local_endpoint().is_some_and(|end| end.port == own_port)
        && matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck)
        && socket.send_queue() == 0
}
