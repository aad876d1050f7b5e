//! Audiences of event streams that have no listener any more and whose listeners may come back, by the client that left
//! each of them.
//!
//! Invariants: there are at most [`AUDIENCES_MAX`] of them; where there are more, the client that left most loses the
//! one that it left first, so a client that leaves many does not cost others theirs. It must not depend on journals.

use super::listener_audience::ListenerAudience;
use crate::admission::Prefix;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Audiences at a time, of one process on one shard.
pub(super) const AUDIENCES_MAX: usize = 4_096;

/// The memory of an audience in the maps, beside its name: its place in nodes that are two thirds full.
const LISTED_BYTES: usize = (size_of::<u64>() + size_of::<ListenerAudience>()) * 3 / 2;

/// The memory of a client in them: its own map has at least one node.
const CLIENT_BYTES: usize = 11 * (size_of::<u64>() + size_of::<ListenerAudience>()) + 128;

/// The departed client: none, if its connection is counted as no client's.
pub(in crate::shard) type DepartedClient = Option<Prefix>;

/// The place of an audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DepartedPlace {
    by: DepartedClient,
    number: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Departed {
    of: HashMap<DepartedClient, BTreeMap<u64, ListenerAudience>>,
    by_count: BTreeSet<(usize, DepartedClient)>,
    len: usize,
    next: u64,
}

impl Departed {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many this client has left.
    pub(crate) fn count(&self, by: DepartedClient) -> usize {
        self.of.get(&by).map_or(0, BTreeMap::len)
    }

    /// This client has left an audience that was not departed before. If there are too many now, another place, or
    /// this one, is to be given up for it: see [`shed`](Self::shed).
    pub(crate) fn insert(&mut self, by: DepartedClient, audience: ListenerAudience) -> DepartedPlace {
        let number = self.next;
        self.next += 1;
        self.change(by, |of| _ = of.insert(number, audience));
        DepartedPlace { by, number }
    }

    /// It is not departed any more.
    pub(crate) fn remove(&mut self, place: DepartedPlace) {
        self.change(place.by, |of| _ = of.remove(&place.number));
    }

    /// Another client has left it, too: it counts as left by the one that has left fewer.
    pub(crate) fn leave_again(&mut self, place: DepartedPlace, by: DepartedClient) -> DepartedPlace {
        if by == place.by || self.count(by) + 1 >= self.count(place.by) {
            return place;
        }
        let Some(audience) = self.of.get(&place.by).and_then(|of| of.get(&place.number)).cloned() else { return place };
        self.remove(place);
        self.insert(by, audience)
    }

    /// Removes the next excess audience.
    pub(crate) fn shed(&mut self) -> Option<ListenerAudience> {
        let &(_, by) = self.by_count.last().filter(|_| self.len > AUDIENCES_MAX)?;
        let (&number, audience) = self.of.get(&by)?.first_key_value()?;
        let audience = audience.clone();
        self.remove(DepartedPlace { by, number });
        Some(audience)
    }

    fn change(&mut self, by: DepartedClient, change: impl FnOnce(&mut BTreeMap<u64, ListenerAudience>)) {
        let of = self.of.entry(by).or_default();
        let before = of.len();
        change(of);
        let after = of.len();
        if after == 0 {
            self.of.remove(&by);
        }
        self.by_count.remove(&(before, by));
        if after > 0 {
            self.by_count.insert((after, by));
        }
        self.len = self.len - before + after;
    }

    /// Its heap bytes, without names.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.len * LISTED_BYTES + self.of.len() * CLIENT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn client(number: u32) -> DepartedClient {
        Some(IpAddr::from(Ipv4Addr::from_bits(number)).into())
    }

    fn audience(number: usize) -> ListenerAudience {
        ListenerAudience::Topic(number.to_string().into())
    }

    #[test]
    fn who_left_most_gives_what_it_left_first() {
        let mut departed = Departed::default();
        let own = departed.insert(client(1), audience(0));
        for number in 1..AUDIENCES_MAX {
            departed.insert(client(2), audience(number));
            assert_eq!(departed.shed(), None);
        }
        for number in 1..100 {
            departed.insert(client(2), audience(AUDIENCES_MAX + number));
            assert_eq!(departed.shed(), Some(audience(number)));
        }
        for stranger in 3..2_000 {
            departed.insert(client(stranger), audience(usize::MAX - stranger as usize));
            assert!(departed.shed().is_some_and(|shed| shed != audience(0)));
        }
        assert_eq!((departed.count(client(1)), departed.len()), (1, AUDIENCES_MAX));
        departed.remove(own);
        assert_eq!((departed.count(client(1)), departed.len()), (0, AUDIENCES_MAX - 1));
    }

    #[test]
    fn an_audience_that_two_have_left_counts_as_left_by_the_one_that_left_fewer() {
        let mut departed = Departed::default();
        let place = departed.insert(client(1), audience(0));
        (1..10).for_each(|number| _ = departed.insert(client(2), audience(number)));
        assert_eq!(departed.leave_again(place, client(2)), place, "it is not drawn to whoever left many");
        let drawn = departed.insert(client(2), audience(100));
        let mended = departed.leave_again(drawn, client(1));
        assert_eq!((mended.by, departed.count(client(1)), departed.count(client(2))), (client(1), 2, 9));
    }
}
