//! One flow: both directions in one record, so that it can never be half evicted.
//!
//! A record is self-describing: its service is the VIP, port and protocol in it, its backend the
//! address and port. What depends on the running snapshot (`service`, `node_slot`, `hop`, `snat`)
//! is a cache, valid while `epoch` is the snapshot's, and found again from the tuple when it is not.

use std::sync::atomic::{AtomicU32, Ordering, compiler_fence};

use penstock_configs::desired::Mode;

use super::Direction;
use super::tcp::{Positions, State};
use crate::clock::Tick;
use crate::wire::{PROTO_TCP, PROTO_UDP};

/// 64 bytes for IPv4: one cache line. 96 for IPv6: never more than two.
#[derive(Debug)]
#[repr(C, align(32))]
pub struct Record<A> {
    pub client: A,
    pub vip: A,
    pub node: A,
    pub client_port: u16,
    pub vip_port: u16,
    pub node_port: u16,
    pub snat_port: u16,
    /// State, protocol and flags. Zero: the slot is free. The one word whose release store commits
    /// a record, and whose zero frees it.
    word: AtomicU32,
    /// Which SNAT address, by its place in the table's list.
    pub snat: u16,
    /// The snapshot `service` and `node_slot` belong to.
    pub epoch: u16,
    /// The client's last hop, by its place in the worker's list; 0: not known.
    pub hop: u16,
    pub node_slot: u16,
    pub service: u32,
    pub last_seen: u32,
    /// Since the counters were last moved to the service's.
    pub packets: u32,
    pub forward_bytes: u32,
    pub reverse_bytes: u32,
    pub seen: Positions,
}

const _: () = assert!(size_of::<Record<u32>>() == 64 && size_of::<Record<u128>>() == 96);

/// Flags beside the state in the commit word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u16);

impl Flags {
    pub const FIN_CLIENT: Flags = Flags(1);
    pub const FIN_NODE: Flags = Flags(2);
    /// The node sees the client's address: the record has no SNAT tuple.
    pub const DNAT: Flags = Flags(4);
    /// With `DNAT`: the node sees the VIP too, and answers the client by itself.
    pub const DSR: Flags = Flags(256);
    /// What the service's mode makes of a flow, as long as it lives.
    pub const MODE: Flags = Flags(Self::DNAT.0 | Self::DSR.0);
    /// The node has answered.
    pub const ANSWERED: Flags = Flags(8);
    /// The RST that made the state `Reset` came from the node.
    pub const RESET_BY_NODE: Flags = Flags(16);
    /// Counted for a scheduler: see [`crate::schedule::share::Tally`]. Means nothing after a restart.
    pub const COUNTED: Flags = Flags(32);
    /// Counted for its service's limits: see [`crate::limits::Limiter`]. Means nothing after a restart.
    pub const LIMITED: Flags = Flags(512);
    /// The client's FIN is acknowledged.
    pub const ACKED_CLIENT: Flags = Flags(64);
    /// The node's is.
    pub const ACKED_NODE: Flags = Flags(128);

    #[inline]
    #[must_use]
    pub fn has(self, flag: Flags) -> bool {
        self.0 & flag.0 == flag.0
    }

    /// The flags of the flows of a service in this mode.
    #[must_use]
    pub fn of_mode(mode: Mode) -> Self {
        match mode {
            Mode::Nat => Self::default(),
            Mode::Dnat => Self::DNAT,
            Mode::Dsr => Self::MODE,
        }
    }

    #[inline]
    #[must_use]
    pub fn with(self, flag: Flags) -> Self {
        Self(self.0 | flag.0)
    }

    #[inline]
    #[must_use]
    pub fn without(self, flag: Flags) -> Self {
        Self(self.0 & !flag.0)
    }
}

/// The commit word, unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    pub state: State,
    pub flags: Flags,
    pub protocol: u8,
}

impl Word {
    /// Whether the flow only rests, for late packets to be known for what they are. (One that expired answers who
    /// goes on all the same.)
    #[must_use]
    pub fn is_closed(self) -> bool {
        match self.state {
            State::TimeWait | State::Reset | State::SctpClosed => true,
            // Of a node that answers by itself no FIN is seen.
            State::FinWait | State::SctpShutdown => self.flags.has(Flags::DSR),
            _ => false,
        }
    }

    /// Two packets with a forged sender make an established flow of UDP, and in `dsr` of any protocol. True of a flow
    /// as long as it lives.
    #[must_use]
    pub fn proves_nothing(self) -> bool {
        self.protocol == PROTO_UDP || self.flags.has(Flags::DSR)
    }
}

impl<A> Record<A> {
    /// What the record is; `None`: free, or a state this build does not know.
    #[inline]
    pub fn word(&self) -> Option<Word> {
        let word = self.word.load(Ordering::Relaxed);
        let state = State::from_bits(word as u8)?;
        Some(Word { state, flags: Flags((word >> 16) as u16), protocol: (word >> 8) as u8 })
    }

    /// The word of an established TCP connection; `None`: the record is something else.
    #[inline(always)]
    pub fn established(&self) -> Option<Word> {
        const WANTED: u32 = State::Established as u32 | (PROTO_TCP as u32) << 8;
        let word = self.word.load(Ordering::Relaxed);
        let flags = Flags((word >> 16) as u16);
        (word & 0xffff == WANTED).then_some(Word { state: State::Established, flags, protocol: PROTO_TCP })
    }

    /// The word of a flow of datagrams that one in this direction leaves as it is; `None`: the record is something else.
    #[inline(always)]
    pub fn streaming(&self, direction: Direction) -> Option<Word> {
        const ANSWERED: u32 = State::UdpStream as u32 | (PROTO_UDP as u32) << 8;
        const ONE_WAY: u32 = State::UdpOneWay as u32 | (PROTO_UDP as u32) << 8;
        let word = self.word.load(Ordering::Relaxed);
        let flags = Flags((word >> 16) as u16);
        let state = match word & 0xffff {
            ANSWERED => State::UdpStream,
            // Nobody has answered, and this is no answer. (With `DSR` it is taken for a sign of one.)
            ONE_WAY if direction == Direction::Forward && flags.0 & (Flags::ANSWERED.0 | Flags::DSR.0) == 0 => {
                State::UdpOneWay
            }
            _ => return None,
        };
        Some(Word { state, flags, protocol: PROTO_UDP })
    }

    /// Commits the record, or moves it to another state: everything written before is part of it.
    #[inline]
    pub fn commit(&self, word: Word) {
        let bits = word.state as u32 | u32::from(word.protocol) << 8 | u32::from(word.flags.0) << 16;
        self.word.store(bits, Ordering::Release);
    }

    /// Frees the record.
    #[inline]
    pub fn clear(&self) {
        self.word.store(0, Ordering::Release);
        // A release orders what came before. What the next flow writes into the record must come
        // after, or a kill in between would leave a committed record of two flows.
        compiler_fence(Ordering::SeqCst);
    }

    #[inline]
    pub fn is_free(&self) -> bool {
        self.word.load(Ordering::Relaxed) == 0
    }

    pub fn last_seen(&self) -> Tick {
        Tick(self.last_seen)
    }
}
