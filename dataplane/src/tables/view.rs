//! What a worker sees at a time: the tables, and the next hops of that moment.

use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::Tables;
use crate::rss::Placement;
use crate::steer::marks::Marks;
use crate::verdict::PortId;
use crate::wire::Tags;

/// The next hop of a packet: out of which port, between which link-layer addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    pub port: PortId,
    pub dst: [u8; 6],
    pub src: [u8; 6],
    /// Of the port or the route, whichever is smaller.
    pub mtu: u32,
    /// The same for packets that may take the short way, which writes no tags: none may towards a tagged hop.
    pub plain_mtu: u16,
    /// The tags frames leave in; `None`: those they came in.
    pub tags: Option<Tags>,
    /// The hop is the target itself, not a router on the way.
    pub adjacent: bool,
}

// Two to a cache line.
const _: () = assert!(size_of::<Option<Hop>>() == 32);

impl Hop {
    /// A hop that is the target itself and leaves tags as they are.
    #[inline(always)]
    #[must_use]
    pub fn new(port: PortId, dst: [u8; 6], src: [u8; 6], mtu: u32) -> Self {
        Self { port, dst, src, mtu, plain_mtu: plain(mtu), tags: None, adjacent: true }
    }

    /// The hop in these tags.
    #[inline]
    #[must_use]
    pub fn in_tags(self, tags: Tags) -> Self {
        let plain_mtu = if tags.is_empty() { plain(self.mtu) } else { 0 };
        Self { plain_mtu, tags: Some(tags), ..self }
    }

    /// The hop as a router on the way to a target behind it.
    #[must_use]
    pub fn of_router(self) -> Self {
        Self { adjacent: false, ..self }
    }
}

/// No packet is longer than its length field can say.
#[inline(always)]
fn plain(mtu: u32) -> u16 {
    mtu.min(u32::from(u16::MAX)) as u16
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortView {
    pub mac: [u8; 6],
    pub mtu: u32,
    /// The TAP: what comes in by it the box's own kernel sent.
    pub is_kernel: bool,
    /// The largest MSS in SYNs that enter or leave by the port; 0: as the ends say.
    pub mss_clamp: u16,
}

/// Published to the workers as one, whenever a part of it changes.
#[derive(Default)]
pub struct View {
    /// Counts publications.
    pub number: u64,
    pub tables: Arc<Tables>,
    /// Which worker owns which flows.
    pub placement: Arc<Placement>,
    /// By node slot; `None`: the node's link-layer address is not known.
    pub node_hops: Vec<Option<Hop>>,
    /// Towards clients whose last hop is not known.
    pub default_v4: Option<Hop>,
    pub default_v6: Option<Hop>,
    /// By port; the last one is the TAP to the kernel, if there is one.
    pub ports: Vec<PortView>,
    /// Addresses the box has claimed on a port, and so answers for.
    pub claimed: FxHashSet<(u8, IpAddr)>,
    /// Where established flows are marked, while new ones are policed.
    pub marks: Option<Arc<Marks>>,
}
