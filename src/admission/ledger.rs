//! The broker's memory held for each process, by kind: one account for all shards, queues and links.
//!
//! Everything that can wait reports its heap use ([`HeapBytes`](super::HeapBytes)) and is counted twice: against the
//! budget, by a lease of its keeper, and under its [`Tenant`], the process for which it is kept, by [`HeldAs`]. There
//! are two kinds of keepers:
//!
//! - a shard, which has one lease for its clients and counts in plain numbers. It has a [`Tally`] for each tenant and
//!   publishes the differences once a turn, so counting costs a broadcast nothing that threads share;
//! - a [`MemoryPool`], for data outside of shards: events that a process has not read, frames that a link's peer has
//!   not acknowledged, static content. Its data carries a [`Charge`], and dropping that is the only way to give it
//!   back. A pool cannot be made to give, so all pools together fill half of the budget at most, or as much as lets
//!   each tenant have half of its share.
//!
//! **Fair pressure.** A tenant's share is the budget divided by the number of tenants that hold a notable part of it
//! (1/1024). The reserve (an eighth of the budget) is for tenants that hold less than three quarters of their share, so
//! that there is room for whoever holds nothing yet. When less than the reserve is free ([`Budget::is_pressed`]),
//! tenants above their share give back, on whichever shard, and no others:
//!
//! 1. a shard asks for memory with [`Tenant::claim`] of the tenant for whom it is:
//!    `lease.cover_as(used + more, tenant.claim())`. One that holds three quarters of its share has no access to
//!    the reserve. What is held for nobody in particular asks with [`Ledger::claim_for_all`];
//! 2. when that fails, and at the end of each turn in which the budget is pressed, the shard goes through
//!    [`Ledger::over_share`] (the fullest first), and the first tenant that has something here gives: its fullest
//!    connection meets its policy. Then the shard trims its lease and looks again;
//! 3. where none of them has anything here, it calls the other shards ([`Ledger::call_shards`]), and the data that it
//!    was asked to hold meets its own policy, if it was not covered.
//!
//! Invariants: the memory held of a kind is the sum of its charges and of the published tallies; a tenant and its
//! counts live as long as anything is held for it; the list of notable tenants has at most 2048 entries, whatever peers
//! do. It must not know channels, sockets, or the contents of what waits.

use super::memory::{Budget, Lease, LeaseReach};
use crate::process_id::ProcessId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// Tenants that hold less than one part of so many of the budget are ignored under pressure.
const NOTABLE_PART: usize = 1024;

/// For each tenant so much has room, whatever the others hold: some channels, some messages.
const SMALL_BYTES: usize = 16 * 1024;

/// The list of tenants is not swept before it has so many entries.
const SWEEP_TENANTS_MIN: usize = 64;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $kind:ident $field:ident,)*) => {
        /// The kind of held memory.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum HeldAs {
            $($(#[doc = $doc])* $kind,)*
        }

        impl HeldAs {
            /// All of them, in order.
            pub const ALL: [Self; [$(Self::$kind),*].len()] = [$(Self::$kind),*];

            /// In one word.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($field),)*
                }
            }
        }

        /// Bytes that are held, by kind.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct HeldBytes {
            $($(#[doc = $doc])* pub $field: usize,)*
        }

        impl HeldBytes {
            /// Those of one kind.
            pub fn of(&self, kind: HeldAs) -> usize {
                match kind {
                    $(HeldAs::$kind => self.$field,)*
                }
            }

            /// Those of one kind, to change.
            pub fn of_mut(&mut self, kind: HeldAs) -> &mut usize {
                match kind {
                    $(HeldAs::$kind => &mut self.$field,)*
                }
            }
        }
    };
}

kinds! {
    /// Frames and responses that wait behind full sockets, each channel's own copies.
    Queued queued,
    /// Payloads that wait by reference: once for each push and shard.
    Shared shared,
    /// Frames and responses that wait for their first send.
    Window window,
    /// Messages and requests that have not wholly arrived, and what was read but may not be parsed yet.
    Incoming incoming,
    /// Orders that shards have not executed.
    Orders orders,
    /// Events that processes have not read, outcomes that were asked for among them.
    Events events,
    /// Static content of routes.
    Content content,
    /// Topics, their subscribers, and the rights of the hub's clients.
    Topics topics,
    /// Frames that a link's peer has not acknowledged, messages of a kernel that were not executed, and the channels of
    /// which a peer that comes back is told.
    Link link,
}

