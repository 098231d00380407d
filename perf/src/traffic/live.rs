//! The generator in the kernel: BPF_PROG_TEST_RUN with live frames (`bpf/generate.bpf.c`). A core that does nothing
//! else makes 60-byte packets several times as fast as AF_XDP sends them in copy mode, and puts them straight into
//! the receive path of the veth's other end, with no socket buffer.
//!
//! One call makes all packets of a run, flat out after a short one that says how many turns that takes: making and giving back
//! a call's pages takes some 22 ms, in which a box has nothing to do. At a rate, a turn whose packet is not due yet drops an
//! empty page: that is the waiting, and packets leave in batches of at most [`BATCH`] turns, a few microseconds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::Array;
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use penstock_dataplane::clock::Now;

use super::load::Sent;
use super::pace::BEHIND_NS;
use super::packet::{FIRST_PORT, Maker, Transport, fold, sum};
use super::popularity::{Draw, Popularity};
use super::precedence::insist;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generate.bpf.o"));

/// Packets the kernel makes before it passes them on.
const BATCH: u32 = 64;
/// Sizes that may take turns, and flows of one chunk of the table of draws, as in `generate.bpf.c`.
const SIZES: usize = 16;
const CHUNK: usize = 1024;
/// Draws of an uneven popularity, which then come round.
const DRAWS: u32 = 1 << 20;
/// Turns and packets that say how long one takes.
const PROBE: u32 = 1 << 16;
/// How long after its end a run at a rate may still send what was due before it, as in `generate.bpf.c`.
const GRACE_NS: u64 = 50_000_000;
/// Turns of a call flat out, by those the run takes at the pace of the one before: what is too many costs little, what is missing
/// another call.
const SPARE: f64 = 1.25;

/// One generator: a program with its load built in. Several, each on a core of its own, share the flows.
pub struct Live {
    ebpf: Ebpf,
    first_frame: Vec<u8>,
    /// Of one turn without a packet.
    idle_ns: f64,
}

/// Which generator of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub index: u32,
    pub of: u32,
}

impl Share {
    pub const WHOLE: Self = Self { index: 0, of: 1 };
}

/// Words of the program's `struct run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum Word {
    Start,
    Length,
    Each,
    Most,
    Packets,
    #[cfg_attr(not(test), expect(dead_code, reason = "a place in the program's struct"))]
    Bytes,
    Latest,
    First,
    Last,
    Refused,
    #[cfg_attr(not(test), expect(dead_code, reason = "a place in the program's struct"))]
    LateSince,
    #[cfg_attr(not(test), expect(dead_code, reason = "a place in the program's struct"))]
    CalmSince,
    Pauses,
    Paused,
    /// Two 32-bit ones: flow and turn.
    Place,
}
const WORDS: usize = Word::Place as usize + 1;
type Run = [u64; WORDS];

impl Live {
    /// Loads a generator that sends out of an interface of the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel refuses the program or the test run.
    pub fn open(
        interface: &str,
        maker: &Maker,
        flows: u32,
        popularity: Popularity,
        share: Share,
        seed: u64,
    ) -> Result<Self> {
        ensure!(flows >= share.of && share.index < share.of, "each of {} generators needs a flow of its own", share.of);
        let ifindex = index_of(interface)?;
        let mut ebpf = load(maker, flows, popularity, share, ifindex)?;
        if let Some(draws) = draws(popularity, flows, share, seed) {
            let mut table: Array<_, [u32; CHUNK]> =
                ebpf.map_mut("drawn").context("generate.bpf.o has no map")?.try_into()?;
            for (index, chunk) in (0..).zip(draws.chunks_exact(CHUNK)) {
                let chunk: [u32; CHUNK] = chunk.try_into().context("a chunk")?;
                table.set(index, chunk, 0)?;
            }
        }
        let program: &mut Xdp = ebpf.program_mut("generate").context("generate.bpf.o has no program")?.try_into()?;
        program.load().context("the generator's program")?;
        let longest = (0..SIZES as u64).map(|number| maker.frame_len(number)).max().unwrap_or(0);
        let mut live = Self { ebpf, first_frame: vec![0; longest], idle_ns: 0.0 };
        // The run they are of has no length: these turns only wait.
        let short = live.call(PROBE)?;
        let long = live.call(PROBE * 8)?;
        live.idle_ns = (long.saturating_sub(short) as f64 / f64::from(PROBE * 7)).clamp(5.0, 1000.0);
        Ok(live)
    }

