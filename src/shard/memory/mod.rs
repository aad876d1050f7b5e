//! The memory that a shard holds for its clients, by kind, and the connections that hold most of it.
//!
//! Everything is counted where it begins and ends to wait, on the slow paths only: what leaves at once, or is read
//! whole, is never counted. A payload that waits by reference is counted once for its push, however many channels wait
//! for it, since it is in memory once; a channel's own budget counts it in full.
//!
//! Invariants: the totals are the sums over the holders; a holder is always in exactly one list, that of its size as a
//! power of two, so that the fullest (to a factor of two) is found without a search. Knows a connection only by its
//! place.

mod accounts;
mod pressure;

pub(super) use self::accounts::{Held, HolderList};

use self::accounts::{ListPlace, OwnerAccount};

use crate::admission::{Lease, LeaseReach, Ledger, Tenant};
use crate::gateway::OwnerId;
use crate::shard::owners::directory::Owner;
use crate::shard::table::slot::Slot;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes of a shard's clients and processes, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryReport {
    /// The budget of all shards; `None` is without limit.
    pub budget_bytes: Option<usize>,
    /// The part that this shard has leased.
    pub leased_bytes: usize,
    /// Frames and responses that wait behind full sockets, each channel's own copies.
    pub queued_bytes: usize,
    /// Payloads that wait by reference, in the window or behind full sockets: once for each push.
    pub shared_bytes: usize,
    /// Frames and responses that wait for their first send.
    pub window_bytes: usize,
    /// Empty queues of channels, kept for the next messages.
    pub spare_bytes: usize,
    /// Messages and requests that have not wholly arrived, and what was read but may not be parsed yet.
    pub incoming_bytes: usize,
    /// Payloads of orders that the shard has not executed yet.
    pub inbox_bytes: usize,
    /// Events that processes have not read; of all shards, told by the first, as what follows.
    pub process_queue_bytes: usize,
    /// Routes and their static content.
    pub content_bytes: usize,
    /// Topics and their subscribers, and guests of channels.
    pub topic_bytes: usize,
    /// Memory that links keep for their peers.
    pub link_bytes: usize,
}

impl MemoryReport {
    /// The memory that this shard counts against its lease.
    pub fn used_bytes(&self) -> usize {
        self.waiting_bytes() + self.spare_bytes
    }

    /// The part of it that waits for something.
    pub fn waiting_bytes(&self) -> usize {
        self.queued_bytes + self.shared_bytes + self.window_bytes + self.incoming_bytes + self.inbox_bytes
    }

    /// The memory held outside of shards, as reported by the first of them.
    pub fn kept_bytes(&self) -> usize {
        self.process_queue_bytes + self.content_bytes + self.topic_bytes + self.link_bytes
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
    spare: usize,
    inbox: usize,
    holders: FxHashMap<Slot, MemoryHolder>,
    /// The memory held for each owner; `None` for connections without an owner, not yet or no longer.
    accounts: FxHashMap<Option<OwnerId>, OwnerAccount>,
    nobody: Tenant,
    /// Accounts that have changed since they were published.
    dirty: VecDeque<Option<OwnerId>>,
    /// Owners that hold more than a share and have something here, the fullest last; determined when first needed in a
    /// turn.
    over_share: Option<Vec<Option<OwnerId>>>,
    /// Other shards have been called in this turn, to make owners above their share give back.
    has_called: bool,
    /// There is more for those over their share to give back in the next turn.
    gives_on: bool,
    /// When more was held than could be leased, if it ever was.
    short: Option<Shortage>,
    /// Connections that are not read until there is memory.
    waiting: Vec<Slot>,
}

/// A time in which memory was short.
#[derive(Clone, Copy)]
pub(super) struct Shortage {
    pub since_ms: u64,
    pub last_ms: u64,
}

struct MemoryHolder {
    of: Option<OwnerId>,
    held: Held,
    spots: [Option<ListPlace>; 2],
}

impl Memory {
    pub(super) fn new(ledger: Ledger) -> Self {
        let nobody = ledger.tenant(None);
        Self {
            // A shard always has a step, whatever the others hold.
            lease: ledger.budget().lease(1),
            ledger,
            own: 0,
            incoming: 0,
            shared: Rc::default(),
            window: 0,
            spare: 0,
            inbox: 0,
            holders: FxHashMap::default(),
            accounts: FxHashMap::default(),
            nobody,
            dirty: VecDeque::new(),
            over_share: None,
            has_called: false,
            gives_on: false,
            short: None,
            waiting: Vec::new(),
        }
    }

