//! Who may have flows, and how many: the deny list and limits, asked of a flow that is to be opened, and of one that
//! is there when the tables change.
//!
//! | beyond | the client hears |
//! | --- | --- |
//! | the deny list | nothing |
//! | a limit of connections | what the service's `no_backend` says: a RST by default, so that it may try elsewhere |
//! | a limit of rates | nothing: its own retries spread over the seconds that follow, where a RST would have it ask again at once, and one a flood made it look like it asked for would go to somebody else |

use super::revalidate::Standing;
use super::side::Side;
use crate::clock::Now;
use crate::flow::{Record, Word};
use crate::stats::WorkerStats;
use crate::tables::View;
use crate::tables::{Service, Tabled, Tables};
use crate::verdict::DropReason;
use crate::wire::{Family, Tuple};

/// Whether a client may open one more flow of a service.
#[inline]
pub(super) fn within_limits<F: Tabled>(
    side: &mut Side<F>,
    service: &Service,
    stats: &WorkerStats,
    client: F::Addr,
    now: Now,
) -> Result<(), DropReason> {
    if service.limits.is_none() {
        return Ok(());
    }
    let admitted = side.flows.limits().admits(service, F::to_ip(client), now);
    if admitted.is_err()
        && let Some(counters) = stats.services.get(service.slot as usize)
    {
        counters.limited.add(1);
    }
    admitted
}

/// Counts a flow that stands under new tables, or that a SYN opens again at this time, if it may.
pub(super) fn check_again<F: Tabled>(
    side: &mut Side<F>,
    tables: &Tables,
    stats: &WorkerStats,
    at: u32,
    reopened: Option<Now>,
) -> Standing {
    let record = side.flows.record(at);
    let client = record.client;
    let Some(service) = tables.service(record.service) else { return Standing::Revoked };
    let Some(now) = reopened else {
        side.flows.limit(at, service);
        return Standing::Valid;
    };
    match within_limits::<F>(side, service, stats, client, now) {
        Ok(()) => {
            side.flows.limit_opened(at, service, now);
            Standing::Valid
        }
        Err(reason) => Standing::Refused(reason),
    }
}

/// A flow has come to another state: for the XDP program it is established, if it is, from the next packet on.
#[inline]
pub(super) fn mark<F: Family>(view: &View, side: &Side<F>, at: u32, word: Word) {
    if let Some(marks) = &view.marks
        && !word.state.is_embryonic()
    {
        marks.mark::<F>(&client_tuple(side.flows.record(at), word));
    }
}

/// The tuple of the client's packets.
pub(super) fn client_tuple<A: Copy>(record: &Record<A>, word: Word) -> Tuple<A> {
    Tuple {
        src: record.client,
        dst: record.vip,
        src_port: record.client_port,
        dst_port: record.vip_port,
        protocol: word.protocol,
    }
}
