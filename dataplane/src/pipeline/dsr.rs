//! What the modes in which the node sees the client ask of the way there and back, before a flow is opened.
//!
//! In `dsr` the frame carries the VIP and reaches the node by the link-layer address alone. TTL goes down as on
//! any hop, as IPVS does since 4.5 in its direct-routing mode: a loop of two boxes, or a node that routes the VIP
//! back, ends.

use penstock_configs::desired::Mode;

use crate::flow::{Flags, Word};
use crate::tables::{FamilyTables, Hop};
use crate::verdict::{DropReason, PortId};
use crate::wire::{Family, PROTO_UDP};

/// Whether a client's packet can get to the node, and the node's reply back by the way the mode means.
#[inline]
pub(super) fn check_way<F: Family>(
    family: &FamilyTables<F::Addr>,
    mode: Mode,
    client: F::Addr,
    node: F::Addr,
    hop: &Hop,
    from: PortId,
) -> Result<(), DropReason> {
    match mode {
        Mode::Nat => Ok(()),
        // A router would send the packet where its VIP lies: back here.
        Mode::Dsr if !hop.adjacent => Err(DropReason::NotAdjacent),
        // A host drops packets that come from its own address.
        Mode::Dsr if client == node => Err(DropReason::Hairpin),
        // The node would answer its neighbour on their own link, past the box, from an address the client
        // never spoke to.
        Mode::Dnat if client == node || from == hop.port && family.dnat_nodes.contains(&client) => {
            Err(DropReason::Hairpin)
        }
        Mode::Dnat | Mode::Dsr => Ok(()),
    }
}

/// The word a flow keeps that has no room among the established ones: it goes on as an embryo, which is forgotten
/// sooner, after `tcp_syn` or `udp_one_way` without a packet, or when it is the oldest and others need its room. A
/// datagram opens another flow then; a connection in `dsr` has ended, since none but a SYN opens one.
#[cold]
pub(super) fn without_room(word: Word) -> Option<Word> {
    (word.flags.has(Flags::DSR) || word.protocol == PROTO_UDP).then_some(word)
}