    pub(super) fn used(&self) -> usize {
        self.own + self.incoming + self.shared.get() + self.window + self.spare + self.inbox
    }

    /// Takes note of what a connection holds now, for the owner whose it is. Returns whether it holds anything.
    pub(super) fn note(&mut self, slot: Slot, owner: Option<&Owner>, held: Held) -> bool {
        let of = owner.map(|owner| owner.id);
        let is_anothers = self.holders.get(&slot).is_some_and(|holder| holder.of != of);
        if is_anothers || held == Held::default() {
            self.forget(slot);
        }
        if held == Held::default() {
            return false;
        }
        let account = account(&mut self.accounts, &self.nobody, owner);
        touch(&mut self.dirty, account, of);
        let holder = self.holders.entry(slot).or_insert_with(|| {
            account.count_holder();
            MemoryHolder { of, held: Held::default(), spots: [None; 2] }
        });
        let before = std::mem::replace(&mut holder.held, held);
        account.change(before, held);
        self.own = self.own - before.own + held.own;
        self.incoming = self.incoming - before.incoming + held.incoming;
        self.list(slot, HolderList::Queued, held.queued);
        self.list(slot, HolderList::Incoming, held.incoming);
        true
    }

    /// A connection holds nothing any more.
    pub(super) fn forget(&mut self, slot: Slot) {
        let Some(holder) = self.holders.get(&slot) else { return };
        let (of, held) = (holder.of, holder.held);
        self.list(slot, HolderList::Queued, 0);
        self.list(slot, HolderList::Incoming, 0);
        self.holders.remove(&slot);
        let account = self.accounts.get_mut(&of).expect("a holder has an account");
        account.change(held, Held::default());
        account.uncount_holder();
        touch(&mut self.dirty, account, of);
        self.own -= held.own;
        self.incoming -= held.incoming;
    }

    /// Publishes to all shards how much this one holds for each owner, once a turn: of so many owners that have waited
    /// longest for it, at most. Returns how many they were.
    pub(super) fn publish(&mut self, owners_max: usize) -> usize {
        let count = self.dirty.len().min(owners_max);
        for _ in 0..count {
            let of = self.dirty.pop_front().expect("it was counted");
            let Some(account) = self.accounts.get_mut(&of) else { continue };
            account.publish();
            account.is_dirty = account.has_shared();
            if account.is_empty() {
                self.accounts.remove(&of);
            } else if account.is_dirty {
                self.dirty.push_back(of);
            }
        }
        count
    }

    /// Begins a turn: the owners above their share are to be determined anew.
    pub(super) fn begin_turn(&mut self) {
        (self.over_share, self.has_called, self.gives_on) = (None, false, false);
    }

    /// Returns whether so little is free that owners above their share must give back.
    pub(super) fn is_pressed(&self) -> bool {
        self.ledger.budget().is_pressed()
    }

    /// Returns whether a next turn is wanted at once, to give back.
    pub(super) fn gives_on(&self) -> bool {
        self.gives_on
    }

    /// The fullest connection here of the fullest owner, on all shards, that holds more than its share.
    pub(super) fn first_over_share(&mut self) -> Option<(HolderList, Slot)> {
        let share = self.ledger.share_bytes()?;
        if self.over_share.is_none() {
            self.publish(usize::MAX);
            let total = |of: &Option<OwnerId>| self.accounts[of].tenant().total();
            let mut over: Vec<_> = self.accounts.keys().copied().filter(|of| total(of) > share).collect();
            over.sort_by_key(total);
            self.over_share = Some(over);
        }
        while let Some(of) = self.over_share.as_ref().and_then(|over| over.last()) {
            if let Some(account) = self.accounts.get_mut(of) {
                account.publish();
                if account.tenant().total() > share
                    && let Some((_, kind, slot)) = fullest_of(account)
                {
                    return Some((kind, slot));
                }
            }
            self.over_share.as_mut()?.pop();
        }
        None
    }

    /// The connection that makes room for data of `owner`: one of an owner above its share; else, if such an owner is
    /// on another shard, the fullest of this owner's own, since no other gives way to it; else the fullest of all.
    pub(super) fn first_to_give(&mut self, owner: OwnerId) -> Option<(HolderList, Slot)> {
        if let Some(found) = self.first_over_share() {
            return Some(found);
        }
        if !self.ledger.has_over_share() {
            return self.fullest_of_all();
        }
        if !std::mem::replace(&mut self.has_called, true) {
            self.ledger.call_shards();
        }
        let account = self.accounts.get(&Some(owner))?;
        fullest_of(account).map(|(_, kind, slot)| (kind, slot))
    }

