//! The schema both Penstock processes share.
//!
//! One document describes what the box should do, whether it comes from a TOML file
//! ([`file`]) or over the wire as an owner's JSON snapshot ([`desired`]). [`validate`] names
//! every fault by its path and says how to mend it; [`source`] turns a path into a line of the file.

pub mod api;
pub mod desired;
pub mod fault;
pub mod file;
pub mod status;

pub use fault::{Fault, Faults};
