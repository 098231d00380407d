//! Blocks of packets, timed; runs of blocks; medians of runs.

use anyhow::{Context, bail};
use arrayvec::ArrayVec;
use penstock_dataplane::clock::Now;
use penstock_dataplane::io::{BURST, Frame, FramePool, PacketMemory};
use penstock_dataplane::sys::timestamp;
use penstock_dataplane::verdict::{PortId, Verdict};

use crate::counters::{Processor, Work};

/// Bursts between two looks at the clock. Frames of a power of two share a few sets of the caches: 256
/// of them stay in the second level beside the tables, as the frames of a worker's rings would.
pub const BURSTS: usize = 4;
pub const BLOCK: usize = BURSTS * BURST;
/// The packet path's own default: 2048 bytes, 256 of them headroom.
const FRAME: u32 = 2048;
const HEADROOM: u32 = 256;

pub type Verdicts = ArrayVec<Verdict, BURST>;

/// Pins this thread; returns the core.
pub fn pin(core: Option<usize>) -> anyhow::Result<usize> {
    let cores = core_affinity::get_core_ids().context("the kernel does not say which cores there are")?;
    let chosen = match core {
        Some(wanted) => cores.iter().find(|core| core.id == wanted),
        None => cores.last(),
    };
    let Some(chosen) = chosen else { bail!("there is no such core; the machine has {}", cores.len()) };
    if !core_affinity::set_for_current(*chosen) {
        bail!("core {} can't be pinned to: is it in this process's cpuset?", chosen.id);
    }
    Ok(chosen.id)
}

/// The rate of the time-stamp counter, and of the core.
pub struct Clock {
    pub ticks_per_ns: f64,
    pub core_ghz: f64,
    /// Ticks that two readings with nothing between are apart.
    overhead: u64,
}

impl Clock {
    pub fn calibrate() -> Self {
        let (ns, ticks) = (Now::read().ns, timestamp());
        while Now::read().ns - ns < 50_000_000 {}
        let ticks_per_ns = (timestamp() - ticks) as f64 / (Now::read().ns - ns) as f64;
        let overhead = (0..1000).map(|_| timestamp().abs_diff(timestamp())).min().unwrap_or(0);
        Self { ticks_per_ns, core_ghz: core_ghz(ticks_per_ns), overhead }
    }

    /// For runs whose times nobody looks at.
    pub fn none() -> Self {
        Self { ticks_per_ns: 1.0, core_ghz: 0.0, overhead: 0 }
    }

    pub fn ns(&self, ticks: u64) -> f64 {
        ticks.saturating_sub(self.overhead) as f64 / self.ticks_per_ns
    }
}

/// Multiplications that wait for each other take three cycles each on every x86 of this century.
fn core_ghz(ticks_per_ns: f64) -> f64 {
    const STEPS: u32 = 1_000_000;
    let chain = || {
        let start = timestamp();
        let mut x = std::hint::black_box(3_u64);
        for _ in 0..STEPS {
            x = std::hint::black_box(x.wrapping_mul(x));
        }
        (timestamp() - start) as f64 / ticks_per_ns
    };
    let fastest = (0..5).map(|_| chain()).fold(f64::INFINITY, f64::min);
    f64::from(STEPS) * 3.0 / fastest
}

/// What settles bursts: the pipeline, or the bare limit.
pub trait Target {
    fn burst(&mut self, memory: &PacketMemory, from: PortId, frames: &mut [Frame], verdicts: &mut Verdicts);
}

/// What fills a block's frames and looks at the outcome, neither measured.
pub trait Traffic {
    /// The port a block's n-th burst comes in by.
    fn port(&self, burst: usize) -> PortId;
    fn fill(&mut self, memory: &PacketMemory, frames: &mut [Frame]) -> anyhow::Result<()>;
    /// Told of the pipeline's blocks only.
    fn settled(&mut self, _memory: &PacketMemory, _frames: &[Frame]) -> anyhow::Result<()> {
        Ok(())
    }

    /// Flows that were not established are gone.
    fn expired(&mut self) {}
}

/// Frames for a block, and room for its verdicts and times.
pub struct Bench {
    pool: FramePool,
    frames: Vec<Frame>,
    verdicts: [Verdicts; BURSTS],
    times: Vec<u64>,
    /// Where the machine has counters.
    processor: Option<Processor>,
    /// Per packet of the last run.
    pub work: Option<Work>,
}

impl Bench {
    pub fn new() -> anyhow::Result<Self> {
        let mut pool = FramePool::new(PacketMemory::heap(BLOCK as u32, FRAME, HEADROOM));
        let frames: Vec<Frame> = std::iter::from_fn(|| pool.take()).collect();
        if frames.len() != BLOCK {
            bail!("{} frames instead of {BLOCK}", frames.len());
        }
        let verdicts = std::array::from_fn(|_| Verdicts::new());
        let processor = Processor::of_this_thread().ok();
        Ok(Self { pool, frames, verdicts, times: Vec::new(), processor, work: None })
    }

    /// One run: ns per packet, the median of its blocks. Every packet must be sent on.
    pub fn run(
        &mut self,
        clock: &Clock,
        blocks: usize,
        target: &mut impl Target,
        traffic: &mut impl Traffic,
        tell: bool,
    ) -> anyhow::Result<f64> {
        self.times.clear();
        let mut work = Work::default();
        for _ in 0..blocks {
            traffic.fill(self.pool.memory(), &mut self.frames)?;
            for verdicts in &mut self.verdicts {
                verdicts.clear();
            }
            let before = self.processor.as_mut().map(Processor::read).transpose()?;
            let start = timestamp();
            for (at, (frames, verdicts)) in self.frames.chunks_mut(BURST).zip(&mut self.verdicts).enumerate() {
                target.burst(self.pool.memory(), traffic.port(at), frames, verdicts);
            }
            self.times.push(timestamp() - start);
            if let (Some(before), Some(processor)) = (before, &mut self.processor) {
                work = work + (processor.read()? - before);
            }
            let strange = self.verdicts.iter().flatten().find(|verdict| !matches!(verdict, Verdict::Tx(_)));
            if let Some(verdict) = strange {
                bail!("a packet ended as {verdict:?} instead of being sent");
            }
            if tell {
                traffic.settled(self.pool.memory(), &self.frames)?;
            }
        }
        self.times.sort_unstable();
        self.work = self.processor.as_ref().map(|_| work * (1.0 / (blocks * BLOCK) as f64));
        Ok(clock.ns(self.times[self.times.len() / 2]) / BLOCK as f64)
    }
}

/// Copies a packet into a frame.
#[inline]
pub fn refresh(memory: &PacketMemory, frame: &mut Frame, packet: &[u8]) {
    memory.set_len(frame, packet.len());
    memory.bytes_mut(frame).copy_from_slice(packet);
}

/// The middle of several runs, and how far apart they were.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Spread {
    pub median: f64,
    pub lowest: f64,
    pub highest: f64,
}

impl Spread {
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |n: usize| sorted.get(n).copied().unwrap_or(f64::NAN);
        Self { median: at(sorted.len() / 2), lowest: at(0), highest: at(sorted.len().saturating_sub(1)) }
    }
}
