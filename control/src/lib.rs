//! Penstock's control process: what decides *what* the box serves; and the operator's CLI ([`cli`], over [`client`]).
//!
//! The journey of a Kubernetes Service, in the order of the modules:
//!
//! 1. [`sync`] watches the API server and turns each object into a small struct ([`index::extract`]).
//! 2. [`index::Index`] keeps these, and says whether anything that matters changed.
//! 3. [`pool::Allocator`] chooses an address; the choice is recorded in a `VipAllocation` ([`crd`]) before it is used.
//! 4. [`index::translate`] makes one whole snapshot of it all, and of each Service what should be said about it.
//! 5. [`sync`] sends the snapshot to the [`dataplane`], waits for the acknowledgement, and only then writes
//!    finalizers, status, conditions and Events.
//!
//! [`leader`] says which box allocates and writes; [`probe`] is the seam to the health checks, [`overlay`] brings their
//! verdict to the dataplane; [`serve`] answers `penstock why` and Prometheus.

pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod crd;
pub mod dataplane;
pub mod file_services;
pub mod health;
pub mod index;
pub mod leader;
pub mod metrics;
pub mod overlay;
pub mod pool;
pub mod probe;
pub mod serve;
pub mod sync;
pub mod unix_http;
pub mod why;
