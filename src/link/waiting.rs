//! Connections that have not authenticated yet: a few places for each listener, fewer for each address.
//!
//! A new connection gets a place at once: if all are taken, the connection that has waited longest is dropped, of the
//! same address if that is at its limit, else of the address that has most. So silent connections shut no peer out, and
//! a peer that sends its hello at once is not displaced by another address.
//!
//! Invariants: never more connections at a time than places, including dropped ones until their threads are gone. Does
//! not depend on what is sent on a connection.

use crate::admission::{PeerPlaces, Prefix};
use crate::driver::peer_socket::PeerStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Places of a listener, each of which costs a thread.
pub(super) const PLACES_MAX: usize = 16;

/// Places of one address. All peers on a Unix socket are the same user, and may have all places.
pub(super) const PLACES_PER_ADDRESS_MAX: usize = 4;

/// See the module.
#[derive(Default)]
pub(super) struct WaitingRoom {
    places: Mutex<WaitingPlaces>,
    left: Condvar,
}

type WaitingPlaces = PeerPlaces<Option<Prefix>, WaitingConnection>;

struct WaitingConnection {
    stream: Arc<PeerStream>,
    /// It has been told to go.
    goes: bool,
}

/// A place in the room, until it is dropped.
pub(super) struct WaitingPlace {
    room: Arc<WaitingRoom>,
    number: u64,
}

impl WaitingRoom {
    /// Gives a connection a place. Waits for the one that has to go, whose thread wakes as its stream is shut down.
    pub(super) fn enter(self: &Arc<Self>, stream: &Arc<PeerStream>) -> WaitingPlace {
        let from = stream.peer_ip().map(Prefix::from);
        let mut places = self.lock();
        while let Some((_, oldest)) = must_go(&places, from).and_then(|from| places.oldest_of(from)) {
            if !std::mem::replace(&mut oldest.goes, true) {
                tracing::debug!("a link's connection was closed: it said no hello, and another came");
                oldest.stream.shutdown();
            }
            places = self.left.wait(places).unwrap_or_else(PoisonError::into_inner);
        }
        let number = places.take(from, WaitingConnection { stream: stream.clone(), goes: false });
        WaitingPlace { room: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, WaitingPlaces> {
        // Every change is one call on the places, or one assignment.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address whose oldest connection has to go before one from `from` may come in.
fn must_go(places: &WaitingPlaces, from: Option<Prefix>) -> Option<Option<Prefix>> {
    match () {
        () if from.is_some() && places.of(from) >= PLACES_PER_ADDRESS_MAX => Some(from),
        () if places.len() >= PLACES_MAX => places.fullest(),
        () => None,
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        self.room.lock().leave(self.number);
        self.room.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::IpAddr;
    use std::os::unix::net::UnixStream;

    fn prefix(from: u8) -> Option<Prefix> {
        Some(IpAddr::from([127, 0, 0, from]).into())
    }

    fn take(places: &mut WaitingPlaces, from: u8) {
        let stream = Arc::new(PeerStream::Unix(UnixStream::pair().unwrap().0));
        places.take(prefix(from), WaitingConnection { stream, goes: false });
    }

    fn in_the_way(places: &mut WaitingPlaces, from: u8) -> Option<u64> {
        must_go(places, prefix(from)).and_then(|from| places.oldest_of(from)).map(|(number, _)| number)
    }

    #[test]
    fn the_oldest_goes_of_the_address_that_has_most() {
        let places = &mut WaitingPlaces::default();
        for from in [1, 2, 1, 1] {
            take(places, from);
            assert_eq!(in_the_way(places, 1), None);
        }
        take(places, 1);
        assert_eq!([1, 2, 9].map(|from| in_the_way(places, from)), [Some(1), None, None]);
        for from in 3..3 + (PLACES_MAX - 5) as u8 {
            take(places, from);
        }
        assert_eq!([1, 2, 200].map(|from| in_the_way(places, from)), [Some(1); 3]);
        [1, 3, 4].into_iter().for_each(|number| places.leave(number));
        (201..204).for_each(|from| take(places, from));
        assert_eq!(in_the_way(places, 250), Some(2), "all have one: the one that was here first");
    }

    #[test]
    fn a_newcomer_has_a_place_as_soon_as_the_oldest_is_gone() {
        let room = Arc::<WaitingRoom>::default();
        let mut there = Vec::new();
        std::thread::scope(|scope| {
            for _ in 0..3 * PLACES_MAX {
                let (here, other) = UnixStream::pair().unwrap();
                there.push(other);
                let stream = Arc::new(PeerStream::Unix(here));
                let place = room.enter(&stream);
                assert!(room.lock().len() <= PLACES_MAX);
                scope.spawn(move || {
                    // Silent until it is shut down.
                    assert_eq!((&*stream).read(&mut [0]).unwrap(), 0);
                    drop(place);
                });
            }
            there.clear();
        });
        assert!(room.lock().is_empty());
    }
}
