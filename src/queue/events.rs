//! The queue from the shards to one process (or one node kernel): batches of events, bounded in messages and bytes.
//!
//! Invariants:
//! - a shard never waits here: it asks [`ProcessQueue::has_room`] before it parses the next message, and stops reading
//!   the client when there is none; so nothing is dropped and nothing grows without bound;
//! - all that waits is charged to its process ([`ProcessMemory`]), heads, paths and reasons as well as payloads. Where
//!   no more can be charged, the queue is as large as it is. An empty queue has room for a message whatever else is
//!   charged, so that a process that reads always goes on;
//! - a channel is opened only where its Opened has room ([`ProcessQueue::has_room_to_open`]), so Opened, which wait
//!   unread, are bounded like messages; Closed is never refused, and bounded by the channels that were opened;
//! - an outcome is never refused: the process that asks for it as an event bounds how many it has not read. Failures
//!   that were asked for only in case they happen have half as many places as outcomes, and are dropped where none is
//!   left: a process that leaves so much unread does not look at them;
//! - a shard that was refused is woken once the consumer has taken half of the queue out, or, where clients of it wait
//!   that have had their share ([`QueueLevel::High`]), once little is left. Whoever was woken first is the last to be
//!   woken next time: the first one finds all the room.
//!
//! It must not know how a shard is woken: that is a callback.

use super::sleep::Sleep;
use crate::admission::{Charge, HeapBytes, HeldAs, Ledger, MemoryPool, ProcessMemory};
use crate::gateway::OwnerId;
use crate::process_id::ProcessId;
use crate::shard::event::Event;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How much a process may leave unread before its clients are no longer read.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Messages, control frames and HTTP requests; and beside them as many outcomes that were asked for.
    pub messages_max: usize,
    /// Their bytes: payloads, heads of requests, and what is told of channels that opened and closed.
    pub bytes_max: usize,
}

impl Default for QueueLimits {
    /// 64 Ki messages: at the measured 0.1 µs a message that is under 10 ms of work for the process. 16 MiB: the
    /// largest single message.
    fn default() -> Self {
        Self { messages_max: 64 * 1024, bytes_max: 16 * 1024 * 1024 }
    }
}

/// Below this part of its limits a queue is low.
const LOW_PART: usize = 32;

/// The share of a client is what so many clients could add alike, where fewer want to.
const CLIENTS_MIN: usize = 16;

/// No share is smaller: going on with a client costs as much as some messages do.
const SHARE_MIN: usize = 16;

impl QueueLimits {
    /// The same, with room for one message at least: with room for none no client could ever say anything.
    pub(crate) fn fit(self) -> Self {
        Self { messages_max: self.messages_max.max(1), bytes_max: self.bytes_max.max(1) }
    }

    /// A queue with less than this is low; with twice as much it is high.
    pub(crate) fn low(self) -> Self {
        Self { messages_max: self.messages_max.div_ceil(LOW_PART), bytes_max: self.bytes_max.div_ceil(LOW_PART) }
    }

    /// The units of a message where clients have shares: its part of the limits, in messages.
    pub(crate) fn units(self, message_bytes: usize) -> usize {
        1 + message_bytes / (self.bytes_max / self.messages_max.max(1)).max(1)
    }

    /// The units that each of so many clients may add until the queue is low again.
    pub(crate) fn share(self, clients: usize) -> usize {
        (2 * self.low().messages_max / clients.max(CLIENTS_MIN)).max(SHARE_MIN)
    }

    /// How full a queue with so much in it is, if it is not low.
    pub(crate) fn level_above_low(self, messages: usize, bytes: usize) -> QueueLevel {
        let low = self.low();
        if messages >= self.messages_max || bytes >= self.bytes_max {
            QueueLevel::Full
        } else if messages >= 2 * low.messages_max || bytes >= 2 * low.bytes_max {
            QueueLevel::High
        } else {
            QueueLevel::Middle
        }
    }
}

