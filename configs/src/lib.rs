//! The schema both Penstock processes share.
//!
//! One document describes what the box should do, whether it comes from a TOML file
//! ([`mod@file`]) or over the wire as an owner's JSON snapshot ([`desired`]). [`source`] reads either
//! and turns a path into a line of the file; [`validate`] names every fault by its path and says
//! how to mend it; [`resolve`] says where a service's packets can go.

pub mod api;
pub mod desired;
pub mod fault;
pub mod file;
pub mod resolve;
pub mod source;
pub mod status;
pub mod validate;

mod nearest;
mod schema;

pub use fault::{Fault, Faults};