    /// Sends at a rate, or flat out, for a while and at most so many packets. Blocks the calling thread, which
    /// should be on a core of its own.
    ///
    /// # Errors
    /// The kernel refuses the test run, or packets of this size.
    pub fn run(&mut self, rate: Option<f64>, duration: Duration, most: Option<u64>) -> Result<Sent> {
        insist();
        let length = duration.as_nanos() as u64;
        let each = rate.map_or(0, |rate| (1024e9 / rate) as u64);
        let mut run: Run = [0; WORDS];
        run[Word::Length as usize] = length;
        run[Word::Each as usize] = each;
        // At a rate no more than the grid has places for.
        run[Word::Most as usize] = most.unwrap_or(u64::MAX).min(due(&run));
        self.set(run)?;
        let (mut sending_ns, mut sent_by, mut per_packet) = (0, 0, None::<f64>);
        loop {
            let left = match run[Word::Start as usize] {
                0 => length,
                start => (start + length + if each > 0 { GRACE_NS } else { 0 }).saturating_sub(Now::read().ns),
            };
            if left == 0 || run[Word::Packets as usize] >= run[Word::Most as usize] {
                break;
            }
            let turns = match (rate, per_packet) {
                // All of it in one call: the pause between two would make packets late.
                (Some(_), _) => left as f64 / self.idle_ns,
                (None, Some(nanos)) => {
                    let most = run[Word::Most as usize] - run[Word::Packets as usize];
                    (left as f64 * SPARE / nanos).min(most as f64)
                }
                (None, None) => f64::from(PROBE),
            };
            self.call((turns as u32).max(BATCH))?;
            run = self.get()?;
            let packets = run[Word::Packets as usize] - sent_by;
            // A call that came too late for its run made none, and has no first one.
            let call_ns = match run[Word::First as usize] {
                0 => 0,
                first => run[Word::Last as usize].saturating_sub(first),
            };
            sent_by += packets;
            sending_ns += call_ns;
            per_packet = (packets > 1).then(|| call_ns as f64 / packets as f64);
            run[Word::First as usize] = 0;
            self.set(run)?;
        }
        let refused = run[Word::Refused as usize];
        ensure!(refused == 0, "the kernel could not make {refused} packets of their size");
        Ok(sent(&run, sending_ns, rate))
    }

    /// Runs the program so many turns; returns the nanoseconds they took set-up and tear-down included.
    fn call(&mut self, turns: u32) -> Result<u64> {
        let program: &Xdp = self.ebpf.program("generate").context("generate.bpf.o has no program")?.try_into()?;
        let options = TestRunOptions {
            data_in: Some(&self.first_frame),
            repeat: turns,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        };
        let before = Now::read().ns;
        program
            .test_run(options)
            .context("BPF_PROG_TEST_RUN with live frames (Linux 5.18 or newer); --generator af-xdp does without")?;
        Ok(Now::read().ns - before)
    }

    fn runs(&mut self) -> Result<Array<&mut aya::maps::MapData, Run>> {
        Ok(self.ebpf.map_mut("runs").context("generate.bpf.o has no map")?.try_into()?)
    }

    fn get(&mut self) -> Result<Run> {
        Ok(self.runs()?.get(&0, 0)?)
    }

    fn set(&mut self, run: Run) -> Result<()> {
        Ok(self.runs()?.set(0, run, 0)?)
    }
}

/// Packets of the grid of a run at a rate; flat out there is none.
fn due(run: &Run) -> u64 {
    match run[Word::Each as usize] {
        0 => u64::MAX,
        each => (u128::from(run[Word::Length as usize]) * 1024).div_ceil(u128::from(each)) as u64,
    }
}

