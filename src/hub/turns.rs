//! Messages of the hub's clients that wait to be handled: one queue for each client, served in turn.
//!
//! Invariants: the events of a channel stay in order, and a client with many orders delays others by one of its orders
//! for each of theirs; waiting events are bounded and charged. A client over its own bound, or with most when all
//! together are over theirs, is refused: its orders are dropped, and its channel is to be closed. It does not interpret
//! orders.

use crate::admission::{Charge, HeapBytes, HeldAs, ProcessMemory};
use crate::broker::Event;
use crate::channel::ChannelId;
use std::collections::{HashMap, VecDeque};

/// Orders and messages of one client that may wait: far more than any that waits for answers has under way.
pub(super) const ORDERS_MAX: usize = 4096;

/// The most bytes that may wait, of all clients: all that a process' queue may hold, with the places of its events, and
/// [`ROOM_BYTES`]. So whoever sends little is not refused because many do.
const BYTES_MAX: usize = 32 << 20;

/// While more waits, nothing more is taken out of the process' queue: it fills, and clients are not read.
const ROOM_BYTES: usize = BYTES_MAX / 8;

/// The memory of a client of whom something waits: its places in the table and in the round, and those that a short
/// queue has free.
const CLIENT_BYTES: usize = 2 * size_of::<(ChannelId, ClientEvents)>() + 3 * size_of::<Event>();

/// See the module.
pub(super) struct ClientTurns {
    of: HashMap<ChannelId, ClientEvents>,
    /// The channels with waiting events, each once.
    round: VecDeque<ChannelId>,
    bytes: usize,
    charge: Charge,
}

#[derive(Default)]
struct ClientEvents {
    waiting: VecDeque<Event>,
    orders: usize,
    bytes: usize,
    is_refused: bool,
}

impl ClientTurns {
    pub(crate) fn new(memory: &ProcessMemory) -> Self {
        let (of, round) = Default::default();
        Self { of, round, bytes: 0, charge: memory.charge_anyway(HeldAs::Events, 0) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.round.is_empty()
    }

    /// Returns whether more events should be taken in now.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < ROOM_BYTES
    }

    /// Something has happened. Returns the channel that is to be closed for it.
    pub(crate) fn enter(&mut self, event: Event) -> Option<ChannelId> {
        let channel = channel_of(&event)?;
        let of = self.of.entry(channel).or_default();
        if of.is_refused && is_order(&event) {
            return None;
        }
        if of.waiting.is_empty() {
            self.round.push_back(channel);
        }
        let bytes = bytes_of(&event);
        of.orders += usize::from(is_order(&event));
        of.bytes += bytes;
        self.bytes += bytes;
        of.waiting.push_back(event);
        let refused = if of.orders > ORDERS_MAX {
            Some(channel)
        } else if self.bytes > BYTES_MAX {
            let most = self.of.iter().filter(|(_, of)| of.orders > 0).max_by_key(|(_, of)| of.bytes);
            most.map(|(&channel, _)| channel)
        } else {
            None
        };
        refused.inspect(|&channel| self.refuse(channel))
    }

    /// Nothing more of it is heard, but that it goes.
    fn refuse(&mut self, channel: ChannelId) {
        let Some(of) = self.of.get_mut(&channel) else { return };
        of.waiting.retain(|event| !is_order(event));
        let bytes = of.waiting.iter().map(bytes_of).sum();
        self.bytes -= std::mem::replace(&mut of.bytes, bytes) - bytes;
        (of.orders, of.is_refused) = (0, true);
        if of.waiting.is_empty() {
            self.round.retain(|&other| other != channel);
        }
    }

    /// The next event to handle.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let channel = self.round.pop_front()?;
        let of = self.of.get_mut(&channel)?;
        let event = of.waiting.pop_front()?;
        let bytes = bytes_of(&event);
        of.bytes -= bytes;
        self.bytes -= bytes;
        of.orders -= usize::from(is_order(&event));
        if !of.waiting.is_empty() {
            self.round.push_back(channel);
        } else if !of.is_refused || matches!(event, Event::Closed(_)) {
            self.of.remove(&channel);
        }
        Some(event)
    }

    /// Counts what waits now, and gives back most of what a burst has needed.
    pub(crate) fn count(&mut self) {
        if self.of.len() < self.of.capacity() / 8 {
            self.of.shrink_to(2 * self.of.len());
            self.round.shrink_to(2 * self.round.len());
        }
        self.charge.resize(self.bytes + self.of.len() * CLIENT_BYTES);
    }
}

