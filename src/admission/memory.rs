//! The memory that clients and processes may make a broker hold: one budget in bytes, leased in steps.
//!
//! A holder of memory (a shard, a [`MemoryPool`](super::MemoryPool)) counts what it holds by itself and leases as
//! many steps as cover it. So the budget's one word is touched when a lease grows or shrinks by a step, never per
//! message.
//!
//! Invariants: leases never exceed the budget; a dropped lease comes back. A holder keeps a few steps more than it
//! needs, so that a lease does not come and go with every message: fewer while the budget is tight. The last eighth,
//! the reserve, is for tenants that hold less than their share ([`Ledger`](super::Ledger)): it is available to them at
//! once, while the others are still giving back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

#[derive(Debug)]
struct BudgetCounters {
    total: usize,
    free: AtomicUsize,
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
        Self(Some(Arc::new(BudgetCounters { total, free: AtomicUsize::new(total) })))
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
        before.map_or(0, takes)
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
            words.free.fetch_add(leased - (needed + spare), Ordering::Relaxed);
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
            words.free.fetch_add(*self.leased.get_mut(), Ordering::Relaxed);
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