/// What a run did.
fn sent(run: &Run, sending_ns: u64, rate: Option<f64>) -> Sent {
    let packets = run[Word::Packets as usize];
    // At a rate the time is that of the grid; flat out, the pauses between calls are none of the rate's.
    let (seconds, short_ns) = match rate {
        None => (sending_ns as f64 / 1e9, 0.0),
        Some(rate) => {
            let missing = run[Word::Most as usize].saturating_sub(packets);
            (run[Word::Length as usize] as f64 / 1e9, missing as f64 * 1e9 / rate)
        }
    };
    let latest_us = run[Word::Latest as usize] as f64 / 1e3;
    let (pauses, paused_us) = (run[Word::Pauses as usize], run[Word::Paused as usize] as f64 / 1e3);
    Sent { packets, seconds, behind: short_ns > BEHIND_NS as f64, latest_us, pauses, paused_us, missed: 0 }
}

/// The program with a load built in.
fn load(maker: &Maker, flows: u32, popularity: Popularity, share: Share, ifindex: u32) -> Result<Ebpf> {
    let mut headers = [0_u8; 80];
    headers[..maker.headers().len()].copy_from_slice(maker.headers());
    let v6 = maker.route().vip.is_ipv6();
    let (first_client, rest) = match maker.route().first_client {
        std::net::IpAddr::V4(client) => (u32::from(client), 0),
        std::net::IpAddr::V6(client) => {
            let bytes = client.octets();
            (u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]), sum(&bytes[..12]))
        }
    };
    ensure!(first_client.checked_add(flows / 1000).is_some(), "the clients' addresses do not end before the next /96");
    // What the template has in the client's place is not in the sum: the program adds the client's words.
    let ip_sum = if v6 { 0 } else { sum(&maker.headers()[14..26]) + sum(&maker.headers()[30..34]) };
    let l4_sum = u64::from(fold(maker.fixed_sum() + rest));
    let (sizes, turns) = sizes(maker);
    let uniform = popularity == Popularity::Uniform;
    let draws = if uniform { 0 } else { DRAWS };
    let words = |bytes: &[u8; 80]| -> [u64; 10] {
        std::array::from_fn(|at| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at * 8 + byte])))
    };
    let numbers: [(&str, u32); 12] = [
        ("first_client", first_client),
        ("first_port", u32::from(FIRST_PORT)),
        ("is_v6", u32::from(v6)),
        ("is_tcp", u32::from(maker.transport() != Transport::Udp)),
        ("ifindex", ifindex),
        ("turns", turns),
        ("flows", flows),
        ("flow_first", share.index),
        ("flow_step", share.of),
        ("draws", draws),
        ("number_first", share.index),
        ("number_step", share.of),
    ];
    let headers = words(&headers);
    let mut loader = EbpfLoader::new();
    loader
        .override_global("headers", &headers[..], true)
        .override_global("sizes", &sizes[..], true)
        .override_global("ip_sum", &ip_sum, true)
        .override_global("l4_sum", &l4_sum, true)
        .map_max_entries("drawn", (draws / CHUNK as u32).max(1));
    for (name, value) in &numbers {
        loader.override_global(name, value, true);
    }
    loader.load(OBJECT).context("the generator's program")
}

/// Frame lengths in turn.
fn sizes(maker: &Maker) -> ([u32; SIZES], u32) {
    let turns = maker.mix().turns().min(SIZES);
    let lens = std::array::from_fn(|turn| maker.frame_len(turn as u64 % turns as u64) as u32);
    // One size needs no changing of a page's length.
    let all_alike = lens.iter().all(|len| *len == lens[0]);
    (lens, if all_alike { 1 } else { turns as u32 })
}

/// Flows drawn beforehand, those of this generator's share only: `None`: one after the other.
fn draws(popularity: Popularity, flows: u32, share: Share, seed: u64) -> Option<Vec<u32>> {
    (popularity != Popularity::Uniform).then(|| {
        let mut draw = Draw::new(popularity, flows, seed);
        let mine = std::iter::repeat_with(|| draw.flow()).filter(|flow| flow % share.of == share.index);
        mine.take(DRAWS as usize).collect()
    })
}

fn index_of(interface: &str) -> Result<u32> {
    use rustix::net::{AddressFamily, SocketType, socket};
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    rustix::net::netdevice::name_to_index(&any, interface).with_context(|| format!("no interface {interface}"))
}

#[cfg(test)]
mod tests {
    use super::super::mix::Mix;
    use super::super::packet::tests::{TRANSPORTS, check, route};
    use super::super::packet::{Stamp, stamp_of};
    use super::*;
    use crate::privilege;

    /// XDP_REDIRECT and XDP_DROP.
    const SENT: u32 = 4;
    const NOT_DUE: u32 = 1;

