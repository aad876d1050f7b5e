//! The bounded queue into a shard, from any thread: commands, how much of it one producer may hold, and how a sleeping
//! shard is woken.
//!
//! Invariants: a command that was accepted is handed to the shard once, in the order of its producer's calls, unless
//! the shard ends first. The queue holds at most the commands and bytes of its [`InboxLimits`], and one [`Account`] at
//! most a quarter of each and no more than is left free (a dynamic threshold: many full accounts leave room for
//! another); a single command bigger than that passes when its account (and the queue) holds nothing. A shard
//! asleep is woken for each command and kick; a push to a shard that is awake costs no system call. Producers that
//! wait for room are woken after a drain, some dozens at a time, and the shard does not sleep before all of them are.
//! A shard never waits for a producer that was stopped in the middle of a call (`ring`): what is on its way, and
//! what stands behind it, has not come yet.
//!
//! It must not do I/O: the caller gives a [`Wake`] that wakes the shard. The parts whose orderings matter (`wake_flag`,
//! `room`, `gauge`, `ring`) are modelled with loom by `cargo test --test loom_inbox`.

pub use super::gauge::InboxLimits;
use super::gauge::{self, Gauge};
use super::ring::{self, Consumer, Ring};
use super::room::{Room, WOKEN_MAX, Waiter, WaiterId};
use super::wake_flag::WakeFlag;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// One producer may hold this part of a queue.
const ACCOUNT_SHARE: u64 = 4;

/// Wakes the thread of a shard that sleeps, from any thread: an eventfd, or nothing where the shard is stepped by hand.
pub trait Wake: Send + Sync {
    /// Ends the shard's sleep, or keeps its next one from beginning.
    fn wake(&self);
}

/// A [`Wake`] for shards that never sleep: simulation and benchmarks.
#[derive(Debug, Default, Clone, Copy)]
pub struct NeverAsleep;

impl Wake for NeverAsleep {
    fn wake(&self) {}
}

/// Why a command was not taken; it comes back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendRefused<T> {
    /// The account or the queue is full. Room comes as soon as the shard drains.
    #[error("the shard's inbox is full, or this producer's share of it")]
    Full(T),
    /// The shard takes no more commands, ever.
    #[error("the shard has stopped")]
    Stopped(T),
}

impl<T> std::fmt::Debug for SendRefused<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Stopped(_) => "Stopped(..)",
        })
    }
}

/// The shard takes no more commands; the one that was offered comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shard has stopped")]
pub struct InboxStopped<T>(pub T);

/// One producer's part of one inbox. Make one per process and inbox; clones are the same account.
#[derive(Debug, Clone)]
pub struct Account(Arc<Gauge>);

impl Account {
    /// Distinguishes accounts.
    pub(super) fn number(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    pub(super) fn release(&self, commands: u64, bytes: u64) {
        self.0.release(commands, bytes);
    }

    /// The commands and bytes that it holds.
    pub fn held(&self) -> (u64, u64) {
        self.0.held()
    }
}

pub(super) struct QueuedOrder<T> {
    pub command: T,
    pub bytes: u64,
    pub account: Account,
}

struct InboxShared<T> {
    queue: Arc<Ring<QueuedOrder<T>>>,
    /// The consumer of a shard that is gone: for what would stay behind.
    leftovers: Mutex<Option<Consumer<QueuedOrder<T>>>>,
    held: Gauge,
    flag: WakeFlag,
    room: Room<Waker>,
    kicked: AtomicBool,
    stopped: AtomicBool,
    /// The shard's side was dropped: the inbox will not be drained again.
    gone: AtomicBool,
    wake: Box<dyn Wake>,
}

/// Makes the inbox of a shard that `wake` wakes.
pub fn inbox<T>(limits: InboxLimits, wake: impl Wake + 'static) -> (InboxSender<T>, Inbox<T>) {
    let held = Gauge::new(limits);
    let (queue, consumer) = ring::ring(held.limits().commands_max as usize);
    let shared = Arc::new(InboxShared {
        queue,
        leftovers: Mutex::new(None),
        held,
        flag: WakeFlag::new(),
        room: Room::new(),
        kicked: AtomicBool::new(false),
        stopped: AtomicBool::new(false),
        gone: AtomicBool::new(false),
        wake: Box::new(wake),
    });
    (InboxSender { shared: shared.clone() }, Inbox { queue: Some(consumer), shared, announces: false })
}

impl<T> InboxShared<T> {
    fn wake_if_asleep(&self) {
        if self.flag.must_wake() {
            self.wake.wake();
        }
    }

