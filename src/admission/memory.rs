//! The memory that clients and processes may make a broker hold: one budget in bytes, leased in steps.
//!
//! A holder of memory (a shard, a [`MemoryPool`](super::MemoryPool)) counts what it holds by itself and leases as
//! many steps as cover it. So the budget's one word is touched when a lease grows or shrinks by a step, never per
//! message.
//!
//! Invariants: leases never exceed the budget; a dropped lease comes back. A holder keeps a few steps more than it
//! needs, so that a lease does not come and go with every message: fewer while the budget is tight. The last eighth,
//! the reserve, is for tenants that hold less than their share ([`Ledger`](super::Ledger)): it is available to them at
//! once, while the others are still giving back. Whoever wants to know is told when much of the budget has moved
//! ([`Budget::set_on_moved`]).

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// The step of a shard's lease.
pub const STEP_BYTES: usize = 1024 * 1024;

/// The step of a [`MemoryPool`](super::MemoryPool)'s lease: there may be thousands of them.
const FUND_STEP_BYTES: usize = 16 * 1024;

/// Steps that a holder keeps beyond its need; it gives back what is more than twice of that.
const SPARE_STEPS: usize = 4;

/// The same while the budget is tight.
const SPARE_STEPS_TIGHT: usize = 1;

/// One part of so many is the reserve.
const RESERVE_PART: usize = 8;

/// See the module. Clones are the same budget; the default has no limit.
#[derive(Debug, Clone, Default)]
pub struct Budget(Option<Arc<BudgetCounters>>);

struct BudgetCounters {
    total: usize,
    free: AtomicUsize,
    /// All that was ever leased or given back, wrapping.
    moved: AtomicUsize,
    on_moved: OnceLock<OnMoved>,
}

/// What is called each time that so many bytes have moved.
struct OnMoved {
    bytes: usize,
    call: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for BudgetCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.free.load(Ordering::Relaxed);
        f.debug_struct("BudgetCounters").field("total", &self.total).field("free", &free).finish_non_exhaustive()
    }
}

/// How far a holder may go when it leases more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseReach {
    /// To the last byte: it holds less than its share.
    WithinShare,
    /// As long as the reserve is left to others.
    BeyondShare,
    /// As long as half of the budget is left: the holder cannot be made to give it back.
    ToKeep,
}

impl Budget {
    /// A budget of so many bytes, in whole MiB; at least one.
    pub fn of(bytes: usize) -> Self {
        let total = (bytes / STEP_BYTES).max(1) * STEP_BYTES;
        let (free, moved) = (AtomicUsize::new(total), AtomicUsize::new(0));
        Self(Some(Arc::new(BudgetCounters { total, free, moved, on_moved: OnceLock::new() })))
    }

    /// Names what is called, on the thread that leases or gives back, each time that leases have grown and shrunk by so
    /// many bytes together. Once; without a limit it is never called.
    pub fn set_on_moved(&self, bytes: usize, call: impl Fn() + Send + Sync + 'static) {
        let Some(words) = &self.0 else { return };
        let is_first = words.on_moved.set(OnMoved { bytes, call: Box::new(call) }).is_ok();
        assert!(bytes > 0 && is_first, "a budget tells one watcher");
    }

    /// Returns whether both are the same one, and it has a limit.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.as_ref().zip(other.0.as_ref()).is_some_and(|(one, other)| Arc::ptr_eq(one, other))
    }

    /// Its size in bytes; `None` is without limit.
    pub fn bytes(&self) -> Option<usize> {
        Some(self.0.as_ref()?.total)
    }

    /// The bytes that all holders have leased; 0 where there is no limit.
    pub fn leased_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |words| words.total - words.free.load(Ordering::Relaxed))
    }

    /// Returns whether less than the reserve is free: tenants above their share have to give back.
    pub fn is_pressed(&self) -> bool {
        self.0.as_ref().is_some_and(|words| words.is_pressed())
    }

    /// A shard's lease, which keeps `steps` steps of 1 MiB, if there are so many, whatever it needs.
    pub fn lease(&self, steps: usize) -> Lease {
        let mut lease = self.empty_lease(STEP_BYTES);
        *lease.kept.get_mut() = lease.take(steps * STEP_BYTES, LeaseReach::WithinShare);
        lease
    }

    /// A lease of small steps, which keeps none.
    pub(super) fn fine_lease(&self) -> Lease {
        self.empty_lease(FUND_STEP_BYTES)
    }

    fn empty_lease(&self, step_bytes: usize) -> Lease {
        Lease { budget: self.clone(), step_bytes, kept: AtomicUsize::new(0), leased: AtomicUsize::new(0) }
    }
}

