//! Numbers as people read them.

use std::time::Duration;

/// `999`, `1.23k`, `45.6M`: three digits say enough of a rate.
#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn short(value: f64) -> String {
    let value = if value.is_finite() { value.max(0.0) } else { 0.0 };
    let mut scaled = value;
    for suffix in ["", "k", "M", "G", "T"] {
        // 999.6 would be shown as 1000: it is 1.00k.
        if scaled < 999.5 {
            return if suffix.is_empty() {
                digits_below_thousand(scaled)
            } else {
                format!("{}{suffix}", three(scaled))
            };
        }
        scaled /= 1000.0;
    }
    format!("{scaled:.0}P")
}

fn digits_below_thousand(value: f64) -> String {
    if value > 0.0 && value < 9.95 && value.fract() != 0.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn three(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// `12,345,678`.
pub(super) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `512 B`, `1.5 KiB`, `6.1 GiB`.
#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(super) fn bytes(value: u64) -> String {
    let mut scaled = value as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if scaled < 1023.95 {
            return if unit == "B" { format!("{value} B") } else { format!("{scaled:.1} {unit}") };
        }
        scaled /= 1024.0;
    }
    format!("{scaled:.1} PiB")
}

/// `0.4s`, `12s`, `3m 20s`, `3h 5m`, `2d 4h`: the two largest units.
pub(super) fn duration(seconds: f64) -> String {
    let duration = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    let whole = duration.as_secs();
    let (days, hours, minutes, rest) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if whole < 10 => format!("{:.1}s", duration.as_secs_f64()),
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// `73%`, and `<1%` where rounding would say nothing is there.
#[allow(clippy::cast_precision_loss, reason = "whole percents are shown")]
pub(super) fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    if percent > 0.0 && percent < 1.0 { "<1%".to_owned() } else { format!("{percent:.0}%") }
}

/// `1 service`, `3 services`.
pub(super) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_keep_three_digits_and_never_say_1000() {
        let cases = [
            (0.0, "0"),
            (0.4, "0.4"),
            (9.0, "9"),
            (12.3, "12"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1_234.0, "1.23k"),
            (99_990.0, "100k"),
            (1_234_567.0, "1.23M"),
            (999_600.0, "1.00M"),
            (-1.0, "0"),
            (f64::NAN, "0"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text, "{value}");
        }
    }

    #[test]
    fn counts_bytes_times_and_shares() {
        assert_eq!(
            [grouped(0), grouped(999), grouped(1_000), grouped(12_345_678)],
            ["0", "999", "1,000", "12,345,678"]
        );
        assert_eq!([bytes(0), bytes(1023), bytes(1024), bytes(6_543_210_987)], ["0 B", "1023 B", "1.0 KiB", "6.1 GiB"]);
        let times = [0.44, 12.0, 200.0, 11_100.0, 273_845.0].map(duration);
        assert_eq!(times, ["0.4s", "12s", "3m 20s", "3h 5m", "3d 4h"]);
        assert_eq!([share(0, 0), share(0, 9), share(1, 900), share(1, 3)], ["-", "0%", "<1%", "33%"]);
        assert_eq!([count(1, "service"), count(0, "service")], ["1 service", "0 services"]);
    }
}
