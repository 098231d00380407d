//! A packet's journey, module by module in the order it meets them.

pub mod hash;
pub mod io;
pub mod maglev;
pub mod verdict;