    /// The fullest connection of any owner.
    pub(super) fn fullest_of_all(&self) -> Option<(HolderList, Slot)> {
        let fullest = self.accounts.values().filter_map(fullest_of).max_by_key(|(class, ..)| *class);
        fullest.map(|(_, kind, slot)| (kind, slot))
    }

    /// Takes note of what waits in the window for its first send, and of spare queues.
    pub(super) fn note_window(&mut self, bytes: usize, spare_bytes: usize) {
        (self.window, self.spare) = (bytes, spare_bytes);
    }

    /// Takes note of the payloads in the inbox.
    pub(super) fn note_inbox(&mut self, bytes: usize) {
        self.inbox = bytes;
    }

    /// A payload that begins to wait by reference, for `owner`.
    pub(super) fn charge(&mut self, bytes: usize, owner: Option<&Owner>) -> SharedCharge {
        let account = account(&mut self.accounts, &self.nobody, owner);
        touch(&mut self.dirty, account, owner.map(|owner| owner.id));
        let sums = [self.shared.clone(), account.shared().clone()];
        sums.iter().for_each(|sum| sum.set(sum.get() + bytes));
        SharedCharge(Some(Rc::new(Charged { bytes, sums })))
    }

    /// Returns whether what is held, and `more` for `owner`, is covered by the lease; beyond its share it does not get
    /// at what is kept for others.
    pub(super) fn cover_for(&mut self, more: usize, owner: &Owner) -> bool {
        let needed = self.used() + more;
        if needed <= self.lease.bytes() {
            return true;
        }
        // One turn can make it hold most of the budget.
        if let Some(account) = self.accounts.get_mut(&Some(owner.id)) {
            account.publish();
        }
        self.lease.cover_as(needed, owner.memory.tenant().claim())
    }

    /// The same for whoever it is for, as long as the reserve is left.
    pub(super) fn cover_beside_reserve(&self, more: usize) -> bool {
        let needed = self.used() + more;
        needed <= self.lease.bytes() || self.lease.cover_as(needed, LeaseReach::BeyondShare)
    }

    /// Returns whether what is held is covered by the lease.
    pub(super) fn covers_all(&self) -> bool {
        let used = self.used();
        used <= self.lease.bytes() || self.lease.cover_as(used, self.ledger.claim_for_all())
    }

    /// Returns whether a quarter more is held than is leased: what waiting for memory may cost, and no more.
    pub(super) fn is_overdrawn(&self) -> bool {
        self.used() > self.lease.bytes() + self.lease.bytes() / 4
    }

    /// Gives back what is leased and not needed.
    pub(super) fn trim(&self) {
        self.lease.trim(self.used());
    }

    /// The size class of the fullest connection.
    pub(super) fn fullest_class(&self, kind: HolderList) -> Option<usize> {
        self.accounts.values().filter_map(|account| account.fullest(kind)).map(|(class, _)| class).max()
    }

    /// Passes over a connection that can give nothing, until what it holds changes.
    pub(super) fn pass_over(&mut self, slot: Slot, kind: HolderList) {
        self.list(slot, kind, 0);
    }

    fn list(&mut self, slot: Slot, kind: HolderList, bytes: usize) {
        let holder = self.holders.get_mut(&slot).expect("only holders are listed");
        let account = self.accounts.get_mut(&holder.of).expect("a holder has an account");
        let class = bytes.checked_ilog2().map(|class| class as usize);
        let spot = holder.spots[kind as usize];
        if spot.map(ListPlace::class) == class {
            return;
        }
        holder.spots[kind as usize] = class.map(|class| account.enter(slot, kind, class));
        if let Some(spot) = spot
            && let Some(moved) = account.leave(kind, spot)
        {
            self.holders.get_mut(&moved).expect("only holders are listed").spots[kind as usize] = Some(spot);
        }
    }

    /// How many owners are looked at to find who makes room: those for whom something is held here, and the notable
    /// ones of all shards.
    pub(super) fn owners(&self) -> usize {
        self.accounts.len() + self.ledger.notable()
    }

    /// How many connections hold something.
    pub(super) fn holders(&self) -> usize {
        self.holders.len()
    }

    /// A connection's held memory, as last noted.
    pub(super) fn of(&self, slot: Slot) -> Held {
        self.holders.get(&slot).map_or(Held::default(), |holder| holder.held)
    }

