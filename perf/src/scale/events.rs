//! What an event costs the packets of a worker, told apart from what its machine costs them.
//!
//! The worst of millions of turns is the machine's on every machine that has interrupts, or a host below it.
//! So an event is repeated, and of each time the worst gap is taken, among the turns it touches; as many
//! windows of as many turns are taken anywhere in the same loop without the event. The target is met if
//!
//! - the median and the 99th percentile of the events' worst gaps are below it, and
//! - windows with a gap beyond it are no more frequent with the event than without: of all such windows the
//!   events have no more than would be theirs by chance in 99 of 100 runs, if they were drawn from one urn
//!   (Fisher's exact test, one-sided). A machine that is never late leaves the event none; one that is late now
//!   and then leaves it its share.

use hdrhistogram::Histogram;

use super::gaps::{Gaps, histogram};
use super::report::{Figure, Section, short};
use super::snapshot::PAUSE_US;

/// The chance of calling an event guilty of what the machine did.
const DOUBT: f64 = 0.01;

/// Adds what is known of an event (in the plural: "publications"), each of `turns` turns.
pub fn add(section: &mut Section, events: &str, turns: &str, with: &[Gaps], without: &[Gaps]) {
    let [with_it, without_it] = [with, without].map(|runs| all(runs.iter().map(|gaps| &gaps.windows)));
    let broken: u64 = with.iter().map(|gaps| gaps.broken).sum();
    if broken > with_it.len() || with_it.is_empty() || without_it.is_empty() {
        // Too few to say anything of: no percentile of nothing is below the target.
        let seen = format!("{} were seen whole, {} {turns} without", with_it.len(), without_it.len());
        section.add(Figure::new(format!("{events} left out"), (broken + 1) as f64, "").at_most(0.0).beside(seen));
        return;
    }
    let at = |windows: &Histogram<u64>, quantile| windows.value_at_quantile(quantile) as f64 / 1e3;
    let quiet = |quantile| format!("{} in {turns} without", short(at(&without_it, quantile)));
    section.add(
        Figure::new(format!("{events}: worst gap of each, own time, median"), at(&with_it, 0.5), "us")
            .at_most(PAUSE_US)
            .beside(format!("{}; {} of each", quiet(0.5), counts(&with_it, &without_it))),
    );
    section.add(
        Figure::new(format!("{events}: worst gap of each, own time, p99"), at(&with_it, 0.99), "us")
            .at_most(PAUSE_US)
            .beside(quiet(0.99)),
    );
    let beyond = [&with_it, &without_it].map(|windows| beyond(windows, (PAUSE_US * 1e3) as u64));
    let most = share_by_chance(beyond[0] + beyond[1], with_it.len(), without_it.len());
    section.add(
        Figure::new(format!("{events} with a gap beyond {PAUSE_US} us"), beyond[0] as f64, "")
            .at_most(most as f64)
            .beside(format!("{} without; more than {most} of these would not be chance", beyond[1])),
    );
    section.add(
        Figure::new(format!("{events}: worst gap of all, own time"), with_it.max() as f64 / 1e3, "us")
            .beside(format!("{} in {turns} without", short(without_it.max() as f64 / 1e3))),
    );
    if broken > 0 {
        section.note(format!("{broken} {events} are left out: another process, or the timer, had the core."));
    }
}

fn counts(with: &Histogram<u64>, without: &Histogram<u64>) -> String {
    if with.len() == without.len() { with.len().to_string() } else { format!("{} and {}", with.len(), without.len()) }
}

/// Histograms taken together.
pub fn all<'a>(runs: impl Iterator<Item = &'a Histogram<u64>>) -> Histogram<u64> {
    let mut all = histogram();
    for run in runs {
        // The same bounds as this one's: there is nothing to refuse.
        let _ = all.add(run);
    }
    all
}

fn beyond(windows: &Histogram<u64>, limit: u64) -> u64 {
    windows.iter_recorded().filter(|value| value.value_iterated_to() > limit).map(|value| value.count_at_value()).sum()
}

/// Of `late` windows out of `with` and `without`, the most with the event that chance explains: the
/// hypergeometric distribution's terms from the top, as long as their sum is below the doubt.
fn share_by_chance(late: u64, with: u64, without: u64) -> u64 {
    let mut logarithm = 0.0;
    let mut log_factorials = vec![0.0];
    log_factorials.extend((1..=with + without).map(|n| {
        logarithm += (n as f64).ln();
        logarithm
    }));
    let of = |n: u64| log_factorials[n as usize];
    let choose = |n: u64, k: u64| of(n) - of(k) - of(n - k);
    let (fewest, most) = (late.saturating_sub(without), late.min(with));
    let chance = |k: u64| (choose(with, k) + choose(without, late - k) - choose(with + without, late)).exp();
    let mut tail = 0.0;
    let explained = (fewest..=most).rev().find(|k| {
        tail += chance(*k);
        tail >= DOUBT
    });
    explained.unwrap_or(fewest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_explains_a_share_and_no_more() {
        // By exact sums of binomial coefficients.
        assert_eq!(share_by_chance(0, 400, 400), 0);
        assert_eq!(share_by_chance(1, 400, 400), 1, "one late window may be anybody's");
        assert_eq!(share_by_chance(7, 400, 400), 6, "seven of seven: 1 in 128, and a little less without laying back");
        assert_eq!(share_by_chance(100, 400, 400), 61);
        assert_eq!(share_by_chance(20, 10, 1_000), 2);
        assert_eq!(share_by_chance(6, 4, 4), 4, "all with it, two without: 6 in 28");
        assert_eq!(share_by_chance(8, 4, 4), 4);
        assert_eq!(share_by_chance(3_000, 40_000, 40_000), 1_562);
    }

    fn gaps(windows: &[(u64, u64)]) -> Gaps {
        let mut gaps = Gaps::none();
        windows.iter().for_each(|(ns, count)| gaps.windows.record_n(*ns, *count).unwrap());
        gaps
    }

    fn verdicts(with: &[(u64, u64)], without: &[(u64, u64)]) -> Vec<bool> {
        let mut section = Section::new("test", "");
        add(&mut section, "events", "windows", &[gaps(with)], &[gaps(without)]);
        section.figures.iter().filter_map(Figure::met).collect()
    }

    #[test]
    fn what_the_machine_does_is_not_the_events() {
        let machine: &[(u64, u64)] = &[(11_000, 397), (115_000, 3)];
        assert_eq!(verdicts(machine, machine), [true, true, true]);
        assert_eq!(verdicts(&[(49_000, 400)], &[(11_000, 400)]), [true, true, true]);
    }

    #[test]
    fn nothing_seen_meets_no_target() {
        assert_eq!(verdicts(&[], &[(11_000, 400)]), [false]);
        assert_eq!(verdicts(&[(11_000, 400)], &[]), [false]);
    }

    #[test]
    fn what_the_event_does_is_seen() {
        let machine: &[(u64, u64)] = &[(11_000, 400)];
        assert_eq!(verdicts(&[(60_000, 400)], machine), [false, false, false]);
        assert_eq!(verdicts(&[(11_000, 390), (60_000, 10)], machine), [true, false, false], "every fortieth");
        assert_eq!(
            verdicts(&[(11_000, 993), (60_000, 7)], &[(11_000, 1000)]),
            [true, true, false],
            "seven in a thousand"
        );
    }
}
