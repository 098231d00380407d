//! Address ranges as numbers: one representation for CIDRs, ranges and single addresses of both families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub enum Family {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Addresses from `first` to `last`, both included, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    pub family: Family,
    pub first: u128,
    pub last: u128,
}

impl Range {
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.family == Family::of(address) && (self.first..=self.last).contains(&number(address))
    }

    #[must_use]
    pub fn overlap(&self, other: &Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (self.family == other.family && first <= last).then_some(Self { first, last, ..*self })
    }

    /// What is left of `self` without `other`: at most two pieces.
    fn without(&self, other: &Self) -> impl Iterator<Item = Self> {
        let (before, after) = match self.overlap(other) {
            None => (Some(*self), None),
            Some(hole) => (
                (hole.first > self.first).then(|| Self { last: hole.first - 1, ..*self }),
                (hole.last < self.last).then(|| Self { first: hole.last + 1, ..*self }),
            ),
        };
        before.into_iter().chain(after)
    }

    /// Saturates: a /0 of IPv6 has one address more than a u128 counts.
    #[must_use]
    pub fn len(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// How many of the range end in .0 or .255.
    #[must_use]
    pub fn buggy(&self) -> u128 {
        let up_to = |n: u128, low: u128| (n + 256 - low) / 256;
        match self.family {
            Family::V6 => 0,
            Family::V4 => {
                let count =
                    |low: u128| up_to(self.last, low) - if self.first == 0 { 0 } else { up_to(self.first - 1, low) };
                count(0) + count(255)
            }
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", address(self.family, self.first), address(self.family, self.last))
    }
}

#[must_use]
pub fn is_buggy(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if matches!(v4.octets()[3], 0 | 255))
}

#[must_use]
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[must_use]
pub fn address(family: Family, number: u128) -> IpAddr {
    match family {
        // Ranges are made from addresses of their family, so the number fits.
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX))),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

/// "203.0.113.0/24", "203.0.113.10-203.0.113.40" or "203.0.113.7".
///
/// # Errors
/// In words, with the text in it.
pub fn parse(text: &str) -> Result<Range, String> {
    let trimmed = text.trim();
    let bad = || format!("`{text}` is no CIDR, range (first-last) or address");
    let (first, last) = if let Some((first, last)) = trimmed.split_once('-') {
        (first.trim().parse().map_err(|_| bad())?, last.trim().parse().map_err(|_| bad())?)
    } else if trimmed.contains('/') {
        let net: IpNet = trimmed.parse().map_err(|_| bad())?;
        // The last address of the block, also in IPv6 where it is no broadcast.
        (net.network(), net.broadcast())
    } else {
        let one: IpAddr = trimmed.parse().map_err(|_| bad())?;
        (one, one)
    };
    let family = Family::of(first);
    if family != Family::of(last) {
        return Err(format!("`{text}` mixes IPv4 and IPv6"));
    }
    if number(first) > number(last) {
        return Err(format!("`{text}` ends before it begins"));
    }
    Ok(Range { family, first: number(first), last: number(last) })
}

/// `ranges` without `holes`, in ascending order.
#[must_use]
pub fn subtract(ranges: &[Range], holes: &[Range]) -> Vec<Range> {
    let mut left = ranges.to_vec();
    for hole in holes {
        left = left.iter().flat_map(|range| range.without(hole).collect::<Vec<_>>()).collect();
    }
    left.sort_by_key(|range| (range.family, range.first));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms() {
        for (text, first, last) in [
            ("203.0.113.0/24", "203.0.113.0", "203.0.113.255"),
            (" 203.0.113.10 - 203.0.113.12 ", "203.0.113.10", "203.0.113.12"),
            ("203.0.113.7", "203.0.113.7", "203.0.113.7"),
            ("2001:db8::/126", "2001:db8::", "2001:db8::3"),
        ] {
            let range = parse(text).unwrap();
            assert_eq!(address(range.family, range.first).to_string(), first, "{text}");
            assert_eq!(address(range.family, range.last).to_string(), last, "{text}");
        }
        for text in ["203.0.113.0/33", "203.0.113.9-203.0.113.1", "203.0.113.9-2001:db8::1", "x", ""] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn buggy_addresses_are_counted_as_they_are_found() {
        for text in ["203.0.112.0/23", "203.0.113.1-203.0.113.254", "203.0.113.255-203.0.114.0", "0.0.0.0-0.0.1.0"] {
            let range = parse(text).unwrap();
            let found = (range.first..=range.last).filter(|n| is_buggy(address(range.family, *n))).count();
            assert_eq!(range.buggy(), found as u128, "{text}");
        }
    }

    #[test]
    fn subtracting_leaves_the_rest() {
        let left = subtract(&[parse("203.0.113.0/29").unwrap()], &[parse("203.0.113.2-203.0.113.3").unwrap()]);
        assert_eq!(
            left.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["203.0.113.0-203.0.113.1", "203.0.113.4-203.0.113.7"]
        );
    }
}
