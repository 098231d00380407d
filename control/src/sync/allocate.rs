//! The controller's part about addresses: recorded first, released last.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::controller::{Controller, Turn, Unwritten};
use super::events::Note;
use super::job::{Job, RecordJob, RecordWrite};
use crate::crd::{Claim, HeldFor, VipAllocationSpec, VipPoolStatus};
use crate::index::ServiceKey;
use crate::index::ask::{self, Ask};
use crate::index::kinds::{RecordInfo, ServiceInfo};
use crate::index::translate::Plan;
use crate::pool::{Allocator, Grant, Pool, Port, Request, Usage};

impl Controller {
    /// Asks the allocator for every Service that lacks an address, and orders the records.
    pub(super) fn allocate(&mut self, turn: &mut Turn, now: Instant) {
        // Once a turn, however many records came: in a first sync there are as many as Services.
        if std::mem::take(&mut self.capacity_news) {
            for key in &self.lacking {
                if let Some(work) = self.work.get_mut(key) {
                    work.allocate_after = None;
                }
            }
        }
        let mut waiting = self.waiting(turn, now);
        if waiting.is_empty() {
            return;
        }
        // Those that show an address already have the best right to it.
        waiting.sort_by_key(|key| {
            (self.index.services.get(key).is_none_or(|info| info.status.ingress.is_empty()), key.clone())
        });
        let pools = self.index.all_pools(&self.kubernetes);
        let mut allocator = Allocator::new(&pools);
        self.seed(&mut allocator, now);
        let mut orders = Vec::new();
        for key in waiting {
            let (Some(plan), Some(info)) = (self.translation.plans.get(&key), self.index.services.get(&key)) else {
                continue;
            };
            let Ok(ask) = ask::read(&info.spec, &self.kubernetes) else { continue };
            let (grants, refusal) = self.ask_allocator(&mut allocator, &key, info, plan, &ask);
            orders.push((key, ask.share_key, grants, refusal));
        }
        drop(allocator);
        for (key, share_key, grants, refusal) in orders {
            self.order(&key, share_key.as_deref(), grants, refusal, turn, now);
        }
    }

    fn waiting(&self, turn: &mut Turn, now: Instant) -> Vec<ServiceKey> {
        let mut waiting = Vec::new();
        for key in &self.lacking {
            let Some(plan) = self.translation.plans.get(key) else { continue };
            let work = self.work.get(key).filter(|work| work.uid == plan.uid);
            if work.is_some_and(|w| w.in_flight > 0) {
                continue;
            }
            match work.and_then(|w| w.allocate_after).filter(|at| *at > now) {
                Some(at) => turn.wake_at(at),
                None => waiting.push(key.clone()),
            }
        }
        waiting
    }

    /// Everything known to be in use: records of all owners, writes under way, and what any Service shows.
    fn seed(&self, allocator: &mut Allocator<'_>, now: Instant) {
        // Not to be offered to one Service after the other: it would keep all of them waiting.
        let blocked =
            |unwritten: &Unwritten| unwritten.exists && unwritten.failures >= Unwritten::TOLD && unwritten.until > now;
        for (address, _) in self.record_backoff.iter().filter(|(_, unwritten)| blocked(unwritten)) {
            allocator.seed(*address, "", Vec::new(), None);
        }
        for record in self.index.records.values() {
            let held = record.held_for.as_ref().map(|h| (h.namespace.clone(), h.name.clone()));
            allocator.seed(record.address, self.share_key_of(record), self.usages(&record.claims), held);
        }
        for (address, spec) in &self.records_in_flight {
            if self.index.records.get(address).is_none() {
                allocator.seed(*address, &spec.share_key, self.usages(&spec.claims), None);
            }
        }
        for (key, info) in self.index.services.iter() {
            let ours = self.translation.plans.contains_key(key);
            for address in info.status.ingress.iter().filter_map(|i| i.ip) {
                if self.index.records.get(&address).is_some() || self.records_in_flight.contains_key(&address) {
                    continue;
                }
                if ours {
                    let claim = claim(key, &info.spec.uid);
                    allocator.seed(address, "", self.usages(std::slice::from_ref(&claim)), None);
                } else {
                    allocator.seed_foreign(address, &key.to_string());
                }
            }
        }
    }

