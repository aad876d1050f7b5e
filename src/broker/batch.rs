//! Orders that are submitted together.

#[cfg(feature = "node")]
use super::delivery::DeliveryOptions;
#[cfg(feature = "node")]
use super::message::Message;
#[cfg(feature = "node")]
use super::order::check_size;
use super::order::{Commands, Order};
use super::other_brokers::RemotePush;
use super::pusher::{Full, PushError, Pusher};
#[cfg(feature = "node")]
use crate::channel::ChannelId;
#[cfg(feature = "node")]
use crate::queue::orders::Account;
use crate::shard::command::Command;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Orders per place in an inbox: enough that handing over costs nothing beside executing them, few enough that a turn
/// of the shard stays short.
const BATCH_COMMANDS_MAX: usize = 256;

/// Payload bytes per place in an inbox: what a shard takes in at most in a turn.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Orders of one process that are handed over together, so that many cost as little to hand over as one. Order holds as
/// if they were given one by one. Dropping it gives up what was not [flushed](Self::flush).
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = pushring::Broker::builder().shards(1).start()?;
/// # let chat = broker.process("chat")?;
/// # let channels: Vec<pushring::ChannelId> = Vec::new();
/// use pushring::Message;
///
/// let mut batch = chat.batch();
/// for channel in channels {
///     batch.send(chat.push(channel, Message::text(format!("hello, {channel}"))))?;
/// }
/// batch.flush()?;
/// # Ok(())
/// # }
/// ```
pub struct Batch {
    pusher: Pusher,
    shards: Vec<ShardBatch>,
    /// Messages for other brokers.
    abroad: Vec<RemotePush>,
    abroad_bytes: usize,
    is_full: bool,
    /// Taken out for a shard that had no room, and what it keeps alive.
    on_its_way: Option<(usize, Command, usize)>,
}

/// Those for one shard.
#[derive(Default)]
struct ShardBatch {
    commands: Vec<Command>,
    payload_bytes: usize,
    /// How many orders these are.
    count: usize,
}

impl ShardBatch {
    fn is_full(&self) -> bool {
        self.count >= BATCH_COMMANDS_MAX || self.payload_bytes >= BATCH_BYTES_MAX
    }
}

impl Batch {
    pub(super) fn new(pusher: Pusher) -> Self {
        let shards = (0..pusher.shards()).map(|_| ShardBatch::default()).collect();
        Self { pusher, shards, abroad: Vec::new(), abroad_bytes: 0, is_full: false, on_its_way: None }
    }

