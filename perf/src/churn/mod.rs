//! Connection churn: many small TCP conversations through a box, each opened, used once and closed in order, at a
//! rate or flat out, by AF_XDP ends that cost a fraction of what kernel stacks do.
//!
//! ```text
//!   client                          node
//!   SYN              ------------>
//!                    <------------  SYN-ACK       handshake: from when the SYN was due to here
//!   ACK, request     ------------>
//!                    <------------  answer        says which node, and whose request it was
//!   FIN              ------------>
//!                    <------------  FIN-ACK       whole: from when the SYN was due to here
//!   ACK              ------------>
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | [`segment`] | TCP segments read and written, with the timestamps every stack sends |
//! | [`client`] | the conversations: a compact state machine each, time-outs, what failed and where |
//! | [`responder`] | nodes without a memory of connections: their sequence numbers are cookies |
//! | [`tally`] | what became of the conversations |
//! | [`drive`] | both ends in one loop |
//! | [`mod@bench`] | the lab around them, with a dataplane |
//! | [`command`] | `penstock-perf churn` |

pub mod bench;
pub mod client;
pub mod command;
pub mod drive;
pub mod responder;
pub mod segment;
pub mod tally;
