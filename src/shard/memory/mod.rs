//! What a shard holds for its clients, by kind, and who holds most of it.
//!
//! Everything is counted where it begins and ends to wait, on the slow paths only: what leaves at once, or is read
//! whole, never comes here. A payload that waits by reference is counted once for its push, however many channels wait
//! for it, since it is in memory once; a channel's own budget counts it in full.
//!
//! Invariants: the sums are the sums over the holders; a holder stands in the list of its size, a power of two, at once
//! and once, so that the fullest (to a factor of two) is found without a search. Knows no connection but by its place.

mod pressure;

use crate::admission::{Lease, Ledger};
use crate::shard::table::slot::Slot;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::rc::Rc;

/// What one connection makes the shard hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    /// Bytes that wait to be sent.
    pub queued: usize,
    /// Those of them that are its own: not in the window, and no payload by reference.
    pub own: usize,
    /// What was received and is not whole, or may not be parsed yet.
    pub incoming: usize,
}

/// A list that a connection can stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Queued = 0,
    Incoming = 1,
}

/// Bytes of a shard's clients and processes, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryReport {
    /// The budget of all shards; `None` is without limit.
    pub budget_bytes: Option<usize>,
    /// What this shard has leased of it.
    pub leased_bytes: usize,
    /// Frames and responses that wait behind full sockets, each channel's own copies.
    pub queued_bytes: usize,
    /// Payloads that wait by reference, in the window or behind full sockets: once for each push.
    pub shared_bytes: usize,
    /// Frames and responses that wait for their first send.
    pub window_bytes: usize,
    /// Messages and requests that have not wholly arrived, and what was read but may not be parsed yet.
    pub incoming_bytes: usize,
    /// Payloads of orders that the shard has not obeyed yet.
    pub inbox_bytes: usize,
    /// Events that processes have not read; of all shards, told by the first, as what follows.
    pub process_queue_bytes: usize,
    /// Routes and their static content.
    pub content_bytes: usize,
    /// What links keep for their peers.
    pub link_bytes: usize,
}

impl MemoryReport {
    /// What this shard has counted against its lease.
    pub fn used_bytes(&self) -> usize {
        self.queued_bytes + self.shared_bytes + self.window_bytes + self.incoming_bytes + self.inbox_bytes
    }

    /// What is held outside of shards, as the first of them tells it.
    pub fn kept_bytes(&self) -> usize {
        self.process_queue_bytes + self.content_bytes + self.link_bytes
    }
}

/// See the module.
pub(super) struct Memory {
    ledger: Ledger,
    lease: Lease,
    own: usize,
    incoming: usize,
    shared: Rc<Cell<usize>>,
    window: usize,
    inbox: usize,
    holders: FxHashMap<Slot, Holder>,
    lists: [Lists; 2],
    /// When more was held than could be leased, if it ever was.
    short: Option<Short>,
    /// Connections that are not read until there is memory.
    waiting: Vec<Slot>,
}

/// A time in which memory was short.
#[derive(Clone, Copy)]
pub(super) struct Short {
    pub since_ms: u64,
    pub last_ms: u64,
}

#[derive(Default)]
struct Holder {
    held: Held,
    spots: [Option<Spot>; 2],
}

/// A place in [`Lists`].
#[derive(Clone, Copy)]
struct Spot {
    class: usize,
    at: usize,
}

/// Connections by the power of two of what they hold.
struct Lists {
    classes: [Vec<Slot>; usize::BITS as usize],
    /// One bit for each list that is not empty.
    occupied: usize,
}

impl Default for Lists {
    fn default() -> Self {
        Self { classes: std::array::from_fn(|_| Vec::new()), occupied: 0 }
    }
}

impl Memory {
    pub fn new(ledger: Ledger) -> Self {
        Self {
            // A shard always has a step, whatever the others hold.
            lease: ledger.budget().lease(1),
            ledger,
            own: 0,
            incoming: 0,
            shared: Rc::default(),
            window: 0,
            inbox: 0,
            holders: FxHashMap::default(),
            lists: Default::default(),
            short: None,
            waiting: Vec::new(),
        }
    }

