//! Packet sizes, on the wire with the frame check sequence, as RFC 2544 and everybody's data sheets count them.

use std::fmt;
use std::str::FromStr;

/// The frame check sequence, which a NIC adds and AF_XDP never sees.
pub const FCS: usize = 4;
/// Per packet on an Ethernet wire beside its bytes: preamble, start of frame and the gap behind it.
pub const WIRE_OVERHEAD: usize = 20;

/// Sizes that take turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix {
    name: String,
    /// One entry per turn, in an order that spreads the large ones.
    turns: Vec<u16>,
}

impl Mix {
    /// One size for all.
    #[must_use]
    pub fn fixed(size: u16) -> Self {
        Self { name: size.to_string(), turns: vec![size] }
    }

    /// 7 of 64, 4 of 594, 1 of 1518 bytes: the simple IMIX.
    #[must_use]
    pub fn imix() -> Self {
        Self { name: "imix".into(), turns: vec![64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64] }
    }

    /// The same where what is smaller is sent with so many bytes. Its name says so.
    #[must_use]
    pub fn at_least(&self, least: u16) -> Self {
        let name =
            if self.smallest() < least { format!("{} (at least {least})", self.name) } else { self.name.clone() };
        Self { name, turns: self.turns.iter().map(|size| (*size).max(least)).collect() }
    }

    /// The size of a packet by its number, without the frame check sequence.
    #[must_use]
    pub fn frame_len(&self, number: u64) -> usize {
        usize::from(self.turns[(number % self.turns.len() as u64) as usize]) - FCS
    }

    /// How many sizes take turns.
    #[must_use]
    pub fn turns(&self) -> usize {
        self.turns.len()
    }

    /// Bytes on the wire per packet, on average.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.turns.iter().map(|size| f64::from(*size)).sum::<f64>() / self.turns.len() as f64
    }

    /// Bits per second a wire carries at a rate.
    #[must_use]
    pub fn wire_bits(&self, packets_per_second: f64) -> f64 {
        (self.mean() + WIRE_OVERHEAD as f64) * 8.0 * packets_per_second
    }

    #[must_use]
    pub fn smallest(&self) -> u16 {
        self.turns.iter().copied().min().unwrap_or(0)
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "imix" {
            return Ok(Self::imix());
        }
        match text.parse::<u16>() {
            Ok(size) if (64..=1518).contains(&size) => Ok(Self::fixed(size)),
            _ => Err(format!("{text:?} is no packet size: 64 to 1518 bytes with the frame check sequence, or imix")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imix_is_seven_four_one() {
        let mix = Mix::imix();
        let count = |size: usize| (0..1200).filter(|n| mix.frame_len(*n) + FCS == size).count();
        assert_eq!((count(64), count(594), count(1518)), (700, 400, 100));
        assert!((mix.mean() - 361.8).abs() < 0.1, "{}", mix.mean());
    }

    #[test]
    fn minimal_frames_at_line_rate() {
        // 14.88 million 64-byte packets fill 10 Gbit/s.
        let bits = Mix::fixed(64).wire_bits(14_880_952.0);
        assert!((bits - 10e9).abs() < 1e3, "{bits}");
    }

    #[test]
    fn sizes_no_wire_takes_are_refused() {
        for text in ["63", "1519", "0", "big", "-64", ""] {
            assert!(text.parse::<Mix>().is_err(), "{text}");
        }
        assert_eq!("imix".parse::<Mix>().unwrap(), Mix::imix());
    }
}
