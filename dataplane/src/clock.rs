//! Time as the packet path sees it: read once per loop turn, an argument from there on.

/// One tick is 2^26 ns, about 67 ms: 32 bits of them last nine years of uptime.
const TICK_SHIFT: u32 = 26;

/// An instant since boot. Boot time, not process time: flow records outlive the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    pub ns: u64,
}

impl Now {
    /// The kernel's clock since boot, suspension included.
    #[must_use]
    pub fn read() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self { ns: time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64 }
    }

    #[must_use]
    pub fn from_secs(secs: u64) -> Self {
        Self { ns: secs * 1_000_000_000 }
    }

    #[inline]
    #[must_use]
    pub fn tick(self) -> Tick {
        Tick((self.ns >> TICK_SHIFT) as u32)
    }
}

/// A coarse instant, as stored in flow records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tick(pub u32);

impl Tick {
    #[inline]
    #[must_use]
    pub fn since(self, earlier: Tick) -> u32 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Seconds as ticks, rounded up.
#[must_use]
pub fn ticks(seconds: u32) -> u32 {
    let ticks = (u64::from(seconds) * 1_000_000_000).div_ceil(1 << TICK_SHIFT);
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// Ticks as seconds.
#[must_use]
pub fn seconds(ticks: u32) -> f64 {
    f64::from(ticks) * (1_u64 << TICK_SHIFT) as f64 / 1e9
}
