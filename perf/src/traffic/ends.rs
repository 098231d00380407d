//! A generator and a sink with something between them: the box, another forwarder, or only a veth, which shows what
//! the two do by themselves.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_dataplane::clock::Now;

use super::bench::{Measured, Spec, mac};
use super::endpoint::Endpoint;
use super::live::{Live, Share};
use super::load::{self, Drain, Load, NUMBERS, NodeSide, STILL_SENDING, Sent};
use super::packet::{Maker, Route, Transport};
use super::popularity::Draw;
use super::sink::Sink;
use super::track::Outcome;
use crate::lab::{Lab, Netns, plan};
use crate::rig::VIP_PORT;

/// Clients of a load, RFC 2544's own network.
const CLIENTS_V4: [u8; 4] = [198, 18, 0, 1];
/// Of what sends by sockets, as of the first live generator.
const SENDER_CORE: usize = 0;
/// What makes and takes the packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Generator {
    /// AF_XDP sockets on both ends: socket buffers, as a host's own stack would send them; every packet's books.
    #[default]
    AfXdp,
    /// Live frames and a counting XDP program, both in the kernel: what a NIC would bring, and more of it; the sink
    /// takes no core.
    Live,
}

impl fmt::Display for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AfXdp => "AF_XDP",
            Self::Live => "live frames",
        })
    }
}

/// What counts or answers at the nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SinkBy {
    /// A loop over AF_XDP sockets, which wants a core.
    #[default]
    Sockets,
    /// An XDP program.
    Kernel,
}

/// How a load is made, beside what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    pub generator: Generator,
    pub transport: Transport,
    /// Behind live frames it is always the kernel's.
    pub sink: SinkBy,
    /// Live generators, each on a core of its own, from core 0 on. A veth brings what a core sends to the receive
    /// queue of that core's number.
    pub cores: u16,
}

impl Default for How {
    fn default() -> Self {
        Self { generator: Generator::default(), transport: Transport::default(), sink: SinkBy::default(), cores: 1 }
    }
}

/// Where packets start and where they are counted.
#[derive(Debug, Clone)]
pub struct Ends {
    pub sender: Netns,
    pub sender_interface: String,
    pub sink: Netns,
    pub sink_interface: String,
    /// The port packets have at the sink: the NodePort behind a box.
    pub sink_port: u16,
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub queues: u16,
}

impl Ends {
    /// From a lab's first client to the box's own interface, with nothing behind it: the ends by themselves.
    ///
    /// # Errors
    /// The lab's interfaces are not as expected.
    pub fn straight(lab: &Lab, queues: u16) -> Result<Self> {
        let through = Self::through(lab, VIP_PORT, queues)?;
        let [interface, _] = lab.topology().interfaces();
        Ok(Self { sink: lab.the_box.clone(), sink_interface: interface.into(), ..through })
    }

    /// From a lab's first client through the box to its first node.
    ///
    /// # Errors
    /// The lab's interfaces are not as expected.
    pub fn through(lab: &Lab, node_port: u16, queues: u16) -> Result<Self> {
        let [interface, _] = lab.topology().interfaces();
        Ok(Self {
            sender: lab.clients[0].ns.clone(),
            sender_interface: "eth0".into(),
            sink: lab.nodes[0].ns.clone(),
            sink_interface: "eth0".into(),
            sink_port: node_port,
            src_mac: mac(&lab.clients[0].ns.sh("ip -br link show eth0")?)?,
            dst_mac: mac(&lab.the_box.sh(&format!("ip -br link show {interface}"))?)?,
            queues,
        })
    }

    /// Where a load comes from and goes to.
    #[must_use]
    pub fn route(&self, v6: bool) -> Route {
        let first_client: IpAddr = match v6 {
            false => CLIENTS_V4.into(),
            true => plan::CLIENT_NET.host(2).v6.into(),
        };
        let (src_mac, dst_mac) = (self.src_mac, self.dst_mac);
        Route { src_mac, dst_mac, first_client, vip: plan::vip(0).ip(v6), vip_port: VIP_PORT }
    }