    /// What those who use an address allow now; the record only says what they allowed when it was written.
    fn share_key_of<'a>(&'a self, record: &'a RecordInfo) -> &'a str {
        let said = |claim: &Claim| {
            let info = self.index.services.get(&ServiceKey::new(&claim.namespace, &claim.name))?;
            (*info.spec.uid == *claim.uid).then(|| ask::share_key(&info.spec))
        };
        let mut keys = record.claims.iter().filter_map(said);
        let Some(first) = keys.next() else { return &record.share_key };
        if keys.all(|key| key == first) { first } else { "" }
    }

    fn usages(&self, claims: &[Claim]) -> Vec<Usage> {
        let usage = |claim: &Claim| {
            let info = self.index.services.get(&ServiceKey::new(&claim.namespace, &claim.name));
            Usage {
                namespace: claim.namespace.clone(),
                name: claim.name.clone(),
                uid: claim.uid.clone(),
                ports: info.map(ports).unwrap_or_default(),
            }
        };
        claims.iter().map(usage).collect()
    }

    fn ask_allocator(
        &self,
        allocator: &mut Allocator<'_>,
        key: &ServiceKey,
        info: &ServiceInfo,
        plan: &Plan,
        ask: &Ask,
    ) -> (Vec<Grant>, Option<String>) {
        let mut request = Request {
            namespace: &key.namespace,
            name: &key.name,
            uid: &info.spec.uid,
            labels: Some(&info.spec.labels),
            namespace_labels: self.index.namespaces.get(&key.namespace).map(|n| &n.labels),
            families: plan.missing.clone(),
            all_or_none: info.spec.require_dual_stack && plan.vips.is_empty(),
            addresses: ask.addresses.clone(),
            pool: ask.pool.as_deref(),
            share_key: ask.share_key.as_deref(),
            ports: ports(info),
        };
        // What its status shows and no record has: it was ours before the records were lost, or another balancer's
        // before the class was handed to us. Clients know it. Of two families it may have had an address of one alone.
        if request.addresses.is_empty() {
            let shown = info.status.ingress.iter().filter_map(|i| i.ip);
            request.addresses = shown.filter(|address| allocator.would_grant(&request, *address)).collect();
        }
        let outcome = allocator.allocate(&request);
        let refusal = (!outcome.refusals.is_empty())
            .then(|| outcome.refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
        (outcome.grants, refusal)
    }

    fn order(
        &mut self,
        key: &ServiceKey,
        share_key: Option<&str>,
        grants: Vec<Grant>,
        refusal: Option<String>,
        turn: &mut Turn,
        now: Instant,
    ) {
        let uid = self.translation.plans[key].uid.clone();
        let mut ordered = 0;
        let (mut unwritten, mut again) = (None, None);
        for grant in grants {
            if let Some(trouble) = self.record_backoff.get(&grant.address).filter(|trouble| trouble.until > now) {
                again = Some(again.map_or(trouble.until, |at: Instant| at.min(trouble.until)));
                if trouble.failures >= Unwritten::TOLD {
                    unwritten = Some(format!("its record {} cannot be written: {}", grant.address, trouble.why));
                }
                continue;
            }
            // Two that share one address are recorded one after the other.
            if self.records_in_flight.contains_key(&grant.address) {
                continue;
            }
            let record = self.index.records.get(&grant.address);
            let spec = self.spec_with(record, &grant, claim(key, &uid), share_key);
            let write = match record {
                Some(r) => RecordWrite::Replace { spec: spec.clone(), resource_version: r.resource_version.clone() },
                None => RecordWrite::Create(spec.clone()),
            };
            let message = format!("Assigned IP {} from pool {}", grant.address, grant.pool);
            self.records_in_flight.insert(grant.address, spec);
            ordered += 1;
            turn.jobs.push(Job::Record(RecordJob {
                address: grant.address,
                write,
                service: Some(key.clone()),
                notes: vec![Note::normal(key, &uid, "IPAllocated", message)],
            }));
        }
        let work = self.work.entry(key.clone()).or_default();
        work.uid = uid;
        work.in_flight += ordered;
        if refusal.is_some() {
            let pause = super::backoff::after(work.allocations_failed, 2.0, 60.0).max(Duration::from_secs(1));
            work.allocations_failed = work.allocations_failed.saturating_add(1);
            again = Some(now + pause);
        } else {
            work.allocations_failed = 0;
        }
        if let Some(at) = again {
            work.allocate_after = Some(at);
            turn.wake_at(at);
        }
        let refusal = refusal.or(unwritten);
        if work.refusal != refusal {
            work.refusal = refusal;
            self.touch_later(key.clone());
        }
    }

    fn spec_with(
        &self,
        record: Option<&RecordInfo>,
        grant: &Grant,
        claim: Claim,
        key: Option<&str>,
    ) -> VipAllocationSpec {
        let mut claims = record.map(|r| r.claims.clone()).unwrap_or_default();
        claims.retain(|c| c.uid != claim.uid);
        claims.push(claim);
        VipAllocationSpec {
            address: grant.address.to_string(),
            pool: grant.pool.to_string(),
            owner: self.kubernetes.owner.clone(),
            share_key: key.unwrap_or_default().to_owned(),
            claims,
            held_for: None,
        }
    }

    /// Claims that nobody stands for are given back, once every worker runs a snapshot without them.
    pub(super) fn release(&mut self, turn: &mut Turn, now: Instant) {
        let mut ready: std::collections::BTreeMap<IpAddr, Vec<Claim>> = std::collections::BTreeMap::new();
        for (address, claim) in &self.translation.orphans {
            let since = self.orphan_since.get(&(*address, claim.uid.clone())).copied().unwrap_or(self.version);
            if self.progress.acknowledged >= since && !self.records_in_flight.contains_key(address) {
                ready.entry(*address).or_default().push(claim.clone());
            }
        }
        for (address, gone) in ready {
            if let Some(unwritten) = self.record_backoff.get(&address).filter(|u| u.until > now) {
                turn.wake_at(unwritten.until);
                continue;
            }
            let Some(record) = self.index.records.get(&address) else { continue };
            let mut spec = VipAllocationSpec {
                address: address.to_string(),
                pool: record.pool.to_string(),
                owner: record.owner.clone(),
                share_key: record.share_key.clone(),
                claims: record.claims.iter().filter(|c| !gone.contains(c)).cloned().collect(),
                held_for: record.held_for.clone(),
            };
            let sticky = gone.iter().find(|claim| {
                let key = ServiceKey::new(&claim.namespace, &claim.name);
                self.translation.plans.get(&key).is_some_and(|p| p.sticky && *p.uid == *claim.uid)
            });
            if let Some(claim) = sticky.filter(|_| spec.claims.is_empty()) {
                spec.held_for = Some(HeldFor { namespace: claim.namespace.clone(), name: claim.name.clone() });
            }
            let resource_version = record.resource_version.clone();
            let write = if spec.claims.is_empty() && spec.held_for.is_none() {
                RecordWrite::Delete { uid: record.uid.clone(), resource_version }
            } else {
                RecordWrite::Replace { spec: spec.clone(), resource_version }
            };
            self.records_in_flight.insert(address, spec);
            turn.jobs.push(Job::Record(RecordJob { address, write, service: None, notes: Vec::new() }));
        }
    }

    /// What each pool of the cluster should say of itself.
    pub(super) fn pool_status(&mut self, turn: &mut Turn, now: Instant) {
        if !self.pools_dirty {
            return;
        }
        if let Some(at) = self.pools_after.filter(|at| *at > now) {
            turn.wake_at(at);
            return;
        }
        self.pools_dirty = false;
        self.pools_after = Some(now + Duration::from_secs(1));
        for (pool, status) in self.usage_of_pools() {
            let Some(info) = self.index.pools.get(&pool.name) else { continue };
            // A pool of the file has no object.
            if self.kubernetes.pools.iter().any(|p| *p.name == *pool.name) || info.status == status {
                continue;
            }
            turn.jobs.push(Job::PoolStatus { name: pool.name.clone(), status });
        }
    }

    #[must_use]
    pub fn usage_of_pools(&self) -> Vec<(Pool, VipPoolStatus)> {
        let count = |n: u128| i64::try_from(n).unwrap_or(i64::MAX);
        let pools = self.index.all_pools(&self.kubernetes);
        pools
            .into_iter()
            .map(|pool| {
                let assigned = self.index.records.iter().filter(|(address, _)| pool.contains(**address)).count();
                let (total, assigned) = (count(pool.total()), count(assigned as u128));
                let fault = pool.fault.clone();
                let available = if fault.is_some() { 0 } else { (total - assigned).max(0) };
                (pool, VipPoolStatus { total, assigned, available, fault })
            })
            .collect()
    }
}

fn claim(key: &ServiceKey, uid: &str) -> Claim {
    Claim { namespace: key.namespace.to_string(), name: key.name.to_string(), uid: uid.to_owned() }
}

fn ports(info: &ServiceInfo) -> Vec<Port> {
    info.spec.ports.iter().map(|p| (p.protocol, p.port)).collect()
}