impl HeldBytes {
    /// All kinds together.
    pub fn total(&self) -> usize {
        HeldAs::ALL.iter().map(|&kind| self.of(kind)).sum()
    }
}

impl std::ops::AddAssign for HeldBytes {
    fn add_assign(&mut self, other: Self) {
        HeldAs::ALL.iter().for_each(|&kind| *self.of_mut(kind) += other.of(kind));
    }
}

/// The memory held for one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantReport {
    /// The process; none: connections that belong to no process yet.
    pub process: Option<ProcessId>,
    /// Bytes by kind.
    #[serde(flatten)]
    pub held: HeldBytes,
}

/// See the module. Clones are the same ledger; the default has no limit.
#[derive(Clone, Default)]
pub struct Ledger(Arc<LedgerShared>);

#[derive(Default)]
struct LedgerShared {
    budget: Budget,
    /// The bytes from which a tenant is notable; `None` where there is no limit.
    notable_bytes: Option<usize>,
    notable: Mutex<Vec<Weak<TenantCounts>>>,
    notable_len: AtomicUsize,
    tenants: Mutex<Tenants>,
    call_shards: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Tenants {
    all: Vec<Weak<TenantCounts>>,
    sweep_at: usize,
}

impl LedgerShared {
    fn share_bytes(&self) -> Option<usize> {
        Some(self.budget.bytes()? / self.notable_len.load(Ordering::Relaxed).max(1))
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("budget", &self.0.budget).finish_non_exhaustive()
    }
}

impl Ledger {
    /// A ledger in which nothing is held yet.
    pub fn new(budget: Budget) -> Self {
        let notable_bytes = budget.bytes().map(|bytes| bytes / NOTABLE_PART);
        Self(Arc::new(LedgerShared { budget, notable_bytes, ..LedgerShared::default() }))
    }

    /// The limit of all held memory.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// A tenant: a process, or (without a name) all connections that belong to none.
    pub fn tenant(&self, process: Option<ProcessId>) -> Tenant {
        let tenant = Tenant(Arc::new(TenantCounts {
            book: self.0.clone(),
            process,
            held: Default::default(),
            total: AtomicUsize::new(0),
            is_notable: AtomicBool::new(false),
            orders: Mutex::default(),
        }));
        let mut tenants = lock(&self.0.tenants);
        if tenants.all.len() >= tenants.sweep_at {
            tenants.all.retain(|tenant| tenant.strong_count() > 0);
            // Each entry is looked at as often as one is added: a constant cost.
            tenants.sweep_at = (2 * tenants.all.len()).max(SWEEP_TENANTS_MIN);
        }
        tenants.all.push(Arc::downgrade(&tenant.0));
        tenant
    }

    /// A pool that nothing draws on yet.
    pub fn pool(&self) -> MemoryPool {
        let lease = self.0.budget.fine_lease();
        MemoryPool(Arc::new(PoolShared { ledger: self.clone(), lease, held: AtomicUsize::new(0) }))
    }

    /// The memory held for all tenants together, by kind.
    pub fn held(&self) -> HeldBytes {
        let tenants: Vec<_> = lock(&self.0.tenants).all.iter().filter_map(Weak::upgrade).collect();
        tenants.into_iter().fold(HeldBytes::default(), |mut sum, counts| {
            sum += Tenant(counts).held();
            sum
        })
    }

    /// The memory that one tenant may hold while others need some; `None` is unlimited.
    pub fn share_bytes(&self) -> Option<usize> {
        self.0.share_bytes()
    }

    /// Tenants that hold more than their share, the fullest first.
    pub fn over_share(&self) -> Vec<Tenant> {
        let Some(share) = self.share_bytes() else { return Vec::new() };
        let notable = lock(&self.0.notable);
        let mut over: Vec<(usize, Tenant)> = notable
            .iter()
            .filter_map(|counts| Some(Tenant(counts.upgrade()?)))
            .map(|tenant| (tenant.total(), tenant))
            .filter(|(total, _)| *total > share)
            .collect();
        drop(notable);
        over.sort_by_key(|(total, _)| std::cmp::Reverse(*total));
        over.into_iter().map(|(_, tenant)| tenant).collect()
    }

