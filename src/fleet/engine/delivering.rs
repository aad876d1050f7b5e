//! Deliveries to the shards of what other nodes send: pushes, losses for clients that count, and closes of channels.
//!
//! Invariants: what finds no room in an inbox waits in a queue of its process, and holds up nothing of any other; what
//! is for one process is delivered in the order in which it came; a queue is bounded and charged. A process that is
//! behind by a whole queue loses what comes until it has caught up: to the message, and its clients are told. What the
//! broker does itself waits by shard in the same way.

use super::super::subject::{NamedAudience, Target};
use super::super::traffic::{ChannelAsked, Channels, Delivery};
use super::Engine;
use crate::admission::{Charge, HeapBytes};
use crate::broker::{Audience, ChannelQuestion, PushError};
use crate::channel::ChannelId;
use crate::process_id::ProcessId;
use futures_util::FutureExt;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use tokio::task;

/// As much as a process may leave unread of its own clients' messages.
const WAITING_MAX: usize = 64 * 1024;
const WAITING_BYTES_MAX: usize = 16 << 20;

/// Payloads up to here are copied where they wait: those of one read share its buffer.
const COPIED_BYTES_MAX: usize = 4096;

/// For whom it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Recipient {
    Process(ProcessId),
    /// The broker itself, which lets guests push to channels of a shard, and closes them. A guest pushes to one channel
    /// at a time.
    Shard(usize),
}

/// Something of another node for the shards.
pub(super) enum ForeignOrder {
    Push(Delivery),
    /// So many messages to an audience were lost.
    Loss(Target, u32),
    Close(ChannelAsked),
}

impl ForeignOrder {
    fn recipient(&self, shard_of: impl Fn(ChannelId) -> usize) -> Recipient {
        match self {
            Self::Push(Delivery { channels: Channels::Guest(_, list), .. }) => {
                Recipient::Shard(list.first().map_or(0, |&channel| shard_of(channel)))
            }
            Self::Close(asked) => Recipient::Shard(shard_of(asked.channel)),
            Self::Push(Delivery { process, .. }) | Self::Loss(Target { process, .. }, _) => {
                Recipient::Process(process.clone())
            }
        }
    }

    /// The memory that it takes while it waits.
    fn bytes(&self) -> usize {
        let bytes = match self {
            Self::Push(Delivery { channels, message, .. }) => {
                let listed = match channels {
                    Channels::Of(NamedAudience::Topic(name) | NamedAudience::Path(name)) => name.len(),
                    Channels::Of(NamedAudience::Process) => 0,
                    Channels::List(list) | Channels::Guest(_, list) => list.capacity() * size_of::<ChannelId>(),
                };
                message.payload().len() + listed
            }
            Self::Loss(target, _) => target.name().len(),
            Self::Close(asked) => match &asked.what {
                ChannelQuestion::Look => 0,
                ChannelQuestion::Close(_, reason) => reason.heap_bytes(),
            },
        };
        // With its place in a queue that doubles.
        bytes + size_of::<Self>() * 3 / 2
    }

    /// In memory of its own, where it would keep that of others.
    fn apart(self) -> Self {
        match self {
            Self::Push(delivery) if delivery.message.payload().len() <= COPIED_BYTES_MAX => {
                Self::Push(Delivery { message: delivery.message.copied(), ..delivery })
            }
            order => order,
        }
    }
}

/// Whose messages were lost, and to which audience. Without a source they have been counted; without an audience they
/// were for single channels.
type Loss = (Option<Arc<str>>, Option<Target>);

/// What waits for one recipient while its first delivery finds no room.
pub(super) struct ForeignOrderQueue {
    orders: VecDeque<ForeignOrder>,
    /// What was lost since the queue was full. It is told behind the queue, and before what comes then.
    lost: HashMap<Loss, u32>,
    charge: Charge,
}

impl ForeignOrderQueue {
    fn new(charge: Charge) -> Self {
        Self { orders: VecDeque::new(), lost: HashMap::new(), charge }
    }

    fn add(&mut self, order: ForeignOrder) {
        let bytes = order.bytes();
        let is_loss = matches!(order, ForeignOrder::Loss(..));
        let mut has_room = || {
            let fits = self.orders.len() < WAITING_MAX && self.charge.bytes() + bytes <= WAITING_BYTES_MAX;
            fits && self.charge.grow(bytes).is_ok()
        };
        if !self.lost.is_empty() || !(is_loss || has_room()) {
            return self.lose(order);
        }
        if is_loss {
            // One for each audience at most, each time that a queue is full, or that NATS has lost something.
            self.charge.resize(self.charge.bytes() + bytes);
        }
        self.orders.push_back(order.apart());
    }

