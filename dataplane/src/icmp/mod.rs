//! ICMP errors: those about translated packets brought to the view of who must hear them, and those the
//! box has to say itself.
//!
//! An error quotes the packet it is about as the box sent it. Turned round, the quoted tuple is that of a
//! packet coming the other way, so the flow table finds its flow by the key it has anyway:
//!
//! | about | quoted | as a key | goes to | quoted then |
//! | --- | --- | --- | --- | --- |
//! | a request the box sent to a node | SNAT:p -> node | node -> SNAT:p (reverse) | the client | client -> VIP |
//! | a reply the box sent to a client | VIP -> client | client -> VIP (forward) | the node | node -> SNAT:p |
//!
//! The owner of the error is the owner of that key: the port's partition, or the client's hash.
//!
//! The outer source becomes the address under which the receiver knows the far side: the VIP towards
//! clients, whoever behind the box spoke (RFC 5508 REQ-5c; Linux NAT and IPVS do the same), the SNAT
//! address towards nodes. The routers behind the box mostly have private addresses, which networks
//! in between discard (BCP 38), and a node with a strict reverse-path filter discards those of routers
//! in front of it: either way path MTU discovery would hang. A `dnat` node knows the clients'
//! side by its real addresses, which stay.
//!
//! An error never ends, moves or refreshes a flow (RFC 4787 REQ-12, RFC 5382 REQ-9): whether it is
//! believed the endpoint decides, which knows its sequence numbers (RFC 5927 section 4.1).

pub mod mss;
mod quote;
mod translate;

pub use quote::quoted;
pub use translate::{Translation, translate};

use crate::wire::{Family, Packet, Transport, V4, V6, be16, be32, bytes_at};

/// Destination unreachable, time exceeded, parameter problem. Source quench is dead (RFC 6633), and
/// redirects are about somebody else's routes.
const ERRORS_V4: [u8; 3] = [3, 11, 12];
/// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
const ERRORS_V6: std::ops::RangeInclusive<u8> = 1..=4;

/// Whether an ICMP packet is an error of a kind that is translated.
#[must_use]
pub fn is_error(bytes: &[u8], headers: &Packet) -> bool {
    let [kind] = bytes_at(bytes, usize::from(headers.l4));
    if headers.v6 { ERRORS_V6.contains(&kind) } else { ERRORS_V4.contains(&kind) }
}

/// Whether an error about this packet may be sent at all: not about ICMP (which covers the errors), later
/// fragments, what was sent to many or what comes from nobody (RFC 1122 section 3.2.2, RFC 4443
/// section 2.4e).
#[must_use]
pub fn may_complain(bytes: &[u8], headers: &Packet) -> bool {
    let l3 = usize::from(headers.l3);
    if !may_answer(bytes) || !is_first_piece(bytes, headers) || headers.transport == Transport::Icmp {
        return false;
    }
    if headers.v6 {
        let (src, dst) = (u128::from_be_bytes(bytes_at(bytes, l3 + 8)), u128::from_be_bytes(bytes_at(bytes, l3 + 24)));
        return !V6::is_martian(src) && !V6::is_martian(dst);
    }
    !V4::is_martian(be32(bytes, l3 + 12)) && !V4::is_martian(be32(bytes, l3 + 16))
}

/// Whether the sender of a frame may be answered by way of its own addresses: what came from a group's address would
/// go to the whole segment, and what came to one says nothing of whom it was for.
#[must_use]
pub fn may_answer(bytes: &[u8]) -> bool {
    let [from] = bytes_at(bytes, 6);
    !is_to_group(bytes) && from & GROUP_BIT == 0
}

const GROUP_BIT: u8 = 1;

/// Whether a frame is for more than one station.
#[inline]
#[must_use]
pub fn is_to_group(bytes: &[u8]) -> bool {
    let [to] = bytes_at(bytes, 0);
    to & GROUP_BIT != 0
}

/// A whole packet, or the fragment with the transport header.
fn is_first_piece(bytes: &[u8], headers: &Packet) -> bool {
    if headers.transport != Transport::Fragment {
        return true;
    }
    if headers.v6 {
        be16(bytes, usize::from(headers.l4) - 6) & 0xfff8 == 0
    } else {
        be16(bytes, usize::from(headers.l3) + 6) & 0x1fff == 0
    }
}

#[cfg(test)]
mod tests;
