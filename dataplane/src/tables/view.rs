//! What a worker sees at a time: the tables, and the next hops of that moment.

use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::Tables;
use crate::rss::Placement;
use crate::verdict::PortId;

/// The next hop of a packet: out of which port, between which link-layer addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    pub port: PortId,
    pub dst: [u8; 6],
    pub src: [u8; 6],
    /// Of the port or the route, whichever is smaller.
    pub mtu: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortView {
    pub mac: [u8; 6],
    pub mtu: u32,
    /// The TAP: what comes in by it the box's own kernel sent.
    pub is_kernel: bool,
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
}
