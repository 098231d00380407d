//! Control end to end over HTTP on both sides: the test API server, and the dataplane's own API on its Unix socket. Each
//! test is a line of the contract (issue "Control: Kubernetes Services of type LoadBalancer"). Decisions by themselves
//! are tested in control; here it is the order of what is written where.

#[allow(dead_code, reason = "the API's own tests use the rest")]
#[path = "../../../dataplane/tests/support/api_server.rs"]
mod api_server;
mod failing;
mod fields;
mod life_cycle;
#[allow(dead_code, reason = "the API's own tests use the rest")]
#[path = "../../../dataplane/tests/support/memory_engine.rs"]
mod memory_engine;
mod nodes;
mod people;
mod probing;
mod rig;
mod sharing;
