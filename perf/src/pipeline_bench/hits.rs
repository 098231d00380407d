//! Packets of established flows.

use penstock_dataplane::io::{BURST, Frame, PacketMemory};
use penstock_dataplane::verdict::PortId;

use super::measure::{Traffic, refresh};
use super::packets::Template;
use super::world::{CLIENT_PORT, NODE_PORT, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Forward,
    Reverse,
    /// Bursts from the client and from the node in turn.
    Both,
}

/// Goes round the flows.
pub struct Hits {
    way: Way,
    forward: Vec<Template>,
    reverse: Vec<Template>,
    next: usize,
}

impl Hits {
    /// Takes the world's packets.
    pub fn of(world: &mut World, way: Way) -> Self {
        let (forward, reverse) = (std::mem::take(&mut world.forward), std::mem::take(&mut world.reverse));
        Self { way, forward, reverse, next: 0 }
    }

    fn is_forward(&self, burst: usize) -> bool {
        match self.way {
            Way::Forward => true,
            Way::Reverse => false,
            Way::Both => burst.is_multiple_of(2),
        }
    }
}

impl Traffic for Hits {
    fn port(&self, burst: usize) -> PortId {
        if self.is_forward(burst) { CLIENT_PORT } else { NODE_PORT }
    }

    fn fill(&mut self, memory: &PacketMemory, frames: &mut [Frame]) -> anyhow::Result<()> {
        for (burst, frames) in frames.chunks_mut(BURST).enumerate() {
            let packets = if self.is_forward(burst) { &self.forward } else { &self.reverse };
            for frame in frames {
                refresh(memory, frame, packets[self.next].bytes());
                self.next = if self.next + 1 == packets.len() { 0 } else { self.next + 1 };
            }
        }
        Ok(())
    }
}
