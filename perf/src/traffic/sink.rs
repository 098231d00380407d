//! A load's other end in the kernel (`bpf/sink.bpf.c`): counts, and drops or answers, where a packet arrives. It
//! keeps up with the generator in the kernel, takes no core of its own, and looks closely at a sample of the packets.

use anyhow::{Context, Result, ensure};
use aya::maps::{PerCpuArray, PerCpuValues};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use hdrhistogram::Histogram;

use super::load::{NUMBERS, NodeSide};
use super::track::{Outcome, latencies};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sink.bpf.o"));

/// As in `sink.bpf.c`: 32 buckets per power of two.
const LATENCY_BITS: u32 = 5;
const LATENCY_BUCKETS: u32 = 64 << LATENCY_BITS;
/// Words of the program's `struct books`.
const BOOKS: usize = 9;
/// Numbers that have a bit each, at most: 32 MiB of them. Of [`NUMBERS`], one in sixteen.
const SAMPLE: u64 = NUMBERS >> FAST_SHIFT;
/// Words of 64 of them, at least: 8 MiB.
const LEAST_WORDS: u64 = 1 << 20;
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
    /// Of the packets of one flow in so many, and how many those were.
    pub reordered: u64,
    pub followed: u64,
    /// Of the sample: latencies, and the share that a pause of the sender's touched. (The sink itself does not pause: it
    /// is run by what brings the packet.)
    times: Outcome,
}

impl Arrived {
    /// The books, closed: of `sent` packets, what did not arrive is lost. Duplicates and reordered packets are those
    /// of the samples, times their share.
    #[must_use]
    pub fn close(&self, sent: u64) -> Outcome {
        let duplicates = self.duplicates * self.one_in;
        let received = self.packets.saturating_sub(duplicates);
        Outcome {
            sent,
            received,
            lost: sent.saturating_sub(received),
            duplicates,
            reordered: (self.reordered as f64 * self.packets as f64 / (self.followed as f64).max(1.0)).round() as u64,
            one_in: self.one_in,
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
        let mut sink = Self::load(port, side, flows, packets)?;
        let program: &mut Xdp = sink.ebpf.program_mut("sink").context("sink.bpf.o has no program")?.try_into()?;
        program.attach(interface, XdpMode::Driver).with_context(|| format!("an XDP program on {interface}"))?;
        Ok(sink)
    }

    fn load(port: u16, side: NodeSide, flows: u32, packets: Option<u64>) -> Result<Self> {
        let sample_shift = packets.map_or(FAST_SHIFT, |packets| packets.div_ceil(SAMPLE).next_power_of_two().ilog2());
        // Several generators' numbers end a few beyond what their rate makes, and a straggler of a run before may come.
        let words = ((packets.unwrap_or(NUMBERS) >> sample_shift) / 64 + 2).max(LEAST_WORDS);
        let (port, answers) = (u32::from(port), u32::from(side == NodeSide::Answer));
        let mut loader = EbpfLoader::new();
        loader
            .override_global("port", &port, true)
            .override_global("answers", &answers, true)
            .override_global("sample_shift", &sample_shift, true)
            .map_max_entries("seen", words as u32)
            .map_max_entries("newest", flows.max(1));
        let mut ebpf = loader.load(OBJECT).context("the sink's program")?;
        let program: &mut Xdp = ebpf.program_mut("sink").context("sink.bpf.o has no program")?.try_into()?;
        program.load().context("the sink's program")?;
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
        let total = |word: usize| cores.iter().map(|books| books[word]).sum::<u64>();
        let longest = |word: usize| cores.iter().map(|books| books[word]).max().unwrap_or(0);
        let beyond = total(5);
        ensure!(beyond == 0, "{beyond} packets had numbers that were not sent, or more were sent than was said");
        Ok(Arrived {
            packets: total(0),
            bytes: total(1),
            one_in: 1 << self.sample_shift,
            sampled: total(2),
            duplicates: total(3),
            reordered: total(4),
            followed: total(8),
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

#[cfg(test)]
mod tests {
    use aya::programs::{TestRun, TestRunOptions};
    use penstock_dataplane::clock::Now;

    use super::super::mix::Mix;
    use super::super::packet::tests::route;
    use super::super::packet::{Maker, Stamp};
    use super::*;
    use crate::privilege;

    /// Nothing in common with sixteen: of no flow are two neighbours among the numbers looked at.
    const FLOWS: u32 = 61;

    fn books_of(packets: Option<u64>, arriving: impl Iterator<Item = (u32, u32)>) -> Result<Arrived> {
        let maker = Maker::new(route(false), Mix::fixed(64));
        let sink = Sink::load(maker.route().vip_port, NodeSide::Count, FLOWS, packets).expect("a sink");
        let program: &Xdp = sink.ebpf.program("sink").expect("a program").try_into().expect("XDP");
        for (number, flow) in arriving {
            let mut packet = vec![0; maker.frame_len(0)];
            maker.write(&mut packet, Stamp { number, flow, intended: Now::read(), touched: false });
            let mut out = vec![0; 2048];
            let options = TestRunOptions { data_in: Some(&packet), data_out: Some(&mut out), ..TestRunOptions::new() };
            program.test_run(options).expect("a test run");
        }
        sink.arrived()
    }

    /// Flat out, of one in sixteen: neighbours of a flow that overtake each other are never both among the numbers looked at.
    #[test]
    fn privileged_order_is_seen_in_a_sample() {
        if !privilege::require("privileged_order_is_seen_in_a_sample") {
            return;
        }
        // Every flow's packets come in pairs, the later first.
        let pairs =
            || (0..8).flat_map(|turn| (0..FLOWS).flat_map(move |flow| [(2 * turn + 1, flow), (2 * turn, flow)]));
        let numbered = pairs().map(|(turn, flow)| (turn * FLOWS + flow, flow));
        let sent = u64::from(16 * FLOWS);
        let books = books_of(None, numbered).expect("books");
        let outcome = books.close(sent);
        assert_eq!((outcome.one_in, outcome.received, outcome.lost, outcome.duplicates), (16, sent, 0, 0), "{books:?}");
        assert_eq!(outcome.reordered, sent / 2, "{books:?}");
        let in_order = books_of(None, (0..16 * FLOWS).map(|number| (number, number % FLOWS))).expect("books");
        assert_eq!((in_order.close(sent).reordered, in_order.followed), (0, 64), "{in_order:?}");
    }

    #[test]
    fn privileged_no_number_is_left_out_in_silence() {
        if !privilege::require("privileged_no_number_is_left_out_in_silence") {
            return;
        }
        // The last numbers there are, of which one in sixteen is looked at; and one of these twice.
        let last = u32::MAX - 31;
        let books = books_of(None, (last..=u32::MAX).map(|number| (number, 0)).chain([(last + 16, 0)])).expect("books");
        assert_eq!((books.sampled, books.duplicates), (3, 1), "{books:?}");
        // Where few are to come, all are looked at.
        let books = books_of(Some(100), [(1, 0), (100, 1), (100, 1)].into_iter()).expect("books");
        assert_eq!((books.one_in, books.close(2).duplicates, books.close(2).lost), (1, 1, 0), "{books:?}");
        let error = books_of(Some(100), [(1, 0), (1 << 28, 0)].into_iter()).expect_err("nobody sent that");
        assert!(error.to_string().starts_with("1 packets had numbers"), "{error}");
    }
}
