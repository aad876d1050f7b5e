//! Producers that wait for room in a full inbox.
//!
//! Each is a thread or a task, and a process may have any number of them. Waking one may be a system call, and the
//! shard has others to serve: so an announcement wakes [`WOKEN_MAX`] of them, of each account in turn, and tells
//! whether others wait still, for whom it is to be repeated in the next turn.
//!
//! Invariant: a producer that registers and then still finds no room is woken by the next announcement, or by one of
//! those with which it is repeated. As with the wake flag, both sides store, fence, and then look at what the other
//! stored. Without waiters an announcement takes no lock.

use super::sync::{AtomicBool, Mutex, Ordering, fence};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Those woken at a time: as much as some dozens of sends.
pub(super) const WOKEN_MAX: usize = 64;

/// A waiter that can be woken once.
pub(super) trait Waiter {
    /// Waking either of two with the same id wakes the same.
    fn id(&self) -> WaiterId;
    /// Wakes.
    fn wake(self);
}

/// Two addresses, say.
pub(super) type WaiterId = [usize; 2];

pub(super) struct Room<W> {
    waiting: AtomicBool,
    waiters: Mutex<Waiters<W>>,
}

/// By account, and those of one account in order.
struct Waiters<W> {
    by_account: BTreeMap<usize, AccountWaiters<W>>,
    /// No account before this one has its turn before the others.
    next: usize,
}

struct AccountWaiters<W> {
    line: VecDeque<W>,
    ids: BTreeSet<WaiterId>,
}

impl<W: Waiter> Waiters<W> {
    fn push(&mut self, account: usize, waiter: W) {
        let new = || AccountWaiters { line: VecDeque::new(), ids: BTreeSet::new() };
        let of = self.by_account.entry(account).or_insert_with(new);
        if of.ids.insert(waiter.id()) {
            of.line.push_back(waiter);
        }
    }

    fn pop(&mut self) -> Option<W> {
        let (&account, _) = self.by_account.range(self.next..).next().or_else(|| self.by_account.iter().next())?;
        let of = self.by_account.get_mut(&account)?;
        let waiter = of.line.pop_front()?;
        of.ids.remove(&waiter.id());
        if of.line.is_empty() {
            self.by_account.remove(&account);
        }
        self.next = account.wrapping_add(1);
        Some(waiter)
    }
}

impl<W: Waiter> Room<W> {
    pub(super) fn new() -> Self {
        let waiters = Waiters { by_account: BTreeMap::new(), next: 0 };
        Self { waiting: AtomicBool::new(false), waiters: Mutex::new(waiters) }
    }

    /// Asks for the next announcement, as one of an account. Look for room again afterwards, then wait.
    pub(super) fn register(&self, account: usize, waiter: W) {
        {
            let mut waiters = self.waiters.lock().expect("nothing panics under this lock");
            waiters.push(account, waiter);
            self.waiting.store(true, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Announces room to so many at most. Returns whether others wait still, to whom it is to be announced too.
    pub(super) fn announce(&self, most: usize) -> bool {
        fence(Ordering::SeqCst);
        if !self.waiting.load(Ordering::Relaxed) {
            return false;
        }
        let (woken, waits_on) = {
            let mut waiters = self.waiters.lock().expect("nothing panics under this lock");
            let woken: Vec<W> = std::iter::from_fn(|| waiters.pop()).take(most).collect();
            let waits_on = !waiters.by_account.is_empty();
            self.waiting.store(waits_on, Ordering::Relaxed);
            (woken, waits_on)
        };
        woken.into_iter().for_each(Waiter::wake);
        waits_on
    }
}
