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
    /// One side has sent FIN, or both, and not every FIN is acknowledged yet.
    FinWait = 3,
    /// Both have, and each has been told so: the SNAT port rests.
    TimeWait = 4,
    /// A RST was seen; should the flow go on all the same, the RST was not believed.
    Reset = 5,
    /// Only the client has spoken, or the node answered a first packet.
    UdpOneWay = 6,
    UdpStream = 7,
    /// Idle for too long; the box has sent a RST to both ends, and answers with one.
    Expired = 8,
    /// INIT seen; perhaps the node's answer, not yet the client's cookie.
    SctpInit = 9,
    SctpEstablished = 10,
    /// One side has said SHUTDOWN.
    SctpShutdown = 11,
    /// Shut down or aborted, by one who knew the tag.
    SctpClosed = 12,
}

impl State {
    pub const COUNT: usize = 13;

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
            8 => Self::Expired,
            9 => Self::SctpInit,
            10 => Self::SctpEstablished,
            11 => Self::SctpShutdown,
            12 => Self::SctpClosed,
            _ => return None,
        })
    }

    /// Embryonic flows live in a bounded pool: a flood evicts only them.
    #[inline]
    #[must_use]
    pub fn is_embryonic(self) -> bool {
        matches!(self, Self::SynSent | Self::UdpOneWay | Self::SctpInit)
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
            Self::Expired => "expired",
            Self::SctpInit => "sctp_init",
            Self::SctpEstablished => "sctp_established",
            Self::SctpShutdown => "sctp_shutdown",
            Self::SctpClosed => "sctp_closed",
        }
    }
}

/// What each end expects of the other next, as far as the box has seen: the numbers a RST or FIN is judged
/// by. Written by every packet with an ACK, the express way's too, so what it means depends on the state:
///
/// | state | `node_expects` | `client_expects` |
/// | --- | --- | --- |
/// | `SynSent` | the client's ISN + 1 | the node's ISN + 1, once `ANSWERED` |
/// | `Established` | the node's last ACK number | the client's last ACK number |
/// | from the client's FIN on | the end of the client's stream | |
/// | from the node's FIN on | | the end of the node's stream |
/// | `TimeWait` | the same, for RFC 6191 | the client's last timestamp (0: it sent none), for RFC 6191 |
///
/// An ACK number is the receiver's own word for what it expects (RFC 9293's RCV.NXT), so nothing a third
/// party sends in the sender's name moves the number its RST is measured by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Positions {
    pub node_expects: u32,
    pub client_expects: u32,
}

/// What a TCP packet says of its connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    /// The first sequence number behind it: data, SYN and FIN count.
    pub end: u32,
    /// The client's timestamp: its own, or echoed by the node; 0: none.
    pub client_stamp: u32,
}