/// How full a queue is, as clients see it that want to add to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueLevel {
    /// Its process keeps up: a client may add what it likes.
    Low,
    /// As when it was last low or high.
    Middle,
    /// From here on, until it is low, each client may add its share: what is ahead of a message is bounded by that,
    /// however much others send.
    High,
    /// Nothing may be added.
    Full,
}

/// The room for which a shard waits after its clients were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RoomWanted {
    /// Half of the queue.
    Half = 1,
    /// That the queue is [low](QueueLevel::Low).
    Low = 2,
}

/// No shard waits.
const NO_ROOM_WANTED: u8 = 0;

/// Events of one owner, from one turn of one shard.
#[derive(Debug)]
pub struct EventBatch {
    /// The owner that the events are for.
    pub owner: OwnerId,
    /// In order.
    pub events: Vec<Event>,
    messages: usize,
    bytes: usize,
    outcomes: usize,
    failures: usize,
    /// The bytes allocated for its events alone, beside them.
    spare_bytes: usize,
    charge: Option<Charge>,
}

impl EventBatch {
    /// An empty batch.
    pub fn new(owner: OwnerId) -> Self {
        Self::with_room(owner, 0)
    }

    /// An empty batch, with room for so many events.
    pub fn with_room(owner: OwnerId, events: usize) -> Self {
        let events = Vec::with_capacity(events);
        Self { owner, events, messages: 0, bytes: 0, outcomes: 0, failures: 0, spare_bytes: 0, charge: None }
    }

    /// Appends an event.
    pub fn push(&mut self, event: Event) {
        match &event {
            Event::Message { .. }
            | Event::Control { .. }
            | Event::Detached { .. }
            | Event::Resumed { .. }
            | Event::Http(_) => self.messages += 1,
            Event::Outcome { .. } => self.outcomes += 1,
            Event::Failed { .. } => self.failures += 1,
            Event::Opened(_) | Event::Joined { .. } | Event::Left { .. } | Event::Closed(_) => {}
        }
        self.bytes += event.heap_bytes();
        self.events.push(event);
    }

    /// So much more is allocated for what its events point to than they tell.
    pub fn add_spare(&mut self, bytes: usize) {
        self.spare_bytes += bytes;
    }

    /// Its memory, its place in the queue included.
    pub fn held_bytes(&self) -> usize {
        BATCH_BYTES + self.events.capacity() * EVENT_BYTES + self.bytes + self.spare_bytes
    }

    /// The charge of its events, for code that keeps them on.
    #[cfg(feature = "driver")]
    pub(crate) fn take_charge(&mut self) -> Option<Charge> {
        self.charge.take()
    }

    /// Gives back room for events that did not come.
    fn fit(&mut self) {
        if self.events.capacity() > 2 * self.events.len() + SPARE_EVENTS {
            self.events.shrink_to_fit();
        }
    }
}

/// The memory of a batch in the queue: itself, and a word with its state.
const BATCH_BYTES: usize = size_of::<EventBatch>() + size_of::<usize>();

/// The memory of an event beside its heap bytes.
const EVENT_BYTES: usize = size_of::<Event>();

/// The memory of so many messages of together so many bytes: those that carry none take some, too.
fn held(messages: usize, bytes: usize) -> usize {
    messages * EVENT_BYTES + bytes
}

/// A batch may have room for so many events more than twice what it has.
const SPARE_EVENTS: usize = 16;

struct EventQueueShared {
    limits: QueueLimits,
    /// Below these it is low.
    low: QueueLimits,
    outcomes_max: usize,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    /// Outcomes and failures that were not read.
    outcomes: AtomicUsize,
    pool: MemoryPool,
    /// What the queue held, plus one, when no more could be charged; 0: the last attempt succeeded.
    short_bytes: AtomicUsize,
    /// One for each shard: the [`RoomWanted`] by one that stopped reading clients because of this queue.
    waiting: Vec<AtomicU8>,
    /// The one that is the first to be woken.
    woken_first: AtomicUsize,
    wake: Box<dyn Fn(usize) + Send + Sync>,
}