impl BudgetCounters {
    fn is_pressed(&self) -> bool {
        self.free.load(Ordering::Relaxed) < self.total / RESERVE_PART
    }

    /// Takes at most `bytes`; returns how many.
    fn take(&self, bytes: usize, claim: LeaseReach) -> usize {
        let floor = match claim {
            LeaseReach::WithinShare => 0,
            LeaseReach::BeyondShare => self.total / RESERVE_PART,
            LeaseReach::ToKeep => self.total / 2,
        };
        let takes = |free: usize| free.saturating_sub(floor).min(bytes);
        let before = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| Some(free - takes(free)));
        let taken = before.map_or(0, takes);
        self.moved(taken);
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
        self.moved(bytes);
    }

    fn moved(&self, bytes: usize) {
        let before = self.moved.fetch_add(bytes, Ordering::Relaxed);
        if let Some(OnMoved { bytes: each, call }) = self.on_moved.get()
            && before / each != before.wrapping_add(bytes) / each
        {
            call();
        }
    }
}

/// The lease of one holder. It may be shared by threads.
#[derive(Debug)]
pub struct Lease {
    budget: Budget,
    step_bytes: usize,
    /// The part that is never given back.
    kept: AtomicUsize,
    leased: AtomicUsize,
}

impl Lease {
    /// The leased bytes.
    pub fn bytes(&self) -> usize {
        self.leased.load(Ordering::Relaxed)
    }

    /// Returns whether `bytes` are covered, by leasing more if need be. When not, what there was has been leased.
    pub fn cover(&self, bytes: usize) -> bool {
        self.cover_as(bytes, LeaseReach::WithinShare)
    }

    /// As [`cover`](Self::cover), as far as the claim goes.
    pub fn cover_as(&self, bytes: usize, claim: LeaseReach) -> bool {
        if self.budget.0.is_none() {
            return true;
        }
        let leased = self.bytes();
        if bytes <= leased {
            return true;
        }
        let needed = bytes.checked_next_multiple_of(self.step_bytes).unwrap_or(bytes);
        leased + self.take(needed - leased, claim) >= bytes
    }