    pub fn used(&self) -> usize {
        self.own + self.incoming + self.shared.get() + self.window + self.inbox
    }

    /// Takes note of what a connection holds now; nothing is to forget it. Answers whether it holds anything.
    pub fn note(&mut self, slot: Slot, held: Held) -> bool {
        let holder = self.holders.entry(slot).or_default();
        let before = std::mem::replace(&mut holder.held, held);
        self.own = self.own - before.own + held.own;
        self.incoming = self.incoming - before.incoming + held.incoming;
        self.list(slot, Kind::Queued, held.queued);
        self.list(slot, Kind::Incoming, held.incoming);
        if held == Held::default() {
            self.holders.remove(&slot);
        }
        held != Held::default()
    }

    /// Takes note of what waits in the window for its first send.
    pub fn note_window(&mut self, bytes: usize) {
        self.window = bytes;
    }

    /// Takes note of the payloads in the inbox.
    pub fn note_inbox(&mut self, bytes: usize) {
        self.inbox = bytes;
    }

    /// A payload that begins to wait by reference.
    pub fn charge(&self, bytes: usize) -> Charge {
        self.shared.set(self.shared.get() + bytes);
        Charge(Some(Rc::new(Charged { bytes, sum: self.shared.clone() })))
    }

    /// Whether what is held, and `more`, is covered by the lease.
    pub fn cover(&self, more: usize) -> bool {
        self.lease.cover(self.used() + more)
    }

    /// Whether a quarter more is held than is leased: what waiting for memory may cost, and no more.
    pub fn is_overdrawn(&self) -> bool {
        self.used() > self.lease.bytes() + self.lease.bytes() / 4
    }

    /// Gives back what is leased and not needed.
    pub fn trim(&self) {
        self.lease.trim(self.used());
    }

    /// The size class of the fullest connection, and that connection.
    pub fn fullest(&self, kind: Kind) -> Option<(usize, Slot)> {
        let lists = &self.lists[kind as usize];
        let class = lists.occupied.checked_ilog2()? as usize;
        Some((class, *lists.classes[class].last().expect("an occupied class has somebody")))
    }

    /// Passes over a connection that can give nothing, until what it holds changes.
    pub fn pass_over(&mut self, slot: Slot, kind: Kind) {
        self.list(slot, kind, 0);
    }

    fn list(&mut self, slot: Slot, kind: Kind, bytes: usize) {
        let holder = self.holders.get_mut(&slot).expect("only holders are listed");
        let class = bytes.checked_ilog2().map(|class| class as usize);
        let spot = holder.spots[kind as usize];
        if spot.map(|spot| spot.class) == class {
            return;
        }
        let lists = &mut self.lists[kind as usize];
        holder.spots[kind as usize] = class.map(|class| lists.push(class, slot));
        if let Some(spot) = spot
            && let Some(moved) = self.lists[kind as usize].remove(spot)
        {
            self.holders.get_mut(&moved).expect("only holders are listed").spots[kind as usize] = Some(spot);
        }
    }

    /// How many connections hold something.
    pub fn holders(&self) -> usize {
        self.holders.len()
    }

    /// What a connection holds, as it was last noted.
    pub fn of(&self, slot: Slot) -> Held {
        self.holders.get(&slot).map_or(Held::default(), |holder| holder.held)
    }

    /// Asserts what the module promises, as far as this part knows it.
    pub fn check(&self) {
        let sum = |of: fn(&Held) -> usize| self.holders.values().map(|holder| of(&holder.held)).sum::<usize>();
        assert_eq!((self.own, self.incoming), (sum(|held| held.own), sum(|held| held.incoming)), "sums are sums");
        for (kind, lists) in self.lists.iter().enumerate() {
            let listed: usize = lists.classes.iter().map(Vec::len).sum();
            let spots = self.holders.values().filter(|holder| holder.spots[kind].is_some()).count();
            assert_eq!(listed, spots, "a holder stands in the list of its size once");
        }
    }