/// Wakes the process when a sender is gone: it may have been the last.
#[derive(Clone)]
struct WakeAtEnd(Arc<Sleep<Waker>>);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// The shards' end.
#[derive(Clone)]
pub struct ProcessQueue {
    shared: Arc<EventQueueShared>,
    sender: Sender<EventBatch>,
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
    shared: Arc<EventQueueShared>,
    receiver: Receiver<EventBatch>,
    sleep: Arc<Sleep<Waker>>,
}

/// Nothing was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// Nothing came in time.
    #[error("no event came in time")]
    Timeout,
    /// All shards have let go of the queue: the broker stopped.
    #[error("the broker has stopped")]
    Stopped,
}

/// A queue from `shards` shards, in the memory of `ledger`. `wake(shard)` is called when a shard that waits for room
/// should look again.
pub fn process_queue(
    shards: usize,
    limits: QueueLimits,
    ledger: &Ledger,
    wake: impl Fn(usize) + Send + Sync + 'static,
) -> (ProcessQueue, ProcessReceiver) {
    process_queue_for(shards, limits, limits.messages_max, ledger, wake)
}

/// The same, in which so many outcomes may be asked for and unread.
pub fn process_queue_for(
    shards: usize,
    limits: QueueLimits,
    outcomes_max: usize,
    ledger: &Ledger,
    wake: impl Fn(usize) + Send + Sync + 'static,
) -> (ProcessQueue, ProcessReceiver) {
    let (limits, outcomes_max) = (limits.fit(), outcomes_max.max(1));
    let (sender, receiver) = crossbeam_channel::unbounded();
    let shared = Arc::new(EventQueueShared {
        limits,
        low: limits.low(),
        outcomes_max,
        messages: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        outcomes: AtomicUsize::new(0),
        pool: ledger.pool(),
        short_bytes: AtomicUsize::new(0),
        waiting: (0..shards).map(|_| AtomicU8::new(NO_ROOM_WANTED)).collect(),
        woken_first: AtomicUsize::new(0),
        wake: Box::new(wake),
    });
    let sleep = Arc::new(Sleep::new());
    // From the first batch on, the channel keeps memory for some dozens: a part of what the queue itself costs.
    let primed = sender.send(EventBatch::new(OwnerId(0))).is_ok() && receiver.try_recv().is_ok();
    debug_assert!(primed, "its receiver is here");
    let queue = ProcessQueue { shared: shared.clone(), sender, sleep: WakeAtEnd(sleep.clone()) };
    (queue, ProcessReceiver { shared, receiver, sleep })
}

impl ProcessQueue {
    /// Returns whether another message for `memory` may follow those in the queue and those of `pending`, which is not
    /// sent yet.
    pub fn has_room(&self, memory: &ProcessMemory, pending: Option<&EventBatch>) -> bool {
        self.level(memory, pending) != QueueLevel::Full
    }

    /// The limits of the queue.
    pub fn limits(&self) -> QueueLimits {
        self.shared.limits
    }

    /// How full the queue is for another message for `memory`, with `pending`, which is not sent yet.
    pub fn level(&self, memory: &ProcessMemory, pending: Option<&EventBatch>) -> QueueLevel {
        let pending = pending.map_or((0, 0), |batch| (batch.messages, batch.bytes));
        let messages = self.shared.messages.load(Ordering::Relaxed) + pending.0;
        let queued = self.shared.bytes.load(Ordering::Relaxed) + pending.1;
        let low = &self.shared.low;
        let level = if messages < low.messages_max && queued < low.bytes_max {
            QueueLevel::Low
        } else {
            self.shared.limits.level_above_low(messages, queued)
        };
        let is_covered = messages == 0 && queued == 0
            || level != QueueLevel::Full
                && self.shared.is_covered(memory, held(messages, queued), held(pending.0 + 1, pending.1));
        if is_covered { level } else { QueueLevel::Full }
    }