    fn drop_leftovers(&self) {
        let next = || self.leftovers.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(Consumer::pop);
        // One is dropped when the lock is free again: what hears of it may send another.
        while next().is_some() {}
    }
}

/// The producers' side.
pub struct InboxSender<T> {
    shared: Arc<InboxShared<T>>,
}

impl<T> Clone for InboxSender<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T> InboxSender<T> {
    /// A new account for a producer of this inbox.
    pub fn account(&self) -> Account {
        Account(Arc::new(Gauge::new(self.shared.held.limits().share(ACCOUNT_SHARE))))
    }

    /// Puts `command`, which stands for `bytes` bytes of payload, into the queue and wakes the shard if it sleeps.
    /// Never waits.
    ///
    /// # Errors
    /// No room now, or no shard; see [`SendRefused`].
    pub fn try_send(&self, command: T, bytes: usize, account: &Account) -> Result<(), SendRefused<T>> {
        match self.try_reserve(bytes, account) {
            Ok(place) => place.put(command),
            Err(SendRefused::Full(())) => return Err(SendRefused::Full(command)),
            Err(SendRefused::Stopped(())) => return Err(SendRefused::Stopped(command)),
        }
        Ok(())
    }

    /// Takes room for a command that stands for `bytes` bytes of payload. Never waits.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send).
    pub fn try_reserve<'a>(
        &'a self,
        bytes: usize,
        account: &'a Account,
    ) -> Result<ReservedPlace<'a, T>, SendRefused<()>> {
        if self.shared.stopped.load(Ordering::Acquire) {
            return Err(SendRefused::Stopped(()));
        }
        let bytes = gauge::countable(bytes);
        if self.leaves_no_room(account, bytes) || !account.0.try_take(bytes) {
            return Err(SendRefused::Full(()));
        }
        if !self.shared.held.try_take(bytes) {
            // Producers that met the account full meanwhile are not forgotten: the queue that refused this order holds
            // commands or places, and whoever drains those or gives these back wakes all that wait.
            account.0.release(1, bytes);
            return Err(SendRefused::Full(()));
        }
        Ok(ReservedPlace { inbox: self, account, bytes })
    }

    /// Puts a command into the queue, for which room was taken.
    fn put(&self, order: QueuedOrder<T>) {
        let pushed = self.shared.queue.try_push(order);
        assert!(pushed.is_ok(), "the gauge admits no more commands than the queue has places");
        self.shared.wake_if_asleep();
        // The fence that came with looking at the wake flag stands between our push and this load, another between
        // the store and the last drain of the inbox: one of us drops the command, and its ticket does not hang.
        if self.shared.gone.load(Ordering::Relaxed) {
            self.shared.drop_leftovers();
        }
    }

    /// Returns whether a producer that holds something would hold more than it leaves free. So however many fill the
    /// queue, there is room for one that comes with nothing.
    fn leaves_no_room(&self, account: &Account, bytes: u64) -> bool {
        let ((own, own_bytes), (all, all_bytes)) = (account.0.held(), self.shared.held.held());
        let limits = self.shared.held.limits();
        let has_too_much = || {
            let free = u64::from(limits.commands_max).saturating_sub(all);
            own >= free || own_bytes + bytes > limits.bytes_max.saturating_sub(all_bytes + bytes)
        };
        own > 0 && has_too_much()
    }

    /// As [`try_send`](Self::try_send), but blocks this thread until there is room. Shards drain at the speed of
    /// their CPU whatever clients do, so that is short. Never call it on a shard's thread.
    ///
    /// # Errors
    /// The shard has stopped.
    pub fn send_wait(&self, mut command: T, bytes: usize, account: &Account) -> Result<(), InboxStopped<T>> {
        let mut registered = false;
        loop {
            command = match self.try_send(command, bytes, account) {
                Ok(()) => return Ok(()),
                Err(SendRefused::Stopped(command)) => return Err(InboxStopped(command)),
                Err(SendRefused::Full(command)) => command,
            };
            if registered {
                // Returns at once when room was announced since we registered, and now and then for no reason.
                std::thread::park();
            } else {
                THIS_THREAD.with(|waker| self.shared.room.register(account.number(), waker.clone()));
            }
            registered = !registered;
        }
    }

    /// As [`send_wait`](Self::send_wait), for async code of any runtime. Dropping the future gives the attempt up.
    ///
    /// # Errors
    /// The shard has stopped.
    pub fn send(
        &self,
        command: T,
        bytes: usize,
        account: &Account,
    ) -> impl Future<Output = Result<(), InboxStopped<T>>> + use<'_, T> {
        let account = account.clone();
        let mut command = Some(command);
        poll_fn(move |context| self.poll_send(&mut command, bytes, &account, context))
    }

    /// As [`send`](Self::send), by hand. The command is taken once it is accepted; while there is no room it stays, and
    /// the task is woken when there is.
    ///
    /// # Errors
    /// The shard has stopped.
    ///
    /// # Panics
    /// The command is gone: this was ready already.
    pub fn poll_send(
        &self,
        command: &mut Option<T>,
        bytes: usize,
        account: &Account,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), InboxStopped<T>>> {
        for registered in [false, true] {
            let offered = command.take().expect("not polled again after it was ready");
            match self.try_send(offered, bytes, account) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(SendRefused::Stopped(back)) => return Poll::Ready(Err(InboxStopped(back))),
                Err(SendRefused::Full(back)) => *command = Some(back),
            }
            if !registered {
                self.shared.room.register(account.number(), context.waker().clone());
            }
        }
        Poll::Pending
    }

    /// Wakes the shard without a command, to look at what else it waits for; it learns so from
    /// [`Inbox::take_kick`].
    pub fn kick(&self) {
        // One kick that was not yet taken stands for all: the thread that set it has woken the shard or is about to.
        if !self.shared.kicked.swap(true, Ordering::AcqRel) {
            self.shared.wake_if_asleep();
        }
    }

    /// Returns whether the shard takes no more commands.
    pub fn is_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Acquire)
    }

    /// The commands in the queue and the bytes they stand for.
    pub fn held(&self) -> (u64, u64) {
        self.shared.held.held()
    }
}

