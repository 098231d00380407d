//! The states of a flow, and how packets move it between them.
//!
//! The box is no TCP endpoint: it follows what the endpoints show each other, and errs towards
//! keeping a flow, never towards breaking one.

use super::index::Direction;
use super::record::{Flags, Word};
use crate::wire::{PROTO_TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// Stored in records: the numbers are part of the persistent layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// SYN seen; perhaps the node's answer, not yet the client's: a spoofed client never gets past this.
    SynSent = 1,
    Established = 2,
    /// One side has sent FIN.
    FinWait = 3,
    /// Both have: the SNAT port rests.
    TimeWait = 4,
    /// A RST was seen; should the flow go on all the same, the RST was not believed.
    Reset = 5,
    /// Only the client has spoken, or the node answered a first packet.
    UdpOneWay = 6,
    UdpStream = 7,
}

impl State {
    pub const COUNT: usize = 8;

    #[inline]
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            1 => Self::SynSent,
            2 => Self::Established,
            3 => Self::FinWait,
            4 => Self::TimeWait,
            5 => Self::Reset,
            6 => Self::UdpOneWay,
            7 => Self::UdpStream,
            _ => return None,
        })
    }

    /// Embryonic flows live in a bounded pool: a flood evicts only them.
    #[inline]
    #[must_use]
    pub fn is_embryonic(self) -> bool {
        matches!(self, Self::SynSent | Self::UdpOneWay)
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn_sent",
            Self::Established => "established",
            Self::FinWait => "fin_wait",
            Self::TimeWait => "time_wait",
            Self::Reset => "reset",
            Self::UdpOneWay => "udp_one_way",
            Self::UdpStream => "udp_stream",
        }
    }
}

/// The word of a record after a packet with these TCP flags in this direction.
#[inline]
#[must_use]
pub fn advance(word: Word, tcp_flags: u8, direction: Direction) -> Word {
    if word.flags.has(Flags::DSR) {
        return super::dsr::advance(word, tcp_flags);
    }
    if word.protocol == PROTO_TCP { advance_tcp(word, tcp_flags, direction) } else { advance_udp(word, direction) }
}

#[inline]
fn advance_tcp(mut word: Word, tcp_flags: u8, direction: Direction) -> Word {
    // The plain case: an established flow, neither end closing.
    if word.state == State::Established && tcp_flags & (TCP_FIN | TCP_RST) == 0 {
        return word;
    }
    if tcp_flags & TCP_RST != 0 {
        // An embryo stays one, or a flood of SYNs with RSTs behind them, or towards a node that
        // refuses, would fill the pool of flows that matter.
        if !matches!(word.state, State::TimeWait | State::Reset | State::SynSent) {
            word.state = State::Reset;
            word.flags = match direction {
                Direction::Forward => word.flags.without(Flags::RESET_BY_NODE),
                Direction::Reverse => word.flags.with(Flags::RESET_BY_NODE),
            };
        }
        return word;
    }
    if tcp_flags & TCP_SYN != 0 {
        if direction == Direction::Reverse {
            word.flags = word.flags.with(Flags::ANSWERED);
        } else if matches!(word.state, State::TimeWait | State::Reset) {
            // The client opens a new connection from the same port (RFC 9293 section 3.6.1); the
            // node decides whether it takes it.
            word = Word { state: State::SynSent, flags: Flags(word.flags.0 & Flags::DNAT.0), ..word };
        }
        return word;
    }
    if tcp_flags & TCP_FIN != 0 {
        word.flags = word.flags.with(if direction == Direction::Forward { Flags::FIN_CLIENT } else { Flags::FIN_NODE });
    }
    word.state = match word.state {
        _ if word.flags.has(Flags::FIN_CLIENT.with(Flags::FIN_NODE)) => State::TimeWait,
        // Only an ACK from the client proves that the client is where it says it is.
        State::SynSent if direction == Direction::Reverse => {
            word.flags = word.flags.with(Flags::ANSWERED);
            State::SynSent
        }
        // What the other side still had in flight proves nothing; that the sender of the RST goes
        // on does: it was not the sender's, or not believed.
        State::Reset if word.flags.has(Flags::RESET_BY_NODE) != (direction == Direction::Reverse) => State::Reset,
        State::SynSent if !word.flags.has(Flags::ANSWERED) || tcp_flags & TCP_ACK == 0 => State::SynSent,
        _ if word.flags.has(Flags::FIN_CLIENT) || word.flags.has(Flags::FIN_NODE) => State::FinWait,
        _ => State::Established,
    };
    word
}

#[inline]
fn advance_udp(mut word: Word, direction: Direction) -> Word {
    match (word.state, direction) {
        (State::UdpOneWay, Direction::Reverse) => word.flags = word.flags.with(Flags::ANSWERED),
        (State::UdpOneWay, Direction::Forward) if word.flags.has(Flags::ANSWERED) => word.state = State::UdpStream,
        _ => {}
    }
    word
}

