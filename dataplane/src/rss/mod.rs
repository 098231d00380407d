//! Which receive queue the NIC gives a packet: its Toeplitz hash and indirection table, read from
//! the driver. A flow whose owner is computed this way arrives at its owner without a hand-off.

pub mod nic;
pub mod placement;
pub mod toeplitz;

pub use nic::{NicHash, RssView, Unreadable};
pub use placement::Placement;
pub use toeplitz::Toeplitz;
