//! Flows in direct server return: only the client's half passes the box. What the node says it says to the
//! client, so states follow from what the client does, and err towards keeping the flow.

use super::record::{Flags, Record, Word};
use super::tcp::State;
use crate::wire::sctp::{ABORT, COOKIE_ECHO, Chunks, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE};
use crate::wire::{Family, PROTO_TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tuple};

/// A flow has two keys in the index, and packets of this one come in one direction only. The second key is the
/// reply's tuple as the client gets it, from the VIP: no other flow has it (tuples of clients are distinct, and
/// nobody else may send from a VIP), where the node's own address would meet other VIPs' flows to the same port.
pub(super) fn reverse_key<F: Family>(record: &Record<F::Addr>, word: Word) -> Tuple<F::Addr> {
    Tuple {
        src: record.vip,
        dst: record.client,
        src_port: record.vip_port,
        dst_port: record.client_port,
        protocol: word.protocol,
    }
}

/// The word of a record after a packet of the client.
pub(super) fn advance(word: Word, tcp_flags: u8) -> Word {
    if word.protocol == PROTO_TCP { advance_tcp(word, tcp_flags) } else { advance_udp(word) }
}

fn advance_tcp(mut word: Word, tcp_flags: u8) -> Word {
    let closing = matches!(word.state, State::FinWait | State::TimeWait | State::Reset);
    if tcp_flags & TCP_RST != 0 {
        // As with both halves in view: an embryo stays one.
        if word.state != State::SynSent {
            word.state = State::Reset;
        }
        return word;
    }
    if tcp_flags & TCP_SYN != 0 {
        // The node's FIN is never seen, so a flow the client has closed never comes to rest in TIME_WAIT: a SYN
        // is a new connection from the same port, and the node decides whether it takes it.
        if closing {
            word = Word { state: State::SynSent, flags: Flags(word.flags.0 & Flags::MODE.0), ..word };
        }
        return word;
    }
    if tcp_flags & TCP_FIN != 0 {
        word.flags = word.flags.with(Flags::FIN_CLIENT);
    }
    word.state = match word.state {
        // The client acknowledges a SYN-ACK that went past the box.
        State::SynSent if tcp_flags & TCP_ACK == 0 => State::SynSent,
        _ if word.flags.has(Flags::FIN_CLIENT) => State::FinWait,
        _ => State::Established,
    };
    word
}

/// A client that goes on is being answered, or does not care.
fn advance_udp(mut word: Word) -> Word {
    if word.flags.has(Flags::ANSWERED) {
        word.state = State::UdpStream;
    }
    // The packet that opened the flow is the first to come here.
    word.flags = word.flags.with(Flags::ANSWERED);
    word
}

/// An association's client: its cookie shows that the node has answered. Tags are the node's to check.
pub(super) fn advance_sctp(mut word: Word, chunks: &Chunks) -> Word {
    word.state = match word.state {
        State::SctpInit if chunks.has(COOKIE_ECHO) => State::SctpEstablished,
        State::SctpInit => State::SctpInit,
        _ if chunks.has(ABORT) || chunks.has(SHUTDOWN_COMPLETE) => State::SctpClosed,
        _ if chunks.has(SHUTDOWN) || chunks.has(SHUTDOWN_ACK) => State::SctpShutdown,
        state => state,
    };
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Direction, tcp};

    fn walk(protocol: u8, first: State, packets: &[u8]) -> Vec<State> {
        let mut word = Word { state: first, flags: Flags::MODE, protocol };
        let step = |flags: &u8| {
            let segment = tcp::Segment { flags: *flags, ..tcp::Segment::default() };
            word = tcp::advance(word, &mut tcp::Positions::default(), &segment, Direction::Forward);
            assert!(word.flags.has(Flags::MODE), "the mode was forgotten");
            word.state
        };
        packets.iter().map(step).collect()
    }

    #[test]
    fn the_clients_half_of_a_connection() {
        use State::{Established as E, FinWait as F, Reset as R, SynSent as S};
        let tcp = |packets: &[u8]| walk(PROTO_TCP, S, packets);
        let fin = TCP_FIN | TCP_ACK;
        assert_eq!(tcp(&[TCP_SYN, TCP_SYN, TCP_ACK, TCP_ACK]), [S, S, E, E], "handshake");
        assert_eq!(tcp(&[TCP_SYN, TCP_ACK, fin, TCP_ACK]), [S, E, F, F], "close; the node's FIN goes past");
        assert_eq!(tcp(&[TCP_SYN, TCP_ACK, fin, TCP_SYN, TCP_ACK]), [S, E, F, S, E], "port used again");
        assert_eq!(tcp(&[TCP_SYN, TCP_ACK, TCP_SYN]), [S, E, E], "a SYN on a living flow");
        assert_eq!(tcp(&[TCP_SYN, TCP_RST]), [S, S], "a flood of SYN and RST stays in its pool");
        assert_eq!(tcp(&[TCP_SYN, TCP_ACK, TCP_RST, TCP_SYN]), [S, E, R, S]);
        assert_eq!(tcp(&[TCP_SYN, TCP_ACK, TCP_RST, TCP_ACK]), [S, E, R, E], "a forged RST: the client goes on");
    }

    #[test]
    fn the_clients_half_of_an_association() {
        use crate::wire::sctp::{COOKIE_ACK, INIT, read};
        use State::{SctpClosed as X, SctpEstablished as E, SctpInit as I, SctpShutdown as S};
        let sctp = |chunks: &[u8]| {
            let mut word =
                Word { state: I, flags: Flags::of_mode(penstock_configs::desired::Mode::Dsr), protocol: 132 };
            let step = |kind: &u8| {
                word = advance_sctp(word, &read(&[0, 1, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, *kind, 0, 0, 4]));
                word.state
            };
            chunks.iter().map(step).collect::<Vec<_>>()
        };
        assert_eq!(sctp(&[INIT, ABORT, COOKIE_ACK, COOKIE_ECHO, 3]), [I, I, I, E, E]);
        assert_eq!(sctp(&[COOKIE_ECHO, SHUTDOWN, 3, SHUTDOWN_COMPLETE]), [E, S, S, X]);
        assert_eq!(sctp(&[COOKIE_ECHO, SHUTDOWN_ACK, ABORT]), [E, S, X]);
    }

    #[test]
    fn udp_is_a_stream_from_the_second_packet_on() {
        use State::{UdpOneWay, UdpStream};
        assert_eq!(walk(17, UdpOneWay, &[0, 0, 0]), [UdpOneWay, UdpStream, UdpStream]);
    }
}
