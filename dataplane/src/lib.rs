//! The packet path of Penstock.
//!
//! A packet's journey, and so the order of these modules: the XDP program (`steer`) lets in what is
//! for an address of ours; a port (`io`) receives it into a frame; the pinned loop (`worker`) hands
//! a burst of frames to the `pipeline`, which reads headers (`wire`), finds the packet's flow
//! (`flow`) or opens one: service (`tables`), backend (`maglev`, `schedule`, `affinity`) within its `limits`, SNAT tuple (`nat`). The packet
//! leaves rewritten towards a next hop (`neighbor`), goes to the worker that owns its flow
//! (`handoff`), back to the kernel, or ends in a named drop (`verdict`). Around it: snapshots come by
//! `publish`, counters are in `stats`, flows outlive the process by `persist`.

pub mod steer;

pub mod io;

pub mod worker;

pub mod pipeline;

pub mod wire;

pub mod tables;

pub mod flow;

pub mod maglev;

pub mod schedule;

pub mod affinity;

pub mod limits;

pub mod nat;

pub mod icmp;

pub mod fragment;

pub mod neighbor;

pub mod handoff;

pub mod publish;

pub mod verdict;

pub mod stats;

pub mod persist;

pub mod engine;

pub mod admin;

// What several of them use.
pub mod clock;
pub mod hash;
pub mod lpm;
pub mod rss;
pub mod sys;

#[cfg(test)]
mod stopwatch;
