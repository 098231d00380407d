//! What a snapshot may need of what was made at the start: judged before anything is compiled, so that a refusal leaves
//! the compiler, and with it every number that tables and records have in common, as it was.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use penstock_configs::desired::{Desired, Mode, Service as WantedService};
use penstock_configs::resolve::Resolver;

use super::compile::{CompileError, Inputs, protocol_number};
use crate::steer::{MOST_ADDRESSES, MOST_BACKENDS};

pub(super) fn check(inputs: &Inputs<'_>) -> Result<(), CompileError> {
    let wanted = inputs.services().count();
    if wanted > inputs.max_services {
        return Err(CompileError::TooManyServices { wanted, limit: inputs.max_services });
    }
    let wanted = inputs.addresses().len();
    if wanted > inputs.max_nodes {
        return Err(CompileError::TooManyNodes { wanted, limit: inputs.max_nodes });
    }
    let wanted = [true, false].map(|v4| counted(inputs, v4)).into_iter().max().unwrap_or(0);
    if wanted > inputs.max_counted {
        return Err(CompileError::TooManyCounted { wanted, limit: inputs.max_counted });
    }
    for v4 in [true, false] {
        steered(inputs, v4)?;
    }
    Ok(())
}

/// How many backends of one family's services may have to be counted.
fn counted(inputs: &Inputs<'_>, v4: bool) -> usize {
    let of_owner = |desired: &Arc<Desired>| -> usize {
        let sizes: HashMap<&str, usize> =
            desired.sets.iter().map(|set| (set.name.as_str(), set.backends.len())).collect();
        let counting = |service: &&WantedService| service.scheduler.counts() && service.vip.is_ipv4() == v4;
        let size = |service: &WantedService| match &service.set {
            Some(name) => sizes.get(name.as_str()).copied().unwrap_or(0),
            None => service.backends.len(),
        };
        desired.services.iter().filter(counting).map(size).sum()
    };
    inputs.owners.values().map(of_owner).sum()
}

/// What the XDP program is to know of one family.
fn steered(inputs: &Inputs<'_>, v4: bool) -> Result<(), CompileError> {
    let vips = inputs.services().map(|(vip, ..)| vip);
    let addresses = vips.chain(inputs.snat.iter().map(|snat| snat.address));
    let wanted = addresses.filter(|address| address.is_ipv4() == v4).collect::<HashSet<IpAddr>>().len();
    if wanted > MOST_ADDRESSES {
        return Err(CompileError::TooManyAddresses { wanted, limit: MOST_ADDRESSES });
    }
    let mut backends: HashSet<(IpAddr, u16, u8)> = HashSet::new();
    for desired in inputs.owners.values() {
        let dnat = |service: &&WantedService| service.mode == Mode::Dnat && service.vip.is_ipv4() == v4;
        let mut services = desired.services.iter().filter(dnat).peekable();
        if services.peek().is_none() {
            continue;
        }
        let resolver = Resolver::new(desired);
        for service in services {
            for backend in resolver.backends_of(service) {
                backends.insert((backend.address, backend.port, protocol_number(service.protocol)));
                // The address alone stands for its fragments.
                backends.insert((backend.address, 0, 0));
            }
            // No sum: thousands of services over a large set would be counted to millions.
            if backends.len() > MOST_BACKENDS {
                return Err(CompileError::TooManySteered { limit: MOST_BACKENDS });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use penstock_configs::desired::{Announce, Backend, BackendSet, Health, Protocol};
    use penstock_configs::file::{SnatAddress, Timeouts};

    use super::*;
    use crate::clock::Now;
    use crate::tables::Ways;

    /// Services on as many VIPs, over a set of as many backends.
    fn owner(services: std::ops::Range<u32>, backends: u32, mode: Mode) -> Arc<Desired> {
        let address = |first: u32, n: u32| IpAddr::V4((first + n).into());
        let backend = |n| Backend { address: Some(address(0x0a00_0001, n)), weight: 1, ..Backend::default() };
        let service = |n| WantedService {
            mode,
            set: Some("all".into()),
            target_port: Some(1024 + (n % 60_000) as u16),
            ..WantedService::at(format!("s{n}"), address(0xcb00_0000, n), 80, Protocol::Tcp)
        };
        let sets = vec![BackendSet { name: "all".into(), backends: (0..backends).map(backend).collect() }];
        Arc::new(Desired { sets, services: services.map(service).collect(), ..Desired::default() })
    }

    fn check(owners: &[Arc<Desired>], snat: &[SnatAddress]) -> Result<(), CompileError> {
        let owners: BTreeMap<_, _> =
            owners.iter().enumerate().map(|(n, owner)| (n.to_string(), owner.clone())).collect();
        super::check(&Inputs {
            owners: &owners,
            health: &Health::default(),
            ways: &Ways::default(),
            snat,
            timeouts: &Timeouts::default(),
            announce: Announce::L2,
            maglev_max: 251,
            max_services: 1 << 20,
            max_nodes: 1 << 16,
            max_counted: 1 << 16,
            panic_threshold: 0,
            deny: &Arc::default(),
            now: Now::default(),
        })
    }

    #[test]
    fn backends_the_xdp_program_has_no_room_for_are_refused_over_all_owners() {
        // 128 × 512: each address once, and each of its ports.
        let (one, two) = (owner(0..100, 512, Mode::Dnat), owner(100..127, 512, Mode::Dnat));
        assert_eq!(check(&[one.clone(), two], &[]), Ok(()));
        let refused = check(&[one, owner(100..128, 512, Mode::Dnat)], &[]).unwrap_err();
        assert_eq!(refused, CompileError::TooManySteered { limit: 65_536 });
        assert!(refused.to_string().contains("mode `nat`"), "{refused}");
        assert_eq!(check(&[owner(0..128, 512, Mode::Nat)], &[]), Ok(()), "replies to a SNAT address need none");
    }

    #[test]
    fn addresses_the_xdp_program_has_no_room_for_are_refused_with_the_snat_addresses() {
        let most = owner(0..65_536, 1, Mode::Nat);
        assert_eq!(check(std::slice::from_ref(&most), &[]), Ok(()));
        let snat = SnatAddress { address: IpAddr::from([10, 9, 9, 9]), ports: [1024, 65_535], shared: false };
        let refused = check(&[most], &[snat]);
        assert_eq!(refused, Err(CompileError::TooManyAddresses { wanted: 65_537, limit: 65_536 }));
    }
}
