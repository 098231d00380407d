//! A load's other end in the kernel (`bpf/sink.bpf.c`): counts, and drops or answers, where a packet arrives. It
//! keeps up with the generator in the kernel, takes no core of its own, and looks closely at a sample of the packets.

use anyhow::{Context, Result};
use aya::maps::{PerCpuArray, PerCpuValues};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use hdrhistogram::Histogram;

use super::load::NodeSide;
use super::track::{Outcome, latencies};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sink.bpf.o"));

/// As in `sink.bpf.c`: 32 buckets per power of two.
const LATENCY_BITS: u32 = 5;
const LATENCY_BUCKETS: u32 = 64 << LATENCY_BITS;
/// Words of the program's `struct books`.
const BOOKS: usize = 8;
/// Numbers that have a bit each: 8 MiB of them.
const SAMPLE: u64 = 1 << 26;
/// Flat out, one number in 16 is looked at: all of them would cost a sink half its rate.
const FAST_SHIFT: u32 = 4;

/// A program on an interface; dropping it takes it off.
pub struct Sink {
    ebpf: Ebpf,
    sample_shift: u32,
}

/// What arrived at a sink.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrived {
    pub packets: u64,
    pub bytes: u64,
    /// One number in so many was looked at.
    pub one_in: u64,
    pub sampled: u64,
    /// Of the sample.
    pub duplicates: u64,
    pub reordered: u64,
    /// Of the sample: latencies, and the share that a pause of the sender's touched. (The sink itself does not pause: it
    /// is run by what brings the packet.)
    times: Outcome,
}

impl Arrived {
    /// The books, closed: of `sent` packets, what did not arrive is lost. Duplicates and reordered packets are those
    /// of the sample, times its share.
    #[must_use]
    pub fn close(&self, sent: u64) -> Outcome {
        let duplicates = self.duplicates * self.one_in;
        let received = self.packets.saturating_sub(duplicates);
        Outcome {
            sent,
            received,
            lost: sent.saturating_sub(received),
            duplicates,
            reordered: self.reordered * self.one_in,
            ..self.times.clone()
        }
    }
}

impl Sink {
    /// Puts a sink on an interface of the calling thread's namespace, for about so many packets from or to `port`.
    ///
    /// # Errors
    /// Somebody else's XDP program is there, or the kernel refuses this one.
    pub fn attach(interface: &str, port: u16, side: NodeSide, flows: u32, packets: Option<u64>) -> Result<Self> {
        let sample_shift = packets.map_or(FAST_SHIFT, |packets| packets.div_ceil(SAMPLE).next_power_of_two().ilog2());
        let (port, answers) = (u32::from(port), u32::from(side == NodeSide::Answer));
        let mut loader = EbpfLoader::new();
        loader
            .override_global("port", &port, true)
            .override_global("answers", &answers, true)
            .override_global("sample_shift", &sample_shift, true)
            .map_max_entries("seen", (SAMPLE / 64) as u32)
            .map_max_entries("newest", flows.max(1));
        let mut ebpf = loader.load(OBJECT).context("the sink's program")?;
        let program: &mut Xdp = ebpf.program_mut("sink").context("sink.bpf.o has no program")?.try_into()?;
        program.load().context("the sink's program")?;
        program.attach(interface, XdpMode::Driver).with_context(|| format!("an XDP program on {interface}"))?;
        Ok(Self { ebpf, sample_shift })
    }

    /// How many packets have arrived so far.
    ///
    /// # Errors
    /// The kernel does not hand the counters out.
    pub fn packets(&self) -> Result<u64> {
        Ok(self.books()?.iter().map(|books| books[0]).sum())
    }

    /// Of each core.
    fn books(&self) -> Result<PerCpuValues<[u64; BOOKS]>> {
        let books: PerCpuArray<_, [u64; BOOKS]> =
            self.ebpf.map("books").context("sink.bpf.o has no map")?.try_into()?;
        Ok(books.get(&0, 0)?)
    }

    /// What has arrived so far.
    ///
    /// # Errors
    /// The kernel does not hand the counters out.
    pub fn arrived(&self) -> Result<Arrived> {
        let cores = self.books()?;
        let total = |word: usize| cores.iter().map(|books| books[word]).sum();
        let longest = |word: usize| cores.iter().map(|books| books[word]).max().unwrap_or(0);
        Ok(Arrived {
            packets: total(0),
            bytes: total(1),
            one_in: 1 << self.sample_shift,
            sampled: total(2),
            duplicates: total(3),
            reordered: total(4),
            times: Outcome::of(&self.latency(0, longest(6))?, &self.latency(LATENCY_BUCKETS, longest(7))?),
        })
    }

    /// The histogram whose buckets begin at `first`.
    fn latency(&self, first: u32, longest: u64) -> Result<Histogram<u64>> {
        let buckets: PerCpuArray<_, u64> = self.ebpf.map("latency").context("sink.bpf.o has no map")?.try_into()?;
        let mut histogram = latencies();
        for bucket in 0..LATENCY_BUCKETS {
            let count: u64 = buckets.get(&(first + bucket), 0)?.iter().sum();
            if count > 0 {
                histogram.saturating_record_n(middle_of(bucket).min(longest.max(1)), count);
            }
        }
        Ok(histogram)
    }
}

/// The value in the middle of a bucket.
fn middle_of(bucket: u32) -> u64 {
    let (power, within) = (bucket >> LATENCY_BITS, u64::from(bucket & ((1 << LATENCY_BITS) - 1)));
    if power == 0 {
        return within.max(1);
    }
    let shift = power - 1;
    let from = ((1 << LATENCY_BITS) + within) << shift;
    from + (1_u64 << shift) / 2
}
