//! What must hold of a table at any time between two packets; for tests.

use super::{Counts, Direction, Entry, FlowTable};
use crate::schedule::share::{Load, is_active};
use crate::wire::Family;

impl<F: Family> FlowTable<F> {
    /// What must hold at any time between two packets; for tests.
    ///
    /// # Errors
    /// The sentence that does not hold.
    pub fn check_invariants(&self) -> Result<(), String> {
        let mut counts = Counts::default();
        for at in 0..self.capacity.records() {
            let record = &self.records[at as usize];
            let Some(word) = record.word() else { continue };
            if word.state.is_embryonic() {
                counts.embryonic += 1;
            } else {
                counts.established += 1;
                counts.unproved += u32::from(word.proves_nothing());
            }
            for (key, direction) in self.keys(record, word).iter().zip([Direction::Forward, Direction::Reverse]) {
                let found = self.find(key, self.hash(key));
                if found != Some(Entry { record: at, direction }) {
                    return Err(format!("record {at}: {direction:?} key {key:?} finds {found:?}"));
                }
            }
        }
        let live = (counts.embryonic + counts.established) as usize;
        counts.evicted = self.counts.evicted;
        if counts != self.counts {
            return Err(format!("counted {counts:?}, kept {:?}", self.counts));
        }
        if self.embryos.count() != counts.embryonic {
            return Err(format!("{} embryos, {} in their queue", counts.embryonic, self.embryos.count()));
        }
        if self.index.used() != 2 * live {
            return Err(format!("{live} flows have {} index entries", self.index.used()));
        }
        self.check_shares()?;
        if self.free.len() + live != self.capacity.records() as usize {
            return Err(format!("{live} flows and {} free records", self.free.len()));
        }
        Ok(())
    }

    /// What is counted for schedulers is what there is.
    fn check_shares(&self) -> Result<(), String> {
        let mut loads = std::collections::BTreeMap::<u32, Load>::new();
        for at in 0..self.capacity.records() {
            let Some(word) = self.records[at as usize].word() else { continue };
            let load = loads.entry(self.tally.slot(at, word)).or_default();
            *(if is_active(word.state) { &mut load.active } else { &mut load.inactive }) += 1;
        }
        for slot in 1..=self.share().slots() {
            let (kept, counted) = (self.share().load(slot), loads.get(&slot).copied().unwrap_or_default());
            if kept != counted {
                return Err(format!("slot {slot}: {counted:?} flows, {kept:?} kept"));
            }
        }
        Ok(())
    }
}
