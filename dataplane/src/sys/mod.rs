//! The small unsafe edge: system calls that no crate wraps.

pub mod ethtool;