/// Room that was taken for one command, so that it is accepted whatever others send meanwhile. Dropping it gives the
/// room back.
#[must_use = "dropping it gives the room back"]
pub struct ReservedPlace<'a, T> {
    inbox: &'a InboxSender<T>,
    account: &'a Account,
    bytes: u64,
}

impl<T> ReservedPlace<'_, T> {
    /// Puts the command there, and wakes the shard if it sleeps. A shard that has stopped meanwhile drops it.
    pub fn put(self, command: T) {
        let Self { inbox, account, bytes } = self;
        // The room is the command's from now on.
        std::mem::forget(self);
        inbox.put(QueuedOrder { command, bytes, account: account.clone() });
    }
}

impl<T> Drop for ReservedPlace<'_, T> {
    fn drop(&mut self) {
        self.account.0.release(1, self.bytes);
        self.inbox.shared.held.release(1, self.bytes);
        // Others may have found no room but for this. The shard may have nothing to announce again.
        self.inbox.shared.room.announce(usize::MAX);
    }
}

/// Orders that are done, whose room is to be given back: neighbours of one account together, for producers tend to send
/// in runs.
#[derive(Default)]
pub(super) struct FinishedOrders {
    pub orders: u64,
    pub bytes: u64,
    pub run: Option<(Account, u64, u64)>,
}

impl FinishedOrders {
    pub(super) fn add(&mut self, account: &Account, bytes: u64) {
        self.orders += 1;
        self.bytes += bytes;
        match &mut self.run {
            Some((of, orders, sum)) if of.number() == account.number() => {
                *orders += 1;
                *sum += bytes;
            }
            run => {
                if let Some((of, orders, sum)) = run.replace((account.clone(), 1, bytes)) {
                    of.release(orders, sum);
                }
            }
        }
    }
}

/// The shard's side. When it is dropped, senders are refused and commands left in the queue are dropped.
pub struct Inbox<T> {
    /// There until it is dropped.
    queue: Option<Consumer<QueuedOrder<T>>>,
    shared: Arc<InboxShared<T>>,
    /// Room that came free has not been announced to all who wait for it.
    announces: bool,
}

