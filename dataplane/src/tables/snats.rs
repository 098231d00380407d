//! The numbers of SNAT addresses: what flow records name them by. An address keeps its number while a record may
//! have it; then another gets it, so that any number of addresses may come and go.

use penstock_configs::file::SnatAddress;

use super::{Snat, compile::CompileError};
use crate::persist::MAX_SNATS;
use crate::wire::Family;

/// One family's SNAT addresses by number.
#[derive(Debug, Clone)]
pub struct SnatIds<A> {
    list: Vec<Snat<A>>,
    /// By number: the tables that retired the address, by their serial number.
    since: Vec<u64>,
}

impl<A> Default for SnatIds<A> {
    fn default() -> Self {
        Self { list: Vec::new(), since: Vec::new() }
    }
}

impl<A: Copy + Eq + Default> SnatIds<A> {
    /// The numbers that records of an earlier process's workers have, one worker after the other. Two never
    /// have one number for different addresses: it changes hands when no worker's records have it.
    pub fn seed(&mut self, in_use: &[Option<A>]) {
        // Before the first tables (serial 1) have been swept, only numbers nobody has are free.
        let free = Snat { addr: A::default(), first_port: 1, last_port: 0, shared: false, retired: true };
        let len = self.list.len().max(in_use.len());
        self.list.resize(len, free);
        self.since.resize(len, 0);
        for ((known, since), addr) in self.list.iter_mut().zip(&mut self.since).zip(in_use) {
            if let Some(addr) = addr {
                (known.addr, *since) = (*addr, 1);
            }
        }
    }

    pub fn list(&self) -> &[Snat<A>] {
        &self.list
    }

    /// The list of the tables `serial`: an address that is gone is retired, a new one takes a number that no
    /// record can have, since every worker has gone through all its records under tables no older than `swept`.
    pub fn merged<F: Family<Addr = A>>(
        &self,
        wanted: &[SnatAddress],
        serial: u64,
        swept: u64,
    ) -> Result<Self, CompileError> {
        let mut next = self.clone();
        for (known, since) in next.list.iter_mut().zip(&mut next.since) {
            if !known.retired {
                known.retired = true;
                *since = serial;
            }
        }
        let wanted: Vec<Snat<A>> = wanted
            .iter()
            .filter_map(|want| {
                let [first_port, last_port] = want.ports;
                Some(Snat {
                    addr: F::from_ip(want.address)?,
                    first_port,
                    last_port,
                    shared: want.shared,
                    retired: false,
                })
            })
            .collect();
        // Known ones first, or a new one could take the number of one that comes back.
        let (known, new): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|want| self.list.iter().any(|known| known.addr == want.addr));
        for want in known.into_iter().chain(new) {
            next.place(want, swept)?;
        }
        Ok(next)
    }

    fn place(&mut self, want: Snat<A>, swept: u64) -> Result<(), CompileError> {
        let known = self.list.iter().position(|known| known.addr == want.addr);
        let free = || self.list.iter().zip(&self.since).position(|(known, since)| known.retired && *since <= swept);
        match known.or_else(free) {
            Some(at) => self.list[at] = want,
            None if self.list.len() < MAX_SNATS => {
                self.list.push(want);
                self.since.push(0);
            }
            None => return Err(CompileError::TooManySnats(MAX_SNATS)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::V4;

    fn wanted(addresses: &[u32]) -> Vec<SnatAddress> {
        let snat = |addr: &u32| SnatAddress { address: addr.to_be_bytes().into(), ports: [1024, 65535], shared: false };
        addresses.iter().map(snat).collect()
    }

    fn numbers(ids: &SnatIds<u32>) -> Vec<(u32, bool)> {
        ids.list().iter().map(|snat| (snat.addr, snat.retired)).collect()
    }

    #[test]
    fn a_number_is_free_when_every_worker_has_swept_since() {
        let ids = SnatIds::default().merged::<V4>(&wanted(&[10, 11]), 1, 0).unwrap();
        let ids = ids.merged::<V4>(&wanted(&[11]), 2, 1).unwrap();
        assert_eq!(numbers(&ids), [(10, true), (11, false)]);
        // Nobody has looked since: a new address gets a number of its own.
        let early = ids.merged::<V4>(&wanted(&[11, 12]), 3, 1).unwrap();
        assert_eq!(numbers(&early), [(10, true), (11, false), (12, false)]);
        let late = ids.merged::<V4>(&wanted(&[11, 12]), 3, 2).unwrap();
        assert_eq!(numbers(&late), [(12, false), (11, false)]);
        // One that comes back has its old number, whatever order they are listed in.
        let back = ids.merged::<V4>(&wanted(&[12, 10]), 3, 2).unwrap();
        assert_eq!(numbers(&back), [(10, false), (11, true), (12, false)]);
    }

    #[test]
    fn addresses_may_come_and_go_for_ever_but_not_all_at_once() {
        let mut ids = SnatIds::default();
        for turn in 1..5000_u32 {
            ids = ids.merged::<V4>(&wanted(&[turn, turn + 1]), turn.into(), u64::from(turn) - 1).unwrap();
        }
        assert!(ids.list().len() <= 4, "{}", ids.list().len());
        // Never swept.
        let mut ids = SnatIds::default();
        let mut refused = None;
        for turn in 1..=300_u32 {
            match ids.merged::<V4>(&wanted(&[turn]), turn.into(), 0) {
                Ok(next) => ids = next,
                Err(error) => refused = refused.or(Some((turn, error))),
            }
        }
        assert_eq!(refused, Some((257, CompileError::TooManySnats(256))));
    }

    #[test]
    fn an_earlier_processs_records_keep_their_numbers() {
        let mut ids = SnatIds::default();
        ids.seed(&[None, Some(11)]);
        ids.seed(&[None, None, None, Some(13)]);
        let next = ids.merged::<V4>(&wanted(&[20, 21, 22, 13]), 1, 0).unwrap();
        assert_eq!(numbers(&next), [(20, false), (11, true), (21, false), (13, false), (22, false)]);
        // The first sweep has forgotten what 11 had.
        let next = next.merged::<V4>(&wanted(&[20, 21, 22, 13, 23]), 2, 1).unwrap();
        assert_eq!(numbers(&next)[1], (23, false));
    }
}
