//! The table at the end: where connections went before and after.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::narrator::thousands;
use crate::clients::Tally;

/// Lines of `node | before | share | after | share`. `removed` is the node taken out between the two.
pub fn table(before: &Tally, after: &Tally, removed: &str) -> String {
    let nodes: BTreeSet<&String> = before.by_node.keys().chain(after.by_node.keys()).collect();
    let mut text = String::new();
    let rule = "     ------+--------+---------+--------+---------\n";
    text.push_str("     node  | before |   share |  after |   share\n");
    text.push_str(rule);
    for node in nodes {
        let cells = |tally: &Tally| {
            let count = tally.by_node.get(node).copied().unwrap_or(0);
            format!("{:>6} | {:>5.1} %", thousands(count), tally.share(node) * 100.0)
        };
        let note = if node == removed { "   (taken out)" } else { "" };
        // Writing to a String can't fail.
        let _ = writeln!(text, "     {node:<5} | {} | {}{note}", cells(before), cells(after));
    }
    text.push_str(rule);
    let total = |tally: &Tally| format!("{:>6} |        ", thousands(tally.answered()));
    let _ = writeln!(text, "     total | {} | {}", total(before), total(after).trim_end());
    let _ = writeln!(text, "     failed| {:>6} |         | {:>6} |", before.failed(), after.failed());
    text
}

/// One line of a volley: how many, how fast, what failed.
pub fn outcome(tally: &Tally, what: &str, per: &str) -> String {
    let rate = tally.answered() * 1000 / u64::try_from(tally.elapsed.as_millis().max(1)).unwrap_or(u64::MAX);
    let failed = tally.failed();
    let failed = if failed == 0 { "none failed".into() } else { format!("{failed} FAILED: {:?}", tally.failures) };
    format!("{} {what}, {} per {per}, {failed}", thousands(tally.answered()), thousands(rate))
}

/// What a change of the set cost the nodes that stayed in it.
pub fn slots_moved(lost: u32, size: u32) -> String {
    let share = f64::from(lost) * 100.0 / f64::from(size.max(1));
    format!(
        "of {} table slots, {} ({share:.2} %) moved between the nodes that stayed",
        thousands(size.into()),
        thousands(lost.into())
    )
}

#[cfg(test)]
mod tests {
    use super::{Tally, table};

    #[test]
    fn shows_who_got_what() {
        let tally = |counts: &[(&str, u64)]| Tally {
            by_node: counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect(),
            ..Tally::default()
        };
        let text = table(&tally(&[("node0", 1000), ("node1", 3000)]), &tally(&[("node1", 4000)]), "node0");
        let rows: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows[2], "node0 | 1,000 | 25.0 % | 0 | 0.0 % (taken out)");
        assert_eq!(rows[3], "node1 | 3,000 | 75.0 % | 4,000 | 100.0 %");
        assert_eq!(rows[5], "total | 4,000 | | 4,000 |");
    }
}