    /// Sends a load at a rate (`None`: flat out) for a while and closes the books.
    ///
    /// # Errors
    /// No AF_XDP sockets or no live frames on the ends.
    pub fn measure(&self, how: How, spec: &Spec, rate: Option<f64>, duration: Duration) -> Result<Measured> {
        ensure!(spec.flows > 0, "a load has at least one flow");
        let maker = Maker::of(how.transport, self.route(spec.v6), spec.mix.clone());
        match (how.generator, how.sink) {
            (Generator::AfXdp, SinkBy::Sockets) => self.by_sockets(maker, spec, rate, duration),
            (Generator::AfXdp, SinkBy::Kernel) => self.sockets_to_kernel(maker, spec, rate, duration),
            (Generator::Live, _) => self.in_kernel(how, &maker, spec, rate, duration),
        }
    }

    /// Sends by live frames only: something else counts what arrives.
    ///
    /// # Errors
    /// No live frames here.
    pub fn send(&self, how: How, spec: &Spec, rate: Option<f64>, duration: Duration) -> Result<Sent> {
        let maker = Maker::of(how.transport, self.route(spec.v6), spec.mix.clone());
        self.generate(how, &maker, spec, rate, duration)
    }

    fn by_sockets(&self, maker: Maker, spec: &Spec, rate: Option<f64>, duration: Duration) -> Result<Measured> {
        let draw = Draw::new(spec.popularity, spec.flows, spec.seed);
        let mut load = Load { maker, draw, flows: spec.flows, rate, duration, vip_port: VIP_PORT };
        let all_sent = Arc::new(AtomicU64::new(STILL_SENDING));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (queues, side, flows, until) = (self.queues, spec.side, spec.flows, Arc::clone(&all_sent));
        let (interface, port) = (self.sink_interface.clone(), self.sink_port);
        let nodes = self.sink.thread("nodes", move || -> Result<_> {
            let opened = Endpoint::open(&interface, queues);
            let mut end = match opened {
                Ok(end) => end,
                Err(error) => {
                    drop(ready);
                    return Err(error);
                }
            };
            let _ = ready.send(());
            Ok(load::serve(&mut end, side, port, flows, &until))
        })?;
        let interface = self.sender_interface.clone();
        let sender = self.sender.run(move || -> Result<_> {
            if is_ready.recv().is_err() {
                return Ok(None);
            }
            pin(SENDER_CORE)?;
            let mut end = Endpoint::open(&interface, queues)?;
            Ok(Some(load::run(&mut end, &mut load)))
        });
        let packets = sender.as_ref().ok().and_then(Option::as_ref).map_or(0, |(sent, _)| sent.packets);
        all_sent.store(packets, Ordering::Relaxed);
        let (track, node_missed) = nodes.join().ok().context("the nodes' side panicked")???;
        let (sent, returned) = sender?.context("the nodes' side ended early")?;
        let outcome = if spec.side == NodeSide::Answer { returned } else { track.close(sent.packets) };
        Ok(Measured { sent, outcome, node_missed, lost_at: Vec::new() })
    }

    /// By sockets from the client; counted or answered in the kernel at the nodes.
    fn sockets_to_kernel(&self, maker: Maker, spec: &Spec, rate: Option<f64>, duration: Duration) -> Result<Measured> {
        let draw = Draw::new(spec.popularity, spec.flows, spec.seed);
        let mut load = Load { maker, draw, flows: spec.flows, rate, duration, vip_port: VIP_PORT };
        let nodes = self.kernel_sink(spec, expected(rate, duration))?;
        let (interface, queues) = (self.sender_interface.clone(), self.queues);
        let (sent, returned) = self.sender.run(move || -> Result<_> {
            pin(SENDER_CORE)?;
            let mut end = Endpoint::open(&interface, queues)?;
            Ok(load::run(&mut end, &mut load))
        })?;
        let outcome = match spec.side {
            NodeSide::Answer => returned,
            NodeSide::Count => drained(&nodes, sent.packets)?,
        };
        Ok(Measured { sent, outcome, node_missed: 0, lost_at: Vec::new() })
    }