    fn lose(&mut self, order: ForeignOrder) {
        let (loss, count) = match order {
            ForeignOrder::Push(Delivery { source, process, channels, .. }) => {
                let target = if let Channels::Of(to) = channels { Some(Target { process, to }) } else { None };
                ((Some(source), target), 1)
            }
            ForeignOrder::Loss(target, count) => ((None, Some(target)), count),
            // The node that asks is not answered.
            ForeignOrder::Close(_) => return,
        };
        let lost = self.lost.entry(loss).or_default();
        *lost = lost.saturating_add(count);
    }

    fn next(&mut self) -> Option<ForeignOrder> {
        let order = self.orders.pop_front()?;
        self.charge.resize(self.charge.bytes() - order.bytes());
        Some(order)
    }
}

impl Engine {
    /// Delivers to the shards, or behind what waits for the same recipient.
    pub(super) fn deliver(self: &Rc<Self>, order: ForeignOrder) {
        let recipient = order.recipient(|channel| self.hands.borrow().shard_of(channel));
        let mut waiting = self.waiting.borrow_mut();
        if let Some(waiting) = waiting.get_mut(&recipient) {
            return waiting.add(order);
        }
        let mut delivering = Box::pin(self.clone().carry_out(order));
        match delivering.as_mut().now_or_never() {
            Some(delivered) => _ = self.has_stopped(&delivered),
            None => {
                waiting.insert(recipient.clone(), ForeignOrderQueue::new(self.held.charge_of_orders()));
                task::spawn_local(self.clone().work_off(recipient, delivering));
            }
        }
    }

    /// Delivers what waits for one recipient, behind the order that has found no room.
    async fn work_off(
        self: Rc<Self>,
        recipient: Recipient,
        first: Pin<Box<impl Future<Output = Result<(), PushError>>>>,
    ) {
        let mut delivered = first.await;
        while !self.has_stopped(&delivered)
            && let Some(next) = self.next_of(&recipient)
        {
            delivered = self.clone().carry_out(next).await;
        }
    }

    /// Leaves the fleet where the broker has stopped.
    fn has_stopped(&self, delivered: &Result<(), PushError>) -> bool {
        let has_stopped = matches!(delivered, Err(PushError::Stopped));
        if has_stopped {
            self.stop.notify_one();
        }
        has_stopped
    }

    /// The next order that waits. None: there is none, and later ones need not wait.
    fn next_of(self: &Rc<Self>, recipient: &Recipient) -> Option<ForeignOrder> {
        let lost = {
            let mut waiting = self.waiting.borrow_mut();
            let waiting = waiting.get_mut(recipient)?;
            if let Some(next) = waiting.next() {
                return Some(next);
            }
            std::mem::take(&mut waiting.lost)
        };
        // What is to be told of it waits from here on.
        for ((source, target), count) in lost {
            match (source, target) {
                (Some(source), target) => {
                    let told = self.member.borrow_mut().undelivered(&source, target.as_ref(), count, self.now_ms());
                    self.tell(&told);
                }
                (None, Some(target)) => self.deliver(ForeignOrder::Loss(target, count)),
                (None, None) => {}
            }
        }
        let mut waiting = self.waiting.borrow_mut();
        let next = waiting.get_mut(recipient)?.next();
        if next.is_none() {
            waiting.remove(recipient);
        }
        next
    }

    async fn carry_out(self: Rc<Self>, order: ForeignOrder) -> Result<(), PushError> {
        match order {
            ForeignOrder::Push(Delivery { process, channels, message, policy, asked, source: _ }) => {
                let part = asked.map(|(node, ask)| self.part_of(node, ask));
                let to = match channels {
                    Channels::Of(to) => to.audience(),
                    Channels::List(list) => Audience::Channels(list),
                    Channels::Guest(guest, list) => {
                        let pushed = self.hands.borrow().push_as_guest(guest, list, message, part);
                        return pushed.await;
                    }
                };
                let pushed = self.hands.borrow_mut().push(&process, to, message, policy, part);
                pushed.await
            }
            ForeignOrder::Loss(Target { process, to }, count) => {
                let missed = self.hands.borrow_mut().miss(&process, to.audience(), count);
                missed.await
            }
            ForeignOrder::Close(ChannelAsked { source, ask, channel, what: ChannelQuestion::Close(code, reason) }) => {
                let closed = self.hands.borrow().close(channel, (code, &reason), self.part_of(source, ask));
                closed.await
            }
            ForeignOrder::Close(_) => Ok(()),
        }
    }
}
