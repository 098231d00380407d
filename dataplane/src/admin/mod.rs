//! What people and `penstock-control` ask of a running dataplane: the desired state by owner,
//! health, drains, status, counters, flows and metrics, over HTTP on a Unix socket.
//!
//! A snapshot's way in: [`server`] reads the document, [`handle`] judges it against the owner's
//! history ([`owners`]) and against everyone else's claims ([`faults`]), the [`engine`] compiles
//! and publishes the union, and only then the [`store`] keeps it for the next start.
//! Nothing here runs on a worker's core.

pub mod engine;
pub mod faults;
pub mod handle;
pub mod metrics;
pub mod overlay;
pub mod owners;
pub mod refusal;
pub mod server;
pub mod socket;
pub mod store;

pub use engine::Engine;
pub use handle::AdminHandle;
pub use refusal::Refusal;
pub use server::serve;
