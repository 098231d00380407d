//! The lab: networks of namespaces with clients, the box and nodes; traffic through them; what `make
//! demo` shows; and the same pipeline over memory ports where none of that is to be had.

pub mod apiserver;
pub mod churn;
pub mod cli;
pub mod clients;
pub mod compare;
pub mod config;
mod counters;
pub mod dataplane;
pub mod demo;
mod figures;
pub mod kube_scale;
pub mod kubelab;
pub mod lab;
pub mod memlab;
pub mod pipeline_bench;
pub mod plot;
pub mod privilege;
pub mod rig;
pub mod scale;
pub mod servers;
pub mod traffic;
