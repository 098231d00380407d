//! For tests and benchmarks: a box in memory. Services are written as in a config, compiled by the real
//! compiler with made-up next hops; packets are built and re-validated by etherparse, which shares no
//! code with the packet path.
#![allow(clippy::missing_panics_doc, clippy::must_use_candidate, reason = "test code: a panic is the outcome")]

mod farm;
mod packets;
mod plan;
mod rig;

pub use farm::{Farm, FarmConfig, FarmWorker};
pub use packets::{Icmp, Pkt, Seen, internet_sum, look, valid};
pub use plan::{Plan, SCHEDULERS, client_mac, down, draining, node_mac};
pub use rig::{Out, Rig, config};

use crate::verdict::PortId;

/// The port clients come in by.
pub const FRONT: PortId = PortId(0);
/// The port nodes are behind.
pub const BACK: PortId = PortId(1);
/// The TAP.
pub const KERNEL: PortId = PortId(2);

/// The box's own link-layer addresses by port.
pub const BOX_MACS: [[u8; 6]; 3] = [[2, 0xb0, 0, 0, 0, 0], [2, 0xb0, 0, 0, 0, 1], [2, 0xb0, 0, 0, 0, 2]];