    fn in_kernel(
        &self,
        how: How,
        maker: &Maker,
        spec: &Spec,
        rate: Option<f64>,
        duration: Duration,
    ) -> Result<Measured> {
        let packets = expected(rate, duration);
        let nodes = self.kernel_sink(spec, packets)?;
        let client = match spec.side {
            NodeSide::Answer => {
                let attach = || Sink::attach(&self.sender_interface, VIP_PORT, NodeSide::Count, spec.flows, packets);
                Some(self.sender.run(attach)?)
            }
            NodeSide::Count => None,
        };
        let sent = self.generate(how, maker, spec, rate, duration)?;
        let outcome = drained(client.as_ref().unwrap_or(&nodes), sent.packets)?;
        Ok(Measured { sent, outcome, node_missed: 0, lost_at: Vec::new() })
    }

    /// The nodes' side in the kernel.
    fn kernel_sink(&self, spec: &Spec, packets: Option<u64>) -> Result<Sink> {
        self.sink.run(|| Sink::attach(&self.sink_interface, self.sink_port, spec.side, spec.flows, packets))
    }

    /// All live generators, each on its core.
    fn generate(&self, how: How, maker: &Maker, spec: &Spec, rate: Option<f64>, duration: Duration) -> Result<Sent> {
        let of = u32::from(how.cores.max(1));
        let rate = rate.map(|rate| rate / f64::from(of));
        let barrier = std::sync::Barrier::new(of as usize);
        let one = |index: u32| -> Result<Sent> {
            let share = Share { index, of };
            let open = || -> Result<Live> {
                self.sender.enter()?;
                pin(index as usize)?;
                Live::open(&self.sender_interface, maker, spec.flows, spec.popularity, share, spec.seed)
            };
            let opened = open();
            // Also before a failure is told: the others wait.
            barrier.wait();
            opened?.run(rate, duration, Some(NUMBERS / u64::from(of)))
        };
        let all: Vec<Result<Sent>> = std::thread::scope(|scope| {
            let one = &one;
            let running: Vec<_> = (0..of).map(|index| scope.spawn(move || one(index))).collect();
            running.into_iter().map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        });
        let all: Vec<Sent> = all.into_iter().collect::<Result<_>>()?;
        Ok(together(&all))
    }
}

/// The calling thread on a core of its own, as far as workers are on others.
fn pin(core: usize) -> Result<()> {
    let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: core });
    ensure!(pinned, "a generator can't be pinned to core {core}: is there one?");
    Ok(())
}

/// A sink's books once all are there, or no more come.
fn drained(sink: &Sink, sent: u64) -> Result<Outcome> {
    let mut drain = Drain::new(sent, Now::read());
    while drain.goes_on(sink.packets()?, Now::read()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(sink.arrived()?.close(sent))
}

/// How many packets a rate makes.
fn expected(rate: Option<f64>, duration: Duration) -> Option<u64> {
    rate.map(|rate| (rate * duration.as_secs_f64()) as u64 + 1)
}

/// The sum of several senders at work at the same time.
fn together(all: &[Sent]) -> Sent {
    let per_second: f64 = all.iter().map(|sent| sent.packets as f64 / sent.seconds.max(1e-9)).sum();
    let packets = all.iter().map(|sent| sent.packets).sum();
    Sent {
        packets,
        // So that packets by seconds is the sum of their rates.
        seconds: if per_second > 0.0 { packets as f64 / per_second } else { 0.0 },
        behind: all.iter().any(|sent| sent.behind),
        latest_us: all.iter().map(|sent| sent.latest_us).fold(0.0, f64::max),
        pauses: all.iter().map(|sent| sent.pauses).sum(),
        paused_us: all.iter().map(|sent| sent.paused_us).sum(),
        missed: all.iter().map(|sent| sent.missed).sum(),
    }
}

/// What the ends carry with nothing between them: the limit of every figure taken with them.
///
/// # Errors
/// No lab here.
pub fn by_themselves(how: How, spec: &Spec, queues: u16, duration: Duration) -> Result<Measured> {
    let lab = Lab::builder().clients(1).nodes(1).queues(queues).build()?;
    let spec = Spec { side: NodeSide::Count, ..spec.clone() };
    Ends::straight(&lab, queues)?.measure(how, &spec, None, duration)
}
