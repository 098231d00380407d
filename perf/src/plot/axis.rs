//! From values to places, and round numbers to write beside them.

/// How values lie along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From nought.
    Linear,
    /// Values of nought and below are not shown.
    Log,
}

/// An axis with its ends.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    step: f64,
}

/// Steps between the marks of a linear axis.
const STEPS: f64 = 6.0;

impl Axis {
    /// An axis with room for all of these.
    pub fn over(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let shown = values.filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0));
        let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        match scale {
            Scale::Linear => {
                let (low, high) = (low.min(0.0), high.max(0.0));
                let step = if high > low { round_step((high - low) / STEPS) } else { 1.0 };
                let high = ((high / step).ceil() * step).max(step);
                Self { scale, low: (low.min(0.0) / step).floor() * step, high, step }
            }
            Scale::Log if low > high => Self { scale, low: 1.0, high: 10.0, step: 0.0 },
            Scale::Log => {
                let (low, high) = (round_down(low), round_up(high));
                Self { scale, low, high: if high > low { high } else { low * 10.0 }, step: 0.0 }
            }
        }
    }

    /// Where a value lies: 0 at the low end, 1 at the high; `None`: it can't be shown.
    pub fn at(&self, value: f64) -> Option<f64> {
        let place = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log if value <= 0.0 => return None,
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        place.is_finite().then_some(place)
    }

    /// Values to write beside the axis.
    pub fn marks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let count = ((self.high - self.low) / self.step).round() as usize;
                (0..=count).map(|n| self.low + n as f64 * self.step).collect()
            }
            Scale::Log => self.log_marks(),
        }
    }

    /// Powers of ten; with 2 and 5 of each where those are few.
    fn log_marks(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let of_decade: &[f64] = if decades <= 3.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let first = self.low.log10().floor() as i32;
        let last = self.high.log10().ceil() as i32;
        let all = (first..=last).flat_map(|power| of_decade.iter().map(move |n| n * 10_f64.powi(power)));
        all.filter(|mark| *mark >= self.low * 0.999 && *mark <= self.high * 1.001).collect()
    }
}

/// 1, 2 or 5 times a power of ten, at least this.
fn round_step(wanted: f64) -> f64 {
    round_up(wanted)
}

fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    // A hair's breadth for what division left of a round number.
    [1.0, 2.0, 5.0].into_iter().map(|n| n * power).find(|n| *n >= value * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

fn round_down(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [5.0, 2.0].into_iter().map(|n| n * power).find(|n| *n <= value * (1.0 + 1e-9)).unwrap_or(power)
}

/// A number as people write it: 12.5 k, 3 M, 0.04.
pub fn figure(value: f64) -> String {
    let size = value.abs();
    let (scaled, unit) = match size {
        _ if size >= 0.9995e9 => (value / 1e9, " G"),
        _ if size >= 0.9995e6 => (value / 1e6, " M"),
        _ if size >= 9.995e3 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let size = scaled.abs();
    let decimals = match size {
        _ if size == 0.0 || size >= 99.95 => 0,
        _ if size >= 9.995 => 1,
        _ if size >= 0.0995 => 2,
        _ => 4,
    };
    let digits = format!("{scaled:.decimals$}");
    let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { &digits };
    format!("{digits}{unit}")
}
