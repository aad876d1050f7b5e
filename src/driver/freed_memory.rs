//! Watches how much more memory is resident than brokers hold, and has the allocator give back what it keeps.
//!
//! A budget bounds the memory that is held. What was held in many small allocations stays resident when it is freed, as
//! long as anything behind it in the same heap lives; each thread has a heap of its own, so what one shard has freed is
//! of no use to another; and what churns in allocations of many sizes is resident with the gaps between them. Each can
//! double what the budget promised the machine, within a second. So a thread measures whenever a part of the budget
//! has moved. What is resident beside what is held, and was not at some time before, is garbage:
//!
//! - where it and what is held exceed the budget together, a sixteenth of the budget is given back at once. Other
//!   threads may wait for memory meanwhile, so a trim is begun behind a pause of several times the last one's length;
//! - else there is no hurry: once a second.
//!
//! Where a trim gave little, other memory of the program has grown, and pauses double.
//!
//! Invariants: one thread trims, for all brokers of the program, and it ends with the last of them. It must not know
//! what the memory is held for.

use super::clock::{monotonic_ns, thread_cpu_ns};
use super::malloc;
use crate::admission::Budget;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A sixteenth of the budget is worth a trim.
const NOTABLE_PART: usize = 16;

/// Less than this is not, where there is no hurry, and where there is.
const NOTABLE_BYTES_MIN: usize = 8 * 1024 * 1024;
const NOTABLE_BYTES_MIN_TIGHT: usize = 1024 * 1024;

/// And this always is: other threads may wait for a trim in proportion to what it gives back.
const NOTABLE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// It is measured when so much of the budget has moved.
const MOVED_PART: usize = 32;

/// And so often where nothing moves: what churns within a lease leaves gaps too.
const LOOK_MS: u64 = 1000;

/// The pause behind a trim where there is no hurry, and the longest where trims give little.
const PAUSE_MS: u64 = 1000;
const PAUSE_MS_MAX: u64 = 64_000;

/// Where there is, trims take one part of so many of the time; and the longest pause, where trims give little.
const TRIMMING_PART: u64 = 8;
const TIGHT_PAUSE_MS_MAX: u64 = 250;

/// A watch over the memory of one budget. It ends when this is dropped.
pub(crate) struct FreedMemory(Budget);

/// The one watcher of the program.
static WATCHER: Mutex<Watcher> = Mutex::new(Watcher { budgets: Vec::new(), thread: None });

struct Watcher {
    budgets: Vec<Budget>,
    thread: Option<(JoinHandle<()>, Arc<AtomicBool>)>,
}

fn watcher() -> MutexGuard<'static, Watcher> {
    WATCHER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FreedMemory {
    /// Watches over the memory of this budget; `None` where it has no limit, for there is nothing to keep to.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(crate) fn watch(budget: &Budget) -> io::Result<Option<Self>> {
        let Some(bytes) = budget.bytes() else { return Ok(None) };
        let watch = Self(budget.clone());
        let mut watcher = watcher();
        watcher.budgets.push(budget.clone());
        let thread = match &watcher.thread {
            Some((thread, _)) => thread.thread().clone(),
            None => {
                let is_over = Arc::new(AtomicBool::new(false));
                let over = is_over.clone();
                let thread = std::thread::Builder::new().name("trim".to_owned()).spawn(move || run(&over))?;
                watcher.thread.insert((thread, is_over)).0.thread().clone()
            }
        };
        drop(watcher);
        budget.set_on_moved((bytes / MOVED_PART).max(1), move || thread.unpark());
        Ok(Some(watch))
    }
}

impl Drop for FreedMemory {
    fn drop(&mut self) {
        let mut watcher = watcher();
        watcher.budgets.retain(|budget| !budget.is_same(&self.0));
        let last = if watcher.budgets.is_empty() { watcher.thread.take() } else { None };
        drop(watcher);
        if let Some((thread, is_over)) = last {
            is_over.store(true, Ordering::Relaxed);
            thread.thread().unpark();
            // It has no result, and does not panic.
            let _ = thread.join();
        }
    }
}

