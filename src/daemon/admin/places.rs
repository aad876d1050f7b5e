//! The admin listener's connections: a limited number, which silent ones of one address cannot take from others.
//!
//! When all places are taken, the oldest connection of the address that has most makes room for one of an address that
//! has fewer, or for a newer one of its own. Invariant: never more at a time than [`CONNECTIONS_MAX`]. Does not depend
//! on what is sent on a connection.

use std::collections::VecDeque;
use std::net::IpAddr;

/// Connections at a time: a few collectors, probes and pages that people leave open.
pub(super) const CONNECTIONS_MAX: usize = 64;

/// See the module. With each connection stands what ends it.
pub(super) struct AdminPlaces<T> {
    /// The oldest first.
    taken: VecDeque<AdminPlace<T>>,
    count: u64,
}

struct AdminPlace<T> {
    number: u64,
    from: IpAddr,
    end: T,
}

impl<T> Default for AdminPlaces<T> {
    fn default() -> Self {
        Self { taken: VecDeque::new(), count: 0 }
    }
}

impl<T> AdminPlaces<T> {
    /// Takes a place for a connection from this address. Returns its number, and the end of the connection that has to
    /// go for it; or nothing, if this one has to go.
    pub(super) fn enter(&mut self, from: IpAddr, end: T) -> Option<(u64, Option<T>)> {
        let gone = if self.taken.len() < CONNECTIONS_MAX { None } else { Some(self.make_room(from)?) };
        self.count += 1;
        self.taken.push_back(AdminPlace { number: self.count, from, end });
        Some((self.count, gone))
    }

    /// A connection is over.
    pub(super) fn leave(&mut self, number: u64) {
        self.taken.retain(|place| place.number != number);
    }

    fn make_room(&mut self, from: IpAddr) -> Option<T> {
        let of = |from: IpAddr| self.taken.iter().filter(|place| place.from == from).count();
        // Of equals the one that was here first.
        let most = self.taken.iter().rev().map(|place| place.from).max_by_key(|&from| of(from))?;
        let may_go = most == from || of(most) > of(from) + 1;
        let oldest = self.taken.iter().position(|place| place.from == most).filter(|_| may_go)?;
        self.taken.remove(oldest).map(|place| place.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn who_has_most_makes_room_and_of_its_own_the_oldest_goes() {
        let mut places = AdminPlaces::default();
        let probe = places.enter(address(1), "probe").unwrap().0;
        for _ in 1..CONNECTIONS_MAX {
            assert_eq!(places.enter(address(2), "silent").unwrap().1, None);
        }
        assert_eq!(places.enter(address(2), "another").unwrap().1, Some("silent"), "it takes its own place");
        assert_eq!(places.enter(address(3), "collector").unwrap().1, Some("silent"));
        assert_eq!(places.taken.len(), CONNECTIONS_MAX);
        assert!(places.taken.iter().any(|place| place.number == probe));
        places.leave(probe);
        assert_eq!(places.enter(address(4), "page").unwrap().1, None);
    }

    #[test]
    fn where_all_have_as_many_nobody_makes_room_for_one_more() {
        let mut places = AdminPlaces::default();
        for from in 0..CONNECTIONS_MAX as u8 {
            places.enter(address(from), from).unwrap();
        }
        assert_eq!(places.enter(address(200), 200), None);
    }
}
