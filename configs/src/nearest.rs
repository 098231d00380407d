//! "Did you mean": the known word nearest to one that is not known.

/// Below this the suggestion puzzles more than it helps.
const LIKENESS: f64 = 0.8;
/// Distinct unknown words looked up per document: a snapshot in which every name is wrong must not
/// cost names × names.
const LOOKUPS: usize = 64;

/// The word of `known` most like `word`, if one is alike enough.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // Long words are made by machines; comparing them costs length × length.
    if word.len() > 256 {
        return None;
    }
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let word = plain(word);
    known
        .into_iter()
        .map(|candidate| (likeness(&word, &plain(candidate)), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Between 0 and 1. In short words one slip weighs too much with Jaro-Winkler: "tpc" for "tcp".
fn likeness(word: &str, candidate: &str) -> f64 {
    let one_slip = word.len() > 2 && strsim::osa_distance(word, candidate) == 1;
    strsim::jaro_winkler(word, candidate).max(if one_slip { LIKENESS } else { 0.0 })
}

/// [`nearest`] with a budget, for words a document may hold by the thousand.
#[derive(Debug, Default)]
pub(crate) struct Suggester {
    spent: usize,
}

impl Suggester {
    pub(crate) fn nearest<'k>(&mut self, word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
        self.spent += 1;
        if self.spent > LOOKUPS { None } else { nearest(word, known) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_typing_errors_and_no_strangers() {
        let known = ["interface", "queues", "xdp", "zero_copy"];
        assert_eq!(nearest("inteface", known), Some("interface"));
        assert_eq!(nearest("zero-copy", known), Some("zero_copy"));
        assert_eq!(nearest("XDP", known), Some("xdp"));
        assert_eq!(nearest("tpc", ["tcp", "udp"]), Some("tcp"));
        assert_eq!(nearest("ab", ["ac", "cd"]), None);
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn the_budget_ends() {
        let mut suggester = Suggester::default();
        let hits = (0..1000).filter(|_| suggester.nearest("nod1", ["node1"]).is_some()).count();
        assert_eq!(hits, LOOKUPS);
    }
}