impl<T> Inbox<T> {
    /// Hands at most `commands_max` commands to `each`, oldest first, and stops early once they stand for `bytes_max`
    /// bytes or more. Returns their number; then their room is free and waiting producers are woken. Where producers
    /// are to be served in turn, see [`super::fair`].
    pub fn drain(&mut self, commands_max: usize, bytes_max: u64, mut each: impl FnMut(T)) -> usize {
        let mut done = FinishedOrders::default();
        while (done.orders as usize) < commands_max
            && done.bytes < bytes_max
            && let Some(entry) = self.take()
        {
            done.add(&entry.account, entry.bytes);
            each(entry.command);
        }
        let drained = done.orders as usize;
        self.release(done);
        drained
    }

    /// Takes the oldest command out, if it has come whole. Its room is not free before it is
    /// [released](Self::release).
    pub(super) fn take(&mut self) -> Option<QueuedOrder<T>> {
        self.queue.as_mut()?.pop()
    }

    /// Commands that were not taken out, with those on their way.
    pub(super) fn waiting(&self) -> usize {
        self.queue.as_ref().map_or(0, Consumer::len)
    }

    /// Frees the room of finished commands, and wakes some of the producers that wait for it.
    pub(super) fn release(&mut self, done: FinishedOrders) {
        let FinishedOrders { orders, bytes, run } = done;
        if let Some((account, run_orders, run_bytes)) = run {
            account.release(run_orders, run_bytes);
            self.shared.held.release(orders, bytes);
            self.announces = true;
        }
        if self.announces {
            self.announces = self.shared.room.announce(WOKEN_MAX);
        }
    }

    /// Returns whether producers wait that are to be woken by the next [`release`](Self::release).
    pub(super) fn announces(&self) -> bool {
        self.announces
    }

    /// The bytes that the commands stand for that are not done.
    pub fn bytes(&self) -> usize {
        self.shared.held.held().1 as usize
    }

    /// Returns whether nothing waits in the queue that could be taken out now.
    pub fn is_empty(&self) -> bool {
        self.queue.as_ref().is_none_or(Consumer::is_empty)
    }

    /// Returns whether there was a [kick](InboxSender::kick) since the last call.
    pub fn take_kick(&mut self) -> bool {
        // A kick that is not seen here is before a sleep, at the latest.
        self.shared.kicked.load(Ordering::Relaxed) && self.shared.kicked.swap(false, Ordering::AcqRel)
    }

    /// To be called before the shard waits for its [`Wake`]. False when something has come in: go on instead. True:
    /// from now on each send or kick will wake it.
    #[must_use]
    pub fn prepare_sleep(&mut self) -> bool {
        let shared = &self.shared;
        shared.flag.prepare_sleep(|| self.announces || !self.is_empty() || shared.kicked.load(Ordering::Acquire))
    }

    /// To be called when the shard is awake again, whatever woke it: from now on sends cost no wake.
    pub fn awake(&mut self) {
        self.shared.flag.awake();
    }

    /// Refuses further commands. Those in the queue stay to be drained, and a few that were on their way may still
    /// come.
    pub fn stop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.shared.room.announce(usize::MAX);
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        self.stop();
        *self.shared.leftovers.lock().unwrap_or_else(PoisonError::into_inner) = self.queue.take();
        self.shared.gone.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.shared.drop_leftovers();
    }
}

impl Waiter for Waker {
    fn id(&self) -> WaiterId {
        // Of those two the standard library says that wakers wake the same.
        [self.data().addr(), std::ptr::from_ref(self.vtable()).addr()]
    }

    fn wake(self) {
        wake_task(self);
    }
}

/// Wakes a task on the thread that has something for it, which may be a shard's. What that does is its executor's own
/// business, and so is a panic there, of which the panic hook has told.
pub(crate) fn wake_task(waker: Waker) {
    let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
}

struct Unpark(std::thread::Thread);

impl std::task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Ends a [`park`](std::thread::park) of this thread.
#[cfg(feature = "link")]
pub(crate) fn this_thread() -> Waker {
    THIS_THREAD.with(Waker::clone)
}

thread_local! {
    static THIS_THREAD: Waker = Waker::from(Arc::new(Unpark(std::thread::current())));
}

#[cfg(test)]
#[path = "orders_tests.rs"]
mod tests;
