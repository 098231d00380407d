//! Control.

pub mod cli;
pub mod client;