    /// Returns whether a channel may be opened of which `opened_bytes` are told. What is kept of channels (by a link)
    /// counts too, so this can be false while the queue is empty.
    pub fn has_room_to_open(&self, memory: &ProcessMemory, pending: Option<&EventBatch>, opened_bytes: usize) -> bool {
        let bytes = pending.map_or(0, |batch| batch.bytes);
        let queued = self.shared.bytes.load(Ordering::Relaxed) + bytes;
        queued < self.shared.limits.bytes_max && memory.has_room(bytes + opened_bytes + 2 * EVENT_BYTES)
    }

    /// Returns whether an outcome may be asked for.
    pub fn has_room_for_outcome(&self) -> bool {
        self.shared.outcomes.load(Ordering::Relaxed) < self.shared.outcomes_max
    }

    /// Where memory for one of its processes is charged.
    pub fn memory_of(&self, process: ProcessId) -> ProcessMemory {
        self.shared.pool.memory_of(process)
    }

    /// Asks to be woken when there is so much room, and returns whether there is already (then it will not be).
    pub fn wait_for_room(&self, shard: usize, wanted: RoomWanted) -> bool {
        let waiting = &self.shared.waiting[shard];
        // Processes of one node share a queue: the shard looks at all of them when the first has its room.
        if waiting.load(Ordering::SeqCst) != RoomWanted::Half as u8 {
            waiting.store(wanted as u8, Ordering::SeqCst);
        }
        self.shared.has(wanted) && waiting.swap(NO_ROOM_WANTED, Ordering::SeqCst) != NO_ROOM_WANTED
    }

    /// Returns whether a shard that waited for so much room may go on.
    pub fn has(&self, wanted: RoomWanted) -> bool {
        self.shared.has(wanted)
    }

    /// Hands a batch over, charged to `memory`. Returns false when the process is gone.
    pub fn send(&self, memory: &ProcessMemory, mut batch: EventBatch) -> bool {
        if batch.failures > 0 {
            self.limit_failures(&mut batch);
        }
        batch.fit();
        self.shared.messages.fetch_add(batch.messages, Ordering::Relaxed);
        self.shared.bytes.fetch_add(batch.bytes, Ordering::Relaxed);
        let outcomes = batch.outcomes + batch.failures;
        if outcomes > 0 {
            self.shared.outcomes.fetch_add(outcomes, Ordering::Relaxed);
        }
        // Room was looked for before its events were made; what came into an empty queue may be more.
        batch.charge = Some(memory.charge_anyway(HeldAs::Events, batch.held_bytes()));
        let sent = self.sender.send(batch).is_ok();
        self.sleep.0.wake();
        sent
    }

    /// Ends the sleep of the process, without events.
    pub fn wake(&self, owner: OwnerId) {
        // A receiver that is gone sleeps no more.
        let _ = self.sender.send(EventBatch::new(owner));
        self.sleep.0.wake();
    }

    /// Leaves out failures for which there is no place.
    fn limit_failures(&self, batch: &mut EventBatch) {
        let places = self.shared.outcomes_max.div_ceil(2).saturating_sub(self.shared.outcomes.load(Ordering::Relaxed));
        let mut left = batch.failures.min(places);
        batch.failures = left;
        batch.events.retain(|event| {
            let is_failure = matches!(event, Event::Failed { .. });
            let stays = !is_failure || left > 0;
            left -= usize::from(is_failure && stays);
            stays
        });
    }

