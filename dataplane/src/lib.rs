//! A packet's journey, module by module in the order it meets them.

pub mod io;
pub mod neighbor;
pub mod verdict;