    /// Asserts what the module promises, as far as this part knows it.
    pub(super) fn check(&self) {
        let sum = |of: fn(&Held) -> usize| self.holders.values().map(|holder| of(&holder.held)).sum::<usize>();
        assert_eq!((self.own, self.incoming), (sum(|held| held.own), sum(|held| held.incoming)), "sums are sums");
        for kind in [HolderList::Queued, HolderList::Incoming] {
            let listed: usize = self.accounts.values().map(|account| account.listed(kind)).sum();
            let spots = self.holders.values().filter(|holder| holder.spots[kind as usize].is_some()).count();
            assert_eq!(listed, spots, "a holder stands in the list of its size once");
        }
    }

    pub(super) fn report(&self) -> MemoryReport {
        MemoryReport {
            budget_bytes: self.ledger.budget().bytes(),
            leased_bytes: self.lease.bytes(),
            queued_bytes: self.own,
            shared_bytes: self.shared.get(),
            window_bytes: self.window,
            spare_bytes: self.spare,
            incoming_bytes: self.incoming,
            inbox_bytes: self.inbox,
            ..MemoryReport::default()
        }
    }

    /// The same with what is held outside of shards.
    pub(super) fn report_all(&self) -> MemoryReport {
        let held = self.ledger.held();
        MemoryReport {
            process_queue_bytes: held.events,
            content_bytes: held.content,
            topic_bytes: held.topics,
            link_bytes: held.link,
            ..self.report()
        }
    }
}

fn account<'a>(
    accounts: &'a mut FxHashMap<Option<OwnerId>, OwnerAccount>,
    nobody: &Tenant,
    owner: Option<&Owner>,
) -> &'a mut OwnerAccount {
    let tenant = || owner.map_or(nobody, |owner| owner.memory.tenant()).clone();
    accounts.entry(owner.map(|owner| owner.id)).or_insert_with(|| OwnerAccount::new(tenant()))
}

/// Has an account published at the end of the turn.
fn touch(dirty: &mut VecDeque<Option<OwnerId>>, account: &mut OwnerAccount, of: Option<OwnerId>) {
    if !std::mem::replace(&mut account.is_dirty, true) {
        dirty.push_back(of);
    }
}

/// The class of the fullest connection, which list it stands in, and that connection.
fn fullest_of(account: &OwnerAccount) -> Option<(usize, HolderList, Slot)> {
    let [queued, incoming] = [HolderList::Queued, HolderList::Incoming]
        .map(|kind| account.fullest(kind).map(|(class, slot)| (class, kind, slot)));
    match (queued, incoming) {
        (Some(queued), Some(incoming)) if incoming.0 > queued.0 => Some(incoming),
        (queued, incoming) => queued.or(incoming),
    }
}

/// The claim of one payload on the shard's memory, shared by all queues that hold it. The default claims nothing: the
/// payload is counted elsewhere, or not at all.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedCharge(Option<Rc<Charged>>);

impl SharedCharge {
    /// Returns whether the payload is counted.
    pub(super) fn is_counted(&self) -> bool {
        self.0.is_some()
    }
}

#[derive(Debug)]
struct Charged {
    bytes: usize,
    /// Of the shard, and of the owner.
    sums: [Rc<Cell<usize>>; 2],
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.sums.iter().for_each(|sum| sum.set(sum.get() - self.bytes));
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
            assert!(memory.note(Slot::new(slot), None, queued(bytes)));
        }
        assert_eq!(memory.fullest_of_all(), Some((HolderList::Queued, Slot::new(2))));
        memory.pass_over(Slot::new(2), HolderList::Queued);
        assert_eq!(memory.fullest_class(HolderList::Queued).unwrap(), 6);
        memory.note(Slot::new(2), None, queued(4999));
        assert_eq!(memory.fullest_of_all(), Some((HolderList::Queued, Slot::new(2))));
        assert!(!memory.note(Slot::new(2), None, Held::default()));
        assert_eq!((memory.used(), memory.fullest_class(HolderList::Incoming)), (170, None));
    }

    #[test]
    fn a_payload_counts_once_until_the_last_of_its_queues_lets_go() {
        let mut memory = Memory::new(Ledger::default());
        let charge = memory.charge(1000, None);
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
                memory.note(slot, None, held);
                twin.insert(slot, held);
                prop_assert_eq!(memory.used(), twin.values().map(|held| held.own + held.incoming).sum::<usize>());
                let largest = twin.values().map(|held| held.queued).max().unwrap_or(0);
                let found = memory.fullest_class(HolderList::Queued);
                let class = largest.checked_ilog2().map(|class| class as usize);
                prop_assert_eq!(found, class);
                prop_assert!(memory.holders.len() <= 12);
            }
        }
    }
}