    /// The bytes of its events.
    pub fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl EventQueueShared {
    fn has(&self, wanted: RoomWanted) -> bool {
        let (messages, bytes) = (self.messages.load(Ordering::SeqCst), self.bytes.load(Ordering::SeqCst));
        let short_bytes = self.short_bytes.load(Ordering::SeqCst);
        let is_left = match wanted {
            RoomWanted::Half => messages <= self.limits.messages_max / 2 && bytes <= self.limits.bytes_max / 2,
            RoomWanted::Low => messages < self.low.messages_max && bytes < self.low.bytes_max,
        };
        is_left && (short_bytes == 0 || held(messages, bytes) <= short_bytes / 2)
    }

    /// Returns whether `more` can be charged beside what the queue holds.
    fn is_covered(&self, memory: &ProcessMemory, queued: usize, more: usize) -> bool {
        let is_covered = memory.has_room(more);
        let short_bytes = if is_covered { 0 } else { queued + 1 };
        if self.short_bytes.load(Ordering::Relaxed) != short_bytes {
            self.short_bytes.store(short_bytes, Ordering::SeqCst);
        }
        is_covered
    }
}

impl ProcessReceiver {
    /// Waits for a batch.
    ///
    /// # Errors
    /// When none came in time, or none will come any more.
    pub fn recv(&self, timeout: Duration) -> Result<EventBatch, RecvError> {
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
    pub fn poll_recv(&self, context: &mut Context<'_>) -> Poll<Result<EventBatch, RecvError>> {
        let mut found = self.receiver.try_recv();
        if matches!(found, Err(TryRecvError::Empty)) {
            self.sleep.register(context.waker().clone());
            found = self.receiver.try_recv();
        }
        match found {
            Err(TryRecvError::Empty) => Poll::Pending,
            found => Poll::Ready(self.taken(found)),
        }
    }

    /// As [`poll_recv`](Self::poll_recv), for a process that keeps its events elsewhere: its outcomes stay counted as
    /// unread until each was [read](Self::note_outcome_read).
    #[cfg(feature = "driver")]
    pub(crate) fn poll_moved(&self, context: &mut Context<'_>) -> Poll<Result<EventBatch, RecvError>> {
        self.poll_recv(context).map_ok(|batch| {
            self.shared.outcomes.fetch_add(batch.outcomes, Ordering::Relaxed);
            batch
        })
    }

    /// An outcome was read of a batch that was [moved](Self::poll_moved).
    #[cfg(feature = "driver")]
    pub(crate) fn note_outcome_read(&self) {
        self.shared.outcomes.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes a batch if one is there.
    ///
    /// # Errors
    /// `Timeout` when there is none now, `Stopped` when none will come any more.
    pub fn try_recv(&self) -> Result<EventBatch, RecvError> {
        self.taken(self.receiver.try_recv())
    }

    fn taken(&self, found: Result<EventBatch, TryRecvError>) -> Result<EventBatch, RecvError> {
        let batch = found.map_err(|error| match error {
            TryRecvError::Empty => RecvError::Timeout,
            TryRecvError::Disconnected => RecvError::Stopped,
        })?;
        self.account(&batch);
        Ok(batch)
    }

    /// Counts a batch out, and wakes the shards that wait once half of the queue is empty.
    fn account(&self, batch: &EventBatch) {
        self.shared.messages.fetch_sub(batch.messages, Ordering::SeqCst);
        self.shared.bytes.fetch_sub(batch.bytes, Ordering::SeqCst);
        let outcomes = batch.outcomes + batch.failures;
        if outcomes > 0 {
            self.shared.outcomes.fetch_sub(outcomes, Ordering::Relaxed);
        }
        if !self.shared.has(RoomWanted::Half) {
            return;
        }
        self.wake_waiting(self.shared.has(RoomWanted::Low));
    }

    /// Wakes the shards that wait for half of the queue, or, where it `is_low`, for that.
    fn wake_waiting(&self, is_low: bool) {
        let EventQueueShared { waiting, woken_first, wake, .. } = &*self.shared;
        let first = woken_first.load(Ordering::Relaxed);
        let mut is_first = true;
        for shard in (first..waiting.len()).chain(0..first) {
            let wanted = waiting[shard].load(Ordering::SeqCst);
            let is_there = wanted == RoomWanted::Half as u8 || wanted == RoomWanted::Low as u8 && is_low;
            if is_there && waiting[shard].swap(NO_ROOM_WANTED, Ordering::SeqCst) != NO_ROOM_WANTED {
                if std::mem::take(&mut is_first) {
                    woken_first.store((shard + 1) % waiting.len(), Ordering::Relaxed);
                }
                wake(shard);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Budget;
    use crate::channel::ChannelId;
    use crate::proto::MessageKind;
    use crate::shard::event::Opened;
    use bytes::Bytes;

    fn empty_message() -> Event {
        Event::Message { channel: ChannelId::new(1), kind: MessageKind::Text, payload: Bytes::new() }
    }

    fn batch(messages: usize) -> EventBatch {
        let mut batch = EventBatch::new(OwnerId(1));
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
        let (queue, receiver) = process_queue(2, limits, &Ledger::default(), move |shard| {
            assert_eq!(shard, 1);
            seen.fetch_add(1, Ordering::SeqCst);
        });
        let memory = queue.memory_of("p:test:sys".parse().unwrap());
        assert!(queue.has_room(&memory, Some(&batch(3))) && !queue.has_room(&memory, Some(&batch(4))));
        queue.send(&memory, batch(2));
        queue.send(&memory, batch(2));
        assert!(memory.tenant().held().events >= 4 * EVENT_BYTES + 4);
        assert!(!queue.has_room(&memory, None) && !queue.wait_for_room(1, RoomWanted::Half));
        receiver.try_recv().unwrap();
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        receiver.try_recv().unwrap();
        assert_eq!(woken.load(Ordering::SeqCst), 1, "woken once for each time it asked");
        assert!(queue.wait_for_room(1, RoomWanted::Half), "there is room, so there is nothing to wait for");
        drop(queue);
        assert_eq!(receiver.try_recv().unwrap_err(), RecvError::Stopped);
        assert_eq!(memory.tenant().total(), 0);
    }

    #[test]
    fn a_queue_is_high_until_it_is_low_and_wakes_who_waits_for_that_only_then() {
        let woken = Arc::new(AtomicUsize::new(0));
        let seen = woken.clone();
        let limits = QueueLimits { messages_max: 64, bytes_max: 64 * 1024 };
        let (queue, receiver) = process_queue(1, limits, &Ledger::default(), move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
        });
        let memory = queue.memory_of("p:test:sys".parse().unwrap());
        let level = |pending: usize| queue.level(&memory, Some(&batch(pending)));
        assert_eq!([1, 2, 4, 64].map(level), [QueueLevel::Low, QueueLevel::Middle, QueueLevel::High, QueueLevel::Full]);
        (0..4).for_each(|_| assert!(queue.send(&memory, batch(1))));
        assert!(!queue.wait_for_room(0, RoomWanted::Low));
        for woken_by_now in [0, 0, 1, 1] {
            receiver.try_recv().unwrap();
            assert_eq!(woken.load(Ordering::SeqCst), woken_by_now);
        }
        assert!(queue.wait_for_room(0, RoomWanted::Low));
        // Bytes count as messages do, and a share is never nothing.
        assert_eq!((limits.units(0), limits.units(2048)), (1, 3));
        assert_eq!((QueueLimits::default().share(1), QueueLimits::default().share(64)), (256, 64));
        assert_eq!(QueueLimits::default().share(1_000_000), SHARE_MIN);
    }

    #[test]
    fn messages_without_a_byte_that_memory_has_no_room_for_wait_until_half_are_read() {
        let woken = Arc::new(AtomicUsize::new(0));
        let seen = woken.clone();
        let ledger = Ledger::new(Budget::of(1 << 20));
        let (queue, receiver) = process_queue(1, QueueLimits::default(), &ledger, move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
        });
        let memory = queue.memory_of("p:test:sys".parse().unwrap());
        for _ in 0..3 {
            let mut silent = EventBatch::new(OwnerId(1));
            (0..100).for_each(|_| silent.push(empty_message()));
            assert!(queue.send(&memory, silent));
        }
        let _others = memory.charge_anyway(HeldAs::Content, 1 << 20);
        assert!(!queue.has_room(&memory, None));
        assert!(!queue.wait_for_room(0, RoomWanted::Half), "it would be asked again and again");
        for woken_by_now in [0, 1, 1] {
            receiver.try_recv().unwrap();
            assert_eq!(woken.load(Ordering::SeqCst), woken_by_now);
        }
    }

    #[test]
    fn shards_that_wait_are_woken_first_in_turn() {
        let woken = Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = woken.clone();
        let limits = QueueLimits { messages_max: 2, bytes_max: 100 };
        let (queue, receiver) = process_queue(4, limits, &Ledger::default(), move |shard| {
            seen.lock().unwrap().push(shard);
        });
        let memory = queue.memory_of("p:test:sys".parse().unwrap());
        let round = |waiting: &[usize]| {
            queue.send(&memory, batch(2));
            assert!(waiting.iter().all(|&shard| !queue.wait_for_room(shard, RoomWanted::Half)));
            receiver.try_recv().unwrap();
            std::mem::take(&mut *woken.lock().unwrap())
        };
        assert_eq!(round(&[0, 1, 2, 3]), [0, 1, 2, 3]);
        assert_eq!(round(&[0, 1, 2, 3]), [1, 2, 3, 0]);
        // One that does not wait takes no turn.
        assert_eq!(round(&[0, 1, 3]), [3, 0, 1]);
        assert_eq!(round(&[2, 3]), [2, 3]);
        assert_eq!(round(&[0, 1, 2, 3]), [3, 0, 1, 2]);
        assert_eq!(round(&[0, 1, 2, 3]), [0, 1, 2, 3]);
    }

    #[test]
    fn opened_channels_that_nobody_reads_of_fill_the_queue() {
        let (queue, receiver) =
            process_queue(1, QueueLimits { messages_max: 4, bytes_max: 50_000 }, &Ledger::default(), |_| {});
        let memory = queue.memory_of("p:test:sys".parse().unwrap());
        let mut channels = 0;
        while queue.has_room_to_open(&memory, None, 10_000) {
            let mut opened = EventBatch::new(OwnerId(1));
            opened.push(Event::Opened(Box::new(Opened {
                channel: ChannelId::new(1),
                path: "x".repeat(10_000).into(),
                source: ([127, 0, 0, 1], 1).into(),
                forwarded_for: None,
                registered: false,
                extension: false,
                grant: None,
            })));
            queue.send(&memory, opened);
            channels += 1;
        }
        assert_eq!(channels, 5);
        assert!(!queue.has_room(&memory, None), "messages wait behind them");
        drop((queue, receiver));
        assert_eq!(memory.tenant().total(), 0);
    }

    #[test]
    fn failures_have_half_of_the_places_of_outcomes() {
        let limits = QueueLimits { messages_max: 4, bytes_max: 100 };
        let (queue, receiver) = process_queue(1, limits, &Ledger::default(), |_| {});
        let memory = queue.memory_of("p:test:sys".parse().unwrap());
        for _ in 0..2 {
            let mut told = EventBatch::new(OwnerId(1));
            for ticket in 0..5 {
                told.push(Event::Failed { ticket, outcome: Default::default() });
            }
            told.push(Event::Outcome { ticket: 9, outcome: Default::default() });
            queue.send(&memory, told);
        }
        assert!(!queue.has_room_for_outcome());
        assert_eq!(receiver.try_recv().unwrap().events.len(), 2 + 1);
        assert_eq!(receiver.try_recv().unwrap().events.len(), 1);
        assert!(queue.has_room_for_outcome());
    }

    #[test]
    fn a_sleeping_process_is_woken_by_each_batch_and_by_the_end() {
        let (queue, receiver) = process_queue(1, QueueLimits::default(), &Ledger::default(), |_| {});
        assert_eq!(receiver.recv(Duration::from_millis(1)).unwrap_err(), RecvError::Timeout);
        let (seen, batches) = crossbeam_channel::unbounded();
        let process = std::thread::spawn(move || {
            let never = Duration::from_secs(3600);
            while receiver.recv(never).is_ok() {
                seen.send(()).unwrap();
            }
        });
        let memory = queue.memory_of("p:test:sys".parse().unwrap());
        for _ in 0..1000 {
            queue.send(&memory, batch(1));
            batches.recv_timeout(Duration::from_secs(60)).expect("the process was woken");
        }
        drop(queue.clone());
        drop(queue);
        process.join().unwrap();
    }
}
