//! A packet's journey, module by module in the order it meets them.

pub mod clock;
pub mod flow;
pub mod handoff;
pub mod publish;
pub mod hash;
pub mod io;
pub mod lpm;
pub mod maglev;
pub mod nat;
pub mod neighbor;
pub mod persist;
pub mod worker;
pub mod pipeline;
pub mod rss;
pub mod stats;
pub mod sys;
pub mod tables;
pub mod verdict;
pub mod wire;
