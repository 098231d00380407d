//! Packets that open flows: nothing but SYNs, and whole short connections among established ones.

use penstock_dataplane::io::{BURST, Frame, PacketMemory};
use penstock_dataplane::verdict::PortId;

use super::measure::{BLOCK, BURSTS, Traffic, refresh};
use super::packets::{self, Endpoints, TcpFlags, Template};
use super::world::{CLIENT_PORT, EMBRYOS, NODE_PORT, Plan, World};

/// Every packet is the SYN of a client never seen before.
pub struct Opening {
    plan: Plan,
    client: u64,
}

impl Opening {
    pub fn of(world: &World) -> Self {
        Self { plan: world.plan, client: u64::from(world.plan.flows) }
    }

    /// Blocks until the pool of embryos is full.
    pub const BLOCKS: usize = EMBRYOS as usize / BLOCK - 1;
}

impl Traffic for Opening {
    fn port(&self, _: usize) -> PortId {
        CLIENT_PORT
    }

    fn fill(&mut self, memory: &PacketMemory, frames: &mut [Frame]) -> anyhow::Result<()> {
        for frame in frames {
            let ends = client_ends(self.plan, self.client);
            let packet = packets::from_client(ends, TcpFlags::Syn, some_flow(self.client, self.plan.flows))?;
            refresh(memory, frame, packet.bytes());
            self.client += 1;
        }
        Ok(())
    }
}

fn client_ends(plan: Plan, n: u64) -> Endpoints {
    let (src, src_port) = packets::client(plan.v6, n);
    let dst = packets::vip(plan.v6, (n % u64::from(plan.services)) as u32);
    Endpoints { src, dst, src_port, dst_port: 443 }
}

/// A record for the bare limit to touch.
fn some_flow(n: u64, flows: u32) -> u32 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 % flows
}

/// Connections under way in a block; as many packets are of established flows.
const LANES: usize = BLOCK / 4;
/// What the client sends, one step a block; the node answers in the next block.
const CLIENT_SENDS: [TcpFlags; 6] =
    [TcpFlags::Syn, TcpFlags::Ack, TcpFlags::Push, TcpFlags::Ack, TcpFlags::FinAck, TcpFlags::LastAck];
const NODE_ANSWERS: [Option<TcpFlags>; 6] =
    [Some(TcpFlags::SynAck), None, Some(TcpFlags::Push), Some(TcpFlags::Push), Some(TcpFlags::FinAck), None];

struct Lane {
    client: u64,
    step: usize,
    /// The node's side of the connection, once the SYN has come out.
    node: Option<Endpoints>,
}

/// Half the packets are of short connections (ten packets each, a request and its answer), in every
/// stage of their lives at once; half are of established flows. One packet in 24 opens a flow.
pub struct Churn {
    plan: Plan,
    lanes: Vec<Lane>,
    next_client: u64,
    forward: Vec<Template>,
    reverse: Vec<Template>,
    next: usize,
}

impl Churn {
    pub fn of(world: &mut World) -> Self {
        let next_client = u64::from(world.plan.flows);
        let (forward, reverse) = (std::mem::take(&mut world.forward), std::mem::take(&mut world.reverse));
        let mut churn = Self { plan: world.plan, lanes: Vec::new(), next_client, forward, reverse, next: 0 };
        churn.expired();
        churn
    }

    /// Blocks until the connections that rest fill the pool that [`EMBRYOS`] is room for.
    pub const BLOCKS: usize = EMBRYOS as usize * CLIENT_SENDS.len() / LANES - 64;

    fn background(&mut self, forward: bool) -> Template {
        let packets = if forward { &self.forward } else { &self.reverse };
        let packet = packets[self.next % packets.len()];
        self.next += 1;
        packet
    }

    fn answer(&mut self, lane: usize) -> anyhow::Result<Template> {
        let Lane { client, step, node } = &self.lanes[lane];
        let before = step.checked_sub(1).and_then(|step| NODE_ANSWERS.get(step).copied().flatten());
        match (before, node) {
            (Some(flags), Some(ends)) => packets::from_node(*ends, flags, some_flow(*client, self.plan.flows)),
            _ => Ok(self.background(false)),
        }
    }

    fn request(&mut self, lane: usize) -> anyhow::Result<Template> {
        let Lane { client, step, .. } = &self.lanes[lane];
        match CLIENT_SENDS.get(*step) {
            Some(flags) => {
                let ends = client_ends(self.plan, *client);
                packets::from_client(ends, *flags, some_flow(*client, self.plan.flows))
            }
            None => Ok(self.background(true)),
        }
    }
}

impl Traffic for Churn {
    /// What the nodes answer, then what the clients send.
    fn port(&self, burst: usize) -> PortId {
        if burst < BURSTS / 2 { NODE_PORT } else { CLIENT_PORT }
    }

    fn fill(&mut self, memory: &PacketMemory, frames: &mut [Frame]) -> anyhow::Result<()> {
        for (burst, frames) in frames.chunks_mut(BURST).enumerate() {
            let from_client = burst >= BURSTS / 2;
            let first_lane = burst % (BURSTS / 2) * (BURST / 2);
            for (at, frame) in frames.iter_mut().enumerate() {
                let lane = first_lane + at / 2;
                let packet = match (at % 2 == 0, from_client) {
                    (true, true) => self.request(lane)?,
                    (true, false) => self.answer(lane)?,
                    (false, forward) => self.background(forward),
                };
                refresh(memory, frame, packet.bytes());
            }
        }
        Ok(())
    }

    fn settled(&mut self, memory: &PacketMemory, frames: &[Frame]) -> anyhow::Result<()> {
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            if lane.step == 0 {
                let frame = &frames[BLOCK / 2 + at * 2];
                lane.node = Some(packets::endpoints(memory.bytes(frame))?.reversed());
            }
            lane.step += 1;
            // One block more than the client has steps, for the node's last answer; lanes that have
            // not begun count on to twice the steps.
            if lane.step == CLIENT_SENDS.len() || lane.step >= 2 * CLIENT_SENDS.len() {
                *lane = Lane { client: self.next_client, step: 0, node: None };
                self.next_client += 1;
            }
        }
        Ok(())
    }

    /// All lanes wait, each for its own number of blocks, and start anew.
    fn expired(&mut self) {
        let waiting = |lane| Lane { client: 0, step: CLIENT_SENDS.len() + lane % CLIENT_SENDS.len(), node: None };
        self.lanes = (0..LANES).map(waiting).collect();
    }
}