    /// Returns whether there are any, by a look at the notable ones.
    pub fn has_over_share(&self) -> bool {
        self.share_bytes().is_some_and(|share| self.has_over(share))
    }

    /// How far a shard's lease may go for what is not asked for in a tenant's name: as far as for the tenant that holds
    /// most, which it may be for.
    pub fn claim_for_all(&self) -> LeaseReach {
        let is_within = self.share_bytes().is_none_or(|share| !self.has_over(beyond_reserve_from(share)));
        if is_within { LeaseReach::WithinShare } else { LeaseReach::BeyondShare }
    }

    fn has_over(&self, bytes: usize) -> bool {
        let is_over =
            |counts: &Weak<TenantCounts>| counts.upgrade().is_some_and(|counts| Tenant(counts).total() > bytes);
        lock(&self.0.notable).iter().any(is_over)
    }

    /// How many tenants are notable.
    pub fn notable(&self) -> usize {
        self.0.notable_len.load(Ordering::Relaxed)
    }

    /// Names what makes all shards take a turn, once.
    pub fn set_call_shards(&self, call: impl Fn() + Send + Sync + 'static) {
        // A second one would be a second broker with the same ledger.
        assert!(self.0.call_shards.set(Box::new(call)).is_ok(), "a ledger belongs to one broker");
    }

    /// Makes all shards take a turn, in which those over their share give back.
    pub fn call_shards(&self) {
        if let Some(call) = self.0.call_shards.get() {
            call();
        }
    }

    /// The memory held for each process, the largest first. Tenants of one name are reported as one, and those without
    /// any are left out.
    pub fn report(&self) -> Vec<TenantReport> {
        let tenants: Vec<Tenant> =
            lock(&self.0.tenants).all.iter().filter_map(|counts| Some(Tenant(counts.upgrade()?))).collect();
        let mut by_name = std::collections::BTreeMap::<Option<ProcessId>, HeldBytes>::new();
        for (tenant, held) in tenants.iter().map(|tenant| (tenant, tenant.held())) {
            if held.total() > 0 {
                *by_name.entry(tenant.process().cloned()).or_default() += held;
            }
        }
        let mut report: Vec<TenantReport> =
            by_name.into_iter().map(|(process, held)| TenantReport { process, held }).collect();
        report.sort_by_key(|tenant| std::cmp::Reverse(tenant.held.total()));
        report
    }
}

/// The process for which memory is held. Clones are the same tenant; the default has a ledger of its own, without
/// limit.
#[derive(Clone)]
pub struct Tenant(Arc<TenantCounts>);

/// On cache lines of its own: all shards write it.
#[repr(align(128))]
struct TenantCounts {
    book: Arc<LedgerShared>,
    process: Option<ProcessId>,
    held: [AtomicUsize; HeldAs::ALL.len()],
    total: AtomicUsize,
    is_notable: AtomicBool,
    /// Report the bytes of its orders, which inboxes count by themselves.
    orders: Mutex<Vec<Box<OrdersBytes>>>,
}

/// The bytes of a producer's orders; none: the producer has gone.
type OrdersBytes = dyn Fn() -> Option<usize> + Send + Sync;

impl Default for Tenant {
    fn default() -> Self {
        Ledger::default().tenant(None)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant").field("process", &self.0.process).field("held", &self.held()).finish()
    }
}

impl PartialEq for Tenant {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tenant {}

impl Tenant {
    /// Its name; none: it stands for connections that belong to no process.
    pub fn process(&self) -> Option<&ProcessId> {
        self.0.process.as_ref()
    }

    /// All that is held for it, as far as it was published.
    pub fn total(&self) -> usize {
        self.0.total.load(Ordering::Relaxed)
    }

    /// The same by kind.
    pub fn held(&self) -> HeldBytes {
        let mut held = HeldBytes::default();
        for kind in HeldAs::ALL {
            *held.of_mut(kind) = self.0.held[kind as usize].load(Ordering::Relaxed);
        }
        held.orders += lock(&self.0.orders).iter().filter_map(|orders| orders()).sum::<usize>();
        held
    }

    /// Names what tells the bytes of a producer's orders in its name, as long as there is one: they are counted by the
    /// inboxes in which they wait.
    pub fn add_orders(&self, orders: impl Fn() -> Option<usize> + Send + Sync + 'static) {
        let mut all = lock(&self.0.orders);
        all.retain(|orders| orders().is_some());
        all.push(Box::new(orders));
    }

