//! Which backend a new flow goes to.

use penstock_configs::desired::Scheduler;

use super::side::Side;
use super::stick;
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
    if let Some(affinity) = &service.affinity {
        return stick::pick(side, service, affinity, tuple, now);
    }
    in_place(service, by_scheduler(side, service, tuple, now)?)
}

/// The backend in a place of the service's set, and where its flows are counted.
#[inline]
pub(super) fn in_place(service: &Service, place: u16) -> Option<(&Backend, u32)> {
    Some((service.set.backends.get(usize::from(place))?, service.load_of(place)))
}

/// The place in its set of the backend that the service's scheduler chooses.
#[inline]
pub(super) fn by_scheduler<F: Tabled>(
    side: &mut Side<F>,
    service: &Service,
    tuple: &Tuple<F::Addr>,
    now: Now,
) -> Option<u16> {
    if service.scheduler == Scheduler::Maglev {
        return Some(service.set.maglev.lookup(F::pick_hash(tuple)));
    }
    let asked = Asked { client: F::to_ip(tuple.src), vip: F::to_ip(tuple.dst), now };
    let Side { scheduling, flows, .. } = side;
    scheduling.pick(service, flows.share(), &asked)
}