/// The life of the watcher's thread.
fn run(is_over: &AtomicBool) {
    let mut judge = Judge::default();
    while !is_over.load(Ordering::Relaxed) {
        let now_ms = now_ms();
        let Some(measured) = Measured::now() else {
            // A system without /proc has nothing to go by.
            std::thread::park_timeout(Duration::from_millis(PAUSE_MS_MAX));
            continue;
        };
        match judge.next(measured, now_ms) {
            Next::LookIn(ms) => std::thread::park_timeout(Duration::from_millis(ms)),
            Next::Trim => {
                let before_ns = thread_cpu_ns();
                malloc::trim();
                // Its own time: that it was kept from its core was no burden to others.
                let took_ms = (thread_cpu_ns() - before_ns) / 1_000_000;
                let beside_bytes = Measured::now().map_or(measured.beside_bytes(), Measured::beside_bytes);
                judge.trimmed(beside_bytes, self::now_ms(), took_ms);
            }
        }
    }
    // Of the last broker nothing stays.
    malloc::trim();
}

fn now_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// What there is at one moment, in bytes.
#[derive(Debug, Clone, Copy)]
struct Measured {
    resident: usize,
    /// Of all brokers.
    leased: usize,
    /// All budgets together.
    total: usize,
}

impl Measured {
    fn now() -> Option<Self> {
        let (mut leased, mut total) = (0, 0);
        for budget in &watcher().budgets {
            leased += budget.leased_bytes();
            total += budget.bytes().unwrap_or(0);
        }
        Some(Self { resident: resident_bytes()?, leased, total })
    }

    /// The resident memory beside what is held.
    fn beside_bytes(self) -> usize {
        self.resident.saturating_sub(self.leased)
    }
}

/// The resident memory of this program (proc(5), statm).
fn resident_bytes() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split(' ').nth(1)?.parse::<usize>().ok()? * rustix::param::page_size())
}

/// Judges by numbers alone.
struct Judge {
    /// The least that was resident beside what was held, since the last trim.
    least_bytes: usize,
    /// The same right before the last trim.
    before_bytes: usize,
    /// So many trims in a row gave little.
    fruitless: u32,
    /// When the next trim may begin: where there is no hurry, and where there is.
    calm_ms: u64,
    tight_ms: u64,
}

impl Default for Judge {
    fn default() -> Self {
        Self { least_bytes: usize::MAX, before_bytes: 0, fruitless: 0, calm_ms: 0, tight_ms: 0 }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Trim,
    /// Or earlier, when much has moved.
    LookIn(u64),
}

impl Judge {
    fn next(&mut self, measured: Measured, now_ms: u64) -> Next {
        let beside_bytes = measured.beside_bytes();
        self.least_bytes = self.least_bytes.min(beside_bytes);
        self.before_bytes = beside_bytes;
        let garbage = beside_bytes - self.least_bytes;
        let is_tight = measured.leased + garbage > measured.total;
        let (notable_min, due_ms) =
            if is_tight { (NOTABLE_BYTES_MIN_TIGHT, self.tight_ms) } else { (NOTABLE_BYTES_MIN, self.calm_ms) };
        match garbage >= (measured.total / NOTABLE_PART).clamp(notable_min, NOTABLE_BYTES_MAX) {
            true if now_ms >= due_ms => Next::Trim,
            true => Next::LookIn((due_ms - now_ms).min(LOOK_MS)),
            false => Next::LookIn(LOOK_MS),
        }
    }