/// Whether a node whose TIME_WAIT still holds the old connection takes this SYN as a new one
/// (RFC 6191 section 2, as Linux implements it: PAWS must not refuse it, and its sequence number
/// or its timestamp must be later).
#[must_use]
pub fn reopens(last_seq: u32, last_timestamp: u32, syn: SynInfo) -> bool {
    let later = |new: u32, old: u32| (new.wrapping_sub(old) as i32) > 0;
    let both_stamped = last_timestamp != 0 && syn.timestamp != 0;
    if both_stamped && later(last_timestamp, syn.timestamp) {
        return false;
    }
    later(syn.seq, last_seq) || both_stamped && later(syn.timestamp, last_timestamp)
}

/// What RFC 6191 wants to know of a TCP packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SynInfo {
    /// The first sequence number after the packet.
    pub seq: u32,
    /// Timestamp option's value; 0: none.
    pub timestamp: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: Direction = Direction::Forward;
    const N: Direction = Direction::Reverse;

    fn walk(steps: &[(Direction, u8)]) -> State {
        let mut word = Word { state: State::SynSent, flags: Flags::default(), protocol: PROTO_TCP };
        for (direction, flags) in steps {
            word = advance(word, *flags, *direction);
        }
        word.state
    }

    #[test]
    fn lives_of_a_connection() {
        let opened = [(N, TCP_SYN | TCP_ACK), (C, TCP_ACK)];
        let with = |more: &[(Direction, u8)]| walk(&[&opened[..], more].concat());
        let fin = TCP_FIN | TCP_ACK;
        let table: &[(&str, State, State)] = &[
            ("SYN repeated", walk(&[(C, TCP_SYN)]), State::SynSent),
            ("SYN answered, client silent", walk(&[(N, TCP_SYN | TCP_ACK)]), State::SynSent),
            ("client's ACK without the node's answer", walk(&[(C, TCP_ACK)]), State::SynSent),
            ("handshake", with(&[]), State::Established),
            ("data", with(&[(C, TCP_ACK), (N, TCP_ACK)]), State::Established),
            ("client closes", with(&[(C, fin)]), State::FinWait),
            ("half closed, node still sends", with(&[(C, fin), (N, TCP_ACK), (N, TCP_ACK)]), State::FinWait),
            ("both close", with(&[(N, fin), (C, fin), (N, TCP_ACK)]), State::TimeWait),
            ("simultaneous close", with(&[(C, fin), (N, fin)]), State::TimeWait),
            ("reset", with(&[(C, TCP_RST)]), State::Reset),
            ("reset with data still in flight", with(&[(C, TCP_RST), (N, TCP_ACK), (N, TCP_ACK)]), State::Reset),
            ("forged reset", with(&[(C, TCP_RST), (N, TCP_ACK), (C, TCP_ACK)]), State::Established),
            ("forged reset as the node", with(&[(N, TCP_RST), (C, TCP_ACK), (N, TCP_ACK)]), State::Established),
            ("refused", walk(&[(N, TCP_RST | TCP_ACK)]), State::SynSent),
            ("given up before it began", walk(&[(C, TCP_RST)]), State::SynSent),
            ("given up half open", walk(&[(N, TCP_SYN | TCP_ACK), (C, TCP_RST)]), State::SynSent),
            ("late RST does not shorten the rest", with(&[(N, fin), (C, fin), (C, TCP_RST)]), State::TimeWait),
            ("port used again", with(&[(N, fin), (C, fin), (C, TCP_SYN)]), State::SynSent),
            ("SYN on a living flow", with(&[(C, TCP_SYN)]), State::Established),
        ];
        for (what, got, want) in table {
            assert_eq!(got, want, "{what}");
        }
    }

    #[test]
    fn udp_becomes_a_stream_on_the_second_request() {
        let mut word = Word { state: State::UdpOneWay, flags: Flags::default(), protocol: 17 };
        for (direction, want) in
            [(C, State::UdpOneWay), (N, State::UdpOneWay), (N, State::UdpOneWay), (C, State::UdpStream)]
        {
            word = advance(word, 0, direction);
            assert_eq!(word.state, want);
        }
    }

    #[test]
    fn rfc_6191() {
        let syn = |seq, timestamp| SynInfo { seq, timestamp };
        assert!(reopens(1000, 0, syn(1001, 0)), "later sequence, no timestamps");
        assert!(!reopens(1000, 0, syn(1000, 0)), "same sequence");
        assert!(!reopens(1000, 0, syn(999, 7)), "earlier sequence, the old one unstamped");
        assert!(reopens(1000, 50, syn(5, 51)), "later timestamp");
        assert!(!reopens(1000, 50, syn(2000, 49)), "PAWS refuses an earlier timestamp");
        assert!(reopens(1000, 50, syn(2000, 50)), "same timestamp, later sequence");
        assert!(reopens(u32::MAX, u32::MAX, syn(0, 3)), "both wrap");
    }
}