    /// How far a pool's lease may go to hold so many bytes more for it. What shards hold for it does not count: that,
    /// it can be made to give back.
    fn claim_to_keep(&self, more: usize) -> LeaseReach {
        let Some(share) = self.0.book.share_bytes() else { return LeaseReach::WithinShare };
        let held = self.held();
        let kept = held.orders + held.events + held.content + held.topics + held.link;
        if kept.saturating_add(more) <= share / 2 { LeaseReach::WithinShare } else { LeaseReach::ToKeep }
    }

    /// How far a shard's lease may go for it, once the shard has published what it holds. What is leased is more than
    /// what is held, and what other shards hold is published once a turn: so the reserve is for a tenant that holds
    /// less than three quarters of its share.
    pub fn claim(&self) -> LeaseReach {
        let is_within = self.0.book.share_bytes().is_none_or(|share| self.total() <= beyond_reserve_from(share));
        if is_within { LeaseReach::WithinShare } else { LeaseReach::BeyondShare }
    }

    fn add(&self, kind: HeldAs, bytes: usize) {
        self.0.held[kind as usize].fetch_add(bytes, Ordering::Relaxed);
        let total = self.0.total.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.0.book.notable_bytes.is_some_and(|notable| total >= notable) {
            self.0.note();
        }
    }

    fn sub(&self, kind: HeldAs, bytes: usize) {
        let before = self.0.held[kind as usize].fetch_sub(bytes, Ordering::Relaxed);
        assert!(before >= bytes, "more is given back than was held");
        let total = self.0.total.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        if self.0.is_notable.load(Ordering::Relaxed)
            && self.0.book.notable_bytes.is_some_and(|notable| total < notable / 2)
        {
            self.0.unnote();
        }
    }
}

impl TenantCounts {
    /// Enters the list of notable tenants, if it is not there.
    fn note(self: &Arc<Self>) {
        if self.is_notable.load(Ordering::Relaxed) {
            return;
        }
        let mut notable = lock(&self.book.notable);
        if !self.is_notable.swap(true, Ordering::Relaxed) {
            notable.push(Arc::downgrade(self));
            self.book.notable_len.store(notable.len(), Ordering::Relaxed);
        }
    }

    /// Leaves it, unless more was added meanwhile.
    fn unnote(self: &Arc<Self>) {
        let mut notable = lock(&self.book.notable);
        let is_small = self.book.notable_bytes.is_some_and(|bytes| self.total.load(Ordering::Relaxed) < bytes / 2);
        if is_small && self.is_notable.swap(false, Ordering::Relaxed) {
            notable.retain(|counts| !std::ptr::eq(counts.as_ptr(), Arc::as_ptr(self)));
            self.book.notable_len.store(notable.len(), Ordering::Relaxed);
        }
    }
}

/// The memory that one shard holds for one tenant: plain numbers, published once a turn. Dropping it withdraws all of
/// it.
#[derive(Debug)]
pub struct Tally {
    tenant: Tenant,
    held: HeldBytes,
    published: HeldBytes,
}

impl Tally {
    /// Nothing is held.
    pub fn new(tenant: Tenant) -> Self {
        Self { tenant, held: HeldBytes::default(), published: HeldBytes::default() }
    }

    /// The tenant.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// The memory held here.
    pub fn held(&self) -> HeldBytes {
        self.held
    }

    /// So many bytes of a kind are held where `before` were.
    pub fn change(&mut self, kind: HeldAs, before: usize, now: usize) {
        let held = self.held.of_mut(kind);
        *held = (*held + now).checked_sub(before).expect("what was held before was counted");
    }

