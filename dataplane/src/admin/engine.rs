//! The seam between the API and the workers.

use std::collections::BTreeMap;
use std::sync::Arc;

use penstock_configs::desired::{Desired, Health};
use penstock_configs::fault::Fault;
use penstock_configs::file::ConfigFile;
use penstock_configs::status::{Counters, FlowQuery, FlowStatus, Status, StatusQuery};

/// Snapshots by owner: what is, or might be, served together.
pub type Snapshots = BTreeMap<String, Arc<Desired>>;

/// What the API needs of the packet path. Calls may come from any thread but the workers';
/// `apply` is never called twice at once.
pub trait Engine: Send + Sync + 'static {
    /// Validates what only a compiler of tables can, compiles and publishes the union of all
    /// owners' snapshots under `health`, on the box that `file` describes; without one, on the
    /// box as it is. All or nothing. Returns the publication's epoch, higher than any before.
    ///
    /// # Errors
    /// Every fault found, each by its path; nothing was published.
    fn apply(&self, file: Option<&ConfigFile>, owners: &Snapshots, health: &Health) -> Result<u64, Vec<Fault>>;

    /// Highest epoch every worker runs.
    fn acknowledged(&self) -> u64;

    /// Everything that is asked for but `owners`, which the API knows better.
    fn status(&self, query: &StatusQuery) -> Status;

    /// At most `limit` flows that match.
    fn flows(&self, query: &FlowQuery, limit: usize) -> Vec<FlowStatus>;

    fn counters(&self) -> Counters;
}
