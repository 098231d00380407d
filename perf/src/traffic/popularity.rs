//! Which flow the next packet belongs to: all alike, or a few much and many little, as on real links.

use std::fmt;
use std::str::FromStr;

/// How flows share the packets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Popularity {
    /// One after the other: every flow has the same rate.
    Uniform,
    /// The k-th flow gets a share proportional to 1 / k^s.
    Zipf(f64),
}

impl fmt::Display for Popularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(s) => write!(f, "zipf:{s}"),
        }
    }
}

impl FromStr for Popularity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is neither uniform nor zipf nor zipf:S with 0 < S <= 4");
        match text.split_once(':') {
            None if text == "uniform" => Ok(Self::Uniform),
            None if text == "zipf" => Ok(Self::Zipf(1.0)),
            Some(("zipf", s)) => s.parse().ok().filter(|s| *s > 0.0 && *s <= 4.0).map(Self::Zipf).ok_or_else(bad),
            _ => Err(bad()),
        }
    }
}

/// Draws flows.
pub struct Draw {
    flows: u32,
    next: u32,
    zipf: Option<Zipf>,
    random: Random,
}

impl Draw {
    #[must_use]
    pub fn new(popularity: Popularity, flows: u32, seed: u64) -> Self {
        let zipf = match popularity {
            Popularity::Uniform => None,
            Popularity::Zipf(s) => Some(Zipf::new(flows, s)),
        };
        Self { flows, next: 0, zipf, random: Random(seed | 1) }
    }

    /// The next flow, from 0.
    #[inline]
    pub fn flow(&mut self) -> u32 {
        match &self.zipf {
            None => {
                let flow = self.next;
                self.next = if flow + 1 == self.flows { 0 } else { flow + 1 };
                flow
            }
            Some(zipf) => zipf.draw(&mut self.random),
        }
    }
}

/// xorshift64*: the load's randomness must cost less than its packets, and be repeatable.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    #[inline]
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In [0, 1).
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Zipf's law by rejection-inversion (Hörmann and Derflinger 1996): constant time and no table, so that ten
/// million flows cost no more than ten.
struct Zipf {
    s: f64,
    flows: f64,
    h_first: f64,
    h_last: f64,
    cut: f64,
}

impl Zipf {
    fn new(flows: u32, s: f64) -> Self {
        let flows = f64::from(flows);
        let mut zipf = Self { s, flows, h_first: 0.0, h_last: 0.0, cut: 0.0 };
        zipf.h_first = zipf.h(1.5) - 1.0;
        zipf.h_last = zipf.h(flows + 0.5);
        zipf.cut = 2.0 - zipf.h_inverse(zipf.h(2.5) - 2_f64.powf(-s));
        zipf
    }

    /// The integral of x^-s.
    fn h(&self, x: f64) -> f64 {
        if (self.s - 1.0).abs() < 1e-9 { x.ln() } else { (x.powf(1.0 - self.s) - 1.0) / (1.0 - self.s) }
    }

    fn h_inverse(&self, y: f64) -> f64 {
        if (self.s - 1.0).abs() < 1e-9 {
            y.exp()
        } else {
            (1.0 + y * (1.0 - self.s)).max(0.0).powf(1.0 / (1.0 - self.s))
        }
    }

    fn draw(&self, random: &mut Random) -> u32 {
        loop {
            let u = self.h_last + random.unit() * (self.h_first - self.h_last);
            let x = self.h_inverse(u);
            let k = x.round().clamp(1.0, self.flows);
            if k - x <= self.cut || u >= self.h(k + 0.5) - k.powf(-self.s) {
                return k as u32 - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_gives_every_flow_its_turn() {
        let mut draw = Draw::new(Popularity::Uniform, 5, 1);
        assert_eq!((0..12).map(|_| draw.flow()).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]);
    }

    /// Against the law itself: the share of each of the first flows, and that none is out of range.
    #[test]
    fn zipf_follows_its_law() {
        for (s, flows) in [(0.7, 1000_u32), (1.0, 1000), (1.3, 100_000)] {
            let mut draw = Draw::new(Popularity::Zipf(s), flows, 42);
            let draws = 400_000;
            let mut counts = vec![0_u32; flows as usize];
            for _ in 0..draws {
                counts[draw.flow() as usize] += 1;
            }
            let total: f64 = (1..=flows).map(|k| f64::from(k).powf(-s)).sum();
            for k in 1..=5 {
                let expected = f64::from(draws) * f64::from(k).powf(-s) / total;
                let got = f64::from(counts[k as usize - 1]);
                assert!((got - expected).abs() < 5.0 * expected.sqrt() + 1.0, "s {s}, flow {k}: {got}, not {expected}");
            }
        }
    }

    #[test]
    fn what_is_no_law_is_refused() {
        for text in ["zipf:0", "zipf:-1", "zipf:9", "normal", "zipf:x", ""] {
            assert!(text.parse::<Popularity>().is_err(), "{text}");
        }
        assert_eq!("zipf:0.9".parse(), Ok(Popularity::Zipf(0.9)));
    }
}
