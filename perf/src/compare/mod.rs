//! `perf compare`: the same traffic through Penstock and what else could stand in its place.
//!
//! Method. Every measurement has a lab of its own, two-arm, with one client host: brought up, the peer set up in it, seen
//! to carry traffic of kernel stacks, measured, taken down. A round measures every peer once in every case, peer after
//! peer, so that what the machine does meanwhile hits all alike; figures are medians over rounds, with the lowest and
//! the highest, and ratios are medians of the rounds' own ratios.
//!
//! Cores. In packet cases the generator has core 0 and the box core 1; what a kernel does in its softirq on a
//! packet's way (a kernel peer's forwarding, an AF_XDP peer's copy into its socket) it does on the sender's core, as it
//! does for every veth. So kernel peers have one core, their sender's, where AF_XDP peers have it and the box's; their twins
//! with receive packet steering (`-rps`) have both, and targets are held against the better of the two. The box's pinned
//! threads and the generator go before all else on their cores: on real hardware they would have them for themselves. In
//! TCP cases nobody is pinned.
//! Processor time is the whole machine's, less that of the same traffic without a box ([`cpu`]).
//!
//! | module | what |
//! | --- | --- |
//! | [`peers`] | who is compared, and how each is set up |
//! | [`cases`] | what is measured |
//! | [`forwarder`] | the bare AF_XDP forwarder |
//! | [`generator`], [`sink`], [`servers`] | the ends of the traffic |
//! | [`cpu`], [`process`] | processor time; programs |
//! | [`report`], [`goals`], [`table`] | medians, ratios, targets; for people |
//! | [`charts`] | pictures |
//! | [`mod@command`] | the command line and the order of things |

pub mod cases;
pub mod charts;
pub mod command;
pub mod cpu;
pub mod forwarder;
pub mod generator;
pub mod goals;
pub mod peers;
pub mod process;
pub mod report;
pub mod servers;
pub mod sink;
pub mod table;
