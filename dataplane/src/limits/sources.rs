//! One worker's counts by source: a bounded table of (service, client prefix), four to a cache line.
//!
//! A source is known by 31 bits of a keyed hash beside its place: two of a table of 131,072 are taken for one
//! another once in 2^46. Who has no flow makes room for who comes; where all four of a line have flows, the
//! newcomer is not counted here, and so not limited: a spoofed flood fills the table, and must not lock out
//! the clients that come after it. The service's own limits hold for it all the same.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::rate::Window;
use crate::clock::Now;

const WAYS: usize = 4;

#[derive(Debug, Default)]
struct Way {
    /// 0: free.
    tag: AtomicU32,
    connections: AtomicU32,
    window: AtomicU64,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([Way; WAYS]);

/// Written by one worker, read by all.
#[derive(Debug)]
pub struct Sources(Box<[Line]>);

impl Sources {
    /// With room for about `most`.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self((0..most.div_ceil(WAYS).next_power_of_two()).map(|_| Line::default()).collect())
    }

    #[inline]
    fn line(&self, hash: u64) -> usize {
        hash as usize & (self.0.len() - 1)
    }

    /// Its place, from 1 on.
    #[inline]
    fn find(&self, hash: u64) -> Option<u32> {
        let line = self.line(hash);
        let way = self.0[line].0.iter().position(|way| way.tag.load(Ordering::Relaxed) == tag(hash))?;
        Some((line * WAYS + way + 1) as u32)
    }

    #[inline]
    fn way(&self, place: u32) -> Option<&Way> {
        let place = (place as usize).checked_sub(1)?;
        self.0.get(place / WAYS).map(|line| &line.0[place % WAYS])
    }

    /// Flows a source has here, and has opened here lately.
    #[inline]
    #[must_use]
    pub fn seen(&self, hash: u64, now: Now) -> [u32; 2] {
        self.find(hash).and_then(|place| self.way(place)).map_or([0; 2], |way| {
            let window = Window(way.window.load(Ordering::Relaxed));
            [way.connections.load(Ordering::Relaxed), window.recent(now)]
        })
    }

    /// Whether `place` is that source's.
    #[inline]
    #[must_use]
    pub fn is_at(&self, place: u32, hash: u64) -> bool {
        self.find(hash).is_some_and(|found| found == place)
    }

    /// The place of a source, which it gets if it had none; 0: there is no room.
    pub fn place(&self, hash: u64) -> u32 {
        self.find(hash).unwrap_or_else(|| self.make_room(hash))
    }

    fn make_room(&self, hash: u64) -> u32 {
        let line = self.line(hash);
        let ways = self.0[line].0.iter().enumerate();
        let idle = ways.filter(|(_, way)| way.connections.load(Ordering::Relaxed) == 0);
        let age = |way: &Way| Window(way.window.load(Ordering::Relaxed)).second();
        let Some((at, way)) = idle.min_by_key(|(_, way)| age(way)) else { return 0 };
        way.window.store(0, Ordering::Relaxed);
        way.tag.store(tag(hash), Ordering::Relaxed);
        (line * WAYS + at + 1) as u32
    }

    /// Notes that the source at a place has opened a flow.
    #[inline]
    pub fn opened(&self, place: u32, now: Now) {
        if let Some(way) = self.way(place) {
            way.window.store(Window(way.window.load(Ordering::Relaxed)).count(now).0, Ordering::Relaxed);
        }
    }

    /// The source at a place has one more, or with `u32::MAX` one fewer.
    #[inline]
    pub fn change(&self, place: u32, by: u32) {
        if let Some(way) = self.way(place) {
            way.connections.store(way.connections.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        }
    }
}

#[inline]
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { ns: 5_000_000_000 };

    /// All in one line.
    fn hash(source: u64) -> u64 {
        source << 33
    }

    fn enter(sources: &Sources, source: u64) -> u32 {
        let place = sources.place(hash(source));
        sources.change(place, 1);
        place
    }

    #[test]
    fn the_idle_make_room_and_the_busy_do_not() {
        let sources = Sources::new(4);
        assert!(!sources.is_at(1, hash(0)), "nobody is there yet");
        let places: Vec<u32> = (0..4).map(|source| enter(&sources, source)).collect();
        assert_eq!(places, [1, 2, 3, 4]);
        assert_eq!(enter(&sources, 4), 0, "all four have flows");
        assert_eq!(sources.seen(hash(4), NOW), [0, 0]);
        sources.opened(places[1], NOW);
        sources.opened(places[2], Now { ns: NOW.ns - 1 });
        sources.change(places[1], u32::MAX);
        sources.change(places[2], u32::MAX);
        assert_eq!(sources.seen(hash(1), NOW), [0, 1], "its rate is known without a flow");
        assert_eq!(enter(&sources, 4), places[2], "the one longest idle goes");
        assert_eq!(sources.seen(hash(2), NOW), [0, 0]);
        assert_eq!(sources.seen(hash(4), NOW), [1, 0]);
        assert_eq!(enter(&sources, 4), places[2]);
        assert_eq!(sources.seen(hash(4), NOW), [2, 0]);
        assert!(sources.is_at(places[2], hash(4)) && !sources.is_at(places[2], hash(2)) && !sources.is_at(0, hash(9)));
        assert!(!sources.is_at(places[1], hash(4)));
    }
}
