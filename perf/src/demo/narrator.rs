//! Numbered steps and a progress line. On something that is no terminal only finished lines appear.

use std::cell::Cell;
use std::io::{IsTerminal, Write, stdout};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const REDRAW: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct Narrator {
    step: Cell<u32>,
}

impl Narrator {
    /// Begins a step: its number, its title, and why it happens.
    pub fn step(&self, title: &str, why: &str) {
        self.step.set(self.step.get() + 1);
        println!("\n{}. {title}", self.step.get());
        for line in why.lines() {
            println!("   {}", line.trim_start());
        }
    }

    pub fn say(&self, line: impl AsRef<str>) {
        println!("     {}", line.as_ref());
    }

    /// A line that counts up; `done` replaces it by its last state.
    #[must_use]
    pub fn progress<'a>(&self, what: &'a str, total: u64) -> Progress<'a> {
        Progress { what, total, terminal: stdout().is_terminal(), drawn: Mutex::new(None) }
    }
}

#[derive(Debug)]
pub struct Progress<'a> {
    what: &'a str,
    total: u64,
    terminal: bool,
    drawn: Mutex<Option<Instant>>,
}

impl Progress<'_> {
    pub fn at(&self, count: u64) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let due = drawn.is_none_or(|last| last.elapsed() > REDRAW);
        if self.terminal && due {
            *drawn = Some(Instant::now());
            print!("\r     {:<28} {} of {}", self.what, thousands(count), thousands(self.total));
            // A terminal that went away ends the demo by SIGHUP, not here.
            let _ = stdout().flush();
        }
    }

    pub fn done(&self, outcome: &str) {
        let start = if self.terminal { "\r" } else { "" };
        println!("{start}     {:<28} {outcome:<40}", self.what);
    }
}

/// 12345 as `12,345`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn groups_of_three() {
        assert_eq!([0, 999, 1000, 65_537, 1_234_567].map(thousands), ["0", "999", "1,000", "65,537", "1,234,567"]);
    }
}
