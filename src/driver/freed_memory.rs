//! Watches how much more memory is resident than the broker holds, and has the allocator give back what it keeps.
//!
//! A budget bounds the memory that is held. What was held in many small allocations stays resident when it is freed, as
//! long as anything behind it in the same heap lives, and what churns in allocations of many sizes is resident with the
//! gaps between them. Both can double what the budget promised the machine. So as soon as a sixteenth of the budget
//! more is resident, beside what is held, than it was at some time before, the allocator is asked to give it back. That
//! takes milliseconds, on a thread of its own, and is asked for less often where it gave little: other memory of the
//! program can have grown.
//!
//! Invariants: one thread trims at a time; trimming is begun at most once a second. It must not know what the memory is
//! held for.

use super::malloc;
use crate::admission::Budget;
use std::thread::JoinHandle;

/// A sixteenth of the budget is worth a trim.
const NOTABLE_PART: usize = 16;

/// Less than this is not.
const NOTABLE_BYTES_MIN: usize = 8 * 1024 * 1024;

/// And this always is: other threads may wait for a trim in proportion to what it gives back.
const NOTABLE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Between two looks.
const LOOK_MS: u64 = 250;

/// Behind a trim; up to so much behind one that gave back little.
const WAIT_MS: u64 = 1000;
const WAIT_MS_MAX: u64 = 64_000;

/// See the module.
pub struct FreedMemory {
    budget: Budget,
    judge: Judge,
    trimming: Option<JoinHandle<()>>,
}

impl FreedMemory {
    /// Watches over the memory of this budget; `None` where it has no limit, for there is nothing to keep to.
    pub fn new(budget: &Budget) -> Option<Self> {
        let notable_bytes = (budget.bytes()? / NOTABLE_PART).clamp(NOTABLE_BYTES_MIN, NOTABLE_BYTES_MAX);
        // What is resident now is not the broker's; by the first look it may have held, and freed, much.
        let least_bytes = beside_bytes(budget).unwrap_or(usize::MAX);
        Some(Self { budget: budget.clone(), judge: Judge::new(notable_bytes, least_bytes), trimming: None })
    }

    /// Looks whether there is much to give back. To be called now and then.
    pub fn look(&mut self, now_ms: u64) {
        if !self.judge.is_due(now_ms) || self.trimming.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        // A system without /proc has nothing to go by, and the judge looks less and less often.
        let trimmed = self.trimming.take().is_some();
        if !self.judge.should_trim(beside_bytes(&self.budget), trimmed, now_ms) {
            return;
        }
        match std::thread::Builder::new().name("trim".to_owned()).spawn(malloc::trim) {
            Ok(thread) => self.trimming = Some(thread),
            Err(error) => tracing::warn!(%error, "no thread to give freed memory back to the system"),
        }
    }
}

/// The resident memory beside what is held.
fn beside_bytes(budget: &Budget) -> Option<usize> {
    Some(resident_bytes()?.saturating_sub(budget.leased_bytes()))
}

/// The resident memory of this program (proc(5), statm).
fn resident_bytes() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split(' ').nth(1)?.parse::<usize>().ok()? * rustix::param::page_size())
}

/// Judges by numbers alone.
struct Judge {
    notable_bytes: usize,
    /// The least that was resident beside what was held, since the last trim.
    least_bytes: usize,
    /// The same before the last trim.
    before_bytes: usize,
    wait_ms: u64,
    next_ms: u64,
}

impl Judge {
    fn new(notable_bytes: usize, least_bytes: usize) -> Self {
        Self { notable_bytes, least_bytes, before_bytes: 0, wait_ms: WAIT_MS, next_ms: 0 }
    }

    fn is_due(&self, now_ms: u64) -> bool {
        now_ms >= self.next_ms
    }

    /// So much is resident beside what is held, since the last look after a trim if it was `trimmed`. Returns whether
    /// the allocator should give back what it keeps.
    fn should_trim(&mut self, beside_bytes: Option<usize>, trimmed: bool, now_ms: u64) -> bool {
        self.next_ms = now_ms + LOOK_MS;
        let Some(beside_bytes) = beside_bytes else {
            self.next_ms = now_ms + WAIT_MS_MAX;
            return false;
        };
        if trimmed {
            let is_worth_it = beside_bytes + self.notable_bytes / 2 <= self.before_bytes;
            self.wait_ms = if is_worth_it { WAIT_MS } else { (self.wait_ms * 2).min(WAIT_MS_MAX) };
            self.next_ms = now_ms + self.wait_ms;
            self.least_bytes = beside_bytes;
            return false;
        }
        self.least_bytes = self.least_bytes.min(beside_bytes);
        let is_notable = beside_bytes - self.least_bytes >= self.notable_bytes;
        self.before_bytes = beside_bytes;
        is_notable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn what_is_resident_and_not_held_is_given_back_and_asked_for_less_often_where_that_gives_little() {
        let mut judge = Judge::new(8 * MIB, 20 * MIB);
        assert!(!judge.should_trim(Some(20 * MIB), false, 0));
        assert!(!judge.is_due(249) && judge.is_due(250));
        assert!(!judge.should_trim(Some(27 * MIB), false, 1000));
        // Much was held, and is freed.
        assert!(judge.should_trim(Some(80 * MIB), false, 2000));
        assert!(!judge.should_trim(Some(21 * MIB), true, 3000) && !judge.is_due(3999) && judge.is_due(4000));
        // Other memory has grown: trimming gives nothing back, and is tried again when there is as much more, later.
        let (mut beside, mut now_ms, mut trims) = (21 * MIB, 4000, 0);
        while now_ms < 1_000_000 {
            if judge.is_due(now_ms) {
                beside += 9 * MIB;
                if judge.should_trim(Some(beside), false, now_ms) {
                    trims += 1;
                    assert!(!judge.should_trim(Some(beside), true, now_ms));
                }
            }
            now_ms += 1000;
        }
        assert!((10..30).contains(&trims), "{trims}");
        // And once it gives much again, it is tried as often as at first.
        assert!(judge.should_trim(Some(beside + 100 * MIB), false, now_ms));
        assert!(!judge.should_trim(Some(beside), true, now_ms) && judge.is_due(now_ms + 1000));
        assert!(!judge.should_trim(None, false, now_ms) && !judge.is_due(now_ms + 2000));
    }

    #[test]
    fn the_resident_memory_is_known() {
        let before = resident_bytes().unwrap();
        assert!(before > 100_000 && before < 1 << 40, "{before}");
        assert!(FreedMemory::new(&Budget::default()).is_none());
    }
}
