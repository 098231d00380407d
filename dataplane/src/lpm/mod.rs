//! Source ranges: whether an address is inside any of a set of prefixes. Compiled off the hot path,
//! immutable, no allocation at look-up.

mod bounds;
mod interner;
#[cfg(test)]
mod tests;

use ipnet::IpNet;

use bounds::Bounds;
pub use interner::Interner;

/// A union of prefixes of both families. It contains nothing when built of nothing: that an
/// empty `source_ranges` allows all is the caller's rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceSet {
    v4: Bounds<u32>,
    v6: Bounds<u128>,
}

impl SourceSet {
    /// Prefixes may overlap, repeat, and have host bits set (they are ignored). An IPv6 prefix
    /// matches IPv6 packets alone, IPv4-mapped ones included.
    #[must_use]
    pub fn build(prefixes: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        Self { v4: Bounds::build(v4), v6: Bounds::build(v6) }
    }

    /// `address`: `u32::from_be_bytes`.
    #[inline]
    #[must_use]
    pub fn contains_v4(&self, address: u32) -> bool {
        self.v4.contains(address)
    }

    /// `address`: `u128::from_be_bytes`.
    #[inline]
    #[must_use]
    pub fn contains_v6(&self, address: u128) -> bool {
        self.v6.contains(address)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// For capacity reports: all of it, the struct included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.v4.heap_bytes() + self.v6.heap_bytes()
    }
}