    /// Publishes the changes since the last time.
    pub fn publish(&mut self) {
        for kind in HeldAs::ALL {
            let (held, published) = (self.held.of(kind), self.published.of(kind));
            match held.checked_sub(published) {
                Some(0) => {}
                Some(more) => self.tenant.add(kind, more),
                None => self.tenant.sub(kind, published - held),
            }
        }
        self.published = self.held;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.held = HeldBytes::default();
        self.publish();
    }
}

/// The budget has no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the memory budget has no room for it")]
pub struct OverBudget;

/// A lease, and all that draws on it. Clones are the same pool.
#[derive(Debug, Clone)]
pub struct MemoryPool(Arc<PoolShared>);

#[derive(Debug)]
struct PoolShared {
    ledger: Ledger,
    lease: Lease,
    held: AtomicUsize,
}

impl MemoryPool {
    /// Holds so many bytes for `tenant`.
    ///
    /// # Errors
    /// No more can be leased.
    pub fn charge(&self, tenant: &Tenant, kind: HeldAs, bytes: usize) -> Result<Charge, OverBudget> {
        let mut charge = self.charge_anyway(tenant, kind, 0);
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// As [`charge`](Self::charge), for what cannot be refused any more.
    pub fn charge_anyway(&self, tenant: &Tenant, kind: HeldAs, bytes: usize) -> Charge {
        let mut charge = Charge { pool: self.clone(), tenant: tenant.clone(), kind, bytes: 0 };
        charge.resize(bytes);
        charge
    }

    /// Returns whether `bytes` more for `tenant` could be charged now. A tenant that holds next to nothing always has
    /// room: others that have filled the budget must not keep it out.
    pub fn has_room(&self, tenant: &Tenant, bytes: usize) -> bool {
        let held = self.held_bytes() + bytes;
        held <= self.0.lease.bytes()
            || self.0.lease.cover_as(held, tenant.claim_to_keep(bytes))
            || tenant.total() + bytes <= SMALL_BYTES
    }

    /// Its part for one process.
    pub fn memory_of(&self, process: ProcessId) -> ProcessMemory {
        ProcessMemory { pool: self.clone(), tenant: self.0.ledger.tenant(Some(process)) }
    }

    /// The bytes drawn from it.
    pub fn held_bytes(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// The bytes it has leased.
    pub fn leased_bytes(&self) -> usize {
        self.0.lease.bytes()
    }

    /// Distinguishes pools.
    pub fn number(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}

/// Where memory for one process is charged: a pool, which others may draw on too, and the tenant. Clones are the same.
#[derive(Debug, Clone)]
pub struct ProcessMemory {
    pool: MemoryPool,
    tenant: Tenant,
}

impl ProcessMemory {
    /// As [`MemoryPool::charge`].
    ///
    /// # Errors
    /// No more can be leased.
    pub fn charge(&self, kind: HeldAs, bytes: usize) -> Result<Charge, OverBudget> {
        self.pool.charge(&self.tenant, kind, bytes)
    }

    /// As [`MemoryPool::charge_anyway`].
    pub fn charge_anyway(&self, kind: HeldAs, bytes: usize) -> Charge {
        self.pool.charge_anyway(&self.tenant, kind, bytes)
    }

    /// Returns whether so many bytes more could be charged now.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.pool.has_room(&self.tenant, bytes)
    }

    /// The tenant.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }
}

/// The claim of something on memory, given back by dropping it.
#[derive(Debug)]
pub struct Charge {
    pool: MemoryPool,
    tenant: Tenant,
    kind: HeldAs,
    bytes: usize,
}

impl Charge {
    /// How much.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds so many bytes more.
    ///
    /// # Errors
    /// No more can be leased; nothing has changed.
    pub fn grow(&mut self, more: usize) -> Result<(), OverBudget> {
        let held = self.pool.0.held.fetch_add(more, Ordering::Relaxed) + more;
        if !self.pool.0.lease.cover_as(held, self.tenant.claim_to_keep(more)) {
            self.pool.0.held.fetch_sub(more, Ordering::Relaxed);
            return Err(OverBudget);
        }
        self.tenant.add(self.kind, more);
        self.bytes += more;
        Ok(())
    }

    /// Holds so many bytes from now on, whether or not more can be leased.
    pub fn resize(&mut self, bytes: usize) {
        let PoolShared { lease, held, .. } = &*self.pool.0;
        match bytes.checked_sub(self.bytes) {
            Some(0) => {}
            Some(more) => {
                self.tenant.add(self.kind, more);
                let held = held.fetch_add(more, Ordering::Relaxed) + more;
                lease.cover(held);
            }
            None => {
                let less = self.bytes - bytes;
                self.tenant.sub(self.kind, less);
                let held = held.fetch_sub(less, Ordering::Relaxed) - less;
                lease.trim(held);
            }
        }
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.resize(0);
    }
}

/// A tenant that holds more than this has no access to the reserve.
fn beyond_reserve_from(share: usize) -> usize {
    share / 4 * 3
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one call on a vector, or one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
