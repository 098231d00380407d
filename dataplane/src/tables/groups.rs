//! Which services share what they know of their clients.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::{Protocol, Service};

use crate::affinity::Affinity;
use crate::clock::ticks;

#[derive(Debug, PartialEq, Eq, Hash)]
enum Group {
    Named(Arc<str>, String),
    Alone(IpAddr, u16, Protocol),
}

/// Numbers of groups. One keeps its number while any of its services has affinity; no number is used
/// twice, so what was known of clients before an interruption is not believed after it.
#[derive(Debug, Default)]
pub(super) struct Groups {
    numbers: HashMap<Group, u32>,
    before: HashMap<Group, u32>,
    last: u32,
}

impl Groups {
    /// A snapshot begins: groups that are not asked for again are gone with the next.
    pub(super) fn begin(&mut self) {
        self.before = std::mem::take(&mut self.numbers);
    }

    /// A service's affinity, in the dataplane's terms.
    pub(super) fn affinity(&mut self, owner: &Arc<str>, wanted: &Service) -> Option<Affinity> {
        let affinity = wanted.affinity.as_ref()?;
        let group = match &affinity.group {
            Some(name) => Group::Named(Arc::clone(owner), name.clone()),
            None => Group::Alone(wanted.vip, wanted.port, wanted.protocol),
        };
        let Self { numbers, before, last } = self;
        let earlier = before.get(&group).copied();
        let group = *numbers.entry(group).or_insert_with(|| {
            earlier.unwrap_or_else(|| {
                *last += 1;
                *last
            })
        });
        let prefix = if wanted.vip.is_ipv4() { affinity.prefix_v4 } else { affinity.prefix_v6 };
        Some(Affinity { group, timeout: ticks(affinity.timeout), prefix })
    }
}
