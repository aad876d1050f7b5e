//! The queue from the shards to one process (or one node kernel): batches of events, bounded in messages and bytes.
//!
//! Invariants:
//! - a shard never waits here: it asks [`ProcessQueue::has_room`] before it parses the next message, and stops reading
//!   the client when there is none; so nothing is dropped and nothing grows without bound;
//! - Opened, Closed and Outcome are never refused: the first two are bounded by the live channels; a push that asks for
//!   an outcome is refused while as many outcomes are unread as there may be messages;
//! - what waits is leased from the broker's memory; where no more can be leased, the queue is as large as its lease. An
//!   empty queue has room for a message whatever is leased, so that a process that reads always goes on;
//! - a shard that was refused is woken once the consumer has taken half of the queue out.
//!
//! Knows nothing of how a shard is woken: that is a callback.

use crate::admission::{Budget, Lease};
use crate::gateway::OwnerId;
use crate::shard::event::Event;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How much a process may leave unread before its clients are no longer read.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Messages, control frames and HTTP requests.
    pub messages_max: usize,
    /// Their payload bytes.
    pub bytes_max: usize,
}

impl Default for QueueLimits {
    /// 64 Ki messages: at the measured 0.1 µs a message that is under 10 ms of work for the process. 16 MiB: the
    /// largest single message.
    fn default() -> Self {
        Self { messages_max: 64 * 1024, bytes_max: 16 * 1024 * 1024 }
    }
}

/// Events of one owner, from one turn of one shard.
#[derive(Debug)]
pub struct Batch {
    /// Whose.
    pub owner: OwnerId,
    /// In order.
    pub events: Vec<Event>,
    messages: usize,
    bytes: usize,
    outcomes: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new(owner: OwnerId) -> Self {
        Self::with_room(owner, 0)
    }

    /// An empty batch, with room for so many events.
    pub fn with_room(owner: OwnerId, events: usize) -> Self {
        Self { owner, events: Vec::with_capacity(events), messages: 0, bytes: 0, outcomes: 0 }
    }

    /// Appends an event.
    pub fn push(&mut self, event: Event) {
        let bytes = match &event {
            Event::Message { payload, .. } | Event::Control { payload, .. } => Some(payload.len()),
            Event::Http(request) => Some(request.body.len()),
            Event::Outcome { .. } | Event::Failed { .. } => {
                self.outcomes += 1;
                None
            }
            Event::Opened(_) | Event::Closed(_) => None,
        };
        if let Some(bytes) = bytes {
            self.messages += 1;
            self.bytes += bytes;
        }
        self.events.push(event);
    }
}

/// What an event takes of memory beside its payload.
const EVENT_BYTES: usize = size_of::<Event>();

struct Shared {
    limits: QueueLimits,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    outcomes: AtomicUsize,
    lease: Lease,
    /// No more could be leased when it was last asked for.
    is_short: AtomicBool,
    /// One for each shard: it stopped reading clients because this queue was full.
    waiting: Vec<AtomicBool>,
    wake: Box<dyn Fn(usize) + Send + Sync>,
}

/// How the process sleeps while its queue is empty: at once. The channel's own wait first spins for some microseconds and
/// yields its core several times, which costs as much as what it waits for, and where the two share a core, the shard.
///
/// Invariant: who sleeps has counted itself before it looked once more, and who sends looks at the count after it has
/// sent, so a batch that comes in between is seen by one of the two.
#[derive(Default)]
struct Sleep {
    /// Threads that sleep, and the task that waits.
    sleepers: AtomicUsize,
    task: Mutex<Option<Waker>>,
    sent: Condvar,
}

