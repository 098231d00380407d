//! Compiled sets by what they were made of: services with one list share one set, and a snapshot that
//! changes no list compiles none.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::SourceSet;

#[derive(Debug, Default)]
pub struct Interner {
    /// By content. std's hash has a key of its own: lists come from owners that need not trust one another.
    known: HashMap<Box<[IpNet]>, Arc<SourceSet>>,
    deny: (Arc<Vec<IpNet>>, Option<Arc<SourceSet>>),
}

impl Interner {
    /// The set of these prefixes.
    pub fn intern(&mut self, prefixes: &[IpNet]) -> Arc<SourceSet> {
        if let Some(set) = self.known.get(prefixes) {
            return Arc::clone(set);
        }
        let set = Arc::new(SourceSet::build(prefixes));
        self.known.insert(prefixes.into(), Arc::clone(&set));
        set
    }

    /// The box's deny list, which rarely changes, while snapshots often do; `None`: it is empty.
    pub fn deny(&mut self, list: &Arc<Vec<IpNet>>) -> Option<Arc<SourceSet>> {
        let (known, set) = &mut self.deny;
        if !Arc::ptr_eq(known, list) {
            if known != list {
                *set = (!list.is_empty()).then(|| Arc::new(SourceSet::build(list)));
            }
            *known = Arc::clone(list);
        }
        set.clone()
    }

    /// Drops sets that no tables have any more.
    pub fn forget_unused(&mut self) {
        self.known.retain(|_, set| Arc::strong_count(set) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<IpNet> {
        text.split(' ').map(|net| net.parse().expect("a prefix")).collect()
    }

    #[test]
    fn one_list_is_one_set() {
        let mut interner = Interner::default();
        let one = interner.intern(&list("192.0.2.0/24 2001:db8::/32"));
        let same = interner.intern(&list("192.0.2.0/24 2001:db8::/32"));
        let other = interner.intern(&list("192.0.2.0/24"));
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
        drop((one, same));
        interner.forget_unused();
        assert_eq!(interner.known.len(), 1);
    }

    #[test]
    fn the_deny_list_is_compiled_when_it_changes() {
        let mut interner = Interner::default();
        assert!(interner.deny(&Arc::default()).is_none());
        let first = interner.deny(&Arc::new(list("192.0.2.0/24"))).expect("a set");
        let again = interner.deny(&Arc::new(list("192.0.2.0/24"))).expect("a set");
        assert!(Arc::ptr_eq(&first, &again), "read again, and the same");
        let changed = interner.deny(&Arc::new(list("198.51.100.0/24"))).expect("a set");
        assert!(!changed.contains_v4(0xc000_0201) && changed.contains_v4(0xc633_6401));
        assert!(interner.deny(&Arc::default()).is_none());
    }
}