fn is_order(event: &Event) -> bool {
    matches!(event, Event::Message { .. } | Event::Control { .. })
}

/// With its place in a queue that doubles.
fn bytes_of(event: &Event) -> usize {
    event.heap_bytes() + size_of::<Event>() * 3 / 2
}

/// None: it says nothing to the hub.
fn channel_of(event: &Event) -> Option<ChannelId> {
    Some(match event {
        Event::Opened(opened) => opened.channel,
        Event::Closed(closed) => closed.channel,
        Event::Message { channel, .. } | Event::Control { channel, .. } | Event::Resumed { channel, .. } => *channel,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{Budget, Ledger};
    use crate::broker::ControlKind;
    use crate::queue::events::{QueueLimits, process_queue};
    use crate::shard::event::{Closed, ClosedBy};
    use bytes::Bytes;

    fn turns() -> (ClientTurns, ProcessMemory) {
        let (queue, _) = process_queue(1, QueueLimits::default(), &Ledger::new(Budget::default()), |_| {});
        let memory = queue.memory_of("hub:pushring:sys".parse().unwrap());
        (ClientTurns::new(&memory), memory)
    }

    fn order(channel: u32, bytes: usize) -> Event {
        let payload = Bytes::from(vec![b'x'; bytes]);
        Event::Control { channel: ChannelId::new(channel), kind: ControlKind::Text, payload }
    }

    fn closed(channel: u32) -> Event {
        let channel = ChannelId::new(channel);
        Event::Closed(Box::new(Closed {
            channel,
            code: 1006,
            reason: "".into(),
            by: ClosedBy::Connection,
            lost_bytes: 0,
        }))
    }

    fn heard(turns: &mut ClientTurns) -> Option<u32> {
        turns.next().and_then(|event| channel_of(&event)).map(ChannelId::get)
    }

    #[test]
    fn clients_are_heard_in_turn_and_each_in_order() {
        let (mut turns, memory) = turns();
        for _ in 0..1000 {
            assert_eq!(turns.enter(order(1, 20)), None);
        }
        turns.enter(order(2, 20));
        turns.enter(closed(2));
        turns.count();
        assert!(memory.tenant().total() >= 1001 * 20);
        let first: Vec<_> = (0..5).filter_map(|_| heard(&mut turns)).collect();
        assert_eq!(first, [1, 2, 1, 2, 1], "it goes behind what it has said");
        assert_eq!((0..997).filter_map(|_| heard(&mut turns)).count(), 997);
        assert!(turns.is_empty() && turns.of.is_empty() && turns.bytes == 0);
        turns.count();
        assert_eq!(memory.tenant().total(), 0);
    }

    #[test]
    fn who_says_too_much_is_refused_and_not_heard_any_more() {
        let (mut turns, _) = turns();
        turns.enter(order(2, 20));
        let refused: Vec<_> = (0..2 * ORDERS_MAX).filter_map(|_| turns.enter(order(1, 20))).collect();
        assert_eq!(refused, [ChannelId::new(1)], "once");
        turns.enter(closed(1));
        assert_eq!((heard(&mut turns), heard(&mut turns), heard(&mut turns)), (Some(2), Some(1), None));
        assert!(turns.of.is_empty());
    }

    #[test]
    fn where_all_have_said_too_much_who_has_most_is_refused() {
        let (mut turns, _) = turns();
        for number in 0..4_u32 {
            assert_eq!(turns.enter(order(number, (4 + 2 * number as usize) << 20)), None);
        }
        assert!(!turns.has_room());
        assert_eq!(turns.enter(order(9, 6 << 20)), Some(ChannelId::new(3)));
        assert!(turns.bytes <= BYTES_MAX);
        let rest: Vec<_> = std::iter::from_fn(|| heard(&mut turns)).collect();
        assert_eq!(rest, [0, 1, 2, 9]);
        assert!(turns.has_room());
    }
}
