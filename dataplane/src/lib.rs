//! A packet's journey, module by module in the order it meets them.

pub mod steer;

pub mod io;
pub mod verdict;
