//! A process that runs on the shards, as a shard sees it: it takes its events here, and gives orders meanwhile.
//!
//! This is the only way in which code of a process runs on a shard's thread. A shard knows only that the handler takes
//! events, gives orders, and reports how long that took; clocks, panics and other shards are up to the implementation
//! of [`Handler`]. `C` is the type of an order, which this file must not depend on.

use super::event::{ClientMessage, Event};
use crate::channel::ChannelId;
use crate::proto::MessageKind;

/// One process' handler on one shard.
pub trait Handler<C> {
    /// Takes events from `context` until it gives none, and orders what they come to.
    ///
    /// # Errors
    /// It has failed: it is dropped, and its process is on its way out.
    fn run(&mut self, context: &mut dyn HandlerContext<C>) -> Result<HandlerWait, Failed>;

    /// Takes a message where it lies, since no event waits before it, and orders what it comes to. It may leave the
    /// time that this took to be told with that of the messages that follow in the same read; then it is
    /// [asked for](Self::settle).
    ///
    /// # Errors
    /// As [`run`](Self::run).
    fn message(
        &mut self,
        context: &mut dyn HandlerContext<C>,
        message: ClientMessage<'_>,
    ) -> Result<HandlerWait, Failed>;

    /// No more messages follow in this read: tells the time that was not told.
    fn settle(&mut self, context: &mut dyn HandlerContext<C>);

    /// The shard was woken from another thread, perhaps for this handler: appends the events that came from there to
    /// `events`, and returns what [`run`](Self::run) would.
    fn called(&mut self, events: &mut Vec<Event>) -> HandlerWait;
}

/// A handler's wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandlerWait {
    /// Its next event.
    GoesOn,
    /// Room on other shards: it takes no event until it has been [called](Handler::called).
    Waits,
}

/// A handler has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed;

/// The shard as a handler sees it, for as long as it runs.
pub trait HandlerContext<C> {
    /// The next event; none when there is no more, when what was ordered does not fit this turn, or when this handler
    /// has used up its part of it.
    fn next_event(&mut self) -> Option<Event>;

    /// Returns whether these events are the last: no client is left, and whatever the handler waits for, it is to take
    /// them now.
    fn is_last(&self) -> bool;

    /// So much time of the thread was spent since the last event was given, or the handler began, without what the
    /// shard itself took for large orders.
    fn took(&mut self, ns: u64);

    /// A message to a channel of this shard, written at once behind what waits for it. Returns whether it was; if not,
    /// nothing has happened, and an [order](Self::give) can say the same.
    fn push_at_once(&mut self, channel: ChannelId, kind: MessageKind, payload: &[u8]) -> bool;

    /// An order for this shard. It is executed at once, or, when it is more work than is left of this turn, behind what
    /// came before it.
    ///
    /// # Errors
    /// As much as one process may leave to be done waits already: the order comes back.
    fn give(&mut self, order: C) -> Result<(), C>;
}