    /// Adds an order, and never waits. A batch that [is full](Self::is_full) should be flushed before more is added.
    ///
    /// # Panics
    /// The order is another process', or its message is over [`PAYLOAD_BYTES_MAX`](super::PAYLOAD_BYTES_MAX).
    pub fn add<'p>(&mut self, mut order: impl Order<'p>) {
        assert_eq!(order.check(), Ok(()), "a batch holds orders that can be given");
        assert!(Arc::ptr_eq(&order.pusher().accounts, &self.pusher.accounts), "a batch holds orders of one process");
        if let Some(abroad) = order.take_abroad() {
            self.abroad_bytes += abroad.frame.payload.len();
            self.abroad.push(abroad);
        }
        self.is_full |= self.abroad.len() >= BATCH_COMMANDS_MAX || self.abroad_bytes >= BATCH_BYTES_MAX;
        let commands: Commands = order.into_commands();
        for (shard, command) in commands {
            self.add_command(shard, command);
        }
    }

    /// As [`add`](Self::add), a message of this batch's process to a channel of this broker.
    ///
    /// # Panics
    /// The message is over [`PAYLOAD_BYTES_MAX`](super::PAYLOAD_BYTES_MAX).
    #[cfg(feature = "node")]
    pub(crate) fn push(&mut self, channel: ChannelId, message: Message, delivery: DeliveryOptions) {
        assert_eq!(check_size(&message), Ok(()), "a batch holds orders that can be given");
        let (shard, command) = self.pusher.push_command(channel, message, delivery);
        let orders = &mut self.shards[shard];
        orders.payload_bytes += command.join(&mut orders.commands);
        orders.count += 1;
        self.is_full |= orders.is_full();
    }

    fn add_command(&mut self, shard: usize, command: Command) {
        let orders = &mut self.shards[shard];
        orders.payload_bytes += command.payload_bytes();
        orders.commands.push(command);
        orders.count += 1;
        self.is_full |= orders.is_full();
    }

    /// Adds an order, and flushes the batch once it is full, which waits as [`flush`](Self::flush) does.
    ///
    /// # Errors
    /// The broker has stopped, or the message is too large.
    ///
    /// # Panics
    /// The order is another process'.
    pub fn send<'p>(&mut self, order: impl Order<'p>) -> Result<(), PushError> {
        order.check()?;
        self.add(order);
        if self.is_full { self.flush() } else { Ok(()) }
    }

    /// Returns whether a shard's part of it is as large as what is handed over at a time.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Hands everything over. Blocks the thread until there is room in the shards' inboxes, which drain at the speed of
    /// their CPU whatever clients do.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn flush(&mut self) -> Result<(), PushError> {
        self.is_full = false;
        while let Some((shard, command, bytes)) = self.next() {
            self.pusher.send_bytes(shard, command, bytes, Full::Wait)?;
        }
        self.flush_abroad();
        Ok(())
    }

    /// As [`flush`](Self::flush), for a task of any executor. Dropping the future loses nothing: the next flush goes
    /// on.
    ///
    /// # Errors
    /// The broker has stopped.
    pub async fn flush_async(&mut self) -> Result<(), PushError> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    /// As [`flush`](Self::flush), for hand-written futures: the task of `context` is woken when there is room again. A
    /// full batch stays full until all of it has been handed over.
    pub(crate) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), PushError>> {
        while let Some((shard, command, bytes)) = self.next() {
            let mut command = Some(command);
            let sent = self.pusher.poll_send(shard, &mut command, bytes, context);
            self.on_its_way = command.map(|command| (shard, command, bytes));
            ready!(sent)?;
        }
        self.is_full = false;
        self.flush_abroad();
        Poll::Ready(Ok(()))
    }

    fn flush_abroad(&mut self) {
        self.abroad_bytes = 0;
        for abroad in std::mem::take(&mut self.abroad) {
            self.pusher.give_abroad(Some(abroad));
        }
    }

    /// The next command, its shard and the bytes it keeps alive.
    fn next(&mut self) -> Option<(usize, Command, usize)> {
        self.on_its_way.take().or_else(|| {
            (0..self.shards.len()).find_map(|shard| self.take(shard).map(|(command, bytes)| (shard, command, bytes)))
        })
    }

    /// Bytes of payload that were not handed over.
    #[cfg(feature = "node")]
    pub(crate) fn payload_bytes(&self) -> usize {
        let on_its_way = self.on_its_way.as_ref().map_or(0, |(.., bytes)| *bytes);
        on_its_way + self.shards.iter().map(|orders| orders.payload_bytes).sum::<usize>()
    }

    /// Returns whether its producer has no order that waits, here or in an inbox.
    #[cfg(feature = "node")]
    pub(crate) fn is_done(&self) -> bool {
        let is_empty = self.on_its_way.is_none() && self.shards.iter().all(|orders| orders.commands.is_empty());
        is_empty && self.pusher.accounts.iter().all(|account| account.held().0 == 0)
    }

    #[cfg(feature = "node")]
    pub(super) fn accounts(&self) -> &Arc<[Account]> {
        &self.pusher.accounts
    }

    /// The orders collected for a shard as one command, and the bytes that it keeps alive.
    fn take(&mut self, shard: usize) -> Option<(Command, usize)> {
        let ShardBatch { mut commands, payload_bytes, .. } = std::mem::take(&mut self.shards[shard]);
        match commands.len() {
            0 => None,
            1 => Some((commands.remove(0), payload_bytes)),
            count => Some((Command::Batch(commands), Command::batch_bytes(count, payload_bytes))),
        }
    }
}
