//! The admin listener's connections: a limited number, which silent ones of one address cannot take from others.
//!
//! When all places are taken, the oldest connection of the address that has most makes room for one of an address that
//! has fewer, or for a newer one of its own. Invariant: never more at a time than [`CONNECTIONS_MAX`]. Does not depend
//! on what is sent on a connection.

use pushring::internals::admission::PeerPlaces;
use std::net::IpAddr;

/// Connections at a time: a few collectors, probes and pages that people leave open.
pub(super) const CONNECTIONS_MAX: usize = 64;

/// See the module. Each connection is kept with the means to end it.
pub(super) struct AdminPlaces<T>(PeerPlaces<IpAddr, T>);

impl<T> Default for AdminPlaces<T> {
    fn default() -> Self {
        Self(PeerPlaces::default())
    }
}

impl<T> AdminPlaces<T> {
    /// Takes a place for a connection from this address. Returns its number, and the end of the connection that has to
    /// go for it; or nothing, if this one has to go.
    pub(super) fn enter(&mut self, from: IpAddr, end: T) -> Option<(u64, Option<T>)> {
        let gone = if self.0.len() < CONNECTIONS_MAX { None } else { Some(self.make_room(from)?) };
        Some((self.0.take(from, end), gone))
    }

    /// A connection is over.
    pub(super) fn leave(&mut self, number: u64) {
        self.0.leave(number);
    }

    fn make_room(&mut self, from: IpAddr) -> Option<T> {
        let most = self.0.fullest().filter(|&most| most == from || self.0.of(most) > self.0.of(from) + 1)?;
        self.0.remove_oldest_of(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn the_address_that_has_most_makes_room_and_of_its_own_the_oldest_goes() {
        let mut places = AdminPlaces::default();
        let probe = places.enter(address(1), "probe").unwrap().0;
        for _ in 1..CONNECTIONS_MAX {
            assert_eq!(places.enter(address(2), "silent").unwrap().1, None);
        }
        assert_eq!(places.enter(address(2), "another").unwrap().1, Some("silent"), "it takes its own place");
        assert_eq!(places.enter(address(3), "collector").unwrap().1, Some("silent"));
        assert_eq!(places.0.len(), CONNECTIONS_MAX);
        assert_eq!(places.0.oldest_of(address(1)).unwrap().0, probe);
        places.leave(probe);
        assert_eq!(places.enter(address(4), "page").unwrap().1, None);
    }

    #[test]
    fn where_all_have_as_many_none_makes_room_for_one_more() {
        let mut places = AdminPlaces::default();
        for from in 0..CONNECTIONS_MAX as u8 {
            places.enter(address(from), from).unwrap();
        }
        assert_eq!(places.enter(address(200), 200), None);
    }
}