    /// One packet of the program, by an ordinary test run on a page that somebody left dirty.
    fn one(live: &mut Live) -> (u32, Vec<u8>) {
        let program: &Xdp = live.ebpf.program("generate").expect("a program").try_into().expect("XDP");
        let dirty = vec![0xa5; live.first_frame.len()];
        let mut out = vec![0; 2048];
        let options = TestRunOptions { data_in: Some(&dirty), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = program.test_run(options).expect("a test run");
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    fn ready(each: u64) -> Run {
        let mut run = [0; WORDS];
        run[Word::Length as usize] = 1 << 62;
        run[Word::Most as usize] = u64::MAX;
        run[Word::Each as usize] = each;
        run
    }

    /// Every byte but the payload behind the stamp, which nothing in a load's way writes to.
    #[test]
    fn privileged_the_kernel_writes_what_the_maker_writes() {
        if !privilege::require("privileged_the_kernel_writes_what_the_maker_writes") {
            return;
        }
        for (v6, transport) in [false, true].into_iter().flat_map(|v6| TRANSPORTS.map(|t| (v6, t))) {
            for mix in [Mix::fixed(64), Mix::fixed(1518), Mix::imix()] {
                let maker = Maker::of(transport, route(v6), mix);
                let mut live =
                    Live::open("lo", &maker, 2500, Popularity::Uniform, Share::WHOLE, 1).expect("a generator");
                live.set(ready(0)).expect("a map");
                for number in 0..2600_u32 {
                    let (verdict, mut packet) = one(&mut live);
                    assert_eq!(verdict, SENT);
                    let stamp = stamp_of(&packet, 80).expect("a stamp");
                    assert_eq!((stamp.number, stamp.flow), (number, number % 2500));
                    assert!(stamp.intended <= Now::read() && stamp.intended.ns > 0);
                    let mut wanted = vec![0; maker.frame_len(number.into())];
                    maker.write(&mut wanted, Stamp { ..stamp });
                    let payload = maker.headers().len() + Stamp::LEN;
                    assert!(packet[payload..].iter().all(|byte| *byte == 0xa5), "not written to");
                    packet[payload..].fill(0);
                    assert_eq!(packet, wanted, "{transport} {v6} {number}");
                    assert_eq!(check(&packet), maker.client(stamp.flow));
                }
            }
        }
    }

    #[test]
    fn privileged_a_packet_waits_until_it_is_due() {
        if !privilege::require("privileged_a_packet_waits_until_it_is_due") {
            return;
        }
        let maker = Maker::new(route(false), Mix::fixed(64));
        let mut live = Live::open("lo", &maker, 10, Popularity::Zipf(1.0), Share::WHOLE, 1).expect("a generator");
        // The next but one is due in an hour.
        live.set(ready(3600 * 1_000_000_000 * 1024)).expect("a map");
        assert_eq!(one(&mut live).0, SENT);
        assert_eq!(one(&mut live).0, NOT_DUE);
        let run = live.get().expect("a map");
        assert_eq!((run[Word::Packets as usize], run[Word::Bytes as usize]), (1, 60));
    }

    /// Packets more than a moment late say so, and so do those due as long again after they have been made up for.
    #[test]
    fn privileged_a_late_packet_says_so() {
        if !privilege::require("privileged_a_late_packet_says_so") {
            return;
        }
        let maker = Maker::new(route(false), Mix::fixed(64));
        let mut live = Live::open("lo", &maker, 10, Popularity::Uniform, Share::WHOLE, 1).expect("a generator");
        // Long for a pause of this thread, short for a machine just started: the clock counts from there.
        const STEP: u64 = 10 * 1_000_000_000;
        let mut run = ready(STEP * 1024);
        // Its first packet was due a step ago, the second is due now.
        run[Word::Start as usize] = Now::read().ns - STEP;
        live.set(run).expect("a map");
        let stamp = |live: &mut Live| stamp_of(&one(live).1, 80).expect("a stamp");
        let first = stamp(&mut live);
        assert_eq!((first.touched, first.intended.ns), (true, run[Word::Start as usize]));
        assert!(stamp(&mut live).touched, "not late itself, but the generator is not on time yet");
        assert_eq!(one(&mut live).0, NOT_DUE);
        let calm = live.get().expect("a map");
        assert_eq!((calm[Word::Pauses as usize], calm[Word::LateSince as usize]), (1, 0));
        assert!(calm[Word::CalmSince as usize] >= calm[Word::Start as usize] + 2 * STEP);
        // The next ones, each a step later and in time; the box needs until shortly after the third.
        let mut touched = |number: u64| {
            let mut run = calm;
            run[Word::Start as usize] = Now::read().ns - number * STEP;
            run[Word::CalmSince as usize] = run[Word::Start as usize] + 2 * STEP + 1;
            run[Word::Packets as usize] = number;
            live.set(run).expect("a map");
            stamp(&mut live).touched
        };
        assert!(touched(2));
        // Should this thread lose its core just now, it is late anew.
        assert!((0..100).any(|_| !touched(3)));
    }

    /// What the grid has places for, no more, at the rate asked for.
    #[test]
    fn privileged_a_rate_is_kept() {
        if !privilege::require("privileged_a_rate_is_kept") {
            return;
        }
        let maker = Maker::new(route(false), Mix::fixed(64));
        let mut live = Live::open("lo", &maker, 10, Popularity::Uniform, Share::WHOLE, 1).expect("a generator");
        let mut paced = || live.run(Some(3_000.0), Duration::from_millis(100), None).expect("a run");
        // One that had no core when packets were due says so.
        let sent = (0..20).map(|_| paced()).find(|sent| !sent.behind).expect("one of twenty kept up");
        assert!((290..=301).contains(&sent.packets) && sent.seconds == 0.1, "{sent:?}");
        let sent = live.run(None, Duration::from_secs(10), Some(5_000)).expect("a run");
        assert_eq!(sent.packets, 5_000);
        // Flat out the time is that in which packets were made.
        for millis in [1, 5, 40] {
            let sent = live.run(None, Duration::from_millis(millis), None).expect("a run");
            assert!(sent.packets > 0 && sent.seconds <= millis as f64 / 1e3, "{sent:?}");
        }
    }

    /// What a packet costs, without the pages and the sending: a generator that is slower than the box shows nothing.
    #[test]
    fn privileged_a_packet_is_made_within_microseconds() {
        if !privilege::require("privileged_a_packet_is_made_within_microseconds") {
            return;
        }
        for (v6, transport, mix) in [
            (false, Transport::Udp, Mix::fixed(64)),
            (true, Transport::Tcp, Mix::fixed(64)),
            (false, Transport::Udp, Mix::fixed(1518)),
        ] {
            let maker = Maker::of(transport, route(v6), mix);
            let mut live = Live::open("lo", &maker, 1000, Popularity::Uniform, Share::WHOLE, 1).expect("a generator");
            live.set(ready(0)).expect("a map");
            let program: &Xdp = live.ebpf.program("generate").expect("a program").try_into().expect("XDP");
            let cost = || {
                let options =
                    TestRunOptions { data_in: Some(&live.first_frame), repeat: 10_000, ..TestRunOptions::new() };
                program.test_run(options).expect("a test run").duration
            };
            // The machine may be busy: the least of some. It may be old, or its kernel without a JIT compiler.
            let jit = std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").is_ok_and(|text| text.trim() != "0");
            let most = Duration::from_micros(if jit { 1 } else { 5 });
            let least = (0..20).map(|_| cost()).min().expect("some");
            println!("{transport}, IPv6 {v6}: {least:?} a packet");
            assert!(least < most, "{least:?}");
        }
    }

    #[test]
    fn privileged_generators_share_the_flows() {
        if !privilege::require("privileged_generators_share_the_flows") {
            return;
        }
        let maker = Maker::new(route(false), Mix::fixed(64));
        for popularity in [Popularity::Uniform, Popularity::Zipf(1.0)] {
            for index in [0, 1] {
                let share = Share { index, of: 2 };
                let mut live = Live::open("lo", &maker, 11, popularity, share, 7).expect("a generator");
                live.set(ready(0)).expect("a map");
                for turn in 0..30 {
                    let stamp = stamp_of(&one(&mut live).1, 80).expect("a stamp");
                    assert_eq!(stamp.number, turn * 2 + index);
                    assert!(stamp.flow % 2 == index && stamp.flow < 11, "{stamp:?}");
                }
            }
        }
    }
}
