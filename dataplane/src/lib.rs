//! A packet's journey, module by module in the order it meets them.

pub mod io;
pub mod pipeline;
pub mod wire;
pub mod tables;
pub mod flow;
pub mod maglev;
pub mod nat;
pub mod neighbor;
pub mod lpm;
pub mod rss;
pub mod hash;
pub mod verdict;
pub mod stats;
pub mod persist;
pub mod clock;
pub mod sys;
