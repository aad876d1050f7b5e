//! The memory that clients and processes may make a broker hold: one budget in bytes, leased in steps of 1 MiB.
//!
//! A shard, and the queue of a process, counts what it holds by itself and leases as many steps as cover it. So the
//! budget's one word is touched when a lease grows or shrinks by a step, never per message.
//!
//! Invariants: what is leased is never more than the budget; a lease that is dropped comes back. A holder keeps a few
//! steps more than it needs, so that a lease does not come and go with every message: fewer while the budget is tight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The size of a step.
pub const STEP_BYTES: usize = 1024 * 1024;

/// Steps that a holder keeps beyond its need; it gives back what is more than twice of that.
const SPARE_STEPS: usize = 4;

/// The same while the budget is tight.
const SPARE_STEPS_TIGHT: usize = 1;

/// See the module. Clones are the same budget; the default has no limit.
#[derive(Debug, Clone, Default)]
pub struct Budget(Option<Arc<Steps>>);

#[derive(Debug)]
struct Steps {
    total: usize,
    free: AtomicUsize,
}

impl Budget {
    /// A budget of so many bytes, in whole steps; at least one.
    pub fn of(bytes: usize) -> Self {
        let total = (bytes / STEP_BYTES).max(1);
        Self(Some(Arc::new(Steps { total, free: AtomicUsize::new(total) })))
    }

    /// Its size in bytes; `None` is without limit.
    pub fn bytes(&self) -> Option<usize> {
        Some(self.0.as_ref()?.total * STEP_BYTES)
    }

    /// What all holders have leased, in bytes; 0 where there is no limit.
    pub fn leased_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |steps| (steps.total - steps.free.load(Ordering::Relaxed)) * STEP_BYTES)
    }

    /// A lease that keeps `steps` steps, if there are so many, whatever it needs.
    pub fn lease(&self, steps: usize) -> Lease {
        let lease = Lease { budget: self.clone(), kept: AtomicUsize::new(0), steps: AtomicUsize::new(0) };
        let kept = lease.take(steps);
        lease.kept.store(kept, Ordering::Relaxed);
        lease
    }
}

impl Steps {
    fn is_tight(&self) -> bool {
        self.free.load(Ordering::Relaxed) < self.total / 8
    }

    /// Takes at most `count` steps; answers how many.
    fn take(&self, count: usize) -> usize {
        let taken = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| Some(free - free.min(count)));
        taken.map_or(0, |free| free.min(count))
    }
}

/// What one holder has leased. It may be shared by threads.
#[derive(Debug)]
pub struct Lease {
    budget: Budget,
    /// Steps that are never given back.
    kept: AtomicUsize,
    steps: AtomicUsize,
}

impl Lease {
    /// What is leased.
    pub fn bytes(&self) -> usize {
        self.steps.load(Ordering::Relaxed) * STEP_BYTES
    }

    /// Whether `bytes` are covered, by leasing more if need be. When not, what there was has been leased.
    pub fn cover(&self, bytes: usize) -> bool {
        if self.budget.0.is_none() {
            return true;
        }
        let needed = bytes.div_ceil(STEP_BYTES);
        let steps = self.steps.load(Ordering::Relaxed);
        needed <= steps || self.take(needed - steps) == needed - steps
    }

    /// Gives back what `bytes` do not need, except for a few steps.
    pub fn trim(&self, bytes: usize) {
        let Some(budget) = &self.budget.0 else { return };
        let needed = bytes.div_ceil(STEP_BYTES).max(self.kept.load(Ordering::Relaxed));
        let spare = if budget.is_tight() { SPARE_STEPS_TIGHT } else { SPARE_STEPS };
        let trimmed = self.steps.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |steps| {
            (steps > needed + 2 * spare).then_some(needed + spare)
        });
        if let Ok(steps) = trimmed {
            budget.free.fetch_add(steps - (needed + spare), Ordering::Relaxed);
        }
    }

    fn take(&self, count: usize) -> usize {
        let Some(budget) = &self.budget.0 else { return 0 };
        let taken = budget.take(count);
        self.steps.fetch_add(taken, Ordering::Relaxed);
        taken
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget.0 {
            budget.free.fetch_add(*self.steps.get_mut(), Ordering::Relaxed);
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