    /// Gives back what `bytes` do not need, except for a few steps.
    pub fn trim(&self, bytes: usize) {
        let Some(words) = &self.budget.0 else { return };
        let kept = self.kept.load(Ordering::Relaxed);
        let needed = bytes.next_multiple_of(self.step_bytes).max(kept);
        let spare = match words.is_pressed() {
            // Nothing is needed and nothing kept: there may be thousands of such leases.
            true if needed == 0 => 0,
            true => SPARE_STEPS_TIGHT * self.step_bytes,
            false => SPARE_STEPS * self.step_bytes,
        };
        let trimmed = self.leased.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |leased| {
            (leased > needed + 2 * spare).then_some(needed + spare)
        });
        if let Ok(leased) = trimmed {
            words.give_back(leased - (needed + spare));
        }
    }

    fn take(&self, bytes: usize, claim: LeaseReach) -> usize {
        let Some(words) = &self.budget.0 else { return 0 };
        let taken = words.take(bytes, claim);
        self.leased.fetch_add(taken, Ordering::Relaxed);
        taken
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(words) = &self.budget.0 {
            words.give_back(*self.leased.get_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = STEP_BYTES;

    #[test]
    fn leases_never_exceed_the_budget_and_come_back() {
        let budget = Budget::of(10 * MIB + 5);
        let (one, other) = (budget.lease(1), budget.lease(1));
        assert!(one.cover(7 * MIB) && !other.cover(5 * MIB));
        assert_eq!((other.bytes(), budget.leased_bytes()), (3 * MIB, 10 * MIB), "it got what there was");
        drop(one);
        assert!(other.cover(5 * MIB));
        drop(other);
        assert_eq!(budget.leased_bytes(), 0);
    }

    #[test]
    fn a_lease_does_not_flap() {
        let budget = Budget::of(100 * MIB);
        let lease = budget.lease(1);
        assert!(lease.cover(10 * MIB + 1));
        for _ in 0..3 {
            lease.trim(10 * MIB);
            assert!(lease.cover(10 * MIB + 1));
        }
        assert_eq!(lease.bytes(), 11 * MIB);
        lease.trim(0);
        assert_eq!(lease.bytes(), 5 * MIB);
        // Others are short: as little as can be, but what is kept for good.
        let others = budget.lease(0);
        assert!(others.cover(90 * MIB));
        lease.trim(0);
        assert_eq!(lease.bytes(), 2 * MIB);
    }

    #[test]
    fn the_reserve_is_left_to_those_within_their_share() {
        let budget = Budget::of(16 * MIB);
        let (hog, other) = (budget.lease(0), budget.lease(0));
        assert!(!hog.cover_as(16 * MIB, LeaseReach::BeyondShare));
        assert_eq!((hog.bytes(), budget.is_pressed()), (14 * MIB, false));
        assert!(other.cover_as(2 * MIB, LeaseReach::WithinShare) && budget.is_pressed());
        assert!(!other.cover_as(3 * MIB, LeaseReach::WithinShare));
    }

    #[test]
    fn a_fine_lease_that_is_not_needed_keeps_nothing_where_memory_is_tight() {
        let budget = Budget::of(MIB);
        let lease = budget.fine_lease();
        assert!(lease.cover(1));
        assert_eq!(lease.bytes(), FUND_STEP_BYTES);
        lease.trim(0);
        assert_eq!(lease.bytes(), FUND_STEP_BYTES, "a few steps do not come and go");
        let hog = budget.lease(0);
        assert!(!hog.cover(MIB));
        lease.trim(0);
        assert!(lease.bytes() == 0 && hog.cover(MIB));
    }

    #[test]
    fn who_watches_is_told_of_what_moves() {
        let (budget, told) = (Budget::of(64 * MIB), Arc::new(AtomicUsize::new(0)));
        let count = told.clone();
        budget.set_on_moved(4 * MIB, move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let lease = budget.lease(1);
        (1..=20).for_each(|steps| assert!(lease.cover(steps * MIB)));
        assert_eq!(told.load(Ordering::Relaxed), 5);
        // What is given back moves too, and so does what is leased again.
        lease.trim(0);
        assert_eq!((lease.bytes(), told.load(Ordering::Relaxed)), (5 * MIB, 6), "15 MiB, at once");
        drop(lease);
        assert_eq!(told.load(Ordering::Relaxed), 7);
        assert!(budget.is_same(&budget.clone()) && !budget.is_same(&Budget::of(64 * MIB)));
        assert!(!Budget::default().is_same(&Budget::default()));
    }

    #[test]
    fn no_limit_covers_everything() {
        let lease = Budget::default().lease(1);
        assert!(lease.cover(usize::MAX));
        lease.trim(0);
        assert_eq!((lease.bytes(), Budget::default().bytes()), (0, None));
    }

    #[test]
    fn threads_that_lease_and_trim_lose_no_step() {
        let budget = Budget::of(8 * MIB);
        std::thread::scope(|scope| {
            for seed in 1..=4usize {
                let lease = budget.lease(1);
                scope.spawn(move || {
                    for at in 0..10_000 {
                        let bytes = (at * seed * 7919) % (6 * MIB);
                        lease.cover(bytes);
                        lease.trim(bytes / 2);
                    }
                });
            }
        });
        assert_eq!(budget.leased_bytes(), 0);
    }
}
