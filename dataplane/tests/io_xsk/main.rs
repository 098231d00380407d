//! AF_XDP ports over real sockets on veths, between namespaces without names. Needs root; without it
//! each test prints why it was skipped.

#[path = "../io_lab/mod.rs"]
mod io_lab;
mod jumbo;
mod rig;
mod traffic;
mod trouble;
