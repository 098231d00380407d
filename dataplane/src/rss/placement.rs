//! Which worker owns a flow, and where the NIC will bring its replies.
//!
//! The owner of a client's packets is a pure function of the packet. Where a port's RSS can be
//! computed it is that port's choice of queue, so that the hardware brings nearly every packet to
//! its owner; where not, a hash of the client. The function is fixed while flows live: it is stored
//! beside them, because after a restart the same flows must have the same owners, whatever the NIC
//! has been told meanwhile.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::nic::{NicHash, NicParts, RssView};
use crate::nat::Partition;
use crate::verdict::{PortId, WorkerId};
use crate::wire::{Family, Tuple};

/// How packets are placed on workers.
#[derive(Debug, Default)]
pub struct Placement {
    workers: u16,
    /// The first port's whose hash can be computed: it decides for all.
    forward: Option<NicHash>,
    /// By port: where its NIC brings a tuple now.
    ports: Vec<Option<NicHash>>,
}

/// The stored form.
#[derive(Serialize, Deserialize)]
struct Stored {
    workers: u16,
    forward: Option<NicParts>,
}

impl Placement {
    /// Asks the ports' drivers. Notices say why a port's packets will be handed over.
    #[must_use]
    pub fn read(interfaces: &[String], workers: u16) -> (Self, Vec<String>) {
        let mut notices = Vec::new();
        let mut ports = Vec::new();
        for interface in interfaces.iter().filter(|_| workers > 1) {
            ports.push(match RssView::read(interface) {
                RssView::Toeplitz(hash) => Some(hash),
                RssView::Unreadable(why) => {
                    notices.push(format!("{interface}: packets are handed to their workers in software: {why}"));
                    None
                }
            });
        }
        let forward = ports.iter().flatten().next().cloned();
        (Self { workers, forward, ports }, notices)
    }

    /// Keeps the owner function of an earlier process if its flows are kept, else stores this one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn settle(&mut self, path: &Path, keep: bool) -> std::io::Result<Option<String>> {
        let stored: Option<Stored> =
            std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).filter(|_| keep);
        if let Some(stored) = stored.filter(|stored| stored.workers == self.workers) {
            let now = self.forward.as_ref().map(NicHash::parts);
            let changed = now != stored.forward;
            self.forward = stored.forward.and_then(NicHash::from_parts);
            return Ok(changed.then(|| {
                "the NIC's RSS key or table changed since the flows began: their owners stay, and packets are handed \
                 over; a start without flows (after `penstock-dataplane detach` and a reboot, or an empty run_dir) \
                 follows the NIC again"
                    .into()
            }));
        }
        let stored = Stored { workers: self.workers, forward: self.forward.as_ref().map(NicHash::parts) };
        let temporary = path.with_extension("tmp");
        let written = std::fs::write(&temporary, serde_json::to_vec(&stored)?);
        written.and_then(|()| std::fs::rename(&temporary, path)).map(|()| None).map_err(|error| {
            let remedy = "box.run_dir is to be writable, on a file system with room";
            std::io::Error::new(error.kind(), format!("{}: {error}; {remedy}", path.display()))
        })
    }

    /// The worker that owns a client's packets to a VIP whose replies come to a SNAT address.
    #[inline]
    #[must_use]
    pub fn owner<F: Family>(&self, tuple: &Tuple<F::Addr>, workers: u16) -> WorkerId {
        match &self.forward {
            Some(nic) => WorkerId(F::queue(nic, tuple) % workers.max(1)),
            None => owner_by_client::<F>(tuple, workers),
        }
    }

    /// Whether the NIC of `port` would bring a packet of this tuple to `worker`; yes where nobody can say.
    #[inline]
    #[must_use]
    pub fn is_home<F: Family>(&self, port: PortId, tuple: &Tuple<F::Addr>, partition: &Partition) -> bool {
        match self.ports.get(usize::from(port.0)) {
            Some(Some(nic)) => F::queue(nic, tuple) % partition.workers.max(1) == partition.worker.0,
            _ => true,
        }
    }
}

/// The worker that owns a `dnat` client's packets: computable from its address and port alone, and
/// so from its replies too.
#[inline]
#[must_use]
pub fn owner_by_client<F: Family>(tuple: &Tuple<F::Addr>, workers: u16) -> WorkerId {
    let hash = F::owner_hash(tuple.src, tuple.src_port, tuple.protocol);
    WorkerId(((u64::from(hash) * u64::from(workers)) >> 32) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rss::nic::PortsHashed;
    use crate::rss::toeplitz::tests::MICROSOFT_KEY;
    use crate::wire::V4;

    fn nic(queues: u16) -> NicHash {
        let all = PortsHashed { tcp4: true, udp4: true, tcp6: true, udp6: true };
        let parts = NicParts {
            key: MICROSOFT_KEY.to_vec(),
            indirection: (0..128).map(|entry| entry % queues).collect(),
            ports_hashed: all,
            symmetric_xor: false,
        };
        NicHash::from_parts(parts).unwrap()
    }

    fn tuple(n: u32) -> Tuple<u32> {
        Tuple { src: 0xc633_6400 + n % 250, dst: 0xcb00_710a, src_port: 1024 + n as u16, dst_port: 443, protocol: 6 }
    }

    #[test]
    fn the_owner_is_the_nics_queue_where_it_can_be_computed() {
        let placement = Placement { workers: 4, forward: Some(nic(4)), ports: vec![Some(nic(4))] };
        let mut seen = [0; 4];
        for n in 0..4000 {
            let t = tuple(n);
            let queue = nic(4).queue_of_v4(t.src, t.dst, t.src_port, t.dst_port, t.protocol);
            let owner = placement.owner::<V4>(&t, 4);
            assert_eq!(owner.0, queue);
            assert!(placement.is_home::<V4>(PortId(0), &t, &Partition { worker: owner, workers: 4 }));
            seen[usize::from(owner.0)] += 1;
        }
        assert!(seen.iter().all(|count| (800..1200).contains(count)), "{seen:?}");
    }

    #[test]
    fn without_a_readable_nic_every_worker_gets_its_share() {
        let placement = Placement { workers: 3, forward: None, ports: vec![None] };
        let mut seen = [0; 3];
        for n in 0..3000 {
            seen[usize::from(placement.owner::<V4>(&tuple(n), 3).0)] += 1;
        }
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
    }

    #[test]
    fn owners_outlive_a_change_of_the_nic_with_their_flows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("placement.json");
        let mut first = Placement { workers: 2, forward: Some(nic(2)), ports: vec![Some(nic(2))] };
        assert_eq!(first.settle(&path, false).unwrap(), None);
        let before: Vec<WorkerId> = (0..500).map(|n| first.owner::<V4>(&tuple(n), 2)).collect();

        let mut again = Placement { workers: 2, forward: None, ports: vec![None] };
        assert!(again.settle(&path, true).unwrap().is_some(), "the change is noticed");
        let after: Vec<WorkerId> = (0..500).map(|n| again.owner::<V4>(&tuple(n), 2)).collect();
        assert_eq!(before, after);

        let mut fresh = Placement { workers: 2, forward: None, ports: vec![None] };
        assert_eq!(fresh.settle(&path, false).unwrap(), None);
        let missing = dir.path().join("missing/placement.json");
        let error = fresh.settle(&missing, false).unwrap_err().to_string();
        assert!(error.contains("missing/placement.json") && error.contains("box.run_dir"), "{error}");
        let other: Vec<WorkerId> = (0..500).map(|n| fresh.owner::<V4>(&tuple(n), 2)).collect();
        assert_ne!(before, other, "without flows to keep the box follows the NIC");
    }
}