    /// So much is resident beside what is held, behind a trim that ended then and took so long.
    fn trimmed(&mut self, beside_bytes: usize, ended_ms: u64, took_ms: u64) {
        let garbage = self.before_bytes - self.least_bytes;
        let is_worth_it = beside_bytes + garbage / 4 <= self.before_bytes;
        self.fruitless = if is_worth_it { 0 } else { self.fruitless.saturating_add(1) };
        self.least_bytes = beside_bytes;
        let longer =
            |pause_ms: u64, max_ms: u64| pause_ms.saturating_mul(1 << self.fruitless.min(16)).min(max_ms).max(pause_ms);
        self.calm_ms = ended_ms + longer(PAUSE_MS, PAUSE_MS_MAX);
        self.tight_ms = ended_ms + longer((TRIMMING_PART - 1) * (took_ms + 1), TIGHT_PAUSE_MS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    /// Of a budget of 64 MiB.
    fn measured(resident_mib: usize, leased_mib: usize) -> Measured {
        Measured { resident: resident_mib * MIB, leased: leased_mib * MIB, total: 64 * MIB }
    }

    #[test]
    fn what_is_resident_and_not_held_is_given_back_and_asked_for_less_often_where_that_gives_little() {
        let mut judge = Judge::default();
        assert_eq!(judge.next(measured(20, 0), 1000), Next::LookIn(LOOK_MS));
        assert_eq!(judge.next(measured(27, 0), 2000), Next::LookIn(LOOK_MS));
        // Much was held, and is freed.
        assert_eq!(judge.next(measured(70, 50), 3000), Next::LookIn(LOOK_MS));
        assert_eq!(judge.next(measured(70, 5), 3001), Next::Trim);
        judge.trimmed(16 * MIB, 3010, 8);
        assert_eq!(judge.next(measured(70, 5), 3100), Next::LookIn(910), "there is no hurry");
        assert_eq!(judge.next(measured(70, 5), 4010), Next::Trim);
        judge.trimmed(16 * MIB, 4020, 9);
        // Other memory has grown: trimming gives nothing back, and is tried again when a budget more has come.
        let (mut resident, mut now_ms, mut trims) = (21, 5020, 0);
        while now_ms < 1_000_000 {
            resident += 9;
            if judge.next(measured(resident, 0), now_ms) == Next::Trim {
                trims += 1;
                judge.trimmed(resident * MIB, now_ms + 5, 4);
            }
            now_ms += 1000;
        }
        assert!((100..150).contains(&trims), "{trims}");
        // And once it gives much again, it is tried as often as at first.
        now_ms += PAUSE_MS_MAX;
        assert_eq!(judge.next(measured(resident + 100, 0), now_ms), Next::Trim);
        judge.trimmed(resident * MIB, now_ms + 5, 4);
        assert_eq!(judge.next(measured(resident + 100, 0), now_ms + 1005), Next::Trim);
    }

    #[test]
    fn a_budget_that_garbage_exceeds_is_kept_to_at_once() {
        let mut judge = Judge::default();
        assert_eq!(judge.next(measured(20, 0), 1000), Next::LookIn(LOOK_MS));
        // 3 MiB of garbage are not worth it; 4 are.
        assert_eq!(judge.next(measured(85, 62), 1001), Next::LookIn(LOOK_MS));
        assert_eq!(judge.next(measured(86, 62), 1002), Next::Trim);
        judge.trimmed(20 * MIB, 1006, 3);
        // It took less than 4 ms: others have the heap for seven times as long.
        assert_eq!(judge.next(measured(90, 62), 1007), Next::LookIn(27));
        assert_eq!(judge.next(measured(90, 62), 1034), Next::Trim);
        // Where it gives nothing, for ever longer, but never for long.
        let (mut resident, mut now_ms) = (90, 1034);
        for _ in 0..20 {
            judge.trimmed((resident - 62) * MIB, now_ms + 4, 3);
            (resident, now_ms) = (resident + 5, now_ms + 4 + TIGHT_PAUSE_MS_MAX);
            assert_eq!(judge.next(measured(resident, 62), now_ms), Next::Trim);
        }
    }

    #[test]
    fn one_thread_watches_over_all_budgets_and_ends_with_the_last() {
        assert!(FreedMemory::watch(&Budget::default()).unwrap().is_none(), "nothing to keep to");
        let (one, other) = (Budget::of(64 * MIB), Budget::of(64 * MIB));
        let first = FreedMemory::watch(&one).unwrap().unwrap();
        let second = FreedMemory::watch(&other).unwrap().unwrap();
        let is_watched = |budget: &Budget| watcher().budgets.iter().any(|watched| watched.is_same(budget));
        assert!(is_watched(&one) && is_watched(&other) && watcher().thread.is_some());
        drop(first);
        assert!(!is_watched(&one) && is_watched(&other) && watcher().thread.is_some());
        // Brokers of other tests may be watched meanwhile.
        drop(second);
        assert!(!is_watched(&other));
        let again = FreedMemory::watch(&Budget::of(64 * MIB)).unwrap();
        assert!(again.is_some() && watcher().thread.is_some());
    }

    #[test]
    fn the_resident_memory_is_known() {
        let before = resident_bytes().unwrap();
        assert!(before > 100_000 && before < 1 << 40, "{before}");
    }
}
