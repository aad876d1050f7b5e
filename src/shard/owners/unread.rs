//! The events of a process that runs on the shards, on this shard: those that its handler has not taken yet.
//!
//! Invariants: they keep within the limits of a process' queue, by the same rules (`queue/events.rs`): messages need
//! room first, Closed is never refused, and failures have half as many places as messages. Events that wait from one
//! turn to the next are charged to their process.

use crate::admission::{Charge, HeapBytes, HeldAs, ProcessMemory};
use crate::queue::events::{QueueLevel, QueueLimits, RoomWanted};
use crate::shard::event::Event;
use std::collections::VecDeque;

/// The memory of an event beside its heap bytes.
const EVENT_BYTES: usize = size_of::<Event>();

/// Room for so many events is kept when there are none.
const KEPT_EVENTS: usize = 1024;

/// See the module.
pub(in crate::shard) struct Unread {
    limits: QueueLimits,
    /// Below these it is low.
    low: QueueLimits,
    events: VecDeque<Event>,
    messages: usize,
    bytes: usize,
    failures: usize,
    /// The bytes of message chunks beyond the messages.
    spare_bytes: usize,
    charge: Charge,
    /// Whether it is in the list of owners with something to do.
    pub is_listed: bool,
}

impl Unread {
    pub(crate) fn new(limits: QueueLimits, memory: &ProcessMemory) -> Self {
        let limits = limits.fit();
        let charge = memory.charge_anyway(HeldAs::Events, 0);
        Self {
            limits,
            low: limits.low(),
            events: VecDeque::new(),
            messages: 0,
            bytes: 0,
            failures: 0,
            spare_bytes: 0,
            charge,
            is_listed: false,
        }
    }

    pub(crate) fn push(&mut self, event: Event) {
        if matches!(event, Event::Failed { .. }) {
            if self.failures >= self.limits.messages_max.div_ceil(2) {
                // A process that leaves so many unread does not look at them.
                return;
            }
            self.failures += 1;
        }
        self.messages += usize::from(is_message(&event));
        self.bytes += event.heap_bytes();
        self.events.push_back(event);
    }

    pub(crate) fn take(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.messages -= usize::from(is_message(&event));
        self.bytes -= event.heap_bytes();
        self.failures -= usize::from(matches!(event, Event::Failed { .. }));
        if self.events.is_empty() {
            self.settle(0);
        }
        Some(event)
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// How full it is for one more message.
    pub(crate) fn level(&self, memory: &ProcessMemory) -> QueueLevel {
        let level =
            if self.is_low() { QueueLevel::Low } else { self.limits.level_above_low(self.messages, self.bytes) };
        let is_covered = self.messages == 0 && self.bytes == 0 || memory.has_room(self.uncharged_bytes() + EVENT_BYTES);
        if is_covered { level } else { QueueLevel::Full }
    }

    /// Its limits.
    pub(crate) fn limits(&self) -> QueueLimits {
        self.limits
    }

    /// Returns whether a channel may be opened of which `opened_bytes` are told.
    pub(crate) fn has_room_to_open(&self, memory: &ProcessMemory, opened_bytes: usize) -> bool {
        self.bytes < self.limits.bytes_max && memory.has_room(self.uncharged_bytes() + opened_bytes + 2 * EVENT_BYTES)
    }

    /// Returns whether clients that waited for so much room may go on.
    pub(crate) fn has(&self, wanted: RoomWanted) -> bool {
        match wanted {
            RoomWanted::Half => {
                self.messages <= self.limits.messages_max / 2 && self.bytes <= self.limits.bytes_max / 2
            }
            RoomWanted::Low => self.is_low(),
        }
    }

    fn is_low(&self) -> bool {
        self.messages < self.low.messages_max && self.bytes < self.low.bytes_max
    }

    /// Charges the events that go on waiting, and `spare_bytes` more of the last ones. To be called once a turn.
    pub(crate) fn settle(&mut self, spare_bytes: usize) {
        self.spare_bytes = if self.events.is_empty() { 0 } else { self.spare_bytes + spare_bytes };
        if self.events.is_empty() && self.events.capacity() > KEPT_EVENTS {
            self.events = VecDeque::new();
        }
        let held = if self.events.is_empty() { 0 } else { self.held_bytes() };
        if held != self.charge.bytes() {
            self.charge.resize(held);
        }
    }

    fn held_bytes(&self) -> usize {
        self.events.capacity() * EVENT_BYTES + self.bytes + self.spare_bytes
    }

    fn uncharged_bytes(&self) -> usize {
        self.held_bytes().saturating_sub(self.charge.bytes())
    }
}

fn is_message(event: &Event) -> bool {
    matches!(event, Event::Message { .. } | Event::Control { .. } | Event::Http(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Ledger;
    use crate::channel::ChannelId;
    use crate::proto::MessageKind;
    use crate::shard::outcome::Outcome;
    use bytes::Bytes;

    fn message(bytes: usize) -> Event {
        let payload = Bytes::from(vec![b'x'; bytes]);
        Event::Message { channel: ChannelId::new(1), kind: MessageKind::Text, payload }
    }

    #[test]
    fn what_is_unread_keeps_within_the_limits_of_a_queue_and_is_charged() {
        let memory = Ledger::default().pool().memory_of("p:unread:sys".parse().unwrap());
        let limits = QueueLimits { messages_max: 4, bytes_max: 100 };
        let mut unread = Unread::new(limits, &memory);
        let has_room = |unread: &Unread| unread.level(&memory) != QueueLevel::Full;
        for _ in 0..4 {
            assert!(has_room(&unread));
            unread.push(message(1));
        }
        assert!(!has_room(&unread) && !unread.has(RoomWanted::Half));
        unread.settle(0);
        assert!(unread.charge.bytes() >= 4 * (EVENT_BYTES + 1));
        for left in [3, 2] {
            unread.take().unwrap();
            assert_eq!((unread.len(), unread.has(RoomWanted::Half)), (left, left == 2));
        }
        unread.push(message(200));
        assert!(!has_room(&unread), "over its bytes");
        for ticket in 0..5 {
            unread.push(Event::Failed { ticket, outcome: Outcome::default() });
        }
        assert_eq!(unread.len(), 5, "failures beyond half of the messages are dropped");
        while unread.take().is_some() {}
        assert!(has_room(&unread) && unread.has(RoomWanted::Low));
        unread.settle(0);
        assert_eq!((unread.charge.bytes(), unread.messages, unread.bytes, unread.failures), (0, 0, 0, 0));
    }
}
