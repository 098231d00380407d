//! The states of an SCTP association (RFC 9260), as the ends show them to each other.
//!
//! What counts is what carries the right verification tag: each end chose a random number in its INIT or INIT
//! ACK, which all packets to it bear, so who cannot read the packets cannot end the association. The record
//! keeps both, in the two words TCP uses for its last sequence number and timestamp. A packet with a wrong
//! tag passes, and changes nothing: its receiver discards it (section 8.5).
//!
//! Tags are believed of the node, never of the client alone. A client that restarts (section 5.2) gets new
//! ones with the node's COOKIE ACK; its INIT, which anybody can forge, leaves the old ones in force.

use super::index::Direction;
use super::record::{Flags, Record, Word};
use super::tcp::{Positions, State};
use crate::wire::sctp::{ABORT, COOKIE_ACK, COOKIE_ECHO, Chunks, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE};

/// The verification tags of an association; 0: not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tags {
    pub to_node: u32,
    pub to_client: u32,
}

impl Tags {
    fn of<A>(record: &Record<A>) -> Self {
        Self { to_node: record.seen.node_expects, to_client: record.seen.client_expects }
    }

    fn own(self, direction: Direction) -> u32 {
        match direction {
            Direction::Forward => self.to_node,
            Direction::Reverse => self.to_client,
        }
    }

    /// Section 8.5: the receiver's tag; section 8.5.1: with the T bit the sender's own, as it was sent it.
    fn believes(self, chunks: &Chunks, direction: Direction) -> bool {
        let other = match direction {
            Direction::Forward => Direction::Reverse,
            Direction::Reverse => Direction::Forward,
        };
        let wanted = self.own(if chunks.reflected { other } else { direction });
        wanted != 0 && wanted == chunks.tag
    }
}

/// The word of a record after a packet with these chunks in this direction; the record's tags follow.
pub fn advance<A>(record: &mut Record<A>, word: Word, chunks: &Chunks, direction: Direction) -> Word {
    if word.flags.has(Flags::DSR) {
        return super::dsr::advance_sctp(word, chunks);
    }
    let mut tags = Tags::of(record);
    let next = step(&mut tags, word, chunks, direction);
    record.seen = Positions { node_expects: tags.to_node, client_expects: tags.to_client };
    next
}

/// An INIT, which is alone in its packet and has tag 0, changes nothing.
fn step(tags: &mut Tags, mut word: Word, chunks: &Chunks, direction: Direction) -> Word {
    if word.state == State::SctpInit {
        return open(tags, word, chunks, direction);
    }
    // The node took up an association anew: it has checked the cookie, or sent it.
    if direction == Direction::Reverse && (chunks.has(COOKIE_ACK) || chunks.has(COOKIE_ECHO)) {
        if chunks.tag != tags.to_client {
            *tags = Tags { to_node: 0, to_client: chunks.tag };
        }
        word.state = State::SctpEstablished;
        return word;
    }
    let ends = chunks.has(ABORT) || chunks.has(SHUTDOWN_COMPLETE);
    if tags.own(direction) == 0 && !ends && !chunks.has(INIT_ACK) {
        // Taken up anew: what the other end is called its first packet says.
        match direction {
            Direction::Forward => tags.to_node = chunks.tag,
            Direction::Reverse => tags.to_client = chunks.tag,
        }
    }
    if !tags.believes(chunks, direction) {
        return word;
    }
    word.state = match word.state {
        _ if ends => State::SctpClosed,
        State::SctpEstablished if chunks.has(SHUTDOWN) || chunks.has(SHUTDOWN_ACK) => State::SctpShutdown,
        state => state,
    };
    word
}

