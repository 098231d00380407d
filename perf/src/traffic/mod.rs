//! Load: packets through the box at a rate, and what became of each of them.
//!
//! | module | what |
//! | --- | --- |
//! | [`mix`] | how large packets are |
//! | [`popularity`] | which flow the next one belongs to |
//! | [`packet`] | a flow's packet: headers from a template, a stamp (sequence, flow, intended time) in the payload |
//! | [`pace`] | when the next one is due |
//! | [`pauses`] | the lab's own pauses, told from the box's |
//! | [`precedence`] | the generator before others on its core |
//! | [`track`] | loss, duplicates, reordering and latency from the stamps that arrive |
//! | [`search`] | the highest rate with no loss, and with hardly any (RFC 2544 section 26.1) |
//! | [`endpoint`] | AF_XDP sockets of a host in the lab |
//! | [`load`] | the sender, and the nodes' side |
//! | [`live`] | the generator in the kernel: test runs of an XDP program with live frames |
//! | [`sink`] | the other end in the kernel: counts and drops, or answers |
//! | [`ends`] | a generator and a sink, whatever is between them |
//! | [`flood`] | SYNs and datagrams from sources made up |
//! | [`books`] | where packets were lost, by name |
//! | [`testpmd`] | DPDK's testpmd at one end, at the other, or in the middle |
//! | [`mod@bench`] | the lab around them, with a dataplane |
//! | [`charts`] | pictures of what was measured |
//! | [`command`] | `penstock-perf load` |
//! | [`hardware_check`] | `penstock-perf hardware-check` |

pub mod bench;
pub mod books;
pub mod charts;
pub mod command;
pub mod endpoint;
pub mod ends;
pub mod flood;
pub mod hardware_check;
pub mod live;
pub mod load;
pub mod mix;
pub mod pace;
pub mod packet;
pub mod pauses;
pub mod popularity;
pub mod precedence;
pub mod search;
pub mod sink;
pub mod testpmd;
pub mod track;
