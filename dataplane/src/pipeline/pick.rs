//! Which backend a new flow goes to.

use penstock_configs::desired::Scheduler;

use super::side::Side;
use crate::clock::Now;
use crate::schedule::Asked;
use crate::tables::{Backend, Service, Tabled};
use crate::wire::Tuple;

/// The backend, and where its flows are counted (0: nowhere).
#[inline]
pub(super) fn pick<'a, F: Tabled>(
    side: &mut Side<F>,
    service: &'a Service,
    tuple: &Tuple<F::Addr>,
    now: Now,
) -> Option<(&'a Backend, u32)> {
    if service.scheduler == Scheduler::Maglev {
        return service.set.pick(F::pick_hash(tuple)).map(|backend| (backend, 0));
    }
    let asked = Asked { client: F::to_ip(tuple.src), vip: F::to_ip(tuple.dst), now };
    let Side { scheduling, flows, .. } = side;
    let chosen = scheduling.pick(service, flows.share(), &asked)?;
    Some((service.set.backends.get(usize::from(chosen))?, service.load_of(chosen)))
}