impl Segment {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// How far beyond what the node has acknowledged the client's RST may lie: what is under way between box
/// and node, a millisecond of 10 Gbit/s. One forged RST in 4,096 hits it, if all else is known.
const RESET_AHEAD_OF_NODE: u32 = 1 << 20;
/// The same towards the client, a round trip through the Internet away: as much as stacks are tuned to
/// have under way. Who forges these sends from inside, in a node's name.
const RESET_AHEAD_OF_CLIENT: u32 = 1 << 24;
/// And for a FIN, either way. Missing one that was meant costs the connection's whole idle time; believing
/// a forged one shortens that to `tcp_fin`, and is taken back when the sender goes on.
const FIN_AHEAD: u32 = 1 << 24;
/// What an end may send before the handshake is complete (RFC 7413): ten segments (RFC 6928).
const FIRST_FLIGHT: u32 = 1 << 14;

/// Whether `number` lies at most `most` beyond `from`.
fn within(number: u32, from: u32, most: u32) -> bool {
    number.wrapping_sub(from) <= most
}

/// Whether a RST is in the window of whom it is for, as far as the box knows it (RFC 9293 section
/// 3.10.7, RFC 5961 section 3.2). One that is not is delivered all the same, for a receiver whose
/// window the box misjudged answers it with a challenge ACK, and then comes the right one. But it
/// moves nothing here: else whoever guesses four numbers could end an idle connection.
#[must_use]
pub fn believes_reset(word: Word, seen: Positions, reset: &Segment, direction: Direction) -> bool {
    if word.flags.has(Flags::DSR) {
        // What the node expects it tells the client alone, and the client's own last number is whatever the last
        // packet in its name said: who forges a RST forges that one before it.
        return true;
    }
    let Positions { node_expects, client_expects } = seen;
    match (word.state, direction) {
        (State::SynSent, Direction::Forward) => within(reset.seq, node_expects, FIRST_FLIGHT),
        // A refusal acknowledges the SYN (RFC 9293 section 3.10.7.3); once it has answered, a node's RST
        // has the number behind its own SYN.
        (State::SynSent, Direction::Reverse) => {
            reset.has(TCP_ACK) && within(reset.ack, node_expects, FIRST_FLIGHT)
                || word.flags.has(Flags::ANSWERED) && reset.seq == client_expects
        }
        // Behind a FIN the number is the stream's end, and what the receiver expects at most that.
        (State::Established | State::FinWait, Direction::Forward) if word.flags.has(Flags::FIN_CLIENT) => {
            within(node_expects, reset.seq, RESET_AHEAD_OF_NODE)
        }
        (State::Established | State::FinWait, Direction::Forward) => {
            within(reset.seq, node_expects, RESET_AHEAD_OF_NODE)
        }
        (State::Established | State::FinWait, Direction::Reverse) if word.flags.has(Flags::FIN_NODE) => {
            within(client_expects, reset.seq, RESET_AHEAD_OF_CLIENT)
        }
        (State::Established | State::FinWait, Direction::Reverse) => {
            within(reset.seq, client_expects, RESET_AHEAD_OF_CLIENT)
        }
        // It changes nothing any more.
        _ => true,
    }
}

/// The word of a record after a packet in this direction. A RST is one that [`believes_reset`].
#[inline]
#[must_use]
pub fn advance(word: Word, seen: &mut Positions, segment: &Segment, direction: Direction) -> Word {
    if word.flags.has(Flags::DSR) {
        return super::dsr::advance(word, segment.flags);
    }
    if word.protocol == PROTO_TCP { advance_tcp(word, seen, segment, direction) } else { advance_udp(word, direction) }
}

fn advance_tcp(mut word: Word, seen: &mut Positions, segment: &Segment, direction: Direction) -> Word {
    if segment.has(TCP_RST) {
        return reset(word, direction);
    }
    if segment.has(TCP_SYN) {
        return syn(word, seen, segment, direction);
    }
    match word.state {
        State::SynSent if !completes(word, *seen, segment, direction) => return word,
        State::TimeWait => {
            if direction == Direction::Forward {
                seen.client_expects = segment.client_stamp;
            }
            return word;
        }
        State::Expired => return word,
        _ => {}
    }
    note(&mut word, seen, segment, direction);
    // What the other side still had in flight proves nothing; that the sender of the RST goes on does: it
    // was not the sender's, or not believed.
    if word.state == State::Reset && word.flags.has(Flags::RESET_BY_NODE) != (direction == Direction::Reverse) {
        return word;
    }
    let closed = Flags::FIN_CLIENT.with(Flags::FIN_NODE).with(Flags::ACKED_CLIENT).with(Flags::ACKED_NODE);
    word.state = if word.flags.has(closed) {
        seen.client_expects = segment.client_stamp;
        State::TimeWait
    } else if word.flags.has(Flags::FIN_CLIENT) || word.flags.has(Flags::FIN_NODE) {
        State::FinWait
    } else {
        State::Established
    };
    word
}

fn reset(mut word: Word, direction: Direction) -> Word {
    // An embryo is forgotten by whoever delivers the RST: as a flow that was reset it would stand in the pool
    // of flows that matter, which a flood of SYNs with RSTs behind them would fill.
    if matches!(word.state, State::Established | State::FinWait) {
        word.state = State::Reset;
        word.flags = match direction {
            Direction::Forward => word.flags.without(Flags::RESET_BY_NODE),
            Direction::Reverse => word.flags.with(Flags::RESET_BY_NODE),
        };
    }
    word
}

fn syn(mut word: Word, seen: &mut Positions, segment: &Segment, direction: Direction) -> Word {
    let after_syn = segment.seq.wrapping_add(1);
    match (word.state, direction) {
        // The client opens a new connection from the same port (RFC 9293 section 3.6.1); the node decides
        // whether it takes it.
        (State::TimeWait | State::Reset | State::Expired, Direction::Forward) => {
            *seen = Positions { node_expects: after_syn, client_expects: 0 };
            Word { state: State::SynSent, flags: Flags(word.flags.0 & Flags::MODE.0), ..word }
        }
        (State::SynSent, Direction::Forward) => {
            // Another number: another attempt, to which earlier answers are none.
            if seen.node_expects != after_syn {
                word.flags = word.flags.without(Flags::ANSWERED);
                seen.node_expects = after_syn;
            }
            word
        }
        (State::SynSent, Direction::Reverse) => {
            if segment.has(TCP_ACK) && within(segment.ack, seen.node_expects, FIRST_FLIGHT) {
                word.flags = word.flags.with(Flags::ANSWERED);
                seen.client_expects = after_syn;
            }
            word
        }
        // On a living connection: delivered, and answered with a challenge ACK (RFC 5961 section 4.2).
        _ => word,
    }
}

/// Whether a packet proves that the client is where it says it is: only then has it seen the node's
/// initial sequence number.
fn completes(word: Word, seen: Positions, segment: &Segment, direction: Direction) -> bool {
    direction == Direction::Forward
        && word.flags.has(Flags::ANSWERED)
        && segment.has(TCP_ACK)
        && within(segment.ack, seen.client_expects, FIRST_FLIGHT)
}

/// Notes what a packet acknowledges, and whether it ends its sender's stream.
fn note(word: &mut Word, seen: &mut Positions, segment: &Segment, direction: Direction) {
    let Positions { node_expects, client_expects } = seen;
    let (client, node) = ((Flags::FIN_CLIENT, Flags::ACKED_CLIENT), (Flags::FIN_NODE, Flags::ACKED_NODE));
    let (own, other, receiver_expects, sender_expects) = match direction {
        Direction::Forward => (client, node, node_expects, client_expects),
        Direction::Reverse => (node, client, client_expects, node_expects),
    };
    if segment.has(TCP_ACK) {
        if !word.flags.has(other.0) {
            *sender_expects = segment.ack;
        } else if segment.ack == *sender_expects {
            word.flags = word.flags.with(other.1);
        }
    }
    let (ended, acknowledged) = (word.flags.has(own.0), word.flags.has(own.1));
    if segment.has(TCP_FIN) {
        let ahead = within(segment.end.wrapping_sub(1), *receiver_expects, FIN_AHEAD);
        let behind = ended && within(*receiver_expects, segment.end, FIN_AHEAD);
        if !acknowledged && (ahead || behind) {
            word.flags = word.flags.with(own.0);
            *receiver_expects = segment.end;
        }
    } else if ended && !acknowledged && within(segment.end, receiver_expects.wrapping_add(1), FIN_AHEAD) {
        // It sends on beyond its FIN: that was not its own.
        word.flags = word.flags.without(own.0);
    }
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

/// What RFC 6191 wants to know of a SYN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SynInfo {
    /// Its sequence number.
    pub seq: u32,
    /// Timestamp option's value; 0: none.
    pub timestamp: u32,
}

#[cfg(test)]
mod tests;