    pub fn report(&self) -> MemoryReport {
        MemoryReport {
            budget_bytes: self.ledger.budget().bytes(),
            leased_bytes: self.lease.bytes(),
            queued_bytes: self.own,
            shared_bytes: self.shared.get(),
            window_bytes: self.window,
            incoming_bytes: self.incoming,
            inbox_bytes: self.inbox,
            ..MemoryReport::default()
        }
    }

    /// The same with what is held outside of shards.
    pub fn report_all(&self) -> MemoryReport {
        let held = self.ledger.held();
        MemoryReport {
            process_queue_bytes: held.events,
            content_bytes: held.content,
            link_bytes: held.link,
            ..self.report()
        }
    }
}

impl Lists {
    fn push(&mut self, class: usize, slot: Slot) -> Spot {
        self.occupied |= 1 << class;
        self.classes[class].push(slot);
        Spot { class, at: self.classes[class].len() - 1 }
    }

    /// Answers who stands there now.
    fn remove(&mut self, spot: Spot) -> Option<Slot> {
        let class = &mut self.classes[spot.class];
        class.swap_remove(spot.at);
        if class.is_empty() {
            self.occupied &= !(1 << spot.class);
        }
        class.get(spot.at).copied()
    }
}

/// The claim of one payload on the shard's memory, shared by all that wait for it. The default claims nothing: the
/// payload is somebody else's who counts it, or nobody counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Charge(Option<Rc<Charged>>);

impl Charge {
    /// Whether the payload is counted.
    pub fn is_counted(&self) -> bool {
        self.0.is_some()
    }
}

#[derive(Debug)]
struct Charged {
    bytes: usize,
    sum: Rc<Cell<usize>>,
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.sum.set(self.sum.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn queued(bytes: usize) -> Held {
        Held { queued: bytes, own: bytes, incoming: 0 }
    }

    #[test]
    fn the_fullest_is_found_by_size_and_passed_over_until_it_changes() {
        let mut memory = Memory::new(Ledger::default());
        for (slot, bytes) in [(1, 100), (2, 5000), (3, 70)] {
            assert!(memory.note(Slot::new(slot), queued(bytes)));
        }
        assert_eq!(memory.fullest(Kind::Queued), Some((12, Slot::new(2))));
        memory.pass_over(Slot::new(2), Kind::Queued);
        assert_eq!(memory.fullest(Kind::Queued).unwrap().0, 6);
        memory.note(Slot::new(2), queued(4999));
        assert_eq!(memory.fullest(Kind::Queued), Some((12, Slot::new(2))));
        assert!(!memory.note(Slot::new(2), Held::default()));
        assert_eq!((memory.used(), memory.fullest(Kind::Incoming)), (170, None));
    }

    #[test]
    fn a_payload_counts_once_until_the_last_of_its_queues_lets_go() {
        let memory = Memory::new(Ledger::default());
        let charge = memory.charge(1000);
        let second = charge.clone();
        drop(charge);
        assert_eq!(memory.used(), 1000);
        drop(second);
        assert_eq!(memory.used(), 0);
    }

    proptest! {
        #[test]
        fn lists_and_sums_are_those_of_a_naive_twin(
            notes in proptest::collection::vec((0..12u32, 0..9000usize, 0..9000usize), 1..200),
        ) {
            let mut memory = Memory::new(Ledger::default());
            let mut twin = std::collections::BTreeMap::new();
            for (slot, own, incoming) in notes {
                let held = Held { queued: own, own, incoming };
                let slot = Slot::new(slot);
                memory.note(slot, held);
                twin.insert(slot, held);
                prop_assert_eq!(memory.used(), twin.values().map(|held| held.own + held.incoming).sum::<usize>());
                let largest = twin.values().map(|held| held.queued).max().unwrap_or(0);
                let found = memory.fullest(Kind::Queued).map(|(class, slot)| (class, twin[&slot].queued.ilog2() as usize));
                let class = largest.checked_ilog2().map(|class| (class as usize, class as usize));
                prop_assert_eq!(found, class);
                prop_assert!(memory.holders.len() <= 12);
            }
        }
    }
}