/// Before the client has shown that it is where it says it is: its COOKIE ECHO has a tag that only the INIT ACK
/// told it. An ABORT changes nothing, or a flood of pairs would fill the pool of flows that matter.
fn open(tags: &mut Tags, mut word: Word, chunks: &Chunks, direction: Direction) -> Word {
    match direction {
        Direction::Reverse if chunks.has(INIT_ACK) => {
            *tags = Tags { to_node: chunks.initiate_tag, to_client: chunks.tag };
            word.flags = word.flags.with(Flags::ANSWERED);
        }
        Direction::Forward if chunks.has(COOKIE_ECHO) && tags.believes(chunks, direction) => {
            word.state = State::SctpEstablished;
        }
        _ => {}
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sctp::{INIT, read};

    const C: Direction = Direction::Forward;
    const N: Direction = Direction::Reverse;
    /// What the client, and the node, want to be called.
    const CLIENT: u32 = 0xc11e;
    const NODE: u32 = 0x40de;

    fn packet(tag: u32, kind: u8, flags: u8, initiate: u32) -> Chunks {
        let len = if initiate != 0 { 20 } else { 4 };
        let mut bytes = [&[0, 1, 0, 2][..], &tag.to_be_bytes(), &[0; 4], &[kind, flags, 0, len]].concat();
        bytes.extend(initiate.to_be_bytes());
        bytes.extend([0; 12]);
        bytes.truncate(12 + usize::from(len));
        read(&bytes)
    }

    fn chunk(tag: u32, kind: u8) -> Chunks {
        packet(tag, kind, 0, 0)
    }

    type Step = (Direction, Chunks);

    fn walk(steps: &[Step]) -> (State, Tags) {
        let mut word = Word { state: State::SctpInit, flags: Flags::default(), protocol: 132 };
        let mut tags = Tags::default();
        for (direction, chunks) in steps {
            word = step(&mut tags, word, chunks, *direction);
        }
        (word.state, tags)
    }

    #[test]
    fn lives_of_an_association() {
        let init = (C, packet(0, INIT, 0, CLIENT));
        let init_ack = (N, packet(CLIENT, INIT_ACK, 0, NODE));
        let echo = (C, chunk(NODE, COOKIE_ECHO));
        let ack = (N, chunk(CLIENT, COOKIE_ACK));
        let opened = [init, init_ack, echo, ack];
        let with = |more: &[Step]| walk(&[&opened[..], more].concat()).0;
        let to_node = |kind| (C, chunk(NODE, kind));
        let to_client = |kind| (N, chunk(CLIENT, kind));
        let reflected = |direction, tag, kind| (direction, packet(tag, kind, 1, 0));
        let restart =
            [init, (N, packet(0xaa, INIT_ACK, 0, 0xbb)), (C, chunk(0xbb, COOKIE_ECHO)), (N, chunk(0xaa, COOKIE_ACK))];
        let restarted = |more: &[Step]| with(&[&restart[..], more].concat());
        use State::{SctpClosed, SctpEstablished, SctpInit, SctpShutdown};
        let table: &[(&str, State, State)] = &[
            ("INIT again", walk(&[init, init]).0, SctpInit),
            ("INIT answered", walk(&[init, init_ack]).0, SctpInit),
            ("a cookie out of the blue", walk(&[init, echo]).0, SctpInit),
            ("the node says more before the cookie", walk(&[init, init_ack, to_client(9), echo]).0, SctpEstablished),
            ("a cookie under a guessed tag", walk(&[init, init_ack, (C, chunk(1, COOKIE_ECHO))]).0, SctpInit),
            ("data before the cookie", walk(&[init, init_ack, to_node(0)]).0, SctpInit),
            ("refused", walk(&[init, to_client(ABORT)]).0, SctpInit),
            ("the cookie", walk(&[init, init_ack, echo]).0, SctpEstablished),
            ("opened", with(&[]), SctpEstablished),
            ("data and SACK", with(&[to_node(0), to_client(3), to_client(4), to_node(5)]), SctpEstablished),
            ("shutdown begun", with(&[to_node(SHUTDOWN)]), SctpShutdown),
            ("shutdown answered", with(&[to_node(SHUTDOWN), to_client(SHUTDOWN_ACK)]), SctpShutdown),
            ("shutdown answered, begun unseen", with(&[to_node(SHUTDOWN_ACK)]), SctpShutdown),
            ("both at once", with(&[to_node(SHUTDOWN), to_client(SHUTDOWN)]), SctpShutdown),
            (
                "shutdown complete",
                with(&[to_client(SHUTDOWN), to_node(SHUTDOWN_ACK), to_client(SHUTDOWN_COMPLETE)]),
                SctpClosed,
            ),
            ("complete, the record gone at its sender", with(&[reflected(N, NODE, SHUTDOWN_COMPLETE)]), SctpClosed),
            ("aborted by the client", with(&[to_node(ABORT)]), SctpClosed),
            ("aborted by the node", with(&[to_client(ABORT)]), SctpClosed),
            ("a forged ABORT", with(&[(C, chunk(7, ABORT))]), SctpEstablished),
            ("an ABORT under the other's tag", with(&[(C, chunk(CLIENT, ABORT))]), SctpEstablished),
            ("the same with the T bit", with(&[reflected(C, CLIENT, ABORT)]), SctpClosed),
            ("the T bit with a guess", with(&[reflected(C, 7, ABORT)]), SctpEstablished),
            ("the T bit with the own tag", with(&[reflected(C, NODE, ABORT)]), SctpEstablished),
            ("a forged shutdown", with(&[(N, chunk(7, SHUTDOWN))]), SctpEstablished),
            ("a forged COOKIE ACK of the client", with(&[(C, chunk(7, COOKIE_ACK)), to_node(ABORT)]), SctpClosed),
            ("a forged INIT", with(&[init, to_node(0)]), SctpEstablished),
            ("the old tags behind a forged INIT", with(&[init, restart[1], to_node(ABORT)]), SctpClosed),
            ("restarted", restarted(&[]), SctpEstablished),
            ("restarted, then the old tag", restarted(&[(C, chunk(0xbb, 0)), to_node(ABORT)]), SctpEstablished),
            ("restarted, then the new tag", restarted(&[(C, chunk(0xbb, 0)), (C, chunk(0xbb, ABORT))]), SctpClosed),
            ("restarted, and at once an ABORT nobody knows", restarted(&[to_node(ABORT)]), SctpEstablished),
            ("restarted, and an ABORT under no tag", restarted(&[(C, chunk(0, ABORT))]), SctpEstablished),
            (
                "restarted, and a tag only an INIT ACK has told of",
                restarted(&[(C, packet(0xdd, INIT_ACK, 0, 0xee)), (C, chunk(0xdd, ABORT))]),
                SctpEstablished,
            ),
            ("taken up by the node", with(&[(N, chunk(0xaa, COOKIE_ECHO)), (N, chunk(0xaa, ABORT))]), SctpClosed),
            (
                "restarted in the middle of a shutdown",
                {
                    let steps = [&[to_node(SHUTDOWN)][..], &restart].concat();
                    with(&steps)
                },
                SctpEstablished,
            ),
        ];
        for (what, got, want) in table {
            assert_eq!(got, want, "{what}");
        }
        assert_eq!(walk(&opened).1, Tags { to_node: NODE, to_client: CLIENT });
    }
}
