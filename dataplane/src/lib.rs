//! A packet's journey, module by module in the order it meets them.

pub mod hash;
pub mod io;
pub mod lpm;
pub mod maglev;
pub mod rss;
#[cfg(test)]
mod stopwatch;
pub mod sys;
pub mod verdict;
