//! Load: packets through the box at a rate, and what became of each of them.
//!
//! | module | what |
//! | --- | --- |
//! | [`mix`] | how large packets are |
//! | [`popularity`] | which flow the next one belongs to |
//! | [`packet`] | a flow's packet: headers from a template, a stamp (sequence, flow, intended time) in the payload |
//! | [`pace`] | when the next one is due |
//! | [`track`] | loss, duplicates, reordering and latency from the stamps that arrive |
//! | [`search`] | the highest rate with no loss, and with hardly any (RFC 2544 section 26.1) |
//! | [`endpoint`] | AF_XDP sockets of a host in the lab |
//! | [`load`] | the sender, and the nodes' side |
//! | [`flood`] | SYNs and datagrams from sources made up |
//! | [`mod@bench`] | the lab around them, with a dataplane |
//! | [`charts`] | pictures of what was measured |
//! | [`command`] | `penstock-perf load` |

pub mod bench;
pub mod charts;
pub mod command;
pub mod endpoint;
pub mod flood;
pub mod load;
pub mod mix;
pub mod pace;
pub mod packet;
pub mod popularity;
pub mod search;
pub mod track;
