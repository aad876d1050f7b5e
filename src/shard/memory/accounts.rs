//! The memory that a shard holds for one owner, and the owner's connections that hold most of it.
//!
//! Invariants: a connection is always in exactly one list, that of its size as a power of two, so that the fullest (to
//! a factor of two) is found without a search; the tally is the sum over the holders.

use crate::admission::{HeldAs, Tally, Tenant};
use crate::shard::table::slot::Slot;
use std::cell::Cell;
use std::rc::Rc;

/// The memory that one connection makes the shard hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::shard) struct Held {
    /// Bytes that wait to be sent.
    pub queued: usize,
    /// The bytes allocated for it alone: not in the window, and no payload by reference.
    pub own: usize,
    /// Received bytes that are incomplete, or may not be parsed yet.
    pub incoming: usize,
}

/// A list that a connection can stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) enum HolderList {
    Queued = 0,
    Incoming = 1,
}

/// See the module.
pub(super) struct OwnerAccount {
    tally: Tally,
    /// Payloads that wait for it by reference: as they are now, and as the tally has them.
    shared: Rc<Cell<usize>>,
    shared_tallied: usize,
    lists: [Lists; 2],
    holders: usize,
    /// It stands in the list of those to publish.
    pub is_dirty: bool,
}

/// Connections by the power of two of what they hold.
#[derive(Default)]
struct Lists {
    classes: Vec<Vec<Slot>>,
    /// One bit for each list that is not empty.
    occupied: usize,
}

/// A place in such a list.
#[derive(Clone, Copy)]
pub(super) struct ListPlace {
    class: usize,
    at: usize,
}

impl OwnerAccount {
    /// Nothing is held for `tenant` here.
    pub(super) fn new(tenant: Tenant) -> Self {
        Self {
            tally: Tally::new(tenant),
            shared: Rc::default(),
            shared_tallied: 0,
            lists: Default::default(),
            holders: 0,
            is_dirty: false,
        }
    }

    /// The tenant.
    pub(super) fn tenant(&self) -> &Tenant {
        self.tally.tenant()
    }

    /// The sum of payloads that wait by reference, for a charge to count in.
    pub(super) fn shared(&self) -> &Rc<Cell<usize>> {
        &self.shared
    }

    /// One connection more holds something.
    pub(super) fn count_holder(&mut self) {
        self.holders += 1;
    }

    /// One connection less does.
    pub(super) fn uncount_holder(&mut self) {
        self.holders -= 1;
    }

    /// A connection holds this now, and has held that.
    pub(super) fn change(&mut self, before: Held, now: Held) {
        self.tally.change(HeldAs::Queued, before.own, now.own);
        self.tally.change(HeldAs::Incoming, before.incoming, now.incoming);
    }

    /// Publishes to all shards the memory held here.
    pub(super) fn publish(&mut self) {
        let shared = self.shared.get();
        self.tally.change(HeldAs::Shared, self.shared_tallied, shared);
        self.shared_tallied = shared;
        self.tally.publish();
    }

    /// Returns whether nothing is held here.
    pub(super) fn is_empty(&self) -> bool {
        self.holders == 0 && self.shared.get() == 0
    }

    /// Returns whether its held memory may change without notice: shared payloads are released by their last user.
    pub(super) fn has_shared(&self) -> bool {
        self.shared.get() > 0
    }

    /// The size class of the fullest connection, and that connection.
    pub(super) fn fullest(&self, kind: HolderList) -> Option<(usize, Slot)> {
        let lists = &self.lists[kind as usize];
        let class = lists.occupied.checked_ilog2()? as usize;
        Some((class, *lists.classes[class].last().expect("an occupied class has a holder")))
    }

    /// Puts a connection where `bytes` belong; returns where it stands.
    pub(super) fn enter(&mut self, slot: Slot, kind: HolderList, class: usize) -> ListPlace {
        self.lists[kind as usize].push(class, slot)
    }

    /// Removes the holder at `spot`; returns the one that is there now.
    pub(super) fn leave(&mut self, kind: HolderList, spot: ListPlace) -> Option<Slot> {
        self.lists[kind as usize].remove(spot)
    }

    /// How many stand in the lists of a kind.
    pub(super) fn listed(&self, kind: HolderList) -> usize {
        self.lists[kind as usize].classes.iter().map(Vec::len).sum()
    }
}

impl ListPlace {
    pub(super) fn class(self) -> usize {
        self.class
    }
}

impl Lists {
    fn push(&mut self, class: usize, slot: Slot) -> ListPlace {
        if self.classes.len() <= class {
            self.classes.resize_with(class + 1, Vec::new);
        }
        self.occupied |= 1 << class;
        self.classes[class].push(slot);
        ListPlace { class, at: self.classes[class].len() - 1 }
    }

    fn remove(&mut self, spot: ListPlace) -> Option<Slot> {
        let class = &mut self.classes[spot.class];
        class.swap_remove(spot.at);
        if class.is_empty() {
            self.occupied &= !(1 << spot.class);
        }
        class.get(spot.at).copied()
    }
}
