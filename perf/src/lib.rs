//! The lab.

pub mod pipeline_bench;
