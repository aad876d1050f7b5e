//! A limited number of places, each with its peer, and the rule for making room when they run out.
//!
//! The rule: the peer that has most places gives its oldest; of peers with equally many, the one that was here first.
//! Limits, and whether a newcomer may displace another at all, are the caller's to decide.
//!
//! It must not know what holds a place.

use std::collections::VecDeque;

/// See the module. `K` names a peer; `T` is kept with each place.
pub struct PeerPlaces<K, T> {
    /// The oldest first.
    taken: VecDeque<PeerPlace<K, T>>,
    /// Counts arrivals.
    count: u64,
}

struct PeerPlace<K, T> {
    number: u64,
    from: K,
    kept: T,
}

impl<K, T> Default for PeerPlaces<K, T> {
    fn default() -> Self {
        Self { taken: VecDeque::new(), count: 0 }
    }
}

impl<K: Copy + PartialEq, T> PeerPlaces<K, T> {
    /// The number of places taken.
    pub fn len(&self) -> usize {
        self.taken.len()
    }

    /// Returns whether none is taken.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// The number of places that a peer has.
    pub fn of(&self, from: K) -> usize {
        self.taken.iter().filter(|place| place.from == from).count()
    }

    /// Takes a place. Returns its number, which is never used again.
    pub fn take(&mut self, from: K, kept: T) -> u64 {
        self.count += 1;
        self.taken.push_back(PeerPlace { number: self.count, from, kept });
        self.count
    }

    /// Gives a place back, if it is still taken.
    pub fn leave(&mut self, number: u64) {
        self.taken.retain(|place| place.number != number);
    }

    /// The peer that has most places, by the rule of the module.
    pub fn fullest(&self) -> Option<K> {
        // Of equals `max_by_key` returns the last.
        self.taken.iter().rev().map(|place| place.from).max_by_key(|&from| self.of(from))
    }

    /// The number of a peer's oldest place, and what is kept with it.
    pub fn oldest_of(&mut self, from: K) -> Option<(u64, &mut T)> {
        self.taken.iter_mut().find(|place| place.from == from).map(|place| (place.number, &mut place.kept))
    }

    /// Takes a peer's oldest place away.
    pub fn remove_oldest_of(&mut self, from: K) -> Option<T> {
        let oldest = self.taken.iter().position(|place| place.from == from)?;
        self.taken.remove(oldest).map(|place| place.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_that_has_most_gives_its_oldest_and_of_equals_the_first() {
        let mut places = PeerPlaces::default();
        assert_eq!((places.fullest(), places.is_empty()), (None, true));
        let numbers: Vec<u64> = ["a", "b", "a", "b"].map(|from| places.take(from, ())).into();
        assert_eq!((places.fullest(), places.len(), places.of("a")), (Some("a"), 4, 2));
        assert_eq!(places.oldest_of("b").map(|(number, ())| number), Some(numbers[1]));
        places.leave(numbers[0]);
        assert_eq!(places.fullest(), Some("b"));
        assert_eq!(places.remove_oldest_of("b"), Some(()));
        assert_eq!(places.fullest(), Some("a"), "one each: the one that was here first");
        assert_eq!(places.remove_oldest_of("c"), None);
        assert!(places.take("c", ()) > numbers[3]);
    }
}
