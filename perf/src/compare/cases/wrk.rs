//! wrk, the HTTP client of TCP measurements, and what it says.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::compare::process::need;
use crate::lab::Netns;

/// What a run of wrk came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    pub requests: f64,
    pub seconds: f64,
    pub bytes_per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Connects, reads, writes and time-outs that failed, and answers other than 2xx or 3xx.
    pub failed: f64,
}

/// Runs wrk in a namespace: `connections` at a time, each for one request (`close`) or for many.
///
/// # Errors
/// No wrk here, or it says nothing that can be read.
pub fn run(ns: &Netns, url: &str, connections: usize, close: bool, duration: Duration) -> Result<Outcome> {
    let mut command = Command::new(need("wrk", "wrk")?);
    let threads = usize::from(crate::config::cores()).min(connections);
    let seconds = duration.as_secs().max(1);
    command.args([format!("-t{threads}"), format!("-c{connections}"), format!("-d{seconds}s")]);
    command.args(["--latency", "--timeout", "5s"]);
    if close {
        command.args(["-H", "Connection: close"]);
    }
    let output = ns.output(command.arg(url)).context("starting wrk")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "wrk {url}: {text}{}", String::from_utf8_lossy(&output.stderr));
    parse(&text).with_context(|| format!("wrk's output is not as expected:\n{text}"))
}

fn parse(text: &str) -> Option<Outcome> {
    let mut outcome = Outcome::default();
    let after = |line: &str, word: &str| line.trim().strip_prefix(word).map(str::trim).map(str::to_owned);
    for line in text.lines() {
        if let Some((requests, rest)) = line.trim().split_once(" requests in ") {
            outcome.requests = requests.parse().ok()?;
            outcome.seconds = seconds(rest.split(',').next()?)?;
        } else if let Some(value) = after(line, "Transfer/sec:") {
            outcome.bytes_per_second = bytes(&value)?;
        } else if let Some(value) = after(line, "50% ") {
            outcome.p50_ms = seconds(&value)? * 1e3;
        } else if let Some(value) = after(line, "99% ") {
            outcome.p99_ms = seconds(&value)? * 1e3;
        } else if let Some(value) = after(line, "Socket errors:") {
            outcome.failed += value.split([' ', ',']).filter_map(|word| word.parse::<f64>().ok()).sum::<f64>();
        } else if let Some(value) = after(line, "Non-2xx or 3xx responses:") {
            outcome.failed += value.parse::<f64>().ok()?;
        }
    }
    (outcome.seconds > 0.0).then_some(outcome)
}

/// 740.00us, 2.10ms, 3.01s, 1.00m
fn seconds(text: &str) -> Option<f64> {
    scaled(text.trim(), &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)])
}

/// 1.93GB, 512.34KB
fn bytes(text: &str) -> Option<f64> {
    let units = [("TB", 1_u64 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10), ("B", 1)];
    scaled(text, &units.map(|(unit, factor)| (unit, factor as f64)))
}

fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    number.parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::{Outcome, bytes, parse, seconds};

    const TEXT: &str = "\
Running 3s test @ http://203.0.113.10:80/
  2 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   833.41us  471.28us   9.73ms   88.30%
    Req/Sec    12.21k     1.00k   14.57k    74.19%
  Latency Distribution
     50%  740.00us
     75%    1.02ms
     90%    1.30ms
     99%    2.10ms
  74970 requests in 3.01s, 11.51MB read
  Socket errors: connect 1, read 2, write 0, timeout 3
  Non-2xx or 3xx responses: 4
Requests/sec:  24905.61
Transfer/sec:      3.82MB
";

    #[test]
    fn reads_what_wrk_says() {
        let outcome = parse(TEXT).expect("a report");
        let wanted = Outcome {
            requests: 74_970.0,
            seconds: 3.01,
            bytes_per_second: 3.82 * 1_048_576.0,
            p50_ms: 0.74,
            p99_ms: 2.1,
            failed: 10.0,
        };
        assert_eq!(format!("{outcome:.6?}"), format!("{wanted:.6?}"));
    }

    #[test]
    fn units() {
        assert_eq!((seconds("1.50m"), seconds("2s")), (Some(90.0), Some(2.0)));
        assert_eq!(bytes("1.50KB"), Some(1536.0));
        assert!(parse("nothing\n").is_none() && bytes("12").is_none());
    }
}
