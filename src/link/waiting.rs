//! Connections that have not authenticated yet: a few places for each listener, fewer for each address.
//!
//! A new connection gets a place at once: if all are taken, the connection that has waited longest is dropped, of the
//! same address if that is at its limit, else of the address that has most. So silent connections shut no peer out, and
//! a peer that sends its hello at once is not displaced by another address.
//!
//! Invariants: never more connections at a time than places, including dropped ones until their threads are gone. Does
//! not depend on what is sent on a connection.

use crate::admission::Prefix;
use crate::driver::peer_socket::PeerStream;
use std::collections::VecDeque;
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

#[derive(Default)]
struct WaitingPlaces {
    /// The oldest first.
    taken: VecDeque<WaitingConnection>,
    /// Counts arrivals.
    count: u64,
}

struct WaitingConnection {
    number: u64,
    from: Option<Prefix>,
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
        while let Some(oldest) = places.in_the_way_of(from) {
            if !std::mem::replace(&mut oldest.goes, true) {
                tracing::debug!("a link's connection was closed: it said no hello, and another came");
                oldest.stream.shutdown();
            }
            places = self.left.wait(places).unwrap_or_else(PoisonError::into_inner);
        }
        places.count += 1;
        let number = places.count;
        places.taken.push_back(WaitingConnection { number, from, stream: stream.clone(), goes: false });
        WaitingPlace { room: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, WaitingPlaces> {
        // Every change is one call on the queue, or one assignment.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WaitingPlaces {
    /// The connection that has to go before one from that address may come in.
    fn in_the_way_of(&mut self, from: Option<Prefix>) -> Option<&mut WaitingConnection> {
        let places_of = |from: Option<Prefix>| self.taken.iter().filter(|waiting| waiting.from == from).count();
        let from = match () {
            () if from.is_some() && places_of(from) >= PLACES_PER_ADDRESS_MAX => from,
            () if self.taken.len() >= PLACES_MAX => {
                // Of equals the one that was here first.
                self.taken.iter().rev().map(|waiting| waiting.from).max_by_key(|&from| places_of(from))?
            }
            () => return None,
        };
        self.taken.iter_mut().find(|waiting| waiting.from == from)
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        self.room.lock().taken.retain(|waiting| waiting.number != self.number);
        self.room.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::IpAddr;
    use std::os::unix::net::UnixStream;

    impl WaitingPlaces {
        fn take(&mut self, from: u8) {
            let from = Some(Prefix::from(IpAddr::from([127, 0, 0, from])));
            let stream = Arc::new(PeerStream::Unix(UnixStream::pair().unwrap().0));
            self.count += 1;
            self.taken.push_back(WaitingConnection { number: self.count, from, stream, goes: false });
        }

        fn in_the_way(&mut self, from: u8) -> Option<u64> {
            self.in_the_way_of(Some(IpAddr::from([127, 0, 0, from]).into())).map(|waiting| waiting.number)
        }
    }

    #[test]
    fn the_oldest_goes_of_whoever_has_most() {
        let mut places = WaitingPlaces::default();
        for from in [1, 2, 1, 1] {
            places.take(from);
            assert_eq!(places.in_the_way(1), None);
        }
        places.take(1);
        assert_eq!((places.in_the_way(1), places.in_the_way(2), places.in_the_way(9)), (Some(1), None, None));
        for from in 3..3 + (PLACES_MAX - 5) as u8 {
            places.take(from);
        }
        assert_eq!((places.in_the_way(1), places.in_the_way(2), places.in_the_way(200)), (Some(1), Some(1), Some(1)));
        places.taken.retain(|waiting| ![1, 3, 4].contains(&waiting.number));
        (201..204).for_each(|from| places.take(from));
        assert_eq!(places.in_the_way(250), Some(2), "all have one: the one that was here first");
    }

    #[test]
    fn whoever_comes_has_a_place_as_soon_as_the_oldest_is_gone() {
        let room = Arc::<WaitingRoom>::default();
        let mut there = Vec::new();
        std::thread::scope(|scope| {
            for _ in 0..3 * PLACES_MAX {
                let (here, other) = UnixStream::pair().unwrap();
                there.push(other);
                let stream = Arc::new(PeerStream::Unix(here));
                let place = room.enter(&stream);
                assert!(room.lock().taken.len() <= PLACES_MAX);
                scope.spawn(move || {
                    // Silent until it is shut down.
                    assert_eq!((&*stream).read(&mut [0]).unwrap(), 0);
                    drop(place);
                });
            }
            there.clear();
        });
        assert!(room.lock().taken.is_empty());
    }
}