impl Sleep {
    /// Sleeps until `is_over`, which is asked first and then after each wake.
    fn until(&self, timeout: Duration, mut is_over: impl FnMut() -> bool) {
        let guard = self.task();
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // How it ended is what `is_over` has found.
        drop(self.sent.wait_timeout_while(guard, timeout, |_| !is_over()));
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            // Whoever holds the lock has looked already and is not asleep yet.
            let task = self.task().take();
            self.sent.notify_all();
            if let Some(task) = task {
                self.sleepers.fetch_sub(1, Ordering::Relaxed);
                task.wake();
            }
        }
    }

    /// Has a task woken by the next batch. It must look once more then: what came before is not told.
    fn register(&self, waker: &Waker) {
        let before = self.task().replace(waker.clone());
        if before.is_none() {
            self.sleepers.fetch_add(1, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    fn task(&self) -> MutexGuard<'_, Option<Waker>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the process when a sender is gone: it may have been the last.
#[derive(Clone)]
struct WakeAtEnd(Arc<Sleep>);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// The shards' end.
#[derive(Clone)]
pub struct ProcessQueue {
    shared: Arc<Shared>,
    sender: Sender<Batch>,
    // Behind the sender, which must be gone by then.
    sleep: WakeAtEnd,
}

impl std::fmt::Debug for ProcessQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessQueue").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

/// The process' end.
pub struct ProcessReceiver {
    shared: Arc<Shared>,
    receiver: Receiver<Batch>,
    sleep: Arc<Sleep>,
}

/// Nothing was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// Nothing came in time.
    #[error("no event came in time")]
    Timeout,
    /// All shards have let go of the queue: the broker stopped.
    #[error("the broker has stopped")]
    Stopped,
}

/// A queue from `shards` shards, in the memory of `budget`. `wake(shard)` is called when a shard that waits for room
/// should look again.
pub fn process_queue(
    shards: usize,
    limits: QueueLimits,
    budget: &Budget,
    wake: impl Fn(usize) + Send + Sync + 'static,
) -> (ProcessQueue, ProcessReceiver) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let shared = Arc::new(Shared {
        limits,
        messages: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        outcomes: AtomicUsize::new(0),
        lease: budget.lease(0),
        is_short: AtomicBool::new(false),
        waiting: (0..shards).map(|_| AtomicBool::new(false)).collect(),
        wake: Box::new(wake),
    });
    let sleep = Arc::new(Sleep::default());
    let queue = ProcessQueue { shared: shared.clone(), sender, sleep: WakeAtEnd(sleep.clone()) };
    (queue, ProcessReceiver { shared, receiver, sleep })
}

impl ProcessQueue {
    /// Whether another message may follow those in the queue and those of `pending`, which is not sent yet.
    pub fn has_room(&self, pending: Option<&Batch>) -> bool {
        let (messages, bytes) = pending.map_or((0, 0), |batch| (batch.messages, batch.bytes));
        let messages = self.shared.messages.load(Ordering::Relaxed) + messages;
        let bytes = self.shared.bytes.load(Ordering::Relaxed) + bytes;
        messages < self.shared.limits.messages_max
            && bytes < self.shared.limits.bytes_max
            && (messages == 0 || self.shared.cover(held(messages + 1, bytes)))
    }

    /// Whether an outcome may be asked for.
    pub fn has_room_for_outcome(&self) -> bool {
        self.shared.outcomes.load(Ordering::Relaxed) < self.shared.limits.messages_max
    }

    /// Asks to be woken when there is room, and answers whether there is some already (then it will not be).
    pub fn wait_for_room(&self, shard: usize) -> bool {
        self.shared.waiting[shard].store(true, Ordering::SeqCst);
        let half_empty = self.shared.is_half_empty();
        half_empty && self.shared.waiting[shard].swap(false, Ordering::SeqCst)
    }

    /// Whether a shard that waited may go on.
    pub fn is_half_empty(&self) -> bool {
        self.shared.is_half_empty()
    }

    /// Hands a batch over. Answers false when the process is gone.
    pub fn send(&self, batch: Batch) -> bool {
        self.shared.messages.fetch_add(batch.messages, Ordering::Relaxed);
        self.shared.bytes.fetch_add(batch.bytes, Ordering::Relaxed);
        if batch.outcomes > 0 {
            self.shared.outcomes.fetch_add(batch.outcomes, Ordering::Relaxed);
        }
        // A message that came into an empty queue may be more than could be leased.
        self.shared.cover(self.shared.held_bytes());
        let sent = self.sender.send(batch).is_ok();
        self.sleep.0.wake();
        sent
    }

    /// The payload bytes in the queue.
    pub fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// What the queue holds in memory.
    pub fn held_bytes(&self) -> usize {
        self.shared.held_bytes()
    }

    /// Tells queues from one another.
    pub fn number(&self) -> usize {
        Arc::as_ptr(&self.shared) as usize
    }
}

fn held(messages: usize, bytes: usize) -> usize {
    messages * EVENT_BYTES + bytes
}

impl Shared {
    fn is_half_empty(&self) -> bool {
        let (messages, bytes) = (self.messages.load(Ordering::SeqCst), self.bytes.load(Ordering::SeqCst));
        messages <= self.limits.messages_max / 2
            && bytes <= self.limits.bytes_max / 2
            && (!self.is_short.load(Ordering::SeqCst) || held(messages, bytes) <= self.lease.bytes() / 2)
    }

    fn held_bytes(&self) -> usize {
        held(self.messages.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    fn cover(&self, bytes: usize) -> bool {
        let is_covered = self.lease.cover(bytes);
        if self.is_short.load(Ordering::Relaxed) == is_covered {
            self.is_short.store(!is_covered, Ordering::SeqCst);
        }
        is_covered
    }
}

impl ProcessReceiver {
    /// Waits for a batch.
    ///
    /// # Errors
    /// When none came in time, or none will come any more.
    pub fn recv(&self, timeout: Duration) -> Result<Batch, RecvError> {
        let mut found = self.receiver.try_recv();
        if matches!(found, Err(TryRecvError::Empty)) {
            self.sleep.until(timeout, || {
                found = self.receiver.try_recv();
                !matches!(found, Err(TryRecvError::Empty))
            });
        }
        self.taken(found)
    }

    /// As [`recv`](Self::recv), for a task: it is woken by the next batch, and by the end.
    ///
    /// # Errors
    /// When none will come any more.
    pub fn poll_recv(&self, context: &mut Context<'_>) -> Poll<Result<Batch, RecvError>> {
        let mut found = self.receiver.try_recv();
        if matches!(found, Err(TryRecvError::Empty)) {
            self.sleep.register(context.waker());
            found = self.receiver.try_recv();
        }
        match found {
            Err(TryRecvError::Empty) => Poll::Pending,
            found => Poll::Ready(self.taken(found)),
        }
    }

    /// Takes a batch if one is there.
    ///
    /// # Errors
    /// `Timeout` when there is none now, `Stopped` when none will come any more.
    pub fn try_recv(&self) -> Result<Batch, RecvError> {
        self.taken(self.receiver.try_recv())
    }

    fn taken(&self, found: Result<Batch, TryRecvError>) -> Result<Batch, RecvError> {
        let batch = found.map_err(|error| match error {
            TryRecvError::Empty => RecvError::Timeout,
            TryRecvError::Disconnected => RecvError::Stopped,
        })?;
        self.account(&batch);
        Ok(batch)
    }

    /// Counts a batch out, and wakes the shards that wait once half of the queue is empty.
    fn account(&self, batch: &Batch) {
        self.shared.messages.fetch_sub(batch.messages, Ordering::SeqCst);
        self.shared.bytes.fetch_sub(batch.bytes, Ordering::SeqCst);
        if batch.outcomes > 0 {
            self.shared.outcomes.fetch_sub(batch.outcomes, Ordering::Relaxed);
        }
        if self.shared.is_half_empty() {
            for (shard, waiting) in self.shared.waiting.iter().enumerate() {
                if waiting.load(Ordering::SeqCst) && waiting.swap(false, Ordering::SeqCst) {
                    (self.shared.wake)(shard);
                }
            }
        }
        self.shared.lease.trim(self.shared.held_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::ChannelId;
    use crate::proto::MessageKind;
    use bytes::Bytes;

    fn batch(messages: usize) -> Batch {
        let mut batch = Batch::new(OwnerId(1));
        for _ in 0..messages {
            batch.push(Event::Message {
                channel: ChannelId::new(1),
                kind: MessageKind::Text,
                payload: Bytes::from_static(b"x"),
            });
        }
        batch
    }

    #[test]
    fn a_full_queue_refuses_and_wakes_at_half_empty() {
        let woken = Arc::new(AtomicUsize::new(0));
        let seen = woken.clone();
        let limits = QueueLimits { messages_max: 4, bytes_max: 100 };
        let (queue, receiver) = process_queue(2, limits, &Budget::default(), move |shard| {
            assert_eq!(shard, 1);
            seen.fetch_add(1, Ordering::SeqCst);
        });
        assert!(queue.has_room(Some(&batch(3))) && !queue.has_room(Some(&batch(4))));
        queue.send(batch(2));
        queue.send(batch(2));
        assert!(!queue.has_room(None) && !queue.wait_for_room(1));
        receiver.try_recv().unwrap();
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        receiver.try_recv().unwrap();
        assert_eq!(woken.load(Ordering::SeqCst), 1, "woken once for each time it asked");
        assert!(queue.wait_for_room(1), "there is room, so there is nothing to wait for");
        drop(queue);
        assert_eq!(receiver.try_recv().unwrap_err(), RecvError::Stopped);
    }

    #[test]
    fn a_sleeping_process_is_woken_by_each_batch_and_by_the_end() {
        let (queue, receiver) = process_queue(1, QueueLimits::default(), &Budget::default(), |_| {});
        assert_eq!(receiver.recv(Duration::from_millis(1)).unwrap_err(), RecvError::Timeout);
        let (seen, batches) = crossbeam_channel::unbounded();
        let process = std::thread::spawn(move || {
            let never = Duration::from_secs(3600);
            while receiver.recv(never).is_ok() {
                seen.send(()).unwrap();
            }
        });
        for _ in 0..1000 {
            queue.send(batch(1));
            batches.recv_timeout(Duration::from_secs(60)).expect("the process was woken");
        }
        drop(queue.clone());
        drop(queue);
        process.join().unwrap();
    }
}
